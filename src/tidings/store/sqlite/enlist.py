"""Whose transaction is this? From the object a user has to the driver connection under it.

Each driver is recognised by the module of its class, so none is imported that the user doesn't have. What comes back runs a function
of the sqlite3 connection at the right place: here, in the driver's thread, or inside SQLAlchemy's greenlet.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeVar

from ...errors import OutsideTransaction, UnsupportedTransaction

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


def is_async(tx: object) -> bool:
    """Whether publishing in this transaction must be awaited.

    Raises:
        UnsupportedTransaction: no driver that Tidings knows.
    """
    return _kind(type(tx)) in {"aiosqlite", "sqlalchemy-async"}


def run(tx: Any, work: Work[T]) -> T:
    """Run ``work`` on the connection of a synchronous transaction.

    Raises:
        OutsideTransaction: what was given is in no transaction (autocommit).
        UnsupportedTransaction: no driver that Tidings knows.
    """
    if type(tx) is sqlite3.Connection:
        return work(begun(tx))
    kind = _kind(type(tx))
    if kind == "sqlite3":
        return work(begun(tx))
    if kind == "sqlalchemy":
        return _run_sqlalchemy(tx, work)
    if kind == "django":
        return work(_django(tx))
    raise UnsupportedTransaction(f"{type(tx).__name__} is asynchronous: await the publish", tx=tx)


def run_async(tx: Any, work: Work[T]) -> Awaitable[T]:
    """The same for an asynchronous transaction."""
    if _kind(type(tx)) == "aiosqlite":
        return in_thread(tx, lambda: work(begun(tx._conn)))
    # AsyncSession and AsyncConnection: run_sync enters the greenlet in which their synchronous twin may await.
    result: Awaitable[T] = tx.run_sync(lambda inner: _run_sqlalchemy(inner, work))
    return result


async def driver_of(tx: Any) -> Any:
    """The aiosqlite connection under an asynchronous transaction."""
    if _kind(type(tx)) == "aiosqlite":
        return tx
    connection = await tx.connection() if hasattr(tx, "flush") else tx
    return (await connection.get_raw_connection()).driver_connection


def _kind(cls: type) -> str:
    return _kind_of(cls)


@lru_cache(maxsize=64)
def _kind_of(cls: type) -> str:
    for base in cls.__mro__:
        module = base.__module__
        if base is sqlite3.Connection:
            return "sqlite3"
        if module.startswith("sqlalchemy."):
            if hasattr(cls, "run_sync"):
                return "sqlalchemy-async"
            if hasattr(cls, "execute") and not module.startswith("sqlalchemy.ext.asyncio"):  # a scoped_session too
                return "sqlalchemy"
            break  # an engine, a sessionmaker
        if module.startswith("aiosqlite."):
            return "aiosqlite"
        if module.startswith(("django.db", "django.utils.connection")):
            return "django"
    raise UnsupportedTransaction(
        f"tx={cls.__module__}.{cls.__qualname__} is not a transaction that Tidings knows. Give a sqlite3.Connection, an"
        " aiosqlite.Connection,"
        ' a SQLAlchemy Connection, Session, AsyncConnection or AsyncSession, or django.db.connection; or tx="own" for a'
        " transaction of its own.",
        cls=cls,
    )


def begun(conn: sqlite3.Connection) -> sqlite3.Connection:
    """``conn``, if a write on it belongs to a transaction that somebody will commit."""
    if conn.in_transaction:
        return conn
    if getattr(conn, "autocommit", -1) is True or conn.isolation_level is None:
        raise OutsideTransaction(
            'this connection is in autocommit mode and no transaction is open: execute BEGIN first, or publish with tx="own"', tx=conn
        )
    return conn  # the driver begins one at our INSERT, as it would at the caller's


def _run_sqlalchemy(tx: Any, work: Work[T]) -> T:
    """``tx`` is a Session or a Connection.

    A Session is flushed first, always: otherwise our INSERT would run before the aggregate's UPDATE, and before the row has its key.
    """
    if hasattr(tx, "flush"):
        tx.flush()
        connection = tx.connection()
    else:
        connection = tx
        if not connection.in_transaction():
            connection.begin()  # as SQLAlchemy does at the first statement ("commit as you go")
    if connection.dialect.name != "sqlite":
        raise UnsupportedTransaction(f"the session is on {connection.dialect.name}, the store on SQLite", tx=tx)
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        return work(begun(driver))
    from sqlalchemy.util import await_only

    return await_only(in_thread(driver, lambda: work(begun(driver._conn))))


def _django(tx: Any) -> sqlite3.Connection:
    """``tx`` is a database wrapper (``django.db.connection`` or one of ``connections``)."""
    if "_alias" in vars(tx):  # django.db.connection is a proxy for the thread's own connection
        tx = tx._connections[tx._alias]
    if tx.vendor != "sqlite":
        raise UnsupportedTransaction(f"the Django connection {tx.alias!r} is on {tx.vendor}, the store on SQLite", tx=tx)
    tx.ensure_connection()
    if not tx.in_atomic_block and tx.get_autocommit():
        raise OutsideTransaction('publish inside `with transaction.atomic():`, or with tx="own"', tx=tx)
    conn: sqlite3.Connection = tx.connection
    if not conn.in_transaction:
        raise OutsideTransaction("Django has no transaction open on this connection; publish inside `with transaction.atomic():`", tx=tx)
    return conn


def in_thread(connection: Any, work: Callable[[], T]) -> Awaitable[T]:
    """Run ``work`` in the thread that owns an aiosqlite connection, whole: its public calls hop once a statement."""
    return connection._execute(work)  # type: ignore[no-any-return]
