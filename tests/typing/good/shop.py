"""Ordinary use; mypy --strict must accept every line."""

import dataclasses
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import aiosqlite
import attrs
import msgspec
import pydantic
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tidings import App, Context, Event, ManualClock, Receipt, Retry, SQLiteStore, Subscription, event
from tidings.testing import Harness


class OrderPlaced(Event, key="order_id"):
    order_id: int
    total: Decimal = Decimal(0)


class OrderPaid(Event, key="order_id", type="shop.OrderPaid", version=2):
    order_id: int


class Ping(Event, key=None):
    pass


class Ordered(Event, key="a", kw_only=True):
    a: int = 0
    b: int


@event(key="number")
@dataclasses.dataclass(frozen=True)
class AsDataclass:
    number: int


@event(key="number")
@attrs.frozen
class AsAttrs:
    number: int


@event(key="number", type="a.b", version=3)
class AsPydantic(pydantic.BaseModel):
    number: int


@event(key=None)
class AsStruct(msgspec.Struct):
    number: int


app = App("shop", store="sqlite:///shop.db", synchronous="NORMAL", lease=5, retention=timedelta(days=7))
other = App("mail", store=SQLiteStore("sqlite:///shop.db", clock=ManualClock()), transactions=[lambda: aiosqlite.connect("shop.db")])


class Gateway:
    def charge(self, order_id: int) -> None: ...


@app.subscribe(OrderPlaced, retry=Retry(attempts=3, give_up_on=(ValueError,)), order="none", concurrency=4, timeout=3.0)
async def charge(event: OrderPlaced, ctx: Context, gateway: Gateway) -> OrderPaid:
    gateway.charge(event.order_id)
    ctx.publish(Ping(), after=timedelta(hours=1))
    assert ctx.attempt + ctx.position > len(ctx.idempotency_key) + len(ctx.headers)
    return OrderPaid(order_id=event.order_id)


@app.subscribe(OrderPlaced, OrderPaid, name="both", where=lambda event: event.order_id > 3)
def both(event: OrderPlaced | OrderPaid, tx: sqlite3.Connection) -> list[Ping]:
    tx.execute("SELECT 1")
    return [Ping()]


@app.subscribe(OrderPaid, size=100, age=0.5)
def many(events: list[OrderPaid], tx: Session) -> None:
    assert [one.order_id for one in events]


inventory: Subscription = app.subscription("inventory", start="now", on_dead="hold", rate=10.0)


@inventory.on(OrderPlaced)
async def reserve(event: OrderPlaced, tx: AsyncSession) -> None: ...


@inventory.on(OrderPaid, where=lambda event: bool(event))
async def release(event: OrderPaid, tx: AsyncConnection) -> None: ...


app.provide(Gateway, Gateway())
app.provide(Gateway, lambda: Gateway())


@app.use
def logged(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return call


def publish(conn: sqlite3.Connection, connection: Connection, session: Session) -> int | None:
    receipt = app.publish(OrderPlaced(order_id=1), tx=conn)
    app.publish(OrderPlaced(1, Decimal(2)), tx=connection, headers={"tenant": "a"})
    app.publish(AsDataclass(number=1), tx=session, at=datetime.now(UTC))
    own: Receipt = app.publish(Ping(), tx="own").result(timeout=5)
    name: str = own.event_id
    return receipt.position if name else own.lane


async def publish_async(conn: aiosqlite.Connection, session: AsyncSession) -> None:
    await app.publish(OrderPlaced(order_id=1), tx=conn)
    await app.publish(OrderPlaced(order_id=1), tx=session)
    receipt: Receipt = await app.publish(Ping(), tx="own")
    assert receipt.position


async def test_it() -> None:
    async with Harness(app, other) as harness:
        await harness.publish(OrderPlaced(order_id=1), after=timedelta(hours=1))
        await harness.advance(3600)
        paid: list[OrderPaid] = harness.published(OrderPaid)
        assert paid
        assert harness.handled(charge)
        assert harness.dead("inventory")[0].attempts


async def embedded() -> None:
    async with app, other:
        pass
