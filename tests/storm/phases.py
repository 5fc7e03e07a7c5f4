"""Where a process is, told to the one that kills it through a shared page: no locks, no calls, so that it can be stopped anywhere."""

from __future__ import annotations

import mmap
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

IDLE, HANDLER, WRITTEN, EFFECT, COMMIT = range(5)
NAMES = ("idle", "in a handler", "after its first write", "between effect and checkpoint", "in a commit")
PLACES = ("ledger", "shared", "outside", "flaky", "aio", "follow", "orm", "other", "saga")
"""One byte each, for every process: subscriptions, and commits in threads that belong to none of them."""
SLOT = 16

_here = threading.local()


class Phases:
    """The page of all processes, and this process's part of it.

    Args:
        path: a file that all share. slot: this process's place in it; None for the one who only looks.
    """

    def __init__(self, path: Path, slot: int | None = None, slots: int = 64) -> None:
        if not path.exists():
            path.write_bytes(b"\0" * SLOT * slots)
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 0)
        self._base = (slot or 0) * SLOT
        self._running: Counter[str] = Counter()

    def at(self, place: str, phase: int) -> None:
        """This thread is at ``phase`` of ``place``; a commit in this thread belongs to it from now on."""
        _here.place = place
        self._page[self._base + PLACES.index(place)] = phase

    def enter(self, place: str) -> None:
        """One of several handlers on the loop begins."""
        self._running[place] += 1
        self._page[self._base + PLACES.index(place)] = HANDLER

    def leave(self, place: str) -> None:
        self._running[place] -= 1
        if not self._running[place]:
            self._page[self._base + PLACES.index(place)] = IDLE

    def landed(self, slot: int) -> int:
        """The phase furthest along in a process that stands still."""
        return max(self._page[slot * SLOT : (slot + 1) * SLOT])

    def clear(self, slot: int) -> None:
        """A new process takes the place of a dead one."""
        self._page[slot * SLOT : (slot + 1) * SLOT] = b"\0" * SLOT

    @contextmanager
    def committing(self) -> Iterator[None]:
        at = self._base + PLACES.index(getattr(_here, "place", "other"))
        self._page[at] = COMMIT
        try:
            yield
        finally:
            self._page[at] = IDLE

    def watch_commits(self) -> None:
        """From now on every connection that this process opens tells when it commits."""
        committing = self.committing

        class Watched(sqlite3.Connection):
            def commit(self) -> None:
                with committing():
                    super().commit()

        connect = sqlite3.connect

        def watched(*args: Any, **options: Any) -> sqlite3.Connection:
            options.setdefault("factory", Watched)
            return connect(*args, **options)

        sqlite3.connect = watched  # type: ignore[assignment]
        psycopg.Connection.execute = _watched(psycopg.Connection.execute, committing)  # type: ignore[method-assign]
        psycopg.Connection.commit = _watched(psycopg.Connection.commit, committing, always=True)  # type: ignore[method-assign]
        commit = psycopg.AsyncConnection.commit

        async def commit_async(conn: psycopg.AsyncConnection[Any]) -> None:
            _here.place = "aio"
            with committing():
                await commit(conn)

        psycopg.AsyncConnection.commit = commit_async  # type: ignore[method-assign, assignment]


def _watched(method: Callable[..., Any], committing: Callable[[], Any], *, always: bool = False) -> Callable[..., Any]:
    def watched(conn: Any, *args: Any, **options: Any) -> Any:
        if always or args[0] == "COMMIT":
            with committing():
                return method(conn, *args, **options)
        return method(conn, *args, **options)

    return watched
