"""Reading a part of the log for whoever takes events out of this machine: ``Cursor`` on PostgreSQL, with a horizon of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from ...errors import LogWentBack
from .connect import connect, explain, is_open
from .horizon import Horizon
from .unit import EVENT

READ_BYTES = 8 * 1024 * 1024
"""One read stops after this much data and one event."""
SPAN = 100_000
"""Positions looked through at a time."""

# One walk along the primary key. The running sum keeps what is fetched within bounds however large events become from one to the next; the
# size of a large value is known without fetching it.
_READ = f"""SELECT position, {EVENT} FROM (
        SELECT *, sum(octet_length(data)) OVER (ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM tidings_log WHERE position > %s AND position <= %s AND lane = ANY (%s::int[]) AND source = %s ORDER BY position LIMIT %s
    ) mine WHERE before IS NULL OR before < {READ_BYTES}"""

_KNOWN = """SELECT (SELECT event_id FROM tidings_log WHERE position = %s),
    (SELECT value::bigint FROM tidings_meta WHERE name = 'retained')"""


class PostgresCursor:
    """
    Args:
        flush: returns when everything that was written until now is on disk. source: whose events are wanted.
    """

    held_back = False

    def __init__(self, url: str, source: str, flush: Callable[[psycopg.Connection[Any]], None]) -> None:
        self._url = url
        self._source = source
        self._flush = flush
        self._horizon = Horizon()
        self._conn: psycopg.Connection[Any] | None = None
        self._durable = 0

    def read(self, lanes: Sequence[int], after: int, rows: int, known: tuple[int, str] | None = None) -> tuple[list[tuple[Any, ...]], int]:
        try:
            conn = self._conn
            if conn is None or not is_open(conn):
                self.close()
                conn = self._conn = connect(self._url, name="tidings relay")
            return self._read(conn, lanes, after, rows, known)
        except psycopg.Error as error:
            self.close()
            raise explain(error, self._url) from error

    def _read(
        self, conn: psycopg.Connection[Any], lanes: Sequence[int], after: int, rows: int, known: tuple[int, str] | None
    ) -> tuple[list[tuple[Any, ...]], int]:
        upto = after + SPAN
        if self._horizon.safe < upto:
            self._horizon.observe(conn)
            self.held_back = self._horizon.held_back
        drawn = self._horizon.drawn
        if drawn < after:
            raise LogWentBack(f"the log ends at {drawn}, and it was read up to {after} before", head=drawn, position=after)
        if known is not None:
            self._check(conn, known, drawn)
        upto = min(upto, self._horizon.safe)
        if upto <= after:
            return [], after
        with conn.cursor(binary=True) as cursor:
            found = cursor.execute(_READ, (after, upto, list(lanes), self._source, rows)).fetchall()
        if len(found) >= rows or sum([len(row[10]) for row in found]) >= READ_BYTES:
            upto = found[-1][0]
        # Nobody may act on a row, or pass a position, that a crash of the server would take back and give to another event.
        if self._durable < upto:
            reached = self._horizon.safe
            self._flush(conn)
            self._durable = reached
        return found, upto

    @staticmethod
    def _check(conn: psycopg.Connection[Any], known: tuple[int, str], drawn: int) -> None:
        position, wanted = known
        row = conn.execute(_KNOWN, (position,)).fetchone()
        assert row is not None
        event_id, retained = row
        if event_id != wanted and (event_id is not None or position > retained):
            raise LogWentBack(
                f"the event {wanted} at {position} was read before and is there no more; {event_id or 'nothing'} is",
                head=drawn,
                position=position,
            )

    def close(self) -> None:
        """A new connection may find other transactions under the old names, so what was seen of them counts for nothing."""
        self._horizon.reset()
        self._durable = 0
        if self._conn is not None:
            self._conn.close()
            self._conn = None
