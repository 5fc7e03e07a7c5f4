"""A saga is begun in the transaction of any driver that can publish: it begins if and only if that transaction is committed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import aiosqlite
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.promises import ROOT
from tests.store.postgres.test_enlist import ASYNC, SYNC, Rolled
from tidings import App, Event, InvalidEvent, Receipt, Saga, UnawaitedPublish


class Placed(Event, key="order"):
    order: int


class Other(Event, key="order"):
    order: int


def shop(url: str) -> tuple[App, Any]:
    """With a table of the user's, in which each order that the saga ships is noted by its body's result alone."""
    app = App("shop", store=url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        return order.order * 10

    app.open()
    with app.store.transaction() as conn:
        conn.execute("CREATE TABLE orders (id integer)")
    return app, checkout


def begun(app: App) -> list[str]:
    return sorted(row.key for row in app.store.query(lambda unit: unit.sagas().rows("checkout", (), 100)))


def orders(app: App) -> list[int]:
    with app.store.transaction() as conn:
        return [row[0] for row in conn.execute("SELECT id FROM orders ORDER BY id").fetchall()]


# Each gives a transaction on a file, and a way to write a row of one's own in it; those on a server are those of publishing.

Made = tuple[Any, Callable[[str], Any]]


@contextmanager
def by_sqlite3(url: str) -> Iterator[Made]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as conn, conn:
        yield conn, conn.execute


@contextmanager
def by_sqlalchemy(url: str, kind: type) -> Iterator[Made]:
    engine = sqlalchemy.create_engine(url)
    try:
        with kind(engine) if kind is Session else engine.connect() as tx, tx.begin():
            yield tx, lambda statement: tx.execute(sqlalchemy.text(statement))
    finally:
        engine.dispose()


@asynccontextmanager
async def by_aiosqlite(url: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with aiosqlite.connect(url.removeprefix("sqlite:///")) as conn:
        try:
            yield conn, conn.execute
        except BaseException:
            await conn.rollback()
            raise
        await conn.commit()


@asynccontextmanager
async def by_async_sqlalchemy(url: str, session: bool) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
    try:
        async with AsyncSession(engine) if session else engine.connect() as tx, tx.begin():
            yield tx, lambda statement: tx.execute(sqlalchemy.text(statement))
    finally:
        await engine.dispose()


ON_A_FILE: dict[str, Callable[[str], Any]] = {
    "sqlite3": by_sqlite3,
    "Session": lambda url: by_sqlalchemy(url, Session),
    "Connection": lambda url: by_sqlalchemy(url, sqlalchemy.Connection),
}
ON_A_FILE_ASYNC: dict[str, Callable[[str], Any]] = {
    "aiosqlite": by_aiosqlite,
    "AsyncSession": lambda url: by_async_sqlalchemy(url, True),
    "AsyncConnection": lambda url: by_async_sqlalchemy(url, False),
}


@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize(
    ("store_url", "driver"),
    [*(("sqlite", name) for name in ON_A_FILE), *(("postgres", name) for name in SYNC)],
    indirect=["store_url"],
)
async def test_it_begins_if_and_only_if_the_transaction_is_committed(store_url: str, driver: str) -> None:
    app, checkout = shop(store_url)
    transaction = (ON_A_FILE if store_url.startswith("sqlite") else SYNC)[driver]
    with pytest.raises(Rolled), transaction(store_url) as (tx, execute):
        execute("INSERT INTO orders VALUES (1)")
        assert isinstance(app.start_saga(checkout, Placed(order=1), tx=tx), Receipt)
        raise Rolled
    assert (begun(app), orders(app)) == ([], [])
    with transaction(store_url) as (tx, execute):
        execute("INSERT INTO orders VALUES (2)")
        app.start_saga(checkout, Placed(order=2), tx=tx)
        app.start_saga("checkout", Placed(order=2), tx=tx)
        app.start_saga(checkout, Placed(order=3), tx=tx)
        with pytest.raises(InvalidEvent):
            app.start_saga(checkout, Other(order=4), tx=tx)
        assert begun(app) == []
    assert (begun(app), orders(app)) == (["2", "3"], [2])
    async with app:
        assert [await app.saga_result(checkout, key, within=20) for key in (2, 3)] == [20, 30]


@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize(
    ("store_url", "driver"),
    [*(("sqlite", name) for name in ON_A_FILE_ASYNC), *(("postgres", name) for name in ASYNC)],
    indirect=["store_url"],
)
async def test_the_same_when_it_is_awaited(store_url: str, driver: str) -> None:
    app, checkout = shop(store_url)
    transaction = (ON_A_FILE_ASYNC if store_url.startswith("sqlite") else ASYNC)[driver]
    with pytest.raises(Rolled):
        async with transaction(store_url) as (tx, execute):
            await execute("INSERT INTO orders VALUES (1)")
            await app.start_saga(checkout, Placed(order=1), tx=tx)
            raise Rolled
    assert (begun(app), orders(app)) == ([], [])
    async with transaction(store_url) as (tx, execute):
        await execute("INSERT INTO orders VALUES (2)")
        assert isinstance(await app.start_saga(checkout, Placed(order=2), tx=tx), Receipt)
        await app.start_saga(checkout, Placed(order=2), tx=tx)
        assert begun(app) == []
    assert (begun(app), orders(app)) == (["2"], [2])
    if "sqlalchemy" in type(tx).__module__:
        with pytest.raises(UnawaitedPublish):
            async with transaction(store_url) as (tx, execute):
                await execute("INSERT INTO orders VALUES (5)")
                forgotten = app.start_saga(checkout, Placed(order=5), tx=tx)
        del forgotten
        assert (begun(app), orders(app)) == (["2"], [2])
    async with app:
        assert await app.saga_result(checkout, 2, within=20) == 20


DJANGO = """
    import sys
    from urllib.parse import urlsplit
    import django
    from django.conf import settings

    url = sys.argv[1]
    if url.startswith("sqlite"):
        at = {"ENGINE": "django.db.backends.sqlite3", "NAME": url.removeprefix("sqlite:///")}
    else:
        parts = urlsplit(url)
        at = {
            "ENGINE": "django.db.backends.postgresql", "NAME": parts.path[1:], "USER": parts.username, "HOST": parts.hostname,
            "PORT": parts.port,
        }
    settings.configure(DATABASES={"default": at}, USE_TZ=True)
    django.setup()
    from django.db import connection, connections, transaction
    from tests.sagas.test_start_drivers import Placed, begun, orders, shop
    from tidings import OutsideTransaction

    app, checkout = shop(url)

    def insert(order):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s)", [order])

    try:
        with transaction.atomic():
            insert(1)
            app.start_saga(checkout, Placed(order=1), tx=connection)
            1 / 0
    except ZeroDivisionError:
        pass
    assert (begun(app), orders(app)) == ([], [])
    with transaction.atomic():
        insert(2)
        app.start_saga(checkout, Placed(order=2), tx=connection)
        app.start_saga(checkout, Placed(order=2), tx=connections["default"])
        try:
            with transaction.atomic():  # a savepoint, undone
                app.start_saga(checkout, Placed(order=3), tx=connection)
                1 / 0
        except ZeroDivisionError:
            pass
        assert begun(app) == []
    assert (begun(app), orders(app)) == (["2"], [2])
    try:
        app.start_saga(checkout, Placed(order=4), tx=connection)
    except OutsideTransaction:
        pass
    else:
        raise AssertionError("begun outside of a transaction")
    assert begun(app) == ["2"]
    connections.close_all()
    app.close()
    print("ok")
"""


@pytest.mark.promise("atomic publish")
def test_in_djangos_transactions(store_url: str) -> None:
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(DJANGO), store_url], capture_output=True, text=True, timeout=90, cwd=ROOT)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stdout + ran.stderr
