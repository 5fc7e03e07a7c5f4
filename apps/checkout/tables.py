"""The services' own tables: in the same file as the log, each with its service's prefix."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from apps.checkout.settings import STORE

T = TypeVar("T")

BUSY_SECONDS = 30.0
GROUP = 100


def create(*statements: str) -> None:
    """Run each CREATE statement on the store's file."""
    conn = sqlite3.connect(STORE.path, isolation_level=None, timeout=30)
    try:
        conn.execute("PRAGMA journal_mode = WAL")
        for statement in statements:
            conn.execute(statement)
    finally:
        conn.close()


class _Asked(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class Transactions:
    """Runs functions in transactions on the store's file, from a loop: one connection in one thread, since SQLite has one writer anyway.

    What waits together is committed together, each in a savepoint of its own: while one order is being synced to disk nobody else can
    write to the file, so a busy till that syncs each alone would leave no time for those who handle them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="transactions", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
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
                conn = conn or _connect()
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


def _in_savepoint(conn: sqlite3.Connection, work: Callable[[sqlite3.Connection], Any]) -> Any:
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


def _connect() -> sqlite3.Connection:
    conn = sqlite3.connect(STORE.path, isolation_level=None, timeout=0)
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


def cents(amount: Decimal) -> int:
    """An amount of money as whole cents, the way the tables keep it (SQLite has no decimals).

    Raises:
        ValueError: it has a fraction of a cent.
    """
    whole = amount * 100
    if whole != whole.to_integral_value():
        raise ValueError(f"{amount} has a fraction of a cent")
    return int(whole)


def money(whole: int) -> Decimal:
    """Whole cents as an amount of money."""
    return Decimal(whole).scaleb(-2)
