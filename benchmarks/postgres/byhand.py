"""A server, logs to read on it, and the statements that Tidings runs, as somebody would write them without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

import psycopg

from servers.postgres import Postgres
from tidings import App

from ..byhand import COLUMNS, order, row
from ..measure import now

SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "4GB", "wal_level": "replica", "checkpoint_timeout": "30min"}
"""Room, so that no checkpoint of the server's falls into one side's turn. Everything is synced at each commit, as it comes."""

READ = f"SELECT position, {COLUMNS} FROM tidings_log WHERE position > %s ORDER BY position LIMIT %s"
CHECKPOINT = "UPDATE by_hand_place SET position = %s WHERE id = 1"

__all__ = ["CHECKPOINT", "READ", "SETTINGS", "connect", "database", "fill", "forget", "grow", "head", "now", "place", "store"]


@contextmanager
def database(*, pinned: bool = False, **settings: str) -> Iterator[str]:
    """The URL of an empty database on a server that is gone afterwards.

    Args:
        pinned: the server on one core, this process on another. Who shares a core with whom is otherwise left to chance, and makes twofold.
    """
    cores = sorted(os.sched_getaffinity(0))
    pinned = pinned and len(cores) > 1
    try:
        if pinned:
            os.sched_setaffinity(0, {cores[0]})
        with Postgres(settings={**SETTINGS, **settings}) as server:
            if pinned:
                os.sched_setaffinity(0, set(cores[1:]))
            yield server.new_database()
    finally:
        os.sched_setaffinity(0, cores)


def store(url: str, **options: Any) -> App:
    """An app on the database, opened; makes the tables."""
    app = App("bench", url, **options)
    app.open()
    return app


def connect(url: str) -> psycopg.Connection[Any]:
    """A connection as a user has it, who says BEGIN himself."""
    return psycopg.connect(url, autocommit=True)


def fill(url: str, count: int, *, keys: int | None = None) -> None:
    """A log with ``count`` events more, over ``keys`` keys (each its own unless given)."""
    store(url).close()
    with psycopg.connect(url) as conn, conn.cursor() as cursor, cursor.copy(f"COPY tidings_log ({COLUMNS}) FROM STDIN") as copy:
        for number in range(count):
            copy.write_row(row(order(number if keys is None else number % keys)))
    settle(url)


def grow(url: str, rows: int) -> None:
    """Copies of the first rows until there are enough."""
    with connect(url) as conn:
        have = head(url)
        while have < rows:
            part = min(have, rows - have, 1_000_000)
            conn.execute(f"INSERT INTO tidings_log ({COLUMNS}) SELECT {COLUMNS} FROM tidings_log WHERE position <= {part}".encode())
            have += part
    settle(url)


def settle(url: str) -> None:
    """What autovacuum would do some time, done now."""
    with connect(url) as conn:
        conn.execute("VACUUM ANALYZE tidings_log")
        conn.execute("CHECKPOINT")


def head(url: str) -> int:
    with connect(url) as conn:
        return int(conn.execute("SELECT coalesce(max(position), 0) FROM tidings_log").fetchall()[0][0])


def forget(url: str, *names: str) -> None:
    """Remove subscriptions, so that the next repetition begins anew."""
    app = store(url)
    try:
        for name in names:
            app.store.write(methodcaller("remove", name)).result()
    finally:
        app.close()


@contextmanager
def place(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection with a table for the hand-written loop's place in the log."""
    with connect(url) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS by_hand_place (id integer PRIMARY KEY, position bigint NOT NULL)")
        conn.execute("INSERT INTO by_hand_place VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET position = 0")
        yield conn
