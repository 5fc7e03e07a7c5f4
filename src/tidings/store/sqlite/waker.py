"""Knowing that somebody committed: inotify on the -wal file where there is one, and ``PRAGMA data_version`` always.

``data_version`` changes on a connection when another one, of any process, has committed (SQLite's documentation of the pragma).
inotify fires while the commit is being written, before it is visible: so it is a reason to look, and to look again a moment later.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable

from .linux import Alarm, drain, inotify

_AGAIN = (0.0002,) * 10 + (0.001,) * 6 + (0.004,) * 3
"""Seconds between looks after an inotify event, until a commit's sync should be over: an SSD takes one or two milliseconds."""


class Waker:
    """Calls ``woken`` on the loop when the file has changed; ``conn`` is its own from now on.

    Armed by whoever goes idle, so that a busy worker pays nothing for it; ``armed`` is told. It listens on behind a wake, as who is woken
    by a trickle is idle again in a moment, until it hears of a write that nobody waits for.
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
        self.polled = self.precaution = False
        self._path = path
        self._conn = conn
        self._woken = woken
        self._loop = asyncio.get_running_loop()
        self._poll = poll
        self._slow_poll = slow_poll
        self._seen = self._version()
        self._armed = self._listening = False
        self._timer: asyncio.TimerHandle | None = None
        self._looks = 0
        self._inotify = inotify(path + "-wal")
        self._alarm = _alarm() if self._inotify is not None else None
        self._quick_until = 0.0
        self._closing = threading.Lock()

    def arm(self) -> None:
        """Begin to watch. Looks at once, so that a commit between the last read and now is not missed."""
        if self._armed:
            return
        self._armed = True
        self._told(True)
        if self._inotify is not None and not self._listening:
            self._listening = True
            self._loop.add_reader(self._inotify, self._on_inotify)
            if self._alarm is not None:
                self._loop.add_reader(self._alarm.descriptor, self._on_alarm)
        if not self._look():
            self._schedule(self._pace())

    def disarm(self) -> None:
        """Neither watch nor listen."""
        self._rest()
        self._deafen()

    def _rest(self) -> None:
        if not self._armed:
            return
        self._armed = False
        self._told(False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _deafen(self) -> None:
        if self._inotify is not None and self._listening:
            self._listening = False
            self._loop.remove_reader(self._inotify)
            if self._alarm is not None:
                self._alarm.set(0)
                self._loop.remove_reader(self._alarm.descriptor)

    def hint(self, seconds: float = 2.0) -> None:
        """Somebody has published here and will commit soon: without inotify, poll quickly for a while."""
        self._quick_until = self._loop.time() + seconds
        if self._armed and self._inotify is None:
            self._schedule(0.001)

    def close(self) -> None:
        """From any thread. A worker that is told to hurry closes it on the loop, while a thread may be at it for the one that drains."""
        self.disarm()
        with self._closing:
            descriptor, self._inotify = self._inotify, None
            alarm, self._alarm = self._alarm, None
        if descriptor is not None:
            os.close(descriptor)
        if alarm is not None:
            alarm.close()
        self._conn.close()

    def _pace(self) -> float:
        if self._inotify is not None:
            return self._slow_poll
        return 0.001 if self._loop.time() < self._quick_until else self._poll

    def _schedule(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._alarm is not None and delay < self._slow_poll:
            self._alarm.set(delay)
        else:
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_alarm(self) -> None:
        if self._alarm is not None:
            drain(self._alarm.descriptor)
        self._on_timer()

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
        if self._inotify is not None:
            drain(self._inotify)
        if not self._armed:
            self._deafen()
        elif not self._look():
            self._looks = 1
            self._schedule(_AGAIN[0])

    def _look(self) -> bool:
        version = self._version()
        if version == self._seen:
            return False
        self._seen = version
        self._rest()
        self._woken()
        return True

    def _version(self) -> int:
        return int(self._conn.execute("PRAGMA data_version").fetchone()[0])


def _alarm() -> Alarm | None:
    try:
        return Alarm()
    except OSError:
        return None
