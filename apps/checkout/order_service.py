"""The order service as a process: ``POST /orders`` takes an order, and its subscription (cancellations) runs in the same loop.

This is how Tidings is embedded in a service that has a loop of its own; ``tidings run`` is for services that only handle.
"""

from __future__ import annotations

import asyncio

import msgspec

from apps.checkout.data import Order
from apps.checkout.http1 import Request, Response, Server
from apps.checkout.lifetime import say_ready, stop_when_told
from apps.checkout.orders import app, place
from apps.checkout.settings import STORE_URL
from apps.checkout.tables import Tx, run
from apps.checkout.transactions import transactions_of


def take(order: Order, tx: Tx) -> bool:
    """Whether the order is new; a customer who asks twice has still ordered once."""
    if run(tx, "SELECT 1 FROM shop_orders WHERE order_id = ?", (order.order_id,)).fetchone() is not None:
        return False
    place(order, tx)
    return True


async def serve() -> None:
    stop = asyncio.Event()
    stop_when_told(stop)
    transactions = transactions_of(STORE_URL)

    async def handle(request: Request) -> Response:
        if (request.method, request.path) != ("POST", "/orders"):
            return Response(404, {"error": "POST /orders is all there is"})
        try:
            order = msgspec.convert(request.body, Order)
        except msgspec.ValidationError as error:
            return Response(400, {"error": str(error)})
        new = await transactions.run(lambda tx: take(order, tx))
        return Response(201 if new else 200, {"order_id": order.order_id})

    server = Server(handle)
    async with app:
        await server.start()
        say_ready({"port": server.port})
        await stop.wait()
        await server.stop()
    transactions.close()


def main() -> None:
    asyncio.run(serve())


if __name__ == "__main__":
    main()
