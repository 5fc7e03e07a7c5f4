from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from servers.postgres import Postgres
from tidings import App, Event, OutsideTransaction, StoreNotInitialised, UnawaitedPublish, UnsupportedTransaction, WrongStore
from tidings.store.postgres.enlist import numbered, replay


class Placed(Event, key="order"):
    order: int


class Rolled(Exception):
    """Makes a transaction roll back."""


@pytest.fixture
def app(postgres_url: str) -> Iterator[App]:
    app = App("shop", store=postgres_url)
    app.open()
    with psycopg.connect(postgres_url) as conn:
        conn.execute("CREATE TABLE orders (id int)")
    yield app
    app.close()


def orders_and_events(url: str) -> tuple[list[int], list[bytes]]:
    with psycopg.connect(url) as conn:
        orders = [row[0] for row in conn.execute("SELECT id FROM orders ORDER BY id")]
        events = [row[0] for row in conn.execute("SELECT data FROM tidings_log ORDER BY position")]
    return orders, events


# Each gives a transaction, and a way to write a row of one's own in it.


@contextmanager
def by_psycopg(url: str, **options: Any) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    with psycopg.connect(url, **options) as conn, conn.transaction():
        yield conn, conn.execute


@contextmanager
def by_psycopg_dicts(url: str) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    with by_psycopg(url, row_factory=dict_row, autocommit=True) as both:
        yield both


@contextmanager
def by_psycopg2(url: str) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    conn = psycopg2.connect(url)
    try:
        with conn, conn.cursor() as cursor:
            yield conn, cursor.execute
    finally:
        conn.close()


@contextmanager
def by_sqlalchemy(url: str, driver: str, kind: type) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    engine = sqlalchemy.create_engine(url.replace("postgresql:", f"postgresql+{driver}:"))
    try:
        with kind(engine) if kind is Session else engine.connect() as tx, tx.begin():
            yield tx, lambda statement: tx.execute(sqlalchemy.text(statement))
    finally:
        engine.dispose()


SYNC: dict[str, Callable[[str], Any]] = {
    "psycopg": by_psycopg,
    "psycopg, autocommit, dict rows": by_psycopg_dicts,
    "psycopg2": by_psycopg2,
    "Session on psycopg": lambda url: by_sqlalchemy(url, "psycopg", Session),
    "Connection on psycopg": lambda url: by_sqlalchemy(url, "psycopg", sqlalchemy.Connection),
    "Session on psycopg2": lambda url: by_sqlalchemy(url, "psycopg2", Session),
    "Connection on psycopg2": lambda url: by_sqlalchemy(url, "psycopg2", sqlalchemy.Connection),
}


