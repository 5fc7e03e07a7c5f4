"""A subscription that comes later reads the log from its start, from now, or from a time. No publisher takes part in it."""

import asyncio

from tidings import App, Event


class OrderPlaced(Event, key="order_id", type="shop.OrderPlaced"):
    order_id: int


shop = App("shop", store="sqlite:///late.db")
for order_id in (1, 2, 3):
    shop.publish(OrderPlaced(order_id=order_id), tx="own").result()

# Days later, in a module that the shop has never heard of:
reports = App("reports", store="sqlite:///late.db")


@reports.subscribe(OrderPlaced, order="log")  # start="start" unless given
async def all_orders(event: OrderPlaced) -> None:
    seen.put_nowait(f"all_orders saw {event.order_id}")


@reports.subscribe(OrderPlaced, order="log", start="now")
async def new_orders(event: OrderPlaced) -> None:
    seen.put_nowait(f"new_orders saw {event.order_id}")


seen: asyncio.Queue[str] = asyncio.Queue()


async def main() -> None:
    async with reports:
        print(*[await seen.get() for _ in range(3)], sep="\n")
        await shop.publish(OrderPlaced(order_id=4), tx="own")
        print(*sorted([await seen.get(), await seen.get()]), sep="\n")
    shop.close()


asyncio.run(main())
