"""Knowing that somebody committed: inotify on the -wal file where there is one, and ``PRAGMA data_version`` always.

``data_version`` changes on a connection when another one, of any process, has committed (SQLite's documentation of the pragma).
inotify fires while the commit is being written, before it is visible: so it is a reason to look, and to look again a moment later.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sqlite3
from collections.abc import Callable

_IN_MODIFY = 0x2
_IN_NONBLOCK = 0o4000
_IN_CLOEXEC = 0o2000000
_AGAIN = (0.0003, 0.001, 0.004, 0.02)
"""Seconds after an inotify event at which to look again; a group commit's sync takes about this long."""


class Waker:
    """Calls ``woken`` on the loop when the file has changed; ``conn`` is its own from now on.

    Armed by whoever goes idle, so that a busy worker pays nothing for it; ``armed`` is told.
    """

    def __init__(
        self,
        path: str,
        conn: sqlite3.Connection,
        woken: Callable[[], None],
        *,
        armed: Callable[[bool], None] = lambda armed: None,
        poll: float = 0.02,
        slow_poll: float = 1.0,
    ) -> None:
        self._told = armed
        self._path = path
        self._conn = conn
        self._woken = woken
        self._loop = asyncio.get_running_loop()
        self._poll = poll
        self._slow_poll = slow_poll
        self._seen = self._version()
        self._armed = False
        self._timer: asyncio.TimerHandle | None = None
        self._looks = 0
        self._inotify = _inotify(path + "-wal")
        self._quick_until = 0.0

    def arm(self) -> None:
        """Begin to watch. Looks at once, so that a commit between the last read and now is not missed."""
        if self._armed:
            return
        self._armed = True
        self._told(True)
        if self._inotify is not None:
            self._loop.add_reader(self._inotify, self._on_inotify)
        if not self._look():
            self._schedule(self._pace())

    def disarm(self) -> None:
        if not self._armed:
            return
        self._armed = False
        self._told(False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify)

    def hint(self, seconds: float = 2.0) -> None:
        """Somebody has published here and will commit soon: without inotify, poll quickly for a while."""
        self._quick_until = self._loop.time() + seconds
        if self._armed and self._inotify is None:
            self._schedule(0.001)

    def close(self) -> None:
        self.disarm()
        if self._inotify is not None:
            os.close(self._inotify)
            self._inotify = None
        self._conn.close()

    def _pace(self) -> float:
        if self._inotify is not None:
            return self._slow_poll
        return 0.001 if self._loop.time() < self._quick_until else self._poll

    def _schedule(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._armed and not self._look():
            if self._inotify is not None and 0 < self._looks < len(_AGAIN):
                self._schedule(_AGAIN[self._looks])
                self._looks += 1
            else:
                self._looks = 0
                self._schedule(self._pace())

    def _on_inotify(self) -> None:
        try:
            if self._inotify is not None:
                os.read(self._inotify, 65536)
        except BlockingIOError:
            pass
        if self._armed and not self._look():
            self._looks = 1
            self._schedule(_AGAIN[0])

    def _look(self) -> bool:
        version = self._version()
        if version == self._seen:
            return False
        self._seen = version
        self.disarm()
        self._woken()
        return True

    def _version(self) -> int:
        return int(self._conn.execute("PRAGMA data_version").fetchone()[0])


def _inotify(path: str) -> int | None:
    """A descriptor that becomes readable when the file is written; None where the system has no inotify."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = int(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
    except (OSError, AttributeError):
        return None
    if descriptor < 0:
        return None
    if libc.inotify_add_watch(descriptor, os.fsencode(path), ctypes.c_uint32(_IN_MODIFY)) < 0:
        os.close(descriptor)
        return None
    return descriptor
