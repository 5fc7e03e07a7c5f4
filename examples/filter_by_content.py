"""where= chooses by content: a plain predicate over the event. What it turns down counts as handled."""

import asyncio

from tidings import App, Event

app = App("shop", store="sqlite:///filter.db")


class OrderPlaced(Event, key="order_id"):
    order_id: int
    customer: str
    vip: bool = False


def is_vip(event: OrderPlaced) -> bool:
    return event.vip


@app.subscribe(OrderPlaced, where=is_vip)
async def alert_support(event: OrderPlaced) -> None:
    print("call", event.customer)


@app.subscribe(OrderPlaced, order="log")
async def count(event: OrderPlaced) -> None:
    print("order", event.order_id)
    counted.release()


counted = asyncio.Semaphore(0)


async def main() -> None:
    async with app:
        for order_id, customer, vip in ((1, "ann", False), (2, "bob", True), (3, "eve", False)):
            await app.publish(OrderPlaced(order_id=order_id, customer=customer, vip=vip), tx="own")
            await counted.acquire()
            await asyncio.sleep(0.05)  # only so that this program's lines come in the same order at each run


asyncio.run(main())
