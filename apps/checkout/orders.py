"""The order service: takes orders, and cancels those that some other service turned down.

It doesn't know who listens. An order is placed by one transaction: its row and its event, nothing else happens.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from apps.checkout.data import Order
from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, LEASE, RELAY, STORE
from apps.checkout.tables import Tx, cents, create, money, run
from tidings import App, Context, Event, Receipt

# A customer with so many orders before this one is a VIP.
VIP_ORDERS = 10

app = App("shop", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class OrderPlaced(Event, key="order_id"):
    order_id: int
    customer_id: int
    ordered_on: date
    sku: str
    quantity: int
    total: Decimal
    vip: bool


class OrderCancelled(Event, key="order_id"):
    order_id: int
    customer_id: int
    total: Decimal
    vip: bool
    reason: str


class OrderRejected(Event, key="order_id", type="fraud.OrderRejected"):
    order_id: int


class PaymentDeclined(Event, key="order_id", type="payment.PaymentDeclined"):
    order_id: int


class OutOfStock(Event, key="order_id", type="inventory.OutOfStock"):
    order_id: int


class ShipmentRefused(Event, key="order_id", type="shipping.ShipmentRefused"):
    order_id: int


class OrderShipped(Event, key="order_id", type="shipping.OrderShipped"):
    order_id: int


def prepare() -> None:
    create(
        "CREATE TABLE IF NOT EXISTS shop_orders (order_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, ordered_on TEXT NOT NULL,"
        " sku TEXT NOT NULL, quantity INTEGER NOT NULL, cents INTEGER NOT NULL, vip BOOLEAN NOT NULL, state TEXT NOT NULL, reason TEXT)",
        "CREATE INDEX IF NOT EXISTS shop_orders_customer ON shop_orders (customer_id)",
        seen_table("shop"),
    )


def place(order: Order, tx: Tx) -> Receipt:
    """Take an order in the caller's transaction."""
    before = run(tx, "SELECT count(*) FROM shop_orders WHERE customer_id = ?", (order.customer_id,)).fetchone()[0]
    vip = before >= VIP_ORDERS
    run(
        tx,
        "INSERT INTO shop_orders VALUES (?, ?, ?, ?, ?, ?, ?, 'placed', NULL)",
        (order.order_id, order.customer_id, order.ordered_on.isoformat(), order.sku, order.quantity, cents(order.total), vip),
    )
    placed = OrderPlaced(
        order_id=order.order_id,
        customer_id=order.customer_id,
        ordered_on=order.ordered_on,
        sku=order.sku,
        quantity=order.quantity,
        total=order.total,
        vip=vip,
    )
    return app.publish(placed, tx=tx)


orders = app.subscription("orders", shared_tx=True)


@orders.on(OrderRejected)
def rejected(event: OrderRejected, ctx: Context, tx: Tx) -> OrderCancelled | None:
    return cancel(event.order_id, "rejected as fraud", ctx, tx)


@orders.on(PaymentDeclined)
def declined(event: PaymentDeclined, ctx: Context, tx: Tx) -> OrderCancelled | None:
    return cancel(event.order_id, "card declined", ctx, tx)


@orders.on(OutOfStock)
def out_of_stock(event: OutOfStock, ctx: Context, tx: Tx) -> OrderCancelled | None:
    return cancel(event.order_id, "out of stock", ctx, tx)


@orders.on(ShipmentRefused)
def shipment_refused(event: ShipmentRefused, ctx: Context, tx: Tx) -> OrderCancelled | None:
    return cancel(event.order_id, "parcel refused", ctx, tx)


@orders.on(OrderShipped)
def shipped(event: OrderShipped, ctx: Context, tx: Tx) -> None:
    saw(tx, "shop", ctx)
    run(tx, "UPDATE shop_orders SET state = 'shipped' WHERE order_id = ? AND state = 'placed'", (event.order_id,))


def cancel(order_id: int, reason: str, ctx: Context, tx: Tx) -> OrderCancelled | None:
    """Cancel an order once: a second reason (no stock *and* a declined card) changes nothing."""
    saw(tx, "shop", ctx)
    row = run(
        tx,
        "UPDATE shop_orders SET state = 'cancelled', reason = ? WHERE order_id = ? AND state = 'placed' RETURNING customer_id, cents, vip",
        (reason, order_id),
    ).fetchone()
    if row is None:
        return None
    customer_id, whole, vip = row
    return OrderCancelled(order_id=order_id, customer_id=customer_id, total=money(whole), vip=bool(vip), reason=reason)
