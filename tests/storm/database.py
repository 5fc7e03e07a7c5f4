"""The databases that a storm can rage on: how its processes connect, and the few words in which their SQL differs."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Protocol

import aiosqlite
import psycopg
import sqlalchemy
from sqlalchemy.orm import Session

from tidings.store.postgres.connect import is_lost


class Database(Protocol):
    """One store's database, for code that is the user's.

    Attributes:
        sync, asynchronous: what handlers ask for by type. sessions: they may ask for a SQLAlchemy Session too.
        failures: what its driver raises when a transaction did not happen. begin: ways to begin one.
    """

    url: str
    sync: type
    asynchronous: type
    sessions: type | None
    failures: tuple[type[Exception], ...]
    begin: tuple[str, str]

    def connect(self, *, careless: bool = False) -> Any:
        """A connection whose owner says BEGIN. ``careless``: its commits don't wait for the disk."""
        ...

    def transactions(self) -> Any:
        """For ``App(transactions=…)``."""
        ...

    def sql(self, statement: str) -> str:
        """A statement with ``?`` for its arguments, as the driver wants it."""
        ...

    def field(self, name: str) -> str:
        """A number in an event's data, as an SQL expression."""
        ...

    def undo(self, conn: Any) -> bool:
        """Roll back what is open; False if the connection is of no use any more."""
        ...


class SQLite:
    sync: type = sqlite3.Connection
    asynchronous: type = aiosqlite.Connection
    sessions: type | None = None
    failures: tuple[type[Exception], ...] = (sqlite3.OperationalError,)
    begin = ("BEGIN IMMEDIATE", "BEGIN")

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///"))

    def connect(self, *, careless: bool = False) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, isolation_level=None, timeout=20)
        conn.execute(f"PRAGMA synchronous = {'NORMAL' if careless else 'FULL'}")
        return conn

    def transactions(self) -> Any:
        return lambda: aiosqlite.connect(self.path, timeout=15)

    def sql(self, statement: str) -> str:
        return statement

    def field(self, name: str) -> str:
        return f"data ->> '{name}'"

    def undo(self, conn: sqlite3.Connection) -> bool:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        return True


class PostgreSQL:
    sync: type = psycopg.Connection
    asynchronous: type = psycopg.AsyncConnection
    sessions: type | None = Session
    failures: tuple[type[Exception], ...] = (psycopg.OperationalError,)
    begin = ("BEGIN", "BEGIN")

    def __init__(self, url: str, *, pooled: bool = False) -> None:
        self.url = url
        self._pooled = pooled  # then nothing may be kept in a session: neither statements nor settings
        self._prepare = None if pooled else 5

    def connect(self, *, careless: bool = False) -> psycopg.Connection[Any]:
        conn = psycopg.connect(self.url, autocommit=True, application_name="storm", prepare_threshold=self._prepare)
        if careless and not self._pooled:
            conn.execute("SET synchronous_commit = off")
        return conn

    def transactions(self) -> Any:
        return sqlalchemy.create_engine(
            self.url.replace("postgresql:", "postgresql+psycopg:", 1), connect_args={"prepare_threshold": self._prepare}
        )

    def sql(self, statement: str) -> str:
        return statement.replace("?", "%s")

    def field(self, name: str) -> str:
        return f"(convert_from(data, 'UTF8')::json ->> '{name}')::integer"

    def undo(self, conn: psycopg.Connection[Any]) -> bool:
        try:
            if not conn.closed:
                conn.execute("ROLLBACK")
        except psycopg.Error as error:
            if not is_lost(error):
                raise
        if conn.broken:
            conn.close()
        return not conn.closed


def database(url: str) -> Database:
    """The one that a store's URL names."""
    return SQLite(url) if url.startswith("sqlite:") else PostgreSQL(url)


def of(folder: Path) -> Database:
    """The one that the storm in this folder rages on."""
    url = (folder / "store").read_text()
    return PostgreSQL(url, pooled=True) if (folder / "pooled").exists() else database(url)


def connected(one: Database) -> AbstractContextManager[Any]:
    return closing(one.connect())
