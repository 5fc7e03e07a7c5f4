"""Who writes to the file, one at a time: the process's turn, and the thread that commits in groups."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol

from ...errors import StoreError
from .connect import explain, is_busy

log = logging.getLogger("tidings.store")

IDLE_SECONDS = 0.2
LONG_REST_AFTER = 1.5
LONG_REST = 0.11
"""Seconds: after holding the lock for so long with no idle time between, leave it for longer than any busy handler's pause."""

GROUP = 1000
"""At most this many jobs are committed together."""


class WriteTurn:
    """A lock that is handed on in the order of asking, so that nobody in this process starves while SQLite's own lock is polled."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = False
        self._held = 0.0
        self._last = 0.0

    def rest(self, held: float) -> float:
        """How long to leave the file alone after having held its lock for ``held`` seconds, before the turn goes on.

        Other processes poll for the lock, with pauses that SQLite's busy handler draws out to 100 ms. Without a gap they get it by luck
        alone (measured: a publisher waited 18 s). With one after each transaction most get it soon, and a long one now and then bounds
        the rest.
        """
        now = time.monotonic()
        self._held = held if now - self._last > IDLE_SECONDS else self._held + held
        self._last = now
        if self._held > LONG_REST_AFTER:
            self._held = 0.0
            return LONG_REST
        return held / 8

    def acquire(self, *, first: bool = False) -> None:
        """Block until it is the caller's turn; ``first``: the next one, whoever waits."""
        mine = threading.Lock()
        mine.acquire()
        self.request(mine.release, first=first)
        mine.acquire()  # until the turn is handed over

    def request(self, granted: Callable[[], None], *, first: bool = False) -> None:
        """Call ``granted`` when the turn is the caller's: at once, or in the thread that releases it. For those who may not block."""
        with self._guard:
            if self._taken:
                self._waiting.appendleft(granted) if first else self._waiting.append(granted)
                return
            self._taken = True
        granted()

    def release(self) -> None:
        with self._guard:
            self._taken = bool(self._waiting)
            granted = self._waiting.popleft() if self._waiting else None
        if granted is not None:
            granted()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


Tell = dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]]
"""Whom to wake in which loop when a group is done: one hop into each, and not one for each job."""


class Job(Protocol):
    """Something to be done in a transaction of the store's own. Called by the writer's thread, in this order."""

    def begin(self) -> bool:
        """False if it was withdrawn. Never called at the same time as ``Writer.withdraw``."""
        ...

    def run(self, unit: Any) -> Any:
        """Its statements; perhaps more than once, when a neighbour failed."""
        ...

    def committed(self, result: Any) -> None:
        """Still in the process's turn."""
        ...

    def settle(self, result: Any, error: BaseException | None, tell: Tell) -> None:
        """It is durable, or it failed."""
        ...


class _Call:
    """A function as a job, with a future for whoever asked."""

    __slots__ = ("after", "future", "run")

    def __init__(self, run: Callable[[Any], Any], after: Callable[[Any], None] | None) -> None:
        self.run = run
        self.after = after
        self.future: Future[Any] = Future()

    def begin(self) -> bool:
        return self.future.set_running_or_notify_cancel()

    def committed(self, result: Any) -> None:
        if self.after is not None:
            self.after(result)

    def settle(self, result: Any, error: BaseException | None, tell: Tell) -> None:
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Writer:
    """A thread that drains a queue of jobs and commits them in groups.

    While one group is being synced to disk the next one gathers: that alone makes durable writes of many tasks cheap.
    """

    def __init__(
        self, conn: sqlite3.Connection, path: str, turn: WriteTurn, unit: Callable[[sqlite3.Connection], Any], committed: Callable[[], None]
    ) -> None:
        self._conn = conn
        self._path = path
        self._turn = turn
        self._unit = unit(conn)
        self._committed = committed
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closing = False
        self._submitting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tidings-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Any], Any], after: Callable[[Any], None] | None = None) -> Future[Any]:
        """Queue a job; the future has its result once it is durable. ``after`` gets it first, still in the process's turn."""
        call = _Call(work, after)
        self.put(call)
        return call.future

    def put(self, job: Job) -> None:
        """Queue a job that settles by itself.

        Raises:
            StoreError: the writer was closed.
        """
        with self._submitting:
            if self._closing:
                raise StoreError("the store is closed", path=self._path)
            self._jobs.put(job)

    def withdraw(self, job: Job) -> bool:
        """Whether ``job`` was still waiting, and now is left out."""
        with self._submitting:
            return job.begin()

    def close(self) -> None:
        """Finish what is queued, then end the thread and its connection."""
        with self._submitting:  # behind a job that is being queued, so that none is left behind
            if not self._closing:
                self._jobs.put(None)
            self._closing = True
        self._thread.join()
        self._conn.close()

    def _run(self) -> None:
        going_on = True
        while going_on:
            # Not in this method: a variable of its own would keep the last job alive while it waits for the next.
            going_on = self._next_group(self._jobs.get())

    def _next_group(self, first: Job | None) -> bool:
        """Commit what is queued; False behind the last of all."""
        if first is None:
            return False
        # Ahead of handlers' transactions, of which there may be many: leases and checkpoints are among the jobs. It asks again only
        # after it has handed the turn on, so it gets every second one at most.
        self._turn.acquire(first=True)
        try:
            queued = [first, *(self._jobs.get_nowait() for _ in range(min(self._jobs.qsize(), GROUP - 1)))]
            if last := queued[-1] is None:
                queued.pop()
            with self._submitting:
                group = [job for job in queued if job is not None and job.begin()]
            if group:
                self._commit(group)
        finally:
            self._turn.release()
        return not last

    def _commit(self, group: list[Job]) -> None:
        tell: Tell = {}
        try:
            results = self._transact(group)
        except BaseException as error:
            if len(group) > 1 and not is_busy(error):  # one job's error is not its neighbours': each alone
                for single in group:
                    self._commit([single])
                return
            told = explain(error, self._path) if isinstance(error, sqlite3.Error) else error
            for job in group:  # a locked file is everybody's error; each alone would wait for the time-out again
                job.settle(None, told, tell)
        else:
            try:
                for job, result in zip(group, results, strict=True):
                    job.committed(result)
                self._committed()
            except Exception:  # the commit stands, and this thread must go on
                log.exception("after a commit")
            for job, result in zip(group, results, strict=True):
                job.settle(result, None, tell)
        wake(tell)

    def _transact(self, group: list[Job]) -> list[Any]:
        conn = self._conn
        conn.execute("BEGIN IMMEDIATE")
        try:
            results = [job.run(self._unit) for job in group]
            conn.commit()
        except BaseException:
            conn.rollback()
            raise
        return results


def wake(tell: Tell) -> None:
    """Settle the futures, each in its loop."""
    for loop, waiting in tell.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle, waiting)


def _settle(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
