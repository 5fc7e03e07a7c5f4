"""The writer on a server: a connection that breaks during a COMMIT leaves its outcome open, and what was in the group must happen once. So
each transaction writes its number into a row of this writer's, and that row is asked what became of it.

Not pg_xact_status: a server that crashed gives out again the ids of transactions of which nothing had reached its disk, and then another's
COMMIT would be taken for this one's."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg

from ...errors import StoreError, StoreFailed
from ...urls import label
from ..writer import Job, Writer
from .connect import command, connect, explain, is_busy, is_lost

log = logging.getLogger("tidings.store")

TRIES = 5
"""A group that deadlocks, or loses its connection before its COMMIT, is run so often."""
PAUSE = (0.05, 0.5)
"""Seconds between attempts to reach the server again: the first, and the longest."""
KEPT_DAYS = 30
"""So long the row of a writer that died is kept; one that lives and wrote nothing for longer makes it anew."""

# One round trip and no arguments. A process that stands still in the transaction must not hold its locks against others for ever.
# Whether the commit will be synced is asked, and can't be changed behind that: what is local goes before what the server's files say.
BEGIN = """BEGIN; SET LOCAL idle_in_transaction_session_timeout = {milliseconds};
    INSERT INTO tidings_writers VALUES ('{writer}', {number}, {day})
    ON CONFLICT (writer) DO UPDATE SET done = excluded.done, at = excluded.at;
    SELECT set_config('synchronous_commit', current_setting('synchronous_commit'), true)"""

# Waits for a transaction of ours that the server is still at, and then sees what it left.
ASK = """INSERT INTO tidings_writers VALUES (%s, 0, %s) ON CONFLICT (writer) DO UPDATE SET at = excluded.at RETURNING done"""


class ServerWriter(Writer):
    """Commits on a connection of its own, made anew when it breaks.

    Args:
        unit: makes the statements on a connection. committed: called behind a commit, with its unit, and whether it was synced. placed:
            called with a connection before it is used, and before each transaction behind a pooler.
        idle: seconds after which the server ends a transaction in which nothing happens.
    """

    def __init__(
        self,
        url: str,
        unit: Callable[[Any], Any],
        committed: Callable[[Any, bool], None],
        idle: Callable[[], float],
        placed: Callable[[psycopg.Connection[Any]], None] = lambda conn: None,
    ) -> None:
        self._url = url
        self._idle = idle
        self._id = uuid.uuid4().hex
        self._number = 0
        self._make_unit = unit
        self._unit: Any = None
        self._told = committed
        self._synced = False
        self._placed = placed
        self._conn: psycopg.Connection[Any] | None = None
        self._connected()
        super().__init__(label(url))

    def close(self) -> None:
        super().close()
        if self._conn is not None:
            with contextlib.suppress(psycopg.Error):  # it is only a row
                self._conn.execute("DELETE FROM tidings_writers WHERE writer = %s OR at < %s", (self._id, _day() - KEPT_DAYS))
        self._drop()

    def transact(self, group: list[Job]) -> list[Any]:
        conn = self._connected()
        self._number += 1
        begin = BEGIN.format(milliseconds=int(self._idle() * 1000), writer=self._id, number=self._number, day=_day())
        try:
            self._synced = command(conn, begin).get_value(0, 0) != b"off"
        except psycopg.Error:
            self._drop()  # perhaps in a transaction that failed
            raise
        self._unit = unit = self._make_unit(conn)
        try:
            results = [job.run(unit) for job in group]
        except BaseException as error:
            if not is_lost(error):
                command(conn, "ROLLBACK")
            raise
        try:
            command(conn, "COMMIT")
        except psycopg.Error as error:
            if not is_lost(error):
                raise
            self._drop()
            if not self._was_committed(error):
                raise
        return results

    def committed(self) -> None:
        self._told(self._unit, self._synced)

    def again(self, error: BaseException, tries: int) -> bool:
        if is_lost(error):
            self._drop()
        if tries >= TRIES or not is_busy(error) or isinstance(error, StoreError):
            return False
        return not self.closing.wait(PAUSE[0] * tries)

    def is_everybodys(self, error: BaseException) -> bool:
        return is_lost(error) or isinstance(error, StoreFailed)

    def explain(self, error: BaseException) -> BaseException:
        return explain(error, self._url) if isinstance(error, psycopg.Error) else error

    def _was_committed(self, error: psycopg.Error) -> bool:
        """What became of a COMMIT whose answer was lost. Asks until the server is back: whatever is done next depends on it.

        Raises:
            StoreFailed: the store is being closed, and it is still unknown.
        """
        pause, longest = PAUSE
        while True:
            try:
                row = self._connected().execute(ASK, (self._id, _day())).fetchone()
                return row is not None and bool(row[0] == self._number)
            except (psycopg.Error, StoreError) as trouble:
                self._drop()
                log.warning("%s: waiting to hear what became of a COMMIT: %s", label(self._url), trouble)
            if self.closing.is_set():
                raise StoreFailed(
                    f"{label(self._url)} was lost during a COMMIT, and the store is being closed: nobody knows whether it was done",
                    url=label(self._url),
                ) from error
            time.sleep(pause)
            pause = min(longest, pause * 2)

    def _connected(self) -> psycopg.Connection[Any]:
        if self._conn is not None and self._conn.prepare_threshold is not None:
            return self._conn
        if self._conn is None:
            self._conn = connect(self._url, name="tidings writer")
        try:
            self._placed(self._conn)
        except psycopg.Error:
            self._drop()
            raise
        return self._conn

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


def _day() -> int:
    return int(time.time() / 86_400)
