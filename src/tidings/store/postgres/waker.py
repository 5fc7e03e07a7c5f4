"""Knowing that somebody published: NOTIFY on a side connection, and a poll behind it always.

A NOTIFY inside the writer's transaction would make commits wait for each other, so it is sent beside it, when the publish is called, and
rarely enough not to matter. Then the writer may not have committed yet: while positions are held back by open transactions, and for a
short time after a hint, whoever listens looks again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from ...errors import StoreError
from ...urls import label
from .connect import command, connect, is_open, is_pooled

log = logging.getLogger("tidings.store")

POLL_SECONDS = (10.0, 2.0)
"""With nothing heard, look this often: while somebody listens, and while nobody can."""
POOLED_SECONDS = 0.5
"""The same where nothing can be heard: a pooler stands between, and no direct connection was given."""
QUICK = (0.0005, 0.05)
"""Seconds between looks while something is expected: the first, and the longest (each is half as long again as the one before)."""
NOTIFY_SECONDS = (0.01, 0.05)
"""Between two NOTIFY of one process: the least, and in a stream of publishes, whose listeners look by themselves meanwhile, half as long
again each time up to this."""
NOTIFY_SHARE = 0.05
"""And so long that they take no larger share of the time."""
RECONNECT_SECONDS = 1.0


COMMITTED = b"committed"
"""What a NOTIFY says if there is nothing more to come of what it tells of."""


class Notifier:
    """Tells listeners of other processes, from a thread and a connection of its own.

    Attributes:
        pid: of the connection's backend; 0 without one.
    """

    def __init__(self, url: str, channel: str) -> None:
        self._url = url
        self._channel = channel
        self.pid = 0
        self._hinted = threading.Event()
        self._to_come = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def hint(self, *, committed: bool = False) -> None:
        """Something was published, and ``committed`` or will be soon. Costs nothing beyond setting a flag."""
        self._to_come = self._to_come or not committed
        if self._hinted.is_set():
            return
        self._hinted.set()
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="tidings-notify", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Send what is to be said, and end."""
        self._closing.set()
        was_hinted = self._hinted.is_set()
        self._hinted.set()
        if self._thread is not None:
            self._thread.join(5.0 if was_hinted else 1.0)

    def _run(self) -> None:
        conn: psycopg.Connection[Any] | None = None
        pause, longest = NOTIFY_SECONDS
        while True:
            if self._hinted.is_set():
                pause = min(longest, pause * 1.5)
            else:
                pause = NOTIFY_SECONDS[0]
                self._hinted.wait()
            self._hinted.clear()
            said, self._to_come = "" if self._to_come else f", '{COMMITTED.decode()}'", False
            began = time.monotonic()
            try:
                if conn is None or not is_open(conn):
                    conn = connect(self._url, name="tidings notify")
                    self.pid = conn.info.backend_pid
                    began = time.monotonic()
                command(conn, f'NOTIFY "{self._channel}"{said}')
            except (psycopg.Error, StoreError) as error:  # listeners poll
                log.info("nobody could be told that there is something new: %s", error)
                if conn is not None:
                    conn.close()
                    conn = None
                self._closing.wait(RECONNECT_SECONDS)
            took = min(time.monotonic() - began, RECONNECT_SECONDS)
            if self._closing.wait(max(pause, took / NOTIFY_SHARE)) and not self._hinted.is_set():
                break
            if self._closing.is_set():
                self._hinted.clear()
                break
        if conn is not None:
            conn.close()


