"""Time, as the system tells it or as a test sets it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings: ``time`` for people and due times, ``monotonic`` for leases and waiting."""

    def time(self) -> float:
        """Seconds since 1970 (UTC); may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds since some point, the same for every process of this machine; never jumps."""
        ...


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until ``advance`` is called; for tests.

    Args:
        start: seconds since 1970 at the beginning.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._time = start
        self._monotonic = 1_000.0

    def time(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both readings forward by ``seconds`` (not negative)."""
        if seconds < 0:
            raise ValueError(f"a clock only goes forward; use jump() to set the wall clock back (got {seconds} s)")
        self._time += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock by ``seconds``, either way, as an administrator or NTP does; ``monotonic`` stays."""
        self._time += seconds
