"""The checkout as a saga: the same services' functions, called one after another by one that knows the whole.

Fraud check and stock, payment, parcel and booking are steps; what was done is undone, last first, when one of them says no. The mails are
not steps: the email service reacts to the same events as ever, and nobody here knows of it.

    tidings run apps.checkout.orchestrated:app apps.checkout.emails:app
"""

from __future__ import annotations

from decimal import Decimal

from apps.checkout import fraud, inventory, orders, payment, shipping
from apps.checkout.settings import GATEWAY, LEASE, STORE, WAREHOUSE
from apps.checkout.tables import Tx
from tidings import App, Context, Event, Refused, Retry, Saga

app = App("checkout", store=STORE, lease=LEASE)


class OrderPlaced(Event, key="order_id", type="shop.OrderPlaced"):
    order_id: int
    customer_id: int
    sku: str
    quantity: int
    total: Decimal


class OrderCancelled(Event, key="order_id", type="shop.OrderCancelled"):
    order_id: int
    reason: str


class PaymentRefunded(Event, key="order_id", type="payment.PaymentRefunded"):
    order_id: int


class OrderShipped(Event, key="order_id", type="shipping.OrderShipped"):
    order_id: int


OUTSIDE = Retry(attempts=12, first=0.1, most=2.0)
gateway = payment.Gateway(GATEWAY)
warehouse = shipping.Warehouse(WAREHOUSE)


@app.saga(OrderPlaced, version=1)
async def checkout(order: OrderPlaced, saga: Saga) -> None:
    number, total, pieces = order.order_id, order.total, order.quantity
    try:
        if no := await saga.step(accept, number, order.customer_id, total, order.sku, pieces, undo=release):
            raise Refused(no)
        await saga.step(charge, number, total, undo=refund, retry=OUTSIDE)
        await saga.step(send, number, pieces, retry=OUTSIDE)
    except Refused as no:
        await saga.step(turn_down, number, str(no))
        raise
    await saga.step(close, number, total, pieces)


# -- the services' functions as steps: with a transaction, rows and journal entry are one commit; without, the other side knows the key


def accept(order_id: int, customer_id: int, total: Decimal, sku: str, quantity: int, ctx: Context, tx: Tx) -> str | None:
    """Why not, if not: fraud, or no stock."""
    said = fraud.check(fraud.OrderPlaced(order_id=order_id, customer_id=customer_id, total=total), ctx, tx)
    if isinstance(said, fraud.OrderRejected):
        return "rejected as fraud"
    found = inventory.reserve(inventory.OrderPlaced(order_id=order_id, sku=sku, quantity=quantity), ctx, tx)
    return "out of stock" if isinstance(found, inventory.OutOfStock) else None


def release(order_id: int, customer_id: int, total: Decimal, sku: str, quantity: int, ctx: Context, tx: Tx) -> None:
    inventory.release(inventory.OrderCancelled(order_id=order_id), ctx, tx)


async def charge(order_id: int, total: Decimal, ctx: Context) -> None:
    if not await gateway.charge(order_id, total, key=ctx.idempotency_key):
        raise Refused("card declined")


async def refund(order_id: int, total: Decimal, ctx: Context) -> None:
    await gateway.refund(order_id, total, key=ctx.idempotency_key)
    ctx.publish(PaymentRefunded(order_id=order_id))


async def send(order_id: int, quantity: int, ctx: Context) -> None:
    if not await warehouse.send(order_id, quantity, key=ctx.idempotency_key):
        raise Refused("parcel refused")


def turn_down(order_id: int, reason: str, ctx: Context, tx: Tx) -> None:
    if orders.cancel(order_id, reason, ctx, tx) is not None:
        ctx.publish(OrderCancelled(order_id=order_id, reason=reason))


def close(order_id: int, total: Decimal, quantity: int, ctx: Context, tx: Tx) -> None:
    payment.approved(payment.OrderApproved(order_id=order_id, total=total), ctx, tx)
    payment.charged(payment.PaymentCharged(order_id=order_id, total=total), ctx, tx)
    shipping.paid(shipping.PaymentCharged(order_id=order_id), ctx, tx)
    shipping.reserved(shipping.StockReserved(order_id=order_id, quantity=quantity), ctx, tx)
    shipping.shipped(shipping.OrderShipped(order_id=order_id), ctx, tx)
    inventory.let_go(inventory.OrderShipped(order_id=order_id), ctx, tx)
    orders.shipped(orders.OrderShipped(order_id=order_id), ctx, tx)
    ctx.publish(OrderShipped(order_id=order_id))
