"""How fast: a token bucket."""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """``rate`` events a second, bursts of up to a tenth of a second's worth (at least one).

    Args:
        now: seconds, monotonic.
    """

    def __init__(self, rate: float, now: Callable[[], float]) -> None:
        self.rate = rate
        self._now = now
        self._next = now()

    def wait(self) -> float:
        """Take one; seconds to sleep before going on."""
        if self.rate <= 0:
            return 1.0
        now = self._now()
        self._next = max(self._next, now - max(0.1, 1 / self.rate)) + 1 / self.rate
        return max(0.0, self._next - now)
