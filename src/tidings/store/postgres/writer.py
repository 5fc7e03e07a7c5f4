"""The writer on a server: a connection that breaks during a COMMIT leaves its outcome open, and what was in the group must happen once. So
each transaction knows its id, and the server is asked what became of it (``pg_xact_status``)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg

from ...errors import StoreError, StoreFailed
from ..writer import Job, Writer
from .connect import connect, explain, is_busy, is_lost, label

log = logging.getLogger("tidings.store")

TRIES = 5
"""A group that deadlocks, or loses its connection before its COMMIT, is run so often."""
PAUSE = (0.05, 2.0)
"""Seconds between attempts to reach the server again: the first, and the longest."""


class ServerWriter(Writer):
    """Commits on a connection of its own, made anew when it breaks.

    Args:
        unit: makes the statements on a connection. committed: called behind a commit, with its unit.
    """

    def __init__(self, url: str, unit: Callable[[Any], Any], committed: Callable[[Any], None]) -> None:
        self._url = url
        self._make_unit = unit
        self._unit: Any = None
        self._told = committed
        self._conn: psycopg.Connection[Any] | None = connect(url, name="tidings writer")
        super().__init__(label(url))

    def close(self) -> None:
        super().close()
        self._drop()

    def transact(self, group: list[Job]) -> list[Any]:
        conn = self._connected()
        begun = conn.execute("BEGIN; SELECT pg_current_xact_id()::text")
        begun.nextset()
        transaction = begun.fetchone()[0]  # type: ignore[index]
        self._unit = unit = self._make_unit(conn)
        try:
            results = [job.run(unit) for job in group]
        except BaseException as error:
            if not is_lost(error):
                conn.execute("ROLLBACK")
            raise
        try:
            conn.execute("COMMIT")
        except psycopg.Error as error:
            if not is_lost(error):
                raise
            self._drop()
            if not self._was_committed(transaction, error):
                raise
        return results

    def committed(self) -> None:
        self._told(self._unit)

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

    def _was_committed(self, transaction: str, error: psycopg.Error) -> bool:
        """What became of a COMMIT whose answer was lost. Asks until the server is back: whatever is done next depends on it.

        Raises:
            StoreFailed: the store is being closed, and it is still unknown.
        """
        pause, longest = PAUSE
        while True:
            try:
                row = self._connected().execute("SELECT pg_xact_status(%s::xid8)", (transaction,)).fetchone()
                if row is not None and row[0] in {"committed", "aborted"}:
                    return bool(row[0] == "committed")
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
        if self._conn is None:
            self._conn = connect(self._url, name="tidings writer")
        return self._conn

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