class Waker:
    """Calls ``woken`` on the loop when there may be something new.

    Args:
        held_back: whether the last reading saw positions that open transactions keep from being read. own: the backend that tells what
            this process has committed, which its readers knew before.
    """

    def __init__(
        self, url: str, channel: str, woken: Callable[[], None], held_back: Callable[[], bool], own: Callable[[], int] = lambda: 0
    ) -> None:
        self._url = url
        self._channel = channel
        self._woken = woken
        self._held_back = held_back
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._conn: psycopg.Connection[Any] | None = None
        self._socket = -1  # a connection that is lost no longer knows its own
        self._connecting: asyncio.Future[Any] | None = None
        self._poll = POLL_SECONDS[1]
        self.polled = self.precaution = False
        self._slow = False
        self._armed = False
        self._heard = True  # until the first look
        self._closed = False
        self._pause = QUICK[0]
        self._quick_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._connect()

    def arm(self) -> None:
        """Begin to watch; what was heard since the last time wakes at once."""
        if self._armed or self._closed:
            return
        self._armed = True
        if self._heard:
            self._wake()
        elif self._held_back() or self._loop.time() < self._quick_until:
            self._schedule(self._pause)
            self._pause = min(QUICK[1], self._pause * 1.5)
        else:
            self._pause = QUICK[0]
            self._schedule(self._poll)
            self._slow = self._poll == POLL_SECONDS[0]

    def disarm(self) -> None:
        self._armed = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def hint(self, seconds: float = 2.0) -> None:
        """Somebody has published here and will commit soon."""
        self._quick_until = self._loop.time() + seconds
        self._pause = QUICK[0]
        if self._armed:
            self._schedule(self._pause)

    def close(self) -> None:
        """From any thread but the loop's; or on the loop, when that is what runs."""
        self._closed = True
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            self._end()
        else:
            ended = threading.Event()
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it its readers
                self._loop.call_soon_threadsafe(self._end)
                self._loop.call_soon_threadsafe(ended.set)
                ended.wait(1.0)

    def _end(self) -> None:
        self.disarm()
        if self._conn is not None:
            self._forget(self._conn)

    def _wake(self) -> None:
        self.polled = not self._heard
        self.precaution = self.polled and self._slow
        self._heard = False
        self.disarm()
        self._woken()

    def _schedule(self, delay: float) -> None:
        self._slow = False
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._wake)

    # -- the listening connection

    def _connect(self) -> None:
        """In a thread; polling goes on meanwhile."""
        if self._closed or self._connecting is not None:
            return

        def listen() -> psycopg.Connection[Any] | None:
            conn = connect(self._url, name="tidings listen")
            try:
                if is_pooled(conn):  # a LISTEN would stay with a backend that others get next
                    conn.close()
                    return None
                conn.execute(f'LISTEN "{self._channel}"'.encode())
                return conn
            except psycopg.Error:  # a standby lets nobody listen
                conn.close()
                raise

        self._connecting = self._loop.run_in_executor(None, listen)
        self._connecting.add_done_callback(self._connected)

    def _connected(self, done: asyncio.Future[psycopg.Connection[Any] | None]) -> None:
        self._connecting = None
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            if not self._closed:
                log.info("%s: no word of new events for now, so they are polled for: %s", label(self._url), error)
                self._loop.call_later(RECONNECT_SECONDS, self._connect)
            return
        conn = done.result()
        if conn is None:
            self._poll = POOLED_SECONDS
            return
        if self._closed:
            conn.close()
            return
        self._conn, self._socket = conn, conn.fileno()
        self._poll = POLL_SECONDS[0]
        self._loop.add_reader(self._socket, self._on_readable)
        self._told()  # whatever was said while nobody listened

    def _on_readable(self) -> None:
        conn = self._conn
        if conn is None:
            return
        try:
            conn.pgconn.consume_input()
            heard = False
            while (told := conn.pgconn.notifies()) is not None:
                heard = heard or told.be_pid != self._own() or told.extra != COMMITTED
        except psycopg.Error as error:
            log.info("%s: %s", label(self._url), error)
            self._forget(conn)
            self._loop.call_later(RECONNECT_SECONDS, self._connect)
            heard = True
        if heard:
            self._told()

    def _told(self) -> None:
        self._heard = True
        self._quick_until = max(self._quick_until, self._loop.time() + 0.1)
        self._pause = QUICK[0]
        if self._armed:
            self._wake()

    def _forget(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = None
        self._poll = POLL_SECONDS[1]
        self._loop.remove_reader(self._socket)
        conn.close()
