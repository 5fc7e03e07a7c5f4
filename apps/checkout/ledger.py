"""A simulator's own books: what it did, under which idempotency key, and what it was asked again or refused to answer.

A file of its own, apart from the shop's store: the reconciliation compares two parties that can't see each other's tables.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    key       TEXT NOT NULL UNIQUE,
    kind      TEXT NOT NULL,
    order_id  INTEGER NOT NULL,
    amount    INTEGER NOT NULL,
    detail    TEXT NOT NULL,
    at        REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS repeats (key TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS outages (kind TEXT NOT NULL, order_id INTEGER NOT NULL, at REAL NOT NULL);
"""


class Entry(NamedTuple):
    """One thing that was done: ``amount`` is cents for the gateway, pieces for the warehouse, 0 for mail."""

    number: int
    key: str
    kind: str
    order_id: int
    amount: int
    detail: str
    at: float


class Ledger:
    """Written by one simulator, in one thread."""

    def __init__(self, path: Path) -> None:
        # A simulator stands for somebody else's service, which doesn't crash here; so its file needn't be synced at each request.
        self.path = path
        self._conn = sqlite3.connect(path, isolation_level=None)
        self._conn.execute("PRAGMA journal_mode = WAL")
        self._conn.execute("PRAGMA synchronous = OFF")
        self._conn.executescript(_TABLES)

    def enter(self, key: str, kind: str, order_id: int, amount: int, detail: str = "") -> None:
        self._conn.execute(
            "INSERT INTO entries (key, kind, order_id, amount, detail, at) VALUES (?, ?, ?, ?, ?, ?)",
            (key, kind, order_id, amount, detail, time.time()),
        )

    def repeated(self, key: str) -> None:
        """The key was seen before: its first answer is given again, and nothing else happens."""
        self._conn.execute("INSERT INTO repeats VALUES (?, ?)", (key, time.time()))

    def failed(self, kind: str, order_id: int) -> None:
        self._conn.execute("INSERT INTO outages VALUES (?, ?, ?)", (kind, order_id, time.time()))

    def close(self) -> None:
        self._conn.close()


class Account(NamedTuple):
    """A ledger, read whole."""

    entries: list[Entry]
    repeats: int
    outages: int


def read_ledger(path: Path) -> Account:
    """Everything in a ledger's file.

    Raises:
        FileNotFoundError: there is no such file (SQLite would make an empty one, and nothing would be missing from it).
    """
    if not path.exists():
        raise FileNotFoundError(f"no ledger at {path}")
    conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = conn.execute("SELECT number, key, kind, order_id, amount, detail, at FROM entries ORDER BY number")
        entries = [Entry(*row) for row in rows]
        repeats = conn.execute("SELECT count(*) FROM repeats").fetchone()[0]
        outages = conn.execute("SELECT count(*) FROM outages").fetchone()[0]
    finally:
        conn.close()
    return Account(entries, repeats, outages)
