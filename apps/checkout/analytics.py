"""Analytics: running totals of what happened to orders, and sales by day. It only reads events; nobody waits for it.

Sales by day come in lists: one UPSERT for each day in the list instead of one for each order.
"""

from __future__ import annotations

from collections import Counter
from datetime import date
from decimal import Decimal

from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, LEASE, RELAY, STORE
from apps.checkout.tables import Tx, cents, create, run
from tidings import App, Context, Event

app = App("analytics", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class OrderPlaced(Event, key="order_id", type="shop.OrderPlaced"):
    order_id: int
    ordered_on: date
    total: Decimal


class OrderCancelled(Event, key="order_id", type="shop.OrderCancelled"):
    order_id: int
    total: Decimal
    reason: str


class PaymentCharged(Event, key="order_id", type="payment.PaymentCharged"):
    order_id: int
    total: Decimal


class PaymentRefunded(Event, key="order_id", type="payment.PaymentRefunded"):
    order_id: int
    total: Decimal


def prepare() -> None:
    create(
        "CREATE TABLE IF NOT EXISTS analytics_totals (name TEXT PRIMARY KEY, orders INTEGER NOT NULL, cents INTEGER NOT NULL)",
        "CREATE TABLE IF NOT EXISTS analytics_days (day TEXT PRIMARY KEY, orders INTEGER NOT NULL, cents INTEGER NOT NULL)",
        seen_table("analytics"),
    )


analytics = app.subscription("analytics", shared_tx=True)


@analytics.on(OrderPlaced)
def placed(event: OrderPlaced, ctx: Context, tx: Tx) -> None:
    _add("placed", event.total, ctx, tx)


@analytics.on(OrderCancelled)
def cancelled(event: OrderCancelled, ctx: Context, tx: Tx) -> None:
    _add(f"cancelled: {event.reason}", event.total, ctx, tx)


@analytics.on(PaymentCharged)
def charged(event: PaymentCharged, ctx: Context, tx: Tx) -> None:
    _add("charged", event.total, ctx, tx)


@analytics.on(PaymentRefunded)
def refunded(event: PaymentRefunded, ctx: Context, tx: Tx) -> None:
    _add("refunded", event.total, ctx, tx)


@app.subscribe(OrderPlaced, name="sales_by_day", size=200, age=0.5, shared_tx=True)
def sales_by_day(events: list[OrderPlaced], tx: Tx) -> None:
    orders: Counter[str] = Counter()
    takings: Counter[str] = Counter()
    for event in events:
        day = event.ordered_on.isoformat()
        orders[day] += 1
        takings[day] += cents(event.total)
    for day in orders:
        run(
            tx,
            "INSERT INTO analytics_days VALUES (?, ?, ?)"
            " ON CONFLICT (day) DO UPDATE SET orders = analytics_days.orders + excluded.orders,"
            " cents = analytics_days.cents + excluded.cents",
            (day, orders[day], takings[day]),
        )


def _add(name: str, total: Decimal, ctx: Context, tx: Tx) -> None:
    saw(tx, "analytics", ctx)
    run(
        tx,
        "INSERT INTO analytics_totals VALUES (?, 1, ?)"
        " ON CONFLICT (name) DO UPDATE SET orders = analytics_totals.orders + 1,"
        " cents = analytics_totals.cents + excluded.cents",
        (name, cents(total)),
    )
