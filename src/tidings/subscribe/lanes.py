"""A lane in the hands of a worker: how far it was read, what is open."""

from __future__ import annotations

import json
from collections.abc import Collection

from ..store.port import Lane


class LaneState:
    """In-memory side of a checkpoint.

    Attributes:
        start: rows up to here were read before (but for ``recovered``).
        recovered: positions at or below ``start`` that a former holder left open.
        open: positions that were offered to handlers and whose end is not committed.
        high: highest position that ended in memory alone (set on the loop). written: highest whose end was committed (set in the turn).
        left: where the cursor was when the lane left the feed: rows behind it were passed over, not taken.
        kept: False once the lane is given back or fenced; what still runs for it is not written.
    """

    __slots__ = ("epoch", "high", "kept", "lane", "left", "open", "recovered", "start", "swept", "written")

    def __init__(self, row: Lane) -> None:
        self.lane = row.lane
        self.epoch = row.epoch
        self.start = row.position
        self.recovered = set(row.open)
        self.open: set[int] = set(row.open)
        self.high = self.written = row.position
        self.left: float = float("inf")
        self.swept = row.position
        self.kept = True

    @property
    def first(self) -> int:
        """Read from behind this position to see everything that is not done."""
        return min(self.recovered) - 1 if self.recovered else self.start

    def checkpoint(self, finished: Collection[int], cursor: int) -> tuple[int, int, int, str | None]:
        """The row for ``Unit.advance`` once ``finished`` are done and everything up to ``cursor`` was taken.

        May run in another thread than the loop, which adds a position to ``open`` before it moves its cursor, and takes one out before it
        raises ``high``. So both are read before ``open``; and ``difference`` of sets of ints is one step for the interpreter.
        """
        high = max(self.high, self.written, max(finished, default=0))
        read = max(self.start, int(min(cursor, self.left)), high)
        remaining = sorted(self.open.difference(finished))
        if not remaining:
            return self.lane, self.epoch, read, None
        high = max(high, remaining[0] - 1)
        below = [position for position in remaining if position <= high]  # one that is open at the position itself: after a rewind
        return self.lane, self.epoch, high, json.dumps(below) if below else None

    def committed(self, finished: Collection[int]) -> None:
        """``finished`` are durable."""
        self.open.difference_update(finished)
        self.written = max(self.written, max(finished, default=0))
