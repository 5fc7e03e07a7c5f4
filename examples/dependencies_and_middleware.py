"""Handlers get what they ask for by type; a middleware is a plain function around them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tidings import App, Context, Event

app = App("shop", store="sqlite:///dependencies.db")


class OrderPlaced(Event, key="order_id"):
    order_id: int


class Gateway:
    async def charge(self, order_id: int, idempotency_key: str) -> None:
        print("charging order", order_id, "under a key that is the same at each attempt:", idempotency_key.split(":")[0] + ":…")


app.provide(Gateway, Gateway())  # or a function, called for each event


@app.use
def announced(call: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def wrapped(event: Any, ctx: Context) -> Any:
        print("->", ctx.subscription, ctx.type, ctx.key)
        try:
            return await call(event, ctx)
        finally:
            print("<-", ctx.subscription)
            ended.set()

    return wrapped


@app.subscribe(OrderPlaced)
async def charge_card(event: OrderPlaced, ctx: Context, gateway: Gateway) -> None:
    await gateway.charge(event.order_id, ctx.idempotency_key)


ended = asyncio.Event()


async def main() -> None:
    async with app:
        await app.publish(OrderPlaced(order_id=42), tx="own")
        await ended.wait()


asyncio.run(main())
