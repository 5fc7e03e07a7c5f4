"""Handlers in transactions of every driver: their writes, what they publish and the checkpoint commit together, or not at all."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.running import settled, until
from tidings import App, Event, HandlerDefinitionError, Retry


class Placed(Event, key="order"):
    order: int
    number: int


class Paid(Event, key="order"):
    order: int
    number: int


INSERT = "INSERT INTO done VALUES ({}, {})"


def write(tx: Any, event: Placed) -> None:
    statement = INSERT.format(event.order, event.number)
    if isinstance(tx, psycopg.Connection):
        tx.execute(statement.encode())
    elif isinstance(tx, psycopg2.extensions.connection):
        with tx.cursor() as cursor:
            cursor.execute(statement)
    else:
        tx.execute(sqlalchemy.text(statement))


async def write_async(tx: Any, event: Placed) -> None:
    statement = INSERT.format(event.order, event.number)
    await tx.execute(sqlalchemy.text(statement) if isinstance(tx, (AsyncSession, AsyncConnection)) else statement)


class Kinds:
    """For each driver: what the app needs, and the annotation that asks for it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engines: list[Any] = []

    def given(self, kind: str) -> Any:
        if kind == "psycopg2":
            return lambda: psycopg2.connect(self.url)
        driver = kind.rpartition(" on ")[2]
        if driver == kind:
            return None
        make = create_async_engine if kind.startswith("Async") else sqlalchemy.create_engine
        engine = make(self.url.replace("postgresql:", f"postgresql+{driver}:"))
        self.engines.append(engine)
        return engine


ANNOTATIONS: dict[str, type] = {
    "psycopg": psycopg.Connection,
    "psycopg2": psycopg2.extensions.connection,
    "Session on psycopg": Session,
    "Connection on psycopg": sqlalchemy.Connection,
    "Session on psycopg2": Session,
    "async psycopg": psycopg.AsyncConnection,
    "asyncpg": asyncpg.Connection,
    "AsyncSession on psycopg": AsyncSession,
    "AsyncConnection on asyncpg": AsyncConnection,
    "AsyncSession on asyncpg": AsyncSession,
}
ASYNC = {kind for kind, wanted in ANNOTATIONS.items() if kind.lower().startswith("async")}


def annotated(kind: str, fn: Callable[[Any, Any], Any], fn_async: Callable[[Any, Any], Any]) -> Any:
    """A handler that asks for the kind's transaction."""
    if kind in ASYNC:

        async def handler_async(event: Placed, tx: Any) -> Any:
            return await fn_async(event, tx)

        handler: Any = handler_async
    else:

        def handler_sync(event: Placed, tx: Any) -> Any:
            return fn(event, tx)

        handler = handler_sync
    handler.__annotations__ = {"event": Placed, "tx": ANNOTATIONS[kind]}
    return handler


@pytest.fixture
def kinds(postgres_url: str) -> Iterator[Kinds]:
    with psycopg.connect(postgres_url) as conn:
        conn.execute("CREATE TABLE done (account int, number int)")
    made = Kinds(postgres_url)
    yield made
    for engine in made.engines:
        if not hasattr(engine, "sync_engine"):  # those are disposed of in their loop
            engine.dispose()


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(statement.encode()).fetchall()


@pytest.mark.promise("effects once")
@pytest.mark.promise("order per key")
@pytest.mark.parametrize("kind", ANNOTATIONS)
async def test_rows_follow_ups_and_the_checkpoint_are_one(kinds: Kinds, kind: str) -> None:
    app = App("shop", store=kinds.url, transactions=kinds.given(kind))
    failed: set[int] = set()

    def once(event: Placed) -> None:
        if event.number % 4 == 2 and event.order * 10 + event.number not in failed:
            failed.add(event.order * 10 + event.number)
            raise ConnectionAbortedError("the gateway said no")

    def pay(event: Placed, tx: Any) -> Any:
        write(tx, event)
        once(event)
        return Paid(event.order, event.number)

    async def pay_async(event: Placed, tx: Any) -> Any:
        await write_async(tx, event)
        once(event)
        return Paid(event.order, event.number)

    app.subscribe(Placed, name="pay", retry=Retry(attempts=5, first=0.01))(annotated(kind, pay, pay_async))
    seen: defaultdict[int, list[int]] = defaultdict(list)

    @app.subscribe(Paid)
    async def note(event: Paid) -> None:
        seen[event.order].append(event.number)

    async with app:
        for number in range(8):
            for order in range(5):
                await app.publish(Placed(order=order, number=number), tx="own")
        await until(lambda: sum(map(len, seen.values())) >= 40)
        await settled(app)
        if kind in ASYNC:
            for engine in kinds.engines:
                await engine.dispose()
    assert sorted(rows(kinds.url, "SELECT * FROM done")) == [(order, number) for order in range(5) for number in range(8)]
    assert dict(seen) == {order: list(range(8)) for order in range(5)}
    assert len(failed) == 10
    assert rows(kinds.url, "SELECT count(*) FROM tidings_parked") == [(0,)]


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("kind", ANNOTATIONS)
async def test_a_handler_that_ends_its_transaction_has_failed(kinds: Kinds, kind: str) -> None:
    app = App("shop", store=kinds.url, transactions=kinds.given(kind))

    def pay(event: Placed, tx: Any) -> None:
        write(tx, event)
        tx.commit()

    async def pay_async(event: Placed, tx: Any) -> None:
        await write_async(tx, event)
        if isinstance(tx, asyncpg.Connection):
            await tx.execute("ROLLBACK")
        else:
            await tx.commit()

    app.subscribe(Placed, name="pay", retry=Retry(attempts=1))(annotated(kind, pay, pay_async))
    async with app:
        await app.publish(Placed(order=1, number=1), tx="own")
        await until(lambda: rows(kinds.url, "SELECT count(*) FROM tidings_parked WHERE state = 'dead'") == [(1,)])
        if kind in ASYNC:
            for engine in kinds.engines:
                await engine.dispose()
    assert "ended the transaction" in rows(kinds.url, "SELECT error FROM tidings_parked")[0][0].replace("tried to end", "ended")
    if kind not in {"psycopg2", "Connection on psycopg", "AsyncConnection on asyncpg"}:  # whose commit nobody can refuse
        assert rows(kinds.url, "SELECT * FROM done") == []


