"""The services' own tables: in the same file as the log, each with its service's prefix."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TypeVar

from apps.checkout.settings import STORE

T = TypeVar("T")

BUSY_SECONDS = 30.0


def create(*statements: str) -> None:
    """Run each CREATE statement on the store's file."""
    conn = sqlite3.connect(STORE.path, isolation_level=None, timeout=30)
    try:
        conn.execute("PRAGMA journal_mode = WAL")
        for statement in statements:
            conn.execute(statement)
    finally:
        conn.close()


class Transactions:
    """Runs functions in transactions on the store's file, from a loop: one connection in one thread, since SQLite has one writer anyway."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transactions")
        self._conn: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of ``work``, which is committed when this returns and rolled back when it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._conn is None:
            self._conn = sqlite3.connect(STORE.path, isolation_level=None, timeout=0)
            self._conn.execute("PRAGMA synchronous = FULL")
        _begin(self._conn)
        try:
            result = work(self._conn)
            self._conn.execute("COMMIT")
        except BaseException:
            self._conn.rollback()
            raise
        return result

    def close(self) -> None:
        def end() -> None:
            if self._conn is not None:
                self._conn.close()

        self._thread.submit(end)
        self._thread.shutdown()


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
