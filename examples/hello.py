"""The smallest whole program: one app, two events, two subscriptions. Neither subscription knows the other, nor the publisher."""

import asyncio
from decimal import Decimal

from tidings import App, Context, Event

app = App("shop", store="sqlite:///shop.db")


class OrderPlaced(Event, key="order_id"):
    order_id: int
    total: Decimal


class PaymentSucceeded(Event, key="order_id"):
    order_id: int


@app.subscribe(OrderPlaced)
async def charge_card(event: OrderPlaced, ctx: Context) -> PaymentSucceeded:
    print(f"charge {event.total} for order {event.order_id}, attempt {ctx.attempt}")
    return PaymentSucceeded(order_id=event.order_id)  # what a handler returns is published with its checkpoint


@app.subscribe(PaymentSucceeded)
async def send_receipt(event: PaymentSucceeded) -> None:
    print(f"send the receipt for order {event.order_id}")
    sent.set()


sent = asyncio.Event()


async def main() -> None:
    async with app:  # runs the subscriptions in this process
        await app.publish(OrderPlaced(order_id=42, total=Decimal("9.90")), tx="own")
        await sent.wait()


asyncio.run(main())
