"""The seventh consumer, which comes later: support is told when a VIP orders, and when a VIP's order is cancelled; a day
later somebody is to call.

Nobody was asked. It reads the log from its start, so it also knows of the orders that were placed before it existed.
"""

from __future__ import annotations

from datetime import timedelta

from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, CALL_SECONDS, LEASE, RELAY, STORE
from apps.checkout.tables import Tx, create, run
from tidings import App, Context, Event

app = App("support", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class OrderPlaced(Event, key="order_id", type="shop.OrderPlaced"):
    order_id: int
    customer_id: int
    vip: bool


class OrderCancelled(Event, key="order_id", type="shop.OrderCancelled"):
    order_id: int
    customer_id: int
    vip: bool
    reason: str


class CallDue(Event, key="order_id"):
    order_id: int
    customer_id: int


def prepare() -> None:
    create(
        "CREATE TABLE IF NOT EXISTS support_alerts (order_id INTEGER NOT NULL, customer_id INTEGER NOT NULL, what TEXT NOT NULL)",
        seen_table("support"),
    )


def of_a_vip(event: OrderPlaced | OrderCancelled) -> bool:
    return event.vip


support = app.subscription("support", start="start", shared_tx=True)


@support.on(OrderPlaced, where=of_a_vip)
def vip_ordered(event: OrderPlaced, ctx: Context, tx: Tx) -> None:
    saw(tx, "support", ctx)
    run(tx, "INSERT INTO support_alerts VALUES (?, ?, 'a VIP has ordered')", (event.order_id, event.customer_id))


@support.on(OrderCancelled, where=of_a_vip)
def vip_disappointed(event: OrderCancelled, ctx: Context, tx: Tx) -> None:
    saw(tx, "support", ctx)
    run(tx, "INSERT INTO support_alerts VALUES (?, ?, ?)", (event.order_id, event.customer_id, f"cancelled: {event.reason}"))
    ctx.publish(CallDue(order_id=event.order_id, customer_id=event.customer_id), after=timedelta(seconds=CALL_SECONDS))


@support.on(CallDue)
def call(event: CallDue, ctx: Context, tx: Tx) -> None:
    saw(tx, "support", ctx)
    run(tx, "INSERT INTO support_alerts VALUES (?, ?, 'call the customer')", (event.order_id, event.customer_id))
