"""Reading a part of the log for whoever takes events out of this machine: ``Cursor`` on PostgreSQL, with a horizon of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from ...errors import LogWentBack
from .connect import connect, explain, is_open
from .durable import FLUSH_SECONDS, WRITTEN, flush
from .horizon import Horizon
from .unit import EVENT

READ_BYTES = 8 * 1024 * 1024
"""One read stops after this much data and one event."""
SPAN = 100_000
"""Positions looked through at a time."""
FEW = 20
"""Up to so many rows, somebody's next commit isn't waited for: there is hardly one on its way."""

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
        source: whose events are wanted.

    Attributes:
        held_back: whether the last reading saw positions that open transactions keep from being read.
    """

    held_back = False
    unsynced = False

    def __init__(self, url: str, source: str) -> None:
        self._url = url
        self._source = source
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
        horizon, upto = self._horizon, after + SPAN
        waited, self.unsynced = self.unsynced, False
        if horizon.held_back:  # asked first, so that rows behind it are not fetched again and again
            horizon.observe(conn)
        observing = not horizon.held_back and horizon.safe < upto
        if not observing:
            upto = max(after, min(upto, horizon.safe))
        # One round trip. What comes from beyond the horizon is thrown away.
        with conn.pipeline() as pipeline:
            reading = [conn.execute(one) for one in horizon.statements] if observing else []
            pipeline.sync()  # ends the transaction: rows are read in a later snapshot
            there = conn.execute(_KNOWN, known[:1]) if known is not None else None
            cursor = conn.cursor(binary=True).execute(_READ, (after, upto, list(lanes), self._source, rows))
            written = conn.execute(WRITTEN)
        if observing:
            first, lockers = [one.fetchall() for one in reading]
            upto = min(upto, horizon.hear(first[0], lockers))
        self.held_back = horizon.held_back
        drawn = horizon.drawn
        if drawn < after:
            raise LogWentBack(f"the log ends at {drawn}, and it was read up to {after} before", head=drawn, position=after)
        if known is not None and there is not None:
            self._check(there.fetchall()[0], known, drawn)
        if upto <= after:
            return [], after
        found = cursor.fetchall()
        if len(found) >= rows or sum([len(row[10]) for row in found]) >= READ_BYTES:
            upto = min(upto, found[-1][0])
        if found and found[-1][0] > upto:
            found = [row for row in found if row[0] <= upto]
        # Nobody may act on a row, or pass a position, that a crash of the server would take back and give to another event.
        if self._durable < upto:
            behind, flushed = written.fetchall()[0]
            if not (found or flushed or waited):  # nothing to act on, so that can wait
                self.unsynced = True
                return [], after
            if not flushed:
                flush(conn, behind, seconds=FLUSH_SECONDS if len(found) > FEW else 0)
            self._durable = horizon.safe
        return found, upto

    @staticmethod
    def _check(row: tuple[Any, ...], known: tuple[int, str], drawn: int) -> None:
        position, wanted = known
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
