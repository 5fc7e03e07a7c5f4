"""The other side of each ratio: the statements that Tidings runs, as somebody would write them without it. And logs to read."""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from uuid_utils import uuid7

from tidings import App, Event


class OrderPlaced(Event, key="order_id", type="bench.OrderPlaced"):
    order_id: int
    customer: str
    total: Decimal


COLUMNS = "lane, topic, type, version, key_name, key, event_id, time, source, data, correlation_id, causation_id, traceparent, headers"
INSERT = f"INSERT INTO tidings_log ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
READ = f"SELECT position, {COLUMNS} FROM tidings_log WHERE position > ? ORDER BY position LIMIT ?"
DATA = 10
"""Where the event's data is in a row that was read."""

encode = msgspec.json.Encoder(decimal_format="string").encode
decode = msgspec.json.Decoder(OrderPlaced).decode
TOTAL = Decimal("12.50")


def order(number: int) -> OrderPlaced:
    return OrderPlaced(number, "ada", TOTAL)


def row(event: OrderPlaced) -> tuple[Any, ...]:
    """The columns, by hand: id, lane and data made where the row is made."""
    event_id = str(uuid7())
    key = str(event.order_id)
    return (
        zlib.crc32(f"order_id={key}".encode()) & 63,
        "bench",
        "bench.OrderPlaced",
        1,
        "order_id",
        key,
        event_id,
        time.time_ns() // 1000,
        "bench",
        encode(event),
        event_id,
        None,
        None,
        None,
    )


def connect(path: Path, synchronous: str = "FULL") -> sqlite3.Connection:
    """A connection as a user has it, with what makes SQLite fast."""
    conn = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute(f"PRAGMA synchronous = {synchronous}")
    conn.execute("PRAGMA wal_autocheckpoint = 2000")
    return conn


def store(path: Path, **options: Any) -> App:
    """An app on a store of its own, opened."""
    app = App("bench", f"sqlite:///{path}", **options)
    app.open()
    return app


def fill(path: Path, count: int, *, keys: int | None = None, first: int = 0) -> None:
    """A log with ``count`` events more, over ``keys`` keys (each its own unless given)."""
    conn = connect(path, "OFF")
    try:
        for start in range(first, first + count, 50_000):
            conn.execute("BEGIN")
            numbers = range(start, min(start + 50_000, first + count))
            conn.executemany(INSERT, (row(order(number if keys is None else number % keys)) for number in numbers))
            conn.execute("COMMIT")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        conn.close()


@contextmanager
def reader(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection with a table for the hand-written loop's place in the log."""
    conn = connect(path)
    try:
        conn.execute("CREATE TABLE IF NOT EXISTS by_hand_place (id INTEGER PRIMARY KEY, position INTEGER NOT NULL)")
        conn.execute("INSERT OR REPLACE INTO by_hand_place VALUES (1, 0)")
        yield conn
    finally:
        conn.close()


CHECKPOINT = "UPDATE by_hand_place SET position = ? WHERE id = 1"
