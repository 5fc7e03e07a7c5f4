"""Transactions that the order service opens itself, from its loop; the driver's calls wait in threads."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

from apps.checkout.tables import Tx, connect

T = TypeVar("T")

BUSY_SECONDS = 30.0
GROUP = 100
AT_ONCE = 8


class Transactions(Protocol):
    """Runs functions in transactions on one database."""

    async def run(self, work: Callable[[Any], T]) -> T:
        """The result of ``work``, which is committed when this returns and rolled back when it raises."""
        ...

    def close(self) -> None:
        """Finish what was asked for."""
        ...


def transactions_of(url: str) -> Transactions:
    """On a running loop."""
    return ServerTransactions(url) if url.startswith("postgres") else FileTransactions(url)


class ServerTransactions:
    """A few connections to a PostgreSQL server, a thread each: there transactions run side by side."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._own = threading.local()
        self._made: list[Tx] = []
        self._threads = ThreadPoolExecutor(AT_ONCE, "transactions")

    async def run(self, work: Callable[[Any], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    def close(self) -> None:
        self._threads.shutdown()
        for conn in self._made:
            conn.close()

    def _run(self, work: Callable[[Any], T]) -> T:
        conn: Any = getattr(self._own, "conn", None)
        if conn is None or conn.closed:
            conn = self._own.conn = connect(self._url)
            self._made.append(conn)
        with conn.transaction():
            return work(conn)


class _Asked(NamedTuple):
    work: Callable[[Any], Any]
    future: asyncio.Future[Any]


class FileTransactions:
    """Runs functions in transactions on a SQLite file, from a loop: one connection in one thread, since SQLite has one writer anyway.

    What waits together is committed together, each in a savepoint of its own: while one order is being synced to disk nobody else can
    write to the file, so a busy till that syncs each alone would leave no time for those who handle them.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="transactions", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Any], T]) -> T:
        """The result of ``work``, which is committed when this returns and rolled back when it raises."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._asked.put(_Asked(work, future))
        return await future

    def close(self) -> None:
        """Finish what was asked for."""
        self._asked.put(None)
        self._thread.join()

    def _serve(self) -> None:
        conn = None
        while (first := self._asked.get()) is not None:
            group = [first]
            answers: list[Any]
            try:
                conn = conn or _connect(self._url)
                _begin(conn)
                group += self._others()
                answers = [_in_savepoint(conn, asked.work) for asked in group]
                conn.execute("COMMIT")
            except Exception as error:  # whatever it is, those who wait must hear of it
                if conn is not None and conn.in_transaction:
                    conn.rollback()
                answers = [error] * len(group)
            try:
                self._loop.call_soon_threadsafe(_answer, group, answers)
            except RuntimeError:
                break  # the loop has ended, and nobody waits
        if conn is not None:
            conn.close()

    def _others(self) -> list[_Asked]:
        """Those who came while the first one waited for the file."""
        others: list[_Asked] = []
        while len(others) < GROUP - 1 and not self._asked.empty():
            asked = self._asked.get()
            if asked is None:
                self._asked.put(None)  # the end comes after this group
                break
            others.append(asked)
        return others


def _in_savepoint(conn: sqlite3.Connection, work: Callable[[Any], Any]) -> Any:
    """What ``work`` returns, or the exception that it raised, with what it did undone."""
    conn.execute("SAVEPOINT asked")
    try:
        result = work(conn)
    except Exception as error:
        conn.execute("ROLLBACK TO asked")
        result = error
    conn.execute("RELEASE asked")
    return result


def _answer(group: list[_Asked], answers: list[Any]) -> None:
    for asked, answer in zip(group, answers, strict=True):
        if asked.future.done():
            continue  # nobody waits any more; what was committed is committed
        if isinstance(answer, Exception):
            asked.future.set_exception(answer)
        else:
            asked.future.set_result(answer)


def _connect(url: str) -> sqlite3.Connection:
    conn = connect(url)
    assert isinstance(conn, sqlite3.Connection)
    conn.execute("PRAGMA busy_timeout = 0")
    conn.execute("PRAGMA synchronous = FULL")
    return conn


def _begin(conn: sqlite3.Connection) -> None:
    """BEGIN IMMEDIATE, asked for every millisecond while others write.

    SQLite's own waiting looks less and less often, at last every 100 ms, and on a busy file a customer would wait for many such looks.
    """
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            conn.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.001)
