"""Two descriptors that Linux gives, for an event loop to listen to: file changes, and time finer than a loop's millisecond."""

from __future__ import annotations

import ctypes
import os

_IN_MODIFY = 0x2
_NONBLOCK = 0o4000
_CLOEXEC = 0o2000000
_CLOCK_MONOTONIC = 1


def inotify(path: str) -> int | None:
    """A descriptor that becomes readable when the file is written; None where the system has no inotify."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = int(libc.inotify_init1(_NONBLOCK | _CLOEXEC))
    except (OSError, AttributeError):
        return None
    if descriptor < 0:
        return None
    if libc.inotify_add_watch(descriptor, os.fsencode(path), ctypes.c_uint32(_IN_MODIFY)) < 0:
        os.close(descriptor)
        return None
    return descriptor


class Alarm:
    """A descriptor that becomes readable some time after ``set``, to the microsecond: epoll, and so asyncio, rounds up to milliseconds.

    Raises:
        OSError: the system has no timerfd.
    """

    def __init__(self) -> None:
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self.descriptor = int(self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC))
        except AttributeError as error:
            raise OSError("no timerfd") from error
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, seconds: float) -> None:
        """Once, after so long; 0: not at all."""
        nanoseconds = int(seconds * 1e9)
        # struct itimerspec: interval, then value, each seconds and nanoseconds
        spec = (ctypes.c_long * 4)(0, 0, nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
        self._libc.timerfd_settime(self.descriptor, 0, ctypes.byref(spec), None)

    def close(self) -> None:
        os.close(self.descriptor)


def drain(descriptor: int) -> None:
    """Take what is to be read, so that it becomes readable again."""
    try:
        os.read(descriptor, 65536)
    except BlockingIOError:
        pass
