"""A handler that asks for a transaction: its rows, the event it returns and its checkpoint are one commit, so they happen once."""

import asyncio
import sqlite3

from tidings import App, Context, Event, Retry

app = App("stock", store="sqlite:///stock.db")


class OrderPlaced(Event, key="order_id"):
    order_id: int
    item: str


class StockReserved(Event, key="order_id"):
    order_id: int
    left: int


@app.subscribe(OrderPlaced, retry=Retry(first=0.01))
def reserve(event: OrderPlaced, ctx: Context, tx: sqlite3.Connection) -> StockReserved:
    (left,) = tx.execute("UPDATE stock SET left = left - 1 WHERE item = ? RETURNING left", (event.item,)).fetchone()
    print(f"order {event.order_id}: {left} left of {event.item}, attempt {ctx.attempt}")
    if event.order_id == 2 and ctx.attempt == 1:
        raise RuntimeError("a failure after the first write")  # the UPDATE is rolled back with everything else
    return StockReserved(order_id=event.order_id, left=left)


@app.subscribe(StockReserved)
async def tell(event: StockReserved) -> None:
    print(f"order {event.order_id} is reserved")
    told.release()


told = asyncio.Semaphore(0)


async def main() -> None:
    with sqlite3.connect("stock.db") as conn:
        conn.execute("CREATE TABLE stock (item TEXT PRIMARY KEY, left INTEGER NOT NULL)")
        conn.execute("INSERT INTO stock VALUES ('lamp', 10)")
    async with app:
        for order_id in (1, 2, 3):
            await app.publish(OrderPlaced(order_id=order_id, item="lamp"), tx="own")
            await told.acquire()
    with sqlite3.connect("stock.db") as conn:
        print("left in the table:", conn.execute("SELECT left FROM stock").fetchone()[0])
    conn.close()


asyncio.run(main())
