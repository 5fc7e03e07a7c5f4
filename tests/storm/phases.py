"""Where a process is, told to the one that kills it through a shared page: no locks, no calls, so that it can be stopped anywhere."""

from __future__ import annotations

import mmap
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

IDLE, HANDLER, WRITTEN, EFFECT, COMMIT = range(5)
NAMES = ("idle", "in a handler", "after its first write", "between effect and checkpoint", "in a commit")
PLACES = ("ledger", "shared", "outside", "flaky", "aio", "follow", "other")
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

    def watch_commits(self) -> None:
        """From now on every connection that this process opens tells when it commits."""
        phases = self

        class Watched(sqlite3.Connection):
            def commit(self) -> None:
                place = getattr(_here, "place", "other")
                at = phases._base + PLACES.index(place)
                phases._page[at] = COMMIT
                try:
                    super().commit()
                finally:
                    phases._page[at] = IDLE

        original = sqlite3.connect

        def connect(*args: Any, **options: Any) -> sqlite3.Connection:
            options.setdefault("factory", Watched)
            return original(*args, **options)

        sqlite3.connect = connect  # type: ignore[assignment]
