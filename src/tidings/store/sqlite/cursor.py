"""Reading a part of the log for whoever takes events out of this machine: ``Cursor`` on a SQLite file."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import LogWentBack
from .connect import explain
from .unit import EVENT, HEAD

READ_BYTES = 8 * 1024 * 1024
"""One read stops after this much data."""
SPAN = 100_000
"""Positions looked through at a time."""

_READ = f"""SELECT position, {EVENT} FROM tidings_log WHERE position > ? AND position <= ? AND source = ?
    AND lane IN (SELECT value FROM json_each(?)) ORDER BY position"""

_KNOWN = """SELECT (SELECT event_id FROM tidings_log WHERE position = ?),
    (SELECT CAST(value AS INTEGER) FROM tidings_meta WHERE name = 'retained')"""


class SQLiteCursor:
    """
    Args:
        connect: gives the connection, which is closed with the cursor. source: whose events are wanted.
    """

    unsynced = False

    def __init__(self, connect: Callable[[], sqlite3.Connection], path: str, source: str) -> None:
        self._path = path
        self._source = source
        self._conn = connect()
        self._wal: int | None = None
        self._durable = 0

    def read(self, lanes: Sequence[int], after: int, rows: int, known: tuple[int, str] | None = None) -> tuple[list[tuple[Any, ...]], int]:
        try:
            # The head first, the rows in a later snapshot: positions are given out in commit order, so all rows up to that head are there.
            row = self._conn.execute(HEAD).fetchone()
            head = int(row[0]) if row else 0
            self._check(head, after, known)
            upto = min(head, after + SPAN)
            if upto <= after:
                return [], after
            found, upto = self._step(self._conn.execute(_READ, (after, upto, self._source, json.dumps(list(lanes)))), upto, rows)
            if self._durable < upto:
                self._sync()
                self._durable = head
            return found, upto
        except sqlite3.Error as error:
            raise explain(error, self._path) from error

    def _check(self, head: int, after: int, known: tuple[int, str] | None) -> None:
        if head < after:
            raise LogWentBack(f"the log ends at {head}, and it was read up to {after} before", head=head, position=after)
        if known is None:
            return
        event_id, retained = self._conn.execute(_KNOWN, (known[0],)).fetchone()
        if event_id != known[1] and (event_id is not None or known[0] > retained):
            raise LogWentBack(
                f"the event {known[1]} at {known[0]} was read before, and "
                + ("is gone" if event_id is None else f"now {event_id} is there"),
                head=head,
                position=known[0],
            )

    @staticmethod
    def _step(cursor: sqlite3.Cursor, upto: int, most: int) -> tuple[list[tuple[Any, ...]], int]:
        found: list[tuple[Any, ...]] = []
        size = 0
        for row in cursor:
            found.append(row)
            size += len(row[10])
            if len(found) >= most or size > READ_BYTES:
                cursor.close()
                return found, row[0]
        return found, upto

    def _sync(self) -> None:
        """What was readable is in the -wal file, or in the database file that a checkpoint has synced."""
        if self._wal is None:
            try:
                self._wal = os.open(self._path + "-wal", os.O_RDONLY)
            except FileNotFoundError:
                return
        os.fdatasync(self._wal) if hasattr(os, "fdatasync") else os.fsync(self._wal)

    def close(self) -> None:
        if self._wal is not None:
            os.close(self._wal)
            self._wal = None
        self._conn.close()
