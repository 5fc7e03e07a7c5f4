"""Shipping: sends an order's parcel once it is paid *and* its stock is reserved, whichever is first, unless it was cancelled.

`shipping` decides in a transaction, `warehouse` acts outside under an idempotency key (why: see payment.py).

An order that is paid and reserved can't be cancelled by anyone but the warehouse's refusal, so a parcel never overtakes a cancellation:
a cancellation that finds a parcel already asked for would be a mistake in the choreography, and says so.
"""

from __future__ import annotations

from apps.checkout.http1 import Client
from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, LEASE, RELAY, STORE, WAREHOUSE
from apps.checkout.tables import Tx, create, run
from tidings import App, Context, Event, Retry

app = App("shipping", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class PaymentCharged(Event, key="order_id", type="payment.PaymentCharged"):
    order_id: int


class StockReserved(Event, key="order_id", type="inventory.StockReserved"):
    order_id: int
    quantity: int


class OrderCancelled(Event, key="order_id", type="shop.OrderCancelled"):
    order_id: int


class ShipmentRequested(Event, key="order_id"):
    order_id: int
    quantity: int


class OrderShipped(Event, key="order_id"):
    order_id: int


class ShipmentRefused(Event, key="order_id"):
    order_id: int


class Warehouse:
    """The warehouse, as this service sees it."""

    def __init__(self, address: str) -> None:
        self._http = Client(address)

    async def send(self, order_id: int, quantity: int, *, key: str) -> bool:
        """Whether the parcel was sent; False: the warehouse refuses it."""
        status, body = await self._http.call("POST", "/parcels", {"order_id": order_id, "quantity": quantity}, key=key)
        if status not in (201, 409):
            raise RuntimeError(f"the warehouse did not understand a parcel: {status} {body}")
        return status == 201


app.provide(Warehouse, Warehouse(WAREHOUSE))


def prepare() -> None:
    create(
        "CREATE TABLE IF NOT EXISTS shipping_orders (order_id INTEGER PRIMARY KEY, paid BOOLEAN NOT NULL, quantity INTEGER,"
        " state TEXT NOT NULL)",
        seen_table("shipping"),
    )


shipping = app.subscription("shipping", shared_tx=True)


@shipping.on(PaymentCharged)
def paid(event: PaymentCharged, ctx: Context, tx: Tx) -> ShipmentRequested | None:
    saw(tx, "shipping", ctx)
    run(
        tx,
        "INSERT INTO shipping_orders VALUES (?, TRUE, NULL, 'waiting') ON CONFLICT (order_id) DO UPDATE SET paid = TRUE",
        (event.order_id,),
    )
    return _request_if_complete(event.order_id, tx)


@shipping.on(StockReserved)
def reserved(event: StockReserved, ctx: Context, tx: Tx) -> ShipmentRequested | None:
    saw(tx, "shipping", ctx)
    run(
        tx,
        "INSERT INTO shipping_orders VALUES (?, FALSE, ?, 'waiting') ON CONFLICT (order_id) DO UPDATE SET quantity = excluded.quantity",
        (event.order_id, event.quantity),
    )
    return _request_if_complete(event.order_id, tx)


@shipping.on(OrderCancelled)
def cancelled(event: OrderCancelled, ctx: Context, tx: Tx) -> None:
    saw(tx, "shipping", ctx)
    run(tx, "INSERT INTO shipping_orders VALUES (?, FALSE, NULL, 'waiting') ON CONFLICT (order_id) DO NOTHING", (event.order_id,))
    _move(event.order_id, ("waiting", "refused"), "cancelled", tx)


@shipping.on(OrderShipped)
def shipped(event: OrderShipped, ctx: Context, tx: Tx) -> None:
    saw(tx, "shipping", ctx)
    _move(event.order_id, ("requested",), "shipped", tx)


@shipping.on(ShipmentRefused)
def refused(event: ShipmentRefused, ctx: Context, tx: Tx) -> None:
    saw(tx, "shipping", ctx)
    _move(event.order_id, ("requested",), "refused", tx)


warehouse = app.subscription("warehouse", concurrency=32, retry=Retry(attempts=12, first=0.1, most=2.0))


@warehouse.on(ShipmentRequested)
async def send(event: ShipmentRequested, ctx: Context, warehouse: Warehouse) -> OrderShipped | ShipmentRefused:
    if await warehouse.send(event.order_id, event.quantity, key=ctx.idempotency_key):
        return OrderShipped(order_id=event.order_id)
    return ShipmentRefused(order_id=event.order_id)


def _request_if_complete(order_id: int, tx: Tx) -> ShipmentRequested | None:
    row = run(
        tx,
        "UPDATE shipping_orders SET state = 'requested' WHERE order_id = ? AND state = 'waiting' AND paid AND quantity IS NOT NULL"
        " RETURNING quantity",
        (order_id,),
    ).fetchone()
    return None if row is None else ShipmentRequested(order_id=order_id, quantity=row[0])


def _move(order_id: int, before: tuple[str, ...], after: str, tx: Tx) -> None:
    (state,) = run(tx, "SELECT state FROM shipping_orders WHERE order_id = ?", (order_id,)).fetchone()
    if state not in before:
        raise RuntimeError(f"the parcel of order {order_id} is {state}: it can't become {after}")
    run(tx, "UPDATE shipping_orders SET state = ? WHERE order_id = ?", (after, order_id))
