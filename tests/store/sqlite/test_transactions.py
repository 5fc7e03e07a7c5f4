"""Handlers in a transaction of each driver: effects and checkpoint commit together, and the handler can't end it."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from tidings import App, ConfigurationError, Context, Event, HandlerDefinitionError, Retry, StoreFailed, WrongStore
from tidings.testing import Harness

pytestmark = pytest.mark.promise("effects once")


class Placed(Event, key="order"):
    order: int


class Paid(Event, key="order"):
    order: int


class Declined(Exception):
    pass


INSERT = "INSERT INTO effects (number) VALUES (:number)"

# What a handler does in its transaction, by driver, written once: add a row, and every way to end a transaction that isn't one's own.


async def add(tx: Any, order: int) -> None:
    if isinstance(tx, (AsyncSession, AsyncConnection)):
        await tx.execute(text(INSERT), {"number": order})
    elif isinstance(tx, aiosqlite.Connection):
        await tx.execute(INSERT, {"number": order})
    else:
        add_now(tx, order)


def add_now(tx: Any, order: int) -> None:
    tx.execute(INSERT if isinstance(tx, sqlite3.Connection) else text(INSERT), {"number": order})


def with_tx(tx: Any) -> None:
    with tx:
        pass


def sqlite_commit(tx: Any) -> None:
    tx.execute("COMMIT")


def sql_commit(tx: Any) -> None:
    tx.execute(text("COMMIT"))


def swallow_commit(tx: Any) -> None:
    try:
        tx.commit()
    except Exception:
        pass  # a handler that doesn't look at its errors


def savepoint_and_commit(tx: Any) -> None:
    with tx.begin_nested():
        pass
    tx.commit()


def level(tx: Any) -> None:
    tx.isolation_level = None


ENDS: dict[str, Callable[[Any], Any]] = {
    "commit": lambda tx: tx.commit(),
    "rollback": lambda tx: tx.rollback(),
    "with": with_tx,
    "executescript": lambda tx: tx.executescript("SELECT 1"),
    "COMMIT": sqlite_commit,
    "isolation_level": level,
    "close": lambda tx: tx.close(),
    "sql": sql_commit,
    "swallowed commit": swallow_commit,
    "savepoint, commit": savepoint_and_commit,
}


async def sql_commit_async(tx: Any) -> None:
    await tx.execute(text("COMMIT"))


async def sqlite_commit_async(tx: Any) -> None:
    await tx.execute("COMMIT")


async def swallow(ending: Awaitable[Any]) -> None:
    try:
        await ending
    except Exception:
        pass  # a handler that doesn't look at its errors


ENDS_ASYNC: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "commit": lambda tx: tx.commit(),
    "rollback": lambda tx: tx.rollback(),
    "executescript": lambda tx: tx.executescript("SELECT 1"),
    "close": lambda tx: tx.close(),
    "swallowed commit": lambda tx: swallow(tx.commit()),
    "swallowed rollback": lambda tx: swallow(tx.rollback()),
    "COMMIT": sqlite_commit_async,
    "sql": sql_commit_async,
}

SYNC = [
    *[
        (sqlite3.Connection, end)
        for end in ("commit", "rollback", "with", "executescript", "COMMIT", "isolation_level", "close", "swallowed commit")
    ],
    *[(Session, end) for end in ("commit", "rollback", "close", "sql", "with", "swallowed commit", "savepoint, commit")],
    *[(Connection, end) for end in ("commit", "rollback", "close", "sql", "with", "swallowed commit", "savepoint, commit")],
]
ASYNC = [
    *[(aiosqlite.Connection, end) for end in ("commit", "rollback", "executescript", "COMMIT", "swallowed commit", "swallowed rollback")],
    *[(AsyncSession, end) for end in ("commit", "rollback", "close", "sql", "swallowed commit", "swallowed rollback")],
    *[(AsyncConnection, end) for end in ("commit", "rollback", "close", "sql", "swallowed commit", "swallowed rollback")],
]
KINDS: list[tuple[type, bool]] = [
    (sqlite3.Connection, False),
    (Session, False),
    (Connection, False),
    (sqlite3.Connection, True),
    (aiosqlite.Connection, True),
    (AsyncSession, True),
    (AsyncConnection, True),
]


def handler_of(kind: type, is_async: bool, what: Callable[[Placed, Context, Any], Any]) -> Callable[..., Any]:
    """A handler that asks for a transaction of this kind."""
    if is_async:

        async def handler(event: Placed, ctx: Context, tx: Any) -> Any:
            assert isinstance(tx, kind)
            await add(tx, event.order)
            result = what(event, ctx, tx)
            return await result if isinstance(result, Awaitable) else result

    else:

        def handler(event: Placed, ctx: Context, tx: Any) -> Any:  # type: ignore[misc]
            assert isinstance(tx, kind)
            add_now(tx, event.order)
            return what(event, ctx, tx)

    handler.__annotations__["tx"] = kind
    return handler


def effects(harness: Harness) -> list[int]:
    with harness.transaction() as tx:
        return [row[0] for row in tx.execute("SELECT number FROM effects ORDER BY rowid")]


@asynccontextmanager
async def prepared(app: App, *orders: int) -> AsyncIterator[Harness]:
    """A harness with a table of effects, where engines for every driver are at hand and these orders were placed."""
    engines: list[Any] = []

    def sources(path: str) -> list[Any]:
        engines[:] = [create_engine(f"sqlite:///{path}"), create_async_engine(f"sqlite+aiosqlite:///{path}")]
        return [sessionmaker(engines[0]), async_sessionmaker(engines[1])]

    async with Harness(app, transactions=sources) as harness:
        with harness.transaction() as tx:
            tx.execute("CREATE TABLE effects (number)")
            for order in orders:
                app.publish(Placed(order=order), tx=tx)
        yield harness
        engines[0].dispose()
        await engines[1].dispose()


def ids(value: object) -> str:
    return value.__module__.split(".")[0] + "." + value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("kind", "is_async"), KINDS, ids=ids)
async def test_effects_events_and_checkpoint_commit_together(kind: type, is_async: bool, shared: bool) -> None:
    app = App("shop", store="sqlite:///unused.db")

    def work(event: Placed, ctx: Context, tx: Any) -> Paid:
        if event.order == 7 and ctx.attempt == 1:
            ctx.publish(Paid(order=1000))
            raise Declined
        return Paid(order=event.order)

    handler = handler_of(kind, is_async, work)
    app.subscribe(Placed, name="pay", shared_tx=shared, retry=Retry(first=1, jitter=0))(handler)
    async with prepared(app, *range(20)) as harness:
        await harness.settle()
        assert sorted(effects(harness)) == [number for number in range(20) if number != 7]
        assert sorted(event.order for event in harness.published(Paid)) == [number for number in range(20) if number != 7]
        await harness.advance(1)
        assert sorted(effects(harness)) == sorted(event.order for event in harness.published(Paid)) == list(range(20))
        assert harness.dead("pay") == []


@pytest.mark.parametrize(
    ("kind", "is_async", "end"), [*((kind, False, end) for kind, end in SYNC), *((kind, True, end) for kind, end in ASYNC)], ids=ids
)
async def test_a_handler_cannot_end_its_transaction(kind: type, is_async: bool, end: str) -> None:
    app = App("shop", store="sqlite:///unused.db")

    def work(event: Placed, ctx: Context, tx: Any) -> Any:
        if event.order == 1 and ctx.attempt == 1:
            ctx.publish(Paid(order=1000))
            return (ENDS_ASYNC if is_async else ENDS)[end](tx)
        return None

    app.subscribe(Placed, name="pay", retry=Retry(attempts=2, first=1, jitter=0))(handler_of(kind, is_async, work))
    async with prepared(app, 1, 2, 3) as harness:
        await harness.settle()
        (parked,) = harness.parked("pay")
        assert parked.error is not None
        assert parked.error.startswith("TransactionEnded: ")
        assert sorted(effects(harness)) == [2, 3]
        assert harness.published(Paid) == []
        await harness.advance(1)
        assert sorted(effects(harness)) == [1, 2, 3]
        assert harness.dead("pay") == []


@pytest.mark.parametrize(("kind", "is_async"), KINDS, ids=ids)
async def test_a_savepoint_is_the_handlers_own(kind: type, is_async: bool) -> None:
    app = App("shop", store="sqlite:///unused.db")

    async def in_async(tx: Any) -> None:
        if isinstance(tx, aiosqlite.Connection):
            await tx.execute("SAVEPOINT mine")
            await add(tx, 100)
            await tx.execute("ROLLBACK TO mine")
            return
        savepoint = await tx.begin_nested()
        await add(tx, 100)
        await savepoint.rollback()

    def work(event: Placed, ctx: Context, tx: Any) -> Any:
        if isinstance(tx, sqlite3.Connection):
            tx.execute("SAVEPOINT mine")
            add_now(tx, 100)
            tx.execute("ROLLBACK TO mine")
            return None
        if is_async:
            return in_async(tx)
        savepoint = tx.begin_nested()
        add_now(tx, 100)
        savepoint.rollback()
        return None

    app.subscribe(Placed, name="pay")(handler_of(kind, is_async, work))
    async with prepared(app, 1) as harness:
        await harness.settle()
        assert effects(harness) == [1]


def as_mapping(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_handlers_row_factory_is_its_own(is_async: bool) -> None:
    """Neither the checkpoint on the same connection nor the next handler is disturbed, retries included."""
    app = App("shop", store="sqlite:///unused.db")
    factories: list[Any] = []

    def work(event: Placed, ctx: Context, tx: Any) -> None:
        factories.append(tx.row_factory)
        tx.row_factory = as_mapping
        assert tx.execute("SELECT 1 AS one").fetchone() == {"one": 1}
        if ctx.position == 1 and ctx.attempt == 1:
            raise Declined

    app.subscribe(Placed, name="pay", retry=Retry(first=1, jitter=0))(handler_of(sqlite3.Connection, is_async, work))
    async with prepared(app, 1, 2, 1, 3) as harness:
        await harness.settle()
        await harness.advance(1)
        assert sorted(effects(harness)) == [1, 1, 2, 3]
        assert factories == [None] * 5


async def test_many_async_handlers_wait_for_one_file_without_a_deadlock() -> None:
    """More of them than there are threads to wait in."""
    app = App("shop", store="sqlite:///unused.db")
    for name in ("one", "two", "three"):
        app.subscribe(Placed, name=name, concurrency=32)(handler_of(sqlite3.Connection, True, lambda event, ctx, tx: None))
    async with prepared(app, *range(50)) as harness:
        await harness.settle()
        assert sorted(effects(harness)) == sorted([*range(50)] * 3)


async def test_transactions_on_another_database_are_refused_and_nothing_is_done(tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    with sqlite3.connect(other) as conn:
        conn.execute("CREATE TABLE effects (number)")
    conn.close()
    app = App("shop", store="sqlite:///unused.db")
    app.subscribe(Placed, name="pay")(handler_of(Session, False, lambda event, ctx, tx: None))
    engine = create_engine(f"sqlite:///{other}")
    async with Harness(app, transactions=lambda path: engine, patience=0.5) as harness:
        await harness.publish(Placed(order=1))
        assert app.worker is not None
        runner = app.worker.runners["pay"]
        while runner.trouble is None:
            await asyncio.sleep(0.005)
        assert runner.trouble.startswith(WrongStore.__name__)
        assert harness.calls("pay") == []
        await harness.crash()
    engine.dispose()


@pytest.mark.parametrize("kind", [Session, Connection, AsyncSession, AsyncConnection], ids=ids)
async def test_where_transactions_come_from_is_said_before_the_app_starts(kind: type, tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.subscribe(Placed, name="pay")(handler_of(kind, kind.__name__.startswith("Async"), lambda event, ctx, tx: None))
    with pytest.raises(HandlerDefinitionError, match=r"say where it comes from with App\(…, transactions="):
        await app.start()


def test_what_gives_no_transactions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give an engine, a sessionmaker"):
        App("shop", store="sqlite:///shop.db", transactions="sqlite:///shop.db")


def test_django_handlers(tmp_path: Path) -> None:
    """In a process of its own: Django is configured once a process."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(DJANGO))
    ran = subprocess.run([sys.executable, str(script), str(tmp_path / "shop.db")], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == "ok"


DJANGO = """
    import asyncio, sys
    import django
    from django.conf import settings

    path = sys.argv[1]
    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": path}}, USE_TZ=True)
    django.setup()

    from django.db import connection, transaction
    from django.db.backends.base.base import BaseDatabaseWrapper
    from tidings import App, Context, Event, Retry

    class Placed(Event, key="order"):
        order: int

    class Paid(Event, key="order"):
        order: int

    app = App("shop", store=f"sqlite:///{path}")
    ends = {
        2: lambda: connection.commit(),
        3: lambda: connection.rollback(),
        4: lambda: connection.cursor().execute("COMMIT"),
        5: lambda: connection.close(),
        6: lambda: transaction.set_autocommit(True),
        7: lambda: connection.connection.commit(),
    }
    done = []

    @app.subscribe(Placed, retry=Retry(attempts=2, first=0.01))
    def pay(event: Placed, ctx: Context, tx: BaseDatabaseWrapper) -> Paid:
        with tx.cursor() as cursor:
            cursor.execute("INSERT INTO effects VALUES (%s)", [event.order])
        with transaction.atomic():  # a savepoint
            pass
        if ctx.attempt == 1 and event.order in ends:
            try:
                ends[event.order]()
            except Exception:
                pass
        done.append((event.order, ctx.attempt))
        return Paid(order=event.order)

    async def main():
        async with app:
            def publish():
                with transaction.atomic():
                    for order in range(1, 9):
                        app.publish(Placed(order=order), tx=connection)
                connection.close()
            await asyncio.to_thread(publish)
            while app.worker.outstanding() or len(app.store.query(lambda unit: unit.select(limit=100, types=["shop.Paid"]))) < 8:
                await asyncio.sleep(0.01)
        app.open()
        attempts = app.store.query(lambda unit: unit.attempts(list(range(1, 9))))
        assert [row.position for row in attempts] == [4, 5, 7], attempts  # the others Django refuses by itself, and nothing has happened
        for row in attempts:
            assert row.error.startswith("TransactionEnded"), row
        app.close()

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE effects (number)")
    asyncio.run(main())
    with connection.cursor() as cursor:
        cursor.execute("SELECT number FROM effects ORDER BY number")
        rows = [row[0] for row in cursor.fetchall()]
    assert rows == list(range(1, 9)), rows
    connection.close()
    print("ok")
"""


@pytest.mark.promise("nothing vanishes")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("kind", "is_async"), [(sqlite3.Connection, False), (sqlite3.Connection, True), (AsyncSession, True)], ids=ids)
async def test_a_store_error_of_the_handlers_own_making_counts_as_its_failure(
    kind: type, is_async: bool, shared: bool, tmp_path: Path
) -> None:
    """Taken for the store's trouble, it would be run again for ever, and hold its neighbours up."""
    other = App("other", store=f"sqlite:///{tmp_path}/other.db")
    app = App("shop", store="sqlite:///unused.db")
    elsewhere = sqlite3.connect(":memory:", check_same_thread=False)

    def work(event: Placed, ctx: Context, tx: Any) -> None:
        if event.order == 1:
            other.publish(Placed(order=1), tx=elsewhere)  # WrongStore, which is a StoreError

    app.subscribe(Placed, name="pay", shared_tx=shared, retry=Retry(attempts=2, first=1, jitter=0))(handler_of(kind, is_async, work))
    async with prepared(app, 1, 2, 3) as harness:
        await harness.settle()
        assert sorted(effects(harness)) == [2, 3]
        await harness.advance(1)
        (dead,) = harness.dead("pay")
        assert dead.error is not None
        assert dead.error.startswith("WrongStore: ")
        assert dead.attempts == 2
    elsewhere.close()
    other.close()


@pytest.mark.parametrize("tx", [False, True])
async def test_so_does_one_of_a_handler_that_takes_a_list(tx: bool, tmp_path: Path) -> None:
    app = App("shop", store="sqlite:///unused.db")

    def fail() -> None:
        raise StoreFailed("the handler's own other store is full")

    if tx:

        @app.subscribe(Placed, name="pay", age=0.0, retry=Retry(attempts=1))
        def with_tx(events: list[Placed], tx: sqlite3.Connection) -> None:
            fail()

    else:

        @app.subscribe(Placed, name="pay", age=0.0, retry=Retry(attempts=1))
        async def without(events: list[Placed]) -> None:
            fail()

    async with prepared(app, 1) as harness:
        await harness.settle()
        assert [dead.error for dead in harness.dead("pay")] == ["StoreFailed: the handler's own other store is full"]