@pytest.mark.promise("effects once")
async def test_a_commit_by_sql_and_a_new_transaction_are_found_out(kinds: Kinds) -> None:
    app = App("shop", store=kinds.url)

    @app.subscribe(Placed, retry=Retry(attempts=1))
    def pay(event: Placed, tx: psycopg.Connection[Any]) -> Paid:
        tx.execute("ROLLBACK; BEGIN")
        return Paid(event.order, event.number)

    async with app:
        await app.publish(Placed(order=1, number=1), tx="own")
        await until(lambda: rows(kinds.url, "SELECT count(*) FROM tidings_parked WHERE state = 'dead'") == [(1,)])
    assert rows(kinds.url, "SELECT count(*) FROM tidings_log WHERE type = 'shop.Paid'") == [(0,)]
    assert "ended the transaction" in rows(kinds.url, "SELECT error FROM tidings_parked")[0][0]


@pytest.mark.promise("effects once")
async def test_neighbours_share_a_transaction_and_only_the_failed_one_is_undone(kinds: Kinds) -> None:
    app = App("shop", store=kinds.url)
    failed: set[int] = set()

    @app.subscribe(Placed, shared_tx=True, retry=Retry(attempts=3, first=0.01))
    def pay(event: Placed, tx: psycopg.Connection[Any]) -> Paid:
        write(tx, event)
        if event.number == 3 and event.order not in failed:
            failed.add(event.order)
            tx.execute("SELECT 1 / 0")
        return Paid(event.order, event.number)

    app.open()
    with psycopg.connect(kinds.url) as conn:
        for number in range(20):
            for order in range(10):
                app.publish(Placed(order=order, number=number), tx=conn)
    async with app:
        await until(lambda: rows(kinds.url, "SELECT count(*) FROM tidings_log WHERE type = 'shop.Paid'") == [(200,)])
        await settled(app)
    assert sorted(rows(kinds.url, "SELECT * FROM done")) == [(order, number) for order in range(10) for number in range(20)]
    per_key = rows(kinds.url, "SELECT key, array_agg(data ORDER BY position) FROM tidings_log WHERE type = 'shop.Paid' GROUP BY key")
    for key, found in per_key:
        assert found == [b'{"order":%d,"number":%d}' % (int(key), number) for number in range(20)]


@pytest.mark.promise("effects once")
async def test_a_deadlock_is_nobodys_failure(kinds: Kinds) -> None:
    """Handlers of two subscriptions touch two rows in different order."""
    app = App("shop", store=kinds.url)
    with psycopg.connect(kinds.url) as conn:
        conn.execute("CREATE TABLE stock (sku int PRIMARY KEY, left_over int); INSERT INTO stock VALUES (1, 0), (2, 0)")

    def touch(tx: psycopg.Connection[Any], first: int, second: int) -> None:
        import time

        for sku in (first, second):
            tx.execute("UPDATE stock SET left_over = left_over + 1 WHERE sku = %s", (sku,))
            time.sleep(0.05)

    @app.subscribe(Placed, retry=Retry(attempts=1), concurrency=1)
    def there(event: Placed, tx: psycopg.Connection[Any]) -> None:
        touch(tx, 1, 2)

    @app.subscribe(Placed, retry=Retry(attempts=1), concurrency=1)
    def back(event: Placed, tx: psycopg.Connection[Any]) -> None:
        touch(tx, 2, 1)

    async with app:
        for order in range(3):
            await app.publish(Placed(order=order, number=1), tx="own")
        await until(lambda: rows(kinds.url, "SELECT left_over FROM stock") == [(6,), (6,)], 30)
        await settled(app)
    assert rows(kinds.url, "SELECT count(*) FROM tidings_attempts") == [(0,)]


@pytest.mark.promise("death at any instruction")
async def test_a_transaction_in_which_nothing_happens_is_ended(kinds: Kinds) -> None:
    """As when its worker is frozen: whatever it locked is free for the successor after the lease."""
    app = App("shop", store=kinds.url, lease=0.6)
    attempts = 0

    @app.subscribe(Placed, retry=Retry(attempts=3, first=0.01))
    async def pay(event: Placed, tx: psycopg.AsyncConnection[Any]) -> None:
        nonlocal attempts
        attempts += 1
        await write_async(tx, event)
        if attempts == 1:
            await asyncio.sleep(1.2)

    async with app:
        await app.publish(Placed(order=1, number=1), tx="own")
        await until(lambda: rows(kinds.url, "SELECT * FROM done") == [(1, 1)])
        await settled(app)
    assert attempts == 2


def test_kinds_that_cannot_be_had(kinds: Kinds) -> None:
    import sqlite3

    for wanted, text in (
        (Session, "App"),
        (sqlite3.Connection, "the store is on PostgreSQL"),
        (psycopg2.extensions.connection, "a function"),
    ):
        app = App("shop", store=kinds.url)

        def handler(event: Placed, tx: Any) -> None: ...

        handler.__annotations__ = {"event": Placed, "tx": wanted}
        app.subscribe(Placed, name="pay")(handler)
        with pytest.raises(HandlerDefinitionError, match=text):
            app.bind()
