"""Whose transaction is this? From the object a user has to what runs our statements in it.

Each driver is recognised by the module of its class, so none is imported that the user doesn't have. What comes back has one method,
``execute(statement, arguments)``, and is called at the right place: here, inside SQLAlchemy's greenlet, or step by step from the loop that
the connection belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from ...errors import OutsideTransaction, StoreError, UnsupportedTransaction

T = TypeVar("T")


class Rows(Protocol):
    """What a statement gave."""

    rowcount: int

    def fetchone(self) -> tuple[Any, ...] | None: ...
    def fetchall(self) -> list[tuple[Any, ...]]: ...


class Executor(Protocol):
    """Runs statements in somebody's transaction.

    Attributes:
        driver: the object that stands for the connection under it. mark: of a handler's transaction (transactions.py).
    """

    driver: Any
    mark: str | None

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> Rows: ...


Work = Callable[[Any], T]


def _kind_of(cls: type) -> str:
    """Which driver a class belongs to.

    Raises:
        UnsupportedTransaction: none that Tidings knows on PostgreSQL.
    """
    for base in cls.__mro__:
        if base is psycopg.Connection:
            return "psycopg"
        if base is psycopg.AsyncConnection:
            return "async psycopg"
        module = base.__module__
        if module.startswith("sqlalchemy."):
            if hasattr(cls, "run_sync"):
                return "async sqlalchemy"
            if hasattr(cls, "execute") and not module.startswith("sqlalchemy.ext.asyncio"):  # a scoped_session too
                return "sqlalchemy"
            break  # an engine, a sessionmaker
        if module.startswith("asyncpg."):
            return "asyncpg"
        if module.startswith("psycopg2."):
            return "psycopg2"
        if module.startswith(("django.db", "django.utils.connection")):
            return "django"
    raise UnsupportedTransaction(
        f"tx={cls.__module__}.{cls.__qualname__} is not a transaction that Tidings knows on PostgreSQL. Give a psycopg Connection or"
        " AsyncConnection, an asyncpg or psycopg2 connection, a SQLAlchemy Connection, Session, AsyncConnection or AsyncSession, or"
        ' django.db.connection; or tx="own" for a transaction of its own.',
        cls=cls,
    )


kind_of: Callable[[type], str] = lru_cache(256)(_kind_of)


def is_async(tx: object) -> bool:
    """Whether publishing in this transaction must be awaited.

    Raises:
        UnsupportedTransaction: no driver that Tidings knows.
    """
    return kind_of(type(tx)) in {"async psycopg", "asyncpg", "async sqlalchemy"}


def executor(tx: Any) -> Executor:
    """What runs statements in a synchronous transaction.

    Raises:
        OutsideTransaction: what was given is in no transaction (autocommit).
        UnsupportedTransaction: no driver that Tidings knows, or another database's.
    """
    kind = kind_of(type(tx))
    if kind == "psycopg":
        return Psycopg(begun(tx))
    if kind == "sqlalchemy":
        return SQLAlchemy(tx)
    if kind == "django":
        return Django(tx)
    if kind == "psycopg2":
        return Psycopg2(tx)
    raise UnsupportedTransaction(f"{type(tx).__name__} is asynchronous: await the publish", tx=tx)


async def run_async(tx: Any, work: Work[T], mark: str | None = None) -> T:
    """Run ``work(executor)`` in an asynchronous transaction. ``work`` is synchronous code, and may be run several times: see ``replay``."""
    kind = kind_of(type(tx))
    if kind == "async sqlalchemy":

        def inside(inner: Any) -> T:
            raw = SQLAlchemy(inner)
            raw.mark = mark
            return work(raw)

        result: T = await tx.run_sync(inside)
        return result
    if kind == "async psycopg":
        return await replay(begun(tx), execute_psycopg, work, mark)
    return await replay(begun_asyncpg(tx), execute_asyncpg, work, mark)


async def insert_async(tx: Any, statement: str, values: Sequence[Any], check: Callable[[Executor], None], checked: Container[Any]) -> int:
    """Run an INSERT that returns a number, in an asynchronous transaction whose connection has been checked, or is now: what a publish
    does. One statement and no more needs none of what ``run_async`` brings."""
    kind = kind_of(type(tx))
    if kind == "async sqlalchemy":

        def inside(inner: Any) -> int:
            raw = SQLAlchemy(inner)
            check(raw)
            return first(raw.execute(statement, values))

        number: int = await tx.run_sync(inside)
        return number
    conn = begun(tx) if kind == "async psycopg" else begun_asyncpg(tx)
    if conn not in checked:
        await run_async(tx, check)
    if kind == "async psycopg":
        cursor = await psycopg.AsyncCursor(conn, row_factory=tuple_row).execute(statement, values)
        return number_in(await cursor.fetchone())
    return number_in(await conn.fetchrow(numbered(statement), *values))


def first(rows: Rows) -> int:
    """The number that a statement returns."""
    return number_in(rows.fetchone())


def number_in(row: Any) -> int:
    """Raise StoreError if there is no row."""
    if row is None:
        raise StoreError("the INSERT of an event wrote nothing: a trigger or rule of yours on the tidings_ table swallows it; remove it")
    return int(row[0])


class _Wanted(BaseException):
    """The next statement of a replay."""

    def __init__(self, statement: str, arguments: Sequence[Any]) -> None:
        self.statement = statement
        self.arguments = arguments


class Replay:
    """Answers the first statements with what they gave before, and stops at the next one."""

    def __init__(self, driver: Any, known: list[tuple[str, Rows]], mark: str | None) -> None:
        self.driver = driver
        self.mark = mark
        self._known = iter(known)

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> Rows:
        for known, rows in self._known:
            if known != statement:
                raise AssertionError(f"not the same work again: {statement!r} where it was {known!r}")
            return rows
        return self._unknown(statement, arguments)

    def _unknown(self, statement: str, arguments: Sequence[Any]) -> Rows:
        raise _Wanted(statement, arguments)


async def replay(driver: Any, execute: Callable[[Any, str, Sequence[Any]], Any], work: Work[T], mark: str | None) -> T:
    """Run synchronous ``work`` on an asynchronous connection without a thread: it is run until it wants a statement that hasn't run yet;
    that one is awaited, and the work begins anew, with the answers so far. Each statement runs once. For a few statements that is much
    cheaper than a thread; a long list goes through one."""
    known: list[tuple[str, Rows]] = []
    while True:
        try:
            return work(Replay(driver, known, mark))
        except _Wanted as wanted:
            known.append((wanted.statement, await execute(driver, wanted.statement, wanted.arguments)))
        if len(known) == REPLAYED:
            return await asyncio.get_running_loop().run_in_executor(None, work, Bridge(driver, known, execute, mark))


def begun(conn: Any) -> Any:
    """A psycopg connection, if a write on it belongs to a transaction that somebody will commit."""
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        raise OutsideTransaction(
            'this connection is in autocommit mode and no transaction is open: publish inside `with conn.transaction():`, or with tx="own"',
            tx=conn,
        )
    return conn  # the driver begins one at our INSERT, as it would at the caller's


def begun_asyncpg(conn: Any) -> Any:
    """An asyncpg connection that is in a transaction; for one that a pool has lent, the connection itself."""
    if not conn.is_in_transaction():
        raise OutsideTransaction(
            'this connection is in no transaction: publish inside `async with conn.transaction():`, or with tx="own"', tx=conn
        )
    return getattr(conn, "_con", conn)  # a pool's proxy is another object each time, and nobody can remember it


class Psycopg:
    """A psycopg connection, its rows as tuples, whatever factories its owner has set."""

    mark: str | None = None

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.driver = conn

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> Any:
        return psycopg.Cursor(self.driver, row_factory=tuple_row).execute(statement, arguments)


class Psycopg2:
    """A psycopg2 connection."""

    mark: str | None = None

    def __init__(self, conn: Any) -> None:
        if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
            raise OutsideTransaction('this connection is in autocommit mode: publish in a transaction, or with tx="own"', tx=conn)
        self.driver = conn

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> Any:
        made = _psycopg2_cursor()(self.driver)
        made.execute(statement, arguments)
        return made


@lru_cache(1)
def _psycopg2_cursor() -> Any:
    from psycopg2.extensions import cursor

    return cursor


class SQLAlchemy:
    """A Session or a Connection of SQLAlchemy, whatever driver is under it.

    A Session is flushed first, always: otherwise our INSERT would run before the aggregate's UPDATE, draw its position before the row
    lock, and before the row has its key.
    """

    mark: str | None = None

    def __init__(self, tx: Any) -> None:
        if hasattr(tx, "flush"):
            tx.flush()
            tx = tx.connection()
        if tx.dialect.name != "postgresql":
            raise UnsupportedTransaction(f"the session is on {tx.dialect.name}, the store on PostgreSQL", tx=tx)
        driver = tx.connection.dbapi_connection
        if getattr(driver, "autocommit", False) or str(getattr(driver, "isolation_level", "")).lower() == "autocommit":
            raise OutsideTransaction('this connection is in AUTOCOMMIT mode: publish in a transaction, or with tx="own"', tx=tx)
        self._tx = tx
        self._numbered = tx.dialect.paramstyle == "numeric_dollar"
        self.driver = tx.connection.driver_connection

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> Rows:
        if self._numbered:
            statement = numbered(statement)
        result = self._tx.exec_driver_sql(statement, tuple(arguments) or None)
        return Fetched([tuple(row) for row in result.fetchall()] if result.returns_rows else [], result.rowcount)


class Django:
    """Django's connection (``django.db.connection``, or one of ``connections``)."""

    mark: str | None = None

    def __init__(self, tx: Any) -> None:
        if "_alias" in vars(tx):  # django.db.connection is a proxy for the thread's own connection
            tx = tx._connections[tx._alias]
        if tx.vendor != "postgresql":
            raise UnsupportedTransaction(f"the Django connection {tx.alias!r} is on {tx.vendor}, the store on PostgreSQL", tx=tx)
        tx.ensure_connection()
        if not tx.in_atomic_block and tx.get_autocommit():
            raise OutsideTransaction('publish inside `with transaction.atomic():`, or with tx="own"', tx=tx)
        self._tx = tx
        self.driver = tx.connection

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> Any:
        with self._tx.cursor() as cursor:
            cursor.execute(statement, list(arguments))
            return Fetched(cursor.fetchall() if cursor.description else [], cursor.rowcount)


