"""The inventory: reserves stock when an order is placed, gives it back when the order is cancelled, lets it go when it ships."""

from __future__ import annotations

from collections.abc import Mapping

from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, LEASE, RELAY, STORE
from apps.checkout.tables import Tx, create, run, transaction
from tidings import App, Context, Event

app = App("inventory", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class OrderPlaced(Event, key="order_id", type="shop.OrderPlaced"):
    order_id: int
    sku: str
    quantity: int


class OrderCancelled(Event, key="order_id", type="shop.OrderCancelled"):
    order_id: int


class OrderShipped(Event, key="order_id", type="shipping.OrderShipped"):
    order_id: int


class StockReserved(Event, key="order_id"):
    order_id: int
    sku: str
    quantity: int


class OutOfStock(Event, key="order_id"):
    order_id: int
    sku: str
    wanted: int


class StockReleased(Event, key="order_id"):
    order_id: int
    sku: str
    quantity: int


def prepare(stock: Mapping[str, int] | None = None) -> None:
    """Make the tables; ``stock`` says how many pieces of each article there are to begin with."""
    create(
        "CREATE TABLE IF NOT EXISTS inventory_stock (sku TEXT PRIMARY KEY, delivered INTEGER NOT NULL,"
        " on_hand INTEGER NOT NULL CHECK (on_hand >= 0))",
        "CREATE TABLE IF NOT EXISTS inventory_reservations (order_id INTEGER PRIMARY KEY, sku TEXT NOT NULL, quantity INTEGER NOT NULL,"
        " state TEXT NOT NULL)",
        seen_table("inventory"),
    )
    with transaction() as tx:
        for sku, pieces in (stock or {}).items():
            run(tx, "INSERT INTO inventory_stock VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (sku, pieces, pieces))


inventory = app.subscription("inventory", shared_tx=True)


@inventory.on(OrderPlaced)
def reserve(event: OrderPlaced, ctx: Context, tx: Tx) -> StockReserved | OutOfStock:
    saw(tx, "inventory", ctx)
    taken = run(
        tx, "UPDATE inventory_stock SET on_hand = on_hand - ? WHERE sku = ? AND on_hand >= ?", (event.quantity, event.sku, event.quantity)
    ).rowcount
    state = "held" if taken else "refused"
    run(tx, "INSERT INTO inventory_reservations VALUES (?, ?, ?, ?)", (event.order_id, event.sku, event.quantity, state))
    if taken:
        return StockReserved(order_id=event.order_id, sku=event.sku, quantity=event.quantity)
    return OutOfStock(order_id=event.order_id, sku=event.sku, wanted=event.quantity)


@inventory.on(OrderCancelled)
def release(event: OrderCancelled, ctx: Context, tx: Tx) -> StockReleased | None:
    saw(tx, "inventory", ctx)
    held = run(
        tx,
        "UPDATE inventory_reservations SET state = 'released' WHERE order_id = ? AND state = 'held' RETURNING sku, quantity",
        (event.order_id,),
    ).fetchone()
    if held is None:
        return None  # it never had any
    sku, quantity = held
    run(tx, "UPDATE inventory_stock SET on_hand = on_hand + ? WHERE sku = ?", (quantity, sku))
    return StockReleased(order_id=event.order_id, sku=sku, quantity=quantity)


@inventory.on(OrderShipped)
def let_go(event: OrderShipped, ctx: Context, tx: Tx) -> None:
    saw(tx, "inventory", ctx)
    gone = run(tx, "UPDATE inventory_reservations SET state = 'shipped' WHERE order_id = ? AND state = 'held'", (event.order_id,)).rowcount
    if not gone:
        raise RuntimeError(f"order {event.order_id} was shipped, but no stock was held for it")
