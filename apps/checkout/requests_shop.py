"""The same shop as request-response: the order service calls each of the others in turn and answers when all have.

    python -m apps.checkout.requests_shop payment          # one service, one process; prints {"port": …} when it serves
    python -m apps.checkout.requests_shop shop --services '{"payment": 40001, …}'

It is meant to be done well, or the comparison would prove nothing: every call has a time limit, is tried three times under one idempotency
key, and what can't be finished is undone, last first. It uses the same tables, the same simulators and the same decisions as the services
beside it. What it can't do is go on when the one who would have to undo something isn't there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import msgspec

from apps.checkout.data import Order
from apps.checkout.emails import MailServer
from apps.checkout.fraud import risk_of
from apps.checkout.http1 import Client, Refused, Request, Response, Server, Unreachable
from apps.checkout.lifetime import say_ready, stop_when_told
from apps.checkout.payment import Gateway
from apps.checkout.settings import FRAUD_RATE, GATEWAY, MAIL, STORE_URL, WAREHOUSE
from apps.checkout.shipping import Warehouse
from apps.checkout.tables import cents
from apps.checkout.transactions import FileTransactions

TRIES = 3
PAUSE = 0.1  # seconds before the second try; twice as long before the third
TIME_LIMIT = 2.0

Action = Callable[[dict[str, Any]], Awaitable[Response]]


class Service:
    """Serves ``POST /<name>`` by its method ``post_<name>``."""

    def __init__(self, transactions: FileTransactions) -> None:
        self.transactions = transactions

    async def handle(self, request: Request) -> Response:
        action: Action | None = getattr(self, f"post_{request.path.strip('/')}", None)
        if request.method != "POST" or action is None or not isinstance(request.body, dict):
            return Response(404, {"error": f"nothing at {request.method} {request.path}"})
        return await action(request.body)

    async def execute(self, sql: str, *values: object) -> Any:
        """Run one statement in a transaction of its own; its first row, if it has one."""

        def work(tx: sqlite3.Connection) -> Any:
            return tx.execute(sql, values).fetchone()

        return await self.transactions.run(work)


class FraudService(Service):
    async def post_checks(self, order: dict[str, Any]) -> Response:
        order_id, customer_id = order["order_id"], order["customer_id"]
        risk = risk_of(order_id, Decimal(order["total"]))
        approved = risk <= 1 - FRAUD_RATE
        await self.execute("INSERT OR IGNORE INTO fraud_checks VALUES (?, ?, ?, ?)", order_id, customer_id, risk, approved)
        return Response(200, {"approved": approved})


class InventoryService(Service):
    async def post_reservations(self, order: dict[str, Any]) -> Response:
        order_id, sku, quantity = order["order_id"], order["sku"], order["quantity"]

        def reserve(tx: sqlite3.Connection) -> str:
            known = tx.execute("SELECT state FROM inventory_reservations WHERE order_id = ?", (order_id,)).fetchone()
            if known is not None:
                return str(known[0])
            taken = tx.execute(
                "UPDATE inventory_stock SET on_hand = on_hand - ? WHERE sku = ? AND on_hand >= ?", (quantity, sku, quantity)
            ).rowcount
            state = "held" if taken else "refused"
            tx.execute("INSERT INTO inventory_reservations VALUES (?, ?, ?, ?)", (order_id, sku, quantity, state))
            return state

        return Response(200, {"held": await self.transactions.run(reserve) == "held"})

    async def post_releases(self, order: dict[str, Any]) -> Response:
        def release(tx: sqlite3.Connection) -> None:
            row = tx.execute(
                "UPDATE inventory_reservations SET state = 'released' WHERE order_id = ? AND state = 'held' RETURNING sku, quantity",
                (order["order_id"],),
            ).fetchone()
            if row is not None:
                tx.execute("UPDATE inventory_stock SET on_hand = on_hand + ? WHERE sku = ?", (row[1], row[0]))

        await self.transactions.run(release)
        return Response(200)

    async def post_departures(self, order: dict[str, Any]) -> Response:
        await self.execute("UPDATE inventory_reservations SET state = 'shipped' WHERE order_id = ? AND state = 'held'", order["order_id"])
        return Response(200)


class PaymentService(Service):
    def __init__(self, transactions: FileTransactions) -> None:
        super().__init__(transactions)
        self._gateway = Gateway(GATEWAY)

    async def post_charges(self, order: dict[str, Any]) -> Response:
        return Response(200, {"charged": await self._charge(order["order_id"], Decimal(order["total"]))})

    async def _charge(self, order_id: int, total: Decimal) -> bool:
        # The row first: after a crash between the gateway's answer and ours, a refund has to know that there may be something to refund.
        await self.execute("INSERT OR IGNORE INTO payment_orders VALUES (?, ?, 'charging')", order_id, cents(total))
        charged = await self._gateway.charge(order_id, total, key=f"charge-{order_id}")
        await self.execute(
            "UPDATE payment_orders SET state = ? WHERE order_id = ? AND state = 'charging'", "charged" if charged else "declined", order_id
        )
        return charged

    async def post_refunds(self, order: dict[str, Any]) -> Response:
        order_id, total = order["order_id"], Decimal(order["total"])
        row = await self.execute("SELECT state FROM payment_orders WHERE order_id = ?", order_id)
        state = row[0] if row else "none"
        if state == "charging":  # nobody knows whether it was charged: asking again under the same key tells
            state = "charged" if await self._charge(order_id, total) else "declined"
        if state == "charged":
            await self._gateway.refund(order_id, total, key=f"refund-{order_id}")
            await self.execute("UPDATE payment_orders SET state = 'refunded' WHERE order_id = ?", order_id)
        return Response(200, {"refunded": state in ("charged", "refunded")})


class ShippingService(Service):
    def __init__(self, transactions: FileTransactions) -> None:
        super().__init__(transactions)
        self._warehouse = Warehouse(WAREHOUSE)

    async def post_parcels(self, order: dict[str, Any]) -> Response:
        sent = await self._warehouse.send(order["order_id"], order["quantity"], key=f"parcel-{order['order_id']}")
        state = "shipped" if sent else "cancelled"
        await self.execute("INSERT OR IGNORE INTO shipping_orders VALUES (?, 1, ?, ?)", order["order_id"], order["quantity"], state)
        return Response(200, {"sent": sent})


class EmailService(Service):
    def __init__(self, transactions: FileTransactions) -> None:
        super().__init__(transactions)
        self._server = MailServer(MAIL)

    async def post_mails(self, order: dict[str, Any]) -> Response:
        order_id, kind = order["order_id"], order["kind"]
        await self.execute("INSERT OR IGNORE INTO email_owed VALUES (?, ?)", order_id, kind)
        await self._server.send(order_id, order["customer_id"], kind, key=f"mail-{order_id}-{kind}")
        return Response(200)


class AnalyticsService(Service):
    async def post_facts(self, order: dict[str, Any]) -> Response:
        await self.execute(
            "INSERT INTO analytics_totals VALUES (?, 1, ?)"
            " ON CONFLICT (name) DO UPDATE SET orders = orders + 1, cents = cents + excluded.cents",
            order["name"],
            cents(Decimal(order["total"])),
        )
        return Response(200)


class Turn:
    """One order on its way through the others, with what it would take to undo it."""

    def __init__(self, order: Order, services: dict[str, Client]) -> None:
        self._services = services
        self._facts = {
            "order_id": order.order_id,
            "customer_id": order.customer_id,
            "sku": order.sku,
            "quantity": order.quantity,
            "total": str(order.total),
        }
        self._undo: list[tuple[str, str]] = []

    async def ask(self, service: str, path: str, undo: str | None = None, **more: str) -> Any:
        """Call a service; what ``undo`` names is called if the order can't be finished.

        Raises:
            Refused: it didn't answer, three times.
        """
        uncertain = False
        for nth in range(1, TRIES + 1):
            try:
                status, body = await self._services[service].call("POST", path, {**self._facts, **more})
                break
            except Refused as error:
                uncertain = uncertain or not isinstance(error, Unreachable)
                if nth == TRIES:
                    if undo is not None and uncertain:  # it may have been done; where nobody listened there is nothing to undo
                        self._undo.append((service, undo))
                    raise
                await asyncio.sleep(PAUSE * nth)
        else:
            raise AssertionError("TRIES is at least 1")
        if status != 200:
            raise RuntimeError(f"{service} did not understand {path}: {status} {body}")
        if undo is not None:
            self._undo.append((service, undo))
        return body

    async def tell(self, service: str, path: str, **more: str) -> None:
        """Call a service whose failure shall not fail the order. What it doesn't hear now, it never hears."""
        try:
            await self.ask(service, path, **more)
        except Refused:
            pass

    async def undo(self) -> bool:
        """Undo what was done, last first; whether all of it could be."""
        done = True
        for service, path in reversed(self._undo):
            try:
                await self.ask(service, path)
            except Refused:
                done = False
        return done