class Fetched:
    """Rows that have been fetched."""

    def __init__(self, rows: list[tuple[Any, ...]], rowcount: int) -> None:
        self.rowcount = rowcount
        self._rows = rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._rows


REPLAYED = 8
"""Statements; from there on a thread is cheaper."""


class Bridge(Replay):
    """The same from a thread beside the loop."""

    def __init__(
        self, driver: Any, known: list[tuple[str, Rows]], execute: Callable[[Any, str, Sequence[Any]], Any], mark: str | None
    ) -> None:
        super().__init__(driver, known, mark)
        self._execute = execute
        self._loop = asyncio.get_running_loop()

    def _unknown(self, statement: str, arguments: Sequence[Any]) -> Rows:
        found: Rows = asyncio.run_coroutine_threadsafe(self._execute(self.driver, statement, arguments), self._loop).result()
        return found


async def execute_psycopg(conn: Any, statement: str, arguments: Sequence[Any]) -> Rows:
    cursor = await psycopg.AsyncCursor(conn, row_factory=tuple_row).execute(statement, arguments)
    # In a pipeline nothing has come yet, and what a statement gives can only be told by its text.
    pipelined = conn.pgconn.pipeline_status != PipelineStatus.OFF
    gives = statement.startswith("SELECT") or " RETURNING " in statement if pipelined else cursor.description is not None
    return Fetched(await cursor.fetchall() if gives else [], cursor.rowcount)


async def execute_asyncpg(conn: Any, statement: str, arguments: Sequence[Any]) -> Rows:
    statement = numbered(statement)
    if statement.startswith("SELECT") or " RETURNING " in statement:
        rows = [tuple(row) for row in await conn.fetch(statement, *arguments)]
        return Fetched(rows, len(rows))
    status: str = await conn.execute(statement, *arguments)
    count = status.rpartition(" ")[2]
    return Fetched([], int(count) if count.isdigit() else -1)


@lru_cache(256)
def numbered(statement: str) -> str:
    """``%s`` as ``$1``, ``$2`` and so on."""
    first, *rest = statement.split("%s")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
