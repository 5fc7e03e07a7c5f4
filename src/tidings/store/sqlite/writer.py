"""Who writes to the file, one at a time: the process's turn, and the thread that commits in groups."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..writer import Job, Writer
from .connect import explain, is_busy

IDLE_SECONDS = 0.2
LONG_REST_AFTER = 1.5
LONG_REST = 0.11
"""Seconds: after holding the lock for so long with no idle time between, leave it for longer than any busy handler's pause."""


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


class FileWriter(Writer):
    """Commits in the process's turn, on a connection of its own.

    Args:
        syncs: each commit is synced to disk (``synchronous`` is FULL).

    Attributes:
        lasting: head of the log at the last commit that was synced. The sync took everything with it that was in the -wal file before.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        path: str,
        turn: WriteTurn,
        unit: Callable[[sqlite3.Connection], Any],
        committed: Callable[[], None],
        *,
        syncs: bool,
    ) -> None:
        self.lasting = 0
        self._syncs = syncs
        self._conn = conn
        self._path = path
        self._turn = turn
        self._unit = unit(conn)
        self._told = committed
        super().__init__(path)

    def close(self) -> None:
        super().close()
        self._conn.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        # Ahead of handlers' transactions, of which there may be many: leases and checkpoints are among the jobs. It asks again only
        # after it has handed the turn on, so it gets every second one at most.
        self._turn.acquire(first=True)
        try:
            yield
        finally:
            self._turn.release()

    def transact(self, group: list[Job]) -> list[Any]:
        conn = self._conn
        conn.execute("BEGIN IMMEDIATE")
        changes = conn.total_changes
        try:
            results = [job.run(self._unit) for job in group]
            # A commit that changes nothing syncs nothing.
            head = self._unit.head() if self._syncs and conn.total_changes > changes else 0
            conn.commit()
        except BaseException:
            conn.rollback()
            raise
        self.lasting = max(self.lasting, head)
        return results

    def committed(self) -> None:
        self._told()

    def is_everybodys(self, error: BaseException) -> bool:
        """A locked file is; each alone would wait for the time-out again."""
        return is_busy(error)

    def explain(self, error: BaseException) -> BaseException:
        return explain(error, self._path) if isinstance(error, sqlite3.Error) else error
