"""A lane in the hands of a worker: how far it was read, what is open."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from ..store.port import Lane


@dataclass(slots=True)
class Begun:
    """What was in handlers' hands in a lane that is read with caution (caution.py), as the store keeps it.

    Attributes:
        deaths: so many holders of the lane in a row died.
        alone: nothing else that could have killed the worker was being handled.
        attempts: by position, which attempt it was. An attempt that has ended since is another one, or none: it says nothing.
    """

    deaths: int = 0
    alone: bool = False
    attempts: dict[int, int] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps([self.deaths, int(self.alone), self.attempts])

    @classmethod
    def of(cls, text: str) -> Begun:
        deaths, alone, attempts = json.loads(text)
        return cls(deaths, bool(alone), {int(position): attempt for position, attempt in attempts.items()})


class LaneState:
    """In-memory side of a checkpoint.

    Attributes:
        start: rows up to here were read before (but for ``recovered``).
        recovered: positions at or below ``start`` that a former holder left open.
        open: positions that were offered to handlers and whose end is not committed.
        high: highest position that ended in memory alone (set on the loop). written: highest whose end was committed (set in the turn).
        left: where the cursor was when the lane left the feed: rows behind it were passed over, not taken.
        kept: False once the lane is given back or fenced; what still runs for it is not written.
        suspects: what was in hand when its last holder died; None unless the lane is read with caution.
        gate: rows up to here are not simply taken: they were read before, or there is caution.
    """

    __slots__ = ("epoch", "gate", "high", "kept", "lane", "left", "open", "recovered", "start", "suspects", "swept", "written")

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
        self.suspects: Begun | None = None
        if row.died or row.begun is not None:
            self.suspects = Begun() if row.begun is None else Begun.of(row.begun)
            self.suspects.deaths += row.died
        self.gate: float = self.start if self.suspects is None else float("inf")

    def trust(self) -> None:
        """Its events are simply taken from now on."""
        self.suspects, self.gate = None, self.start

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
