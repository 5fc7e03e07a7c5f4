"""The payment service: charges approved orders, and pays back what was charged for an order that is cancelled.

Two subscriptions. `payment` decides: rows and events in one transaction, nothing outside. `gateway` acts: it calls the payment gateway
under its event's idempotency key, writes nothing of its own, and says what came of it as an event, which the first one reads again.
So nobody holds a write transaction while waiting for somebody else's server, and a crash between the call and the checkpoint repeats the
call under the same key, which the gateway answers as before.

A cancellation may come before the approval, while the charge is under way, or after it:

    (no row) --OrderApproved--> charging --PaymentCharged--> charged
       |                           |  `---PaymentDeclined--> declined
    OrderCancelled           OrderCancelled             OrderCancelled
       v                           v                          v
      void                    cancelling --PaymentCharged--> refunding --PaymentRefunded--> refunded
"""

from __future__ import annotations

from decimal import Decimal

from apps.checkout.http1 import Client
from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, GATEWAY, LEASE, RELAY, STORE
from apps.checkout.tables import Tx, cents, create, money, run
from tidings import App, Context, Event, Retry

app = App("payment", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class OrderApproved(Event, key="order_id", type="fraud.OrderApproved"):
    order_id: int
    total: Decimal


class OrderCancelled(Event, key="order_id", type="shop.OrderCancelled"):
    order_id: int


class PaymentRequested(Event, key="order_id"):
    order_id: int
    total: Decimal


class PaymentCharged(Event, key="order_id"):
    order_id: int
    total: Decimal


class PaymentDeclined(Event, key="order_id"):
    order_id: int


class RefundRequested(Event, key="order_id"):
    order_id: int
    total: Decimal


class PaymentRefunded(Event, key="order_id"):
    order_id: int
    total: Decimal


class Gateway:
    """The payment gateway, as this service sees it."""

    def __init__(self, address: str) -> None:
        self._http = Client(address)

    async def charge(self, order_id: int, total: Decimal, *, key: str) -> bool:
        """Whether the card was charged; False: declined."""
        status, body = await self._http.call("POST", "/charges", {"order_id": order_id, "cents": cents(total)}, key=key)
        if status not in (201, 402):
            raise RuntimeError(f"the gateway did not understand a charge: {status} {body}")
        return status == 201

    async def refund(self, order_id: int, total: Decimal, *, key: str) -> None:
        status, body = await self._http.call("POST", "/refunds", {"order_id": order_id, "cents": cents(total)}, key=key)
        if status != 201:
            raise RuntimeError(f"the gateway did not understand a refund: {status} {body}")


app.provide(Gateway, Gateway(GATEWAY))


def prepare() -> None:
    create(
        "CREATE TABLE IF NOT EXISTS payment_orders (order_id INTEGER PRIMARY KEY, cents INTEGER NOT NULL, state TEXT NOT NULL)",
        seen_table("payment"),
    )


payment = app.subscription("payment", shared_tx=True)


@payment.on(OrderApproved)
def approved(event: OrderApproved, ctx: Context, tx: Tx) -> PaymentRequested | None:
    saw(tx, "payment", ctx)
    if _state(event.order_id, tx) == "void":
        return None  # cancelled before anything was charged
    run(tx, "INSERT INTO payment_orders VALUES (?, ?, 'charging')", (event.order_id, cents(event.total)))
    return PaymentRequested(order_id=event.order_id, total=event.total)


@payment.on(OrderCancelled)
def cancelled(event: OrderCancelled, ctx: Context, tx: Tx) -> RefundRequested | None:
    saw(tx, "payment", ctx)
    state = _state(event.order_id, tx)
    if state is None:
        run(tx, "INSERT INTO payment_orders VALUES (?, 0, 'void')", (event.order_id,))
    elif state == "charging":
        _move(event.order_id, "charging", "cancelling", tx)
    elif state == "charged":
        return _refund(event.order_id, "charged", tx)
    return None


@payment.on(PaymentCharged)
def charged(event: PaymentCharged, ctx: Context, tx: Tx) -> RefundRequested | None:
    saw(tx, "payment", ctx)
    if _state(event.order_id, tx) == "cancelling":
        return _refund(event.order_id, "cancelling", tx)
    _move(event.order_id, "charging", "charged", tx)
    return None


@payment.on(PaymentDeclined)
def declined(event: PaymentDeclined, ctx: Context, tx: Tx) -> None:
    saw(tx, "payment", ctx)
    run(tx, "UPDATE payment_orders SET state = 'declined' WHERE order_id = ? AND state IN ('charging', 'cancelling')", (event.order_id,))


@payment.on(PaymentRefunded)
def refunded(event: PaymentRefunded, ctx: Context, tx: Tx) -> None:
    saw(tx, "payment", ctx)
    _move(event.order_id, "refunding", "refunded", tx)


gateway = app.subscription("gateway", concurrency=32, retry=Retry(attempts=12, first=0.1, most=2.0))


@gateway.on(PaymentRequested)
async def charge(event: PaymentRequested, ctx: Context, gateway: Gateway) -> PaymentCharged | PaymentDeclined:
    if await gateway.charge(event.order_id, event.total, key=ctx.idempotency_key):
        return PaymentCharged(order_id=event.order_id, total=event.total)
    return PaymentDeclined(order_id=event.order_id)


@gateway.on(RefundRequested)
async def refund(event: RefundRequested, ctx: Context, gateway: Gateway) -> PaymentRefunded:
    await gateway.refund(event.order_id, event.total, key=ctx.idempotency_key)
    return PaymentRefunded(order_id=event.order_id, total=event.total)


def _state(order_id: int, tx: Tx) -> str | None:
    row = run(tx, "SELECT state FROM payment_orders WHERE order_id = ?", (order_id,)).fetchone()
    return row[0] if row else None


def _move(order_id: int, before: str, after: str, tx: Tx) -> int:
    """Change a payment's state; the amount in cents. A change that the drawing above doesn't have is an error, not a shrug."""
    row = run(
        tx, "UPDATE payment_orders SET state = ? WHERE order_id = ? AND state = ? RETURNING cents", (after, order_id, before)
    ).fetchone()
    if row is None:
        raise RuntimeError(f"the payment of order {order_id} is {_state(order_id, tx)}, not {before}: it can't become {after}")
    return int(row[0])


def _refund(order_id: int, before: str, tx: Tx) -> RefundRequested:
    return RefundRequested(order_id=order_id, total=money(_move(order_id, before, "refunding", tx)))