@asynccontextmanager
async def by_async_psycopg(url: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with await psycopg.AsyncConnection.connect(url) as conn, conn.transaction():
        yield conn, conn.execute


@asynccontextmanager
async def by_asyncpg(url: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    conn = await asyncpg.connect(url)
    try:
        async with conn.transaction():
            yield conn, conn.execute
    finally:
        await conn.close()


@asynccontextmanager
async def by_asyncpg_pool(url: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as conn, conn.transaction():
        yield conn, conn.execute


@asynccontextmanager
async def by_async_psycopg_pipeline(url: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with await psycopg.AsyncConnection.connect(url) as conn, conn.pipeline():
        yield conn, conn.execute


@asynccontextmanager
async def by_async_sqlalchemy(url: str, driver: str, session: bool) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    engine = create_async_engine(url.replace("postgresql:", f"postgresql+{driver}:"))
    try:
        async with AsyncSession(engine) if session else engine.connect() as tx, tx.begin():
            yield tx, lambda statement: tx.execute(sqlalchemy.text(statement))
    finally:
        await engine.dispose()


ASYNC: dict[str, Callable[[str], Any]] = {
    "psycopg": by_async_psycopg,
    "psycopg, a pipeline": by_async_psycopg_pipeline,
    "asyncpg": by_asyncpg,
    "asyncpg, from a pool": by_asyncpg_pool,
    "AsyncSession on psycopg": lambda url: by_async_sqlalchemy(url, "psycopg", True),
    "AsyncConnection on psycopg": lambda url: by_async_sqlalchemy(url, "psycopg", False),
    "AsyncSession on asyncpg": lambda url: by_async_sqlalchemy(url, "asyncpg", True),
    "AsyncConnection on asyncpg": lambda url: by_async_sqlalchemy(url, "asyncpg", False),
}


@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize("driver", SYNC)
def test_an_event_is_there_if_and_only_if_the_transaction_committed(app: App, postgres_url: str, driver: str) -> None:
    with pytest.raises(Rolled), SYNC[driver](postgres_url) as (tx, execute):
        execute("INSERT INTO orders VALUES (1)")
        assert app.publish(Placed(order=1), tx=tx).position > 0
        raise Rolled
    assert orders_and_events(postgres_url) == ([], [])
    with SYNC[driver](postgres_url) as (tx, execute):
        execute("INSERT INTO orders VALUES (3)")
        app.publish(Placed(order=3), tx=tx)
        app.publish(Placed(order=4), tx=tx)
        assert orders_and_events(postgres_url) == ([], [])
    assert orders_and_events(postgres_url) == ([3], [b'{"order":3}', b'{"order":4}'])


@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize("driver", ASYNC)
async def test_the_same_when_it_is_awaited(app: App, postgres_url: str, driver: str) -> None:
    with pytest.raises(Rolled):
        async with ASYNC[driver](postgres_url) as (tx, execute):
            await execute("INSERT INTO orders VALUES (1)")
            await app.publish(Placed(order=1), tx=tx)
            raise Rolled
    assert orders_and_events(postgres_url) == ([], [])
    async with ASYNC[driver](postgres_url) as (tx, execute):
        await execute("INSERT INTO orders VALUES (3)")
        receipt = await app.publish(Placed(order=3), tx=tx)
        assert receipt.position == 2
        assert orders_and_events(postgres_url) == ([], [])
    assert orders_and_events(postgres_url) == ([3], [b'{"order":3}'])


@pytest.mark.parametrize("driver", ["AsyncSession on psycopg", "AsyncConnection on asyncpg"])
async def test_a_publish_that_was_not_awaited_prevents_the_commit(app: App, postgres_url: str, driver: str) -> None:
    with pytest.raises(UnawaitedPublish):
        async with ASYNC[driver](postgres_url) as (tx, execute):
            await execute("INSERT INTO orders VALUES (1)")
            forgotten = app.publish(Placed(order=1), tx=tx)
    assert orders_and_events(postgres_url) == ([], [])
    del forgotten


@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize("driver", SYNC)
def test_another_database_is_refused_and_its_transaction_goes_on(app: App, postgres: Postgres, driver: str) -> None:
    empty, other = postgres.new_database(), postgres.new_database()
    stranger = App("other", store=other)
    stranger.open()
    try:
        for url, error in ((empty, StoreNotInitialised), (other, WrongStore)):
            with SYNC[driver](url) as (tx, execute):
                with pytest.raises(error, match=r"search_path|another log"):
                    app.publish(Placed(order=1), tx=tx)
                execute("CREATE TABLE mine (id int)")
            with psycopg.connect(url) as conn:
                assert conn.execute("SELECT count(*) FROM mine").fetchone() == (0,)
    finally:
        stranger.close()
        postgres.drop_database(empty)
        postgres.drop_database(other)


def test_outside_a_transaction_is_an_error(app: App, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn, pytest.raises(OutsideTransaction, match="autocommit"):
        app.publish(Placed(order=1), tx=conn)
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(OutsideTransaction, match="AUTOCOMMIT"):
        app.publish(Placed(order=1), tx=connection)
    engine.dispose()
    conn2 = psycopg2.connect(postgres_url)
    conn2.autocommit = True
    with pytest.raises(OutsideTransaction, match="autocommit"):
        app.publish(Placed(order=1), tx=conn2)
    conn2.close()
    with pytest.raises(UnsupportedTransaction, match="psycopg Connection"):
        app.publish(Placed(order=1), tx=object())
    assert orders_and_events(postgres_url) == ([], [])


async def test_outside_a_transaction_of_asyncpg(app: App, postgres_url: str) -> None:
    conn = await asyncpg.connect(postgres_url)
    with pytest.raises(OutsideTransaction, match="in no transaction"):
        await app.publish(Placed(order=1), tx=conn)
    await conn.close()


def test_a_session_of_another_database_kind(app: App) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with Session(engine) as session, pytest.raises(UnsupportedTransaction, match="on sqlite, the store on PostgreSQL"):
        app.publish(Placed(order=1), tx=session)


def test_a_session_is_flushed_first(app: App, postgres_url: str) -> None:
    """Otherwise the row's key isn't there, and the position is drawn before the row lock."""
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    order = sqlalchemy.orm.registry()
    table = sqlalchemy.Table("orders", order.metadata, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))

    class Order:
        id: int

    order.map_imperatively(Order, table)
    with Session(engine, autoflush=False) as session, session.begin():
        one = Order()
        one.id = 9
        session.add(one)
        app.publish(Placed(order=9), tx=session)
        assert not session.new
    engine.dispose()
    assert orders_and_events(postgres_url)[0] == [9]


async def test_a_replay_runs_each_statement_once_and_many_go_through_a_thread() -> None:
    ran: list[str] = []

    async def execute(driver: Any, statement: str, arguments: Any) -> Any:
        await asyncio.sleep(0)
        ran.append(statement)
        return statement

    def work(raw: Any) -> list[str]:
        return [raw.execute(f"statement {number}") for number in range(20)]

    assert await replay(None, execute, work, None) == [f"statement {number}" for number in range(20)]
    assert ran == [f"statement {number}" for number in range(20)]


def test_numbering() -> None:
    assert numbered("a = %s AND b = ANY (%s::int[])") == "a = $1 AND b = ANY ($2::int[])"
    assert numbered("SELECT 1") == "SELECT 1"
