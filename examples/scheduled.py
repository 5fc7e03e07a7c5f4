"""An event for later: kept in the store, published when it is due, taken back until then."""

import asyncio
from datetime import UTC, datetime, timedelta

from tidings import App, Context, Event

app = App("shop", store="sqlite:///scheduled.db")


class OrderPlaced(Event, key="order_id"):
    order_id: int


class PaymentReminderDue(Event, key="order_id"):
    order_id: int


@app.subscribe(OrderPlaced)
async def plan_reminder(event: OrderPlaced, ctx: Context) -> None:
    ctx.publish(PaymentReminderDue(order_id=event.order_id), after=timedelta(seconds=0.3))  # with this handler's checkpoint


@app.subscribe(PaymentReminderDue)
async def remind(event: PaymentReminderDue) -> None:
    print("remind the customer of order", event.order_id)
    reminded.set()


reminded = asyncio.Event()


async def main() -> None:
    next_year = datetime.now(UTC) + timedelta(days=365)
    receipt = await app.publish(PaymentReminderDue(order_id=7), tx="own", at=next_year)
    print("scheduled, so it has no position yet:", receipt.position)
    print("waiting:", [(row.envelope.type, row.envelope.key) for row in app.scheduled()])
    print("taken back:", app.cancel(receipt.event_id), "and again:", app.cancel(receipt.event_id))

    async with app:
        await app.publish(OrderPlaced(order_id=42), tx="own")
        await reminded.wait()


asyncio.run(main())
