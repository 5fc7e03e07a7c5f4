"""A saga: an order as one process that survives its worker, and undoes what it did when it can't go on."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from tidings import App, Context, Event, Refused, Saga
from tidings.testing import Harness

app = App("shop", store="sqlite:///shop.db")  # the harness gives it another store while it runs


class OrderPlaced(Event, key="order_id"):
    order_id: int
    total: int


class ShipmentDispatched(Event, key="order_id"):
    order_id: int
    parcel: str


# A step with a transaction: its rows and its line in the journal are one commit.
def charge(order: OrderPlaced, tx: sqlite3.Connection) -> str:
    if order.total > 1000:
        raise Refused("the card's limit")
    tx.execute("INSERT INTO payments VALUES (?, ?)", (order.order_id, order.total))
    return f"payment-{order.order_id}"


def refund(order: OrderPlaced, tx: sqlite3.Connection, result: object) -> None:
    tx.execute("DELETE FROM payments WHERE order_id = ?", (order.order_id,))
    print(f"order {order.order_id}: refunded {result}")


# A step without one has effects outside: at least once, and always with the same key.
async def reserve_stock(order: OrderPlaced, ctx: Context) -> int:
    print(f"order {order.order_id}: reserved, attempt {ctx.attempt}")
    return 7


async def release_stock(order: OrderPlaced) -> None:
    print(f"order {order.order_id}: stock released")


def send_receipt(order: OrderPlaced, payment: str, parcel: str) -> None:
    print(f"order {order.order_id}: receipt for {payment}, parcel {parcel}")


@app.saga(OrderPlaced, version=1, waits=[ShipmentDispatched])
async def checkout(order: OrderPlaced, saga: Saga) -> None:
    payment = await saga.step(charge, order, undo=refund)
    await saga.step(reserve_stock, order, undo=release_stock)
    shipped = await saga.wait(ShipmentDispatched, within=timedelta(days=3))
    await saga.step(send_receipt, order, payment, shipped.parcel)


async def main() -> None:
    async with Harness(app) as harness:
        with closing(sqlite3.connect(Path(harness.path))) as conn:
            conn.execute("CREATE TABLE payments (order_id, total)")
        await harness.publish(OrderPlaced(order_id=1, total=20))
        await harness.settle()
        print("order 1 is", harness.saga("checkout", 1).state)
        await harness.crash()  # as SIGKILL would; another worker goes on
        await harness.restart()
        await harness.publish(ShipmentDispatched(order_id=1, parcel="A-17"))
        await harness.settle()
        print("order 1 is", harness.saga("checkout", 1).state)

        await harness.publish(OrderPlaced(order_id=2, total=30))
        await harness.advance(timedelta(days=4))
        print("order 2 is", harness.saga("checkout", 2).state, "-", harness.saga("checkout", 2).error)

        await harness.publish(OrderPlaced(order_id=3, total=5000))
        await harness.settle()
        print("order 3 is", harness.saga("checkout", 3).state, "-", harness.saga("checkout", 3).error)


asyncio.run(main())
