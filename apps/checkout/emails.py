"""Email: tells customers how their orders stand.

`email` decides who is owed which mail, in a transaction; `mail_server` sends it, under an idempotency key (why: see payment.py).
"""

from __future__ import annotations

from apps.checkout.http1 import Client
from apps.checkout.seen import saw, seen_table
from apps.checkout.settings import BROKER, LEASE, MAIL, RELAY, STORE
from apps.checkout.tables import Tx, create, run
from tidings import App, Context, Event, Retry

app = App("email", store=STORE, lease=LEASE, broker=BROKER, relay=RELAY)


class OrderPlaced(Event, key="order_id", type="shop.OrderPlaced"):
    order_id: int
    customer_id: int


class OrderCancelled(Event, key="order_id", type="shop.OrderCancelled"):
    order_id: int


class PaymentRefunded(Event, key="order_id", type="payment.PaymentRefunded"):
    order_id: int


class OrderShipped(Event, key="order_id", type="shipping.OrderShipped"):
    order_id: int


class MailRequested(Event, key="order_id"):
    order_id: int
    customer_id: int
    kind: str


class MailServer:
    """The mail server, as this service sees it."""

    def __init__(self, address: str) -> None:
        self._http = Client(address)

    async def send(self, order_id: int, customer_id: int, kind: str, *, key: str) -> None:
        body = {"order_id": order_id, "customer_id": customer_id, "kind": kind}
        status, answer = await self._http.call("POST", "/mails", body, key=key)
        if status != 202:
            raise RuntimeError(f"the mail server did not understand a mail: {status} {answer}")


app.provide(MailServer, MailServer(MAIL))


def prepare() -> None:
    create(
        "CREATE TABLE IF NOT EXISTS email_orders (order_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL)",
        "CREATE TABLE IF NOT EXISTS email_owed (order_id INTEGER NOT NULL, kind TEXT NOT NULL, PRIMARY KEY (order_id, kind))",
        seen_table("email"),
    )


email = app.subscription("email", shared_tx=True)


@email.on(OrderPlaced)
def placed(event: OrderPlaced, ctx: Context, tx: Tx) -> MailRequested:
    # Later events of the order don't say whose it is; an order's events come in order, so this row is there when they do.
    run(tx, "INSERT INTO email_orders VALUES (?, ?)", (event.order_id, event.customer_id))
    return _owe(event.order_id, "placed", ctx, tx)


@email.on(OrderCancelled)
def cancelled(event: OrderCancelled, ctx: Context, tx: Tx) -> MailRequested:
    return _owe(event.order_id, "cancelled", ctx, tx)


@email.on(PaymentRefunded)
def refunded(event: PaymentRefunded, ctx: Context, tx: Tx) -> MailRequested:
    return _owe(event.order_id, "refunded", ctx, tx)


@email.on(OrderShipped)
def shipped(event: OrderShipped, ctx: Context, tx: Tx) -> MailRequested:
    return _owe(event.order_id, "shipped", ctx, tx)


mail_server = app.subscription("mail_server", concurrency=32, retry=Retry(attempts=12, first=0.1, most=2.0))


@mail_server.on(MailRequested)
async def send(event: MailRequested, ctx: Context, server: MailServer) -> None:
    await server.send(event.order_id, event.customer_id, event.kind, key=ctx.idempotency_key)


def _owe(order_id: int, kind: str, ctx: Context, tx: Tx) -> MailRequested:
    saw(tx, "email", ctx)
    run(tx, "INSERT INTO email_owed VALUES (?, ?)", (order_id, kind))
    (customer_id,) = run(tx, "SELECT customer_id FROM email_orders WHERE order_id = ?", (order_id,)).fetchone()
    return MailRequested(order_id=order_id, customer_id=customer_id, kind=kind)
