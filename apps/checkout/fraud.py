"""The fraud check: lets an order through or rejects it. All that it does is rows and events, so its handler shares transactions."""

from __future__ import annotations

from decimal import Decimal

from apps.checkout.chance import chance
from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, FRAUD_RATE, LEASE, RELAY, SEED, STORE
from apps.checkout.tables import Tx, create, run
from tidings import App, Context, Event

app = App("fraud", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class OrderPlaced(Event, key="order_id", type="shop.OrderPlaced"):
    order_id: int
    customer_id: int
    total: Decimal


class OrderApproved(Event, key="order_id"):
    order_id: int
    total: Decimal


class OrderRejected(Event, key="order_id"):
    order_id: int
    risk: float


def prepare() -> None:
    create(
        "CREATE TABLE IF NOT EXISTS fraud_checks (order_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, risk DOUBLE PRECISION"
        " NOT NULL, approved BOOLEAN NOT NULL)",
        seen_table("fraud"),
    )


def risk_of(order_id: int, total: Decimal) -> float:
    """From 0 to 1; dear orders are looked at a little more sternly. Stands in for a model that nobody here has trained."""
    return 1 - chance(SEED, "fraud", order_id) / (1 + float(total) / 1000)


@app.subscribe(OrderPlaced, name="fraud", shared_tx=True)
def check(event: OrderPlaced, ctx: Context, tx: Tx) -> OrderApproved | OrderRejected:
    saw(tx, "fraud", ctx)
    risk = risk_of(event.order_id, event.total)
    approved = risk <= 1 - FRAUD_RATE
    run(tx, "INSERT INTO fraud_checks VALUES (?, ?, ?, ?)", (event.order_id, event.customer_id, risk, approved))
    if approved:
        return OrderApproved(order_id=event.order_id, total=event.total)
    return OrderRejected(order_id=event.order_id, risk=risk)