class ShopService(Service):
    def __init__(self, transactions: FileTransactions, services: dict[str, int]) -> None:
        super().__init__(transactions)
        self._services = {name: Client(f"127.0.0.1:{port}", timeout=TIME_LIMIT) for name, port in services.items()}

    async def post_orders(self, body: dict[str, Any]) -> Response:
        order = msgspec.convert(body, Order)
        await self.execute(
            "INSERT INTO shop_orders VALUES (?, ?, ?, ?, ?, ?, 0, 'placed', NULL)",
            order.order_id,
            order.customer_id,
            order.ordered_on.isoformat(),
            order.sku,
            order.quantity,
            cents(order.total),
        )
        turn = Turn(order, self._services)
        try:
            reason = await self._carry_through(turn)
        except Refused:
            undone = await turn.undo()
            await self._end(order, "cancelled" if undone else "stuck", "a service was down")
            return Response(503, {"error": "we could not take your order"})
        if reason is None:
            await self._end(order, "shipped", None)
            await turn.tell("email", "/mails", kind="shipped")
            return Response(201, {"order_id": order.order_id})
        undone = await turn.undo()
        await self._end(order, "cancelled" if undone else "stuck", reason)
        await turn.tell("email", "/mails", kind="cancelled")
        await turn.tell("analytics", "/facts", name=f"cancelled: {reason}")
        return Response(409, {"order_id": order.order_id, "cancelled": reason})

    async def _carry_through(self, turn: Turn) -> str | None:
        """Every step in turn; why it ended early, or None."""
        await turn.tell("email", "/mails", kind="placed")
        await turn.tell("analytics", "/facts", name="placed")
        if not (await turn.ask("fraud", "/checks"))["approved"]:
            return "rejected as fraud"
        if not (await turn.ask("inventory", "/reservations", "/releases"))["held"]:
            return "out of stock"
        if not (await turn.ask("payment", "/charges", "/refunds"))["charged"]:
            return "card declined"
        await turn.tell("analytics", "/facts", name="charged")
        if not (await turn.ask("shipping", "/parcels"))["sent"]:
            return "parcel refused"
        await turn.tell("inventory", "/departures")  # the parcel has gone: from here on there is only forward
        return None

    async def _end(self, order: Order, state: str, reason: str | None) -> None:
        await self.execute("UPDATE shop_orders SET state = ?, reason = ? WHERE order_id = ?", state, reason, order.order_id)


SERVICES: dict[str, type[Service]] = {
    "fraud": FraudService,
    "inventory": InventoryService,
    "payment": PaymentService,
    "shipping": ShippingService,
    "email": EmailService,
    "analytics": AnalyticsService,
}


async def serve(name: str, port: int, services: dict[str, int]) -> None:
    """Serve one of the services until told to stop."""
    stop = asyncio.Event()
    stop_when_told(stop)
    transactions = FileTransactions(STORE_URL)
    service = ShopService(transactions, services) if name == "shop" else SERVICES[name](transactions)
    server = Server(service.handle, port)
    await server.start()
    say_ready({"port": server.port})
    await stop.wait()
    await server.stop()
    transactions.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m apps.checkout.requests_shop", description="The shop as request-response.")
    parser.add_argument("service", choices=["shop", *SERVICES])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--services", type=json.loads, default={}, help="for the shop: a JSON object of the other services' ports")
    given = parser.parse_args()
    asyncio.run(serve(given.service, given.port, given.services))


if __name__ == "__main__":
    main()
