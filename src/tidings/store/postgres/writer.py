"""The thread that writes for this process: it drains a queue of jobs and commits them in groups.

While one group is being synced to disk the next one gathers. A connection that breaks during a COMMIT leaves its outcome open, and what
is in the group must happen once: so each transaction knows its id, and the server is asked what became of it (``pg_xact_status``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import psycopg

from ...errors import StoreError, StoreFailed
from .connect import connect, explain, is_busy, is_lost, label

log = logging.getLogger("tidings.store")

GROUP = 1000
"""At most this many jobs are committed together."""
TRIES = 5
"""A job that deadlocks or loses its connection before its COMMIT is run again so often."""
PAUSE = (0.05, 2.0)
"""Seconds between attempts to reach the server again: the first, and the longest."""


class _Job(NamedTuple):
    work: Callable[[Any], Any]
    after: Callable[[Any], None] | None
    future: Future[Any]


class Writer:
    """Runs jobs in the order in which they were given.

    Args:
        unit: makes the statements on a connection. committed: called behind a commit, with its unit.
    """

    def __init__(self, url: str, unit: Callable[[Any], Any], committed: Callable[[Any], None]) -> None:
        self._url = url
        self._unit = unit
        self._committed = committed
        self._conn: psycopg.Connection[Any] | None = connect(url, name="tidings writer")
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Semaphore(0)
        self._closing = threading.Event()
        self._submitting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tidings-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Any], Any], after: Callable[[Any], None] | None = None) -> Future[Any]:
        """Queue a job; the future has its result once it is durable. ``after`` gets it first."""
        future: Future[Any] = Future()
        with self._submitting:
            if self._closing.is_set():
                raise StoreError("the store is closed", url=label(self._url))
            self._jobs.append(_Job(work, after, future))
        self._wake.release()
        return future

    def close(self) -> None:
        """Finish what is queued, then end the thread and its connection."""
        with self._submitting:  # behind a job that is being queued, so that none is left behind
            self._closing.set()
        self._wake.release()
        self._thread.join()
        if self._conn is not None:
            self._conn.close()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            group: list[_Job] = []
            while self._jobs and len(group) < GROUP:
                job = self._jobs.popleft()
                if job.future.set_running_or_notify_cancel():
                    group.append(job)
            if group:
                self._commit(group)
            if self._closing.is_set() and not self._jobs:
                return

    def _commit(self, group: list[_Job], tries: int = TRIES) -> None:
        try:
            results, unit = self._transact(group)
        except BaseException as error:
            lost = is_lost(error)
            if lost:
                self._drop()
            if tries > 1 and is_busy(error) and not self._closing.is_set():
                time.sleep(PAUSE[0])
                self._commit(group, tries - 1)
                return
            if len(group) > 1 and not lost:  # one job's error is not its neighbours': each alone
                for single in group:
                    self._commit([single])
                return
            told = explain(error, self._url) if isinstance(error, psycopg.Error) else error
            for job in group:
                job.future.set_exception(told)
            return
        try:
            for job, result in zip(group, results, strict=True):
                if job.after is not None:
                    job.after(result)
            self._committed(unit)
        except Exception:  # the commit stands, and this thread must go on
            log.exception("after a commit")
        for job, result in zip(group, results, strict=True):
            job.future.set_result(result)

    def _transact(self, group: list[_Job]) -> tuple[list[Any], Any]:
        conn = self._conn
        if conn is None:
            conn = self._conn = connect(self._url, name="tidings writer")
        begun = conn.execute("BEGIN; SELECT pg_current_xact_id()::text")
        begun.nextset()
        transaction = begun.fetchone()[0]  # type: ignore[index]
        unit = self._unit(conn)
        try:
            results = [job.work(unit) for job in group]
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
        return results, unit

    def _was_committed(self, transaction: str, error: psycopg.Error) -> bool:
        """What became of a COMMIT whose answer was lost. Asks until the server is back: whatever is done next depends on it.

        Raises:
            StoreFailed: the store is being closed, and it is still unknown.
        """
        pause, longest = PAUSE
        while True:
            try:
                conn = self._conn
                if conn is None:
                    conn = self._conn = connect(self._url, name="tidings writer")
                row = conn.execute("SELECT pg_xact_status(%s::xid8)", (transaction,)).fetchone()
                if row is not None and row[0] in {"committed", "aborted"}:
                    return bool(row[0] == "committed")
            except (psycopg.Error, StoreError) as trouble:
                self._drop()
                log.warning("%s: waiting to hear what became of a COMMIT: %s", label(self._url), trouble)
            if self._closing.wait(pause):
                raise StoreFailed(
                    f"{label(self._url)} was lost during a COMMIT, and the store is being closed: nobody knows whether it was done",
                    url=label(self._url),
                ) from error
            pause = min(longest, pause * 2)

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
