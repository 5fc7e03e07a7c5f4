"""How a figure comes about: two ways to do the same work, in turns, in one run; the median of their ratios."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Clock = Literal["wall", "cpu"]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        path: what was measured. goal: in words. met: whether the goal is met; None where there is none, or nothing to judge.
        ratio: against the work by hand, and ``spread`` of it over the repetitions (lowest, highest).
        figure: absolute, with its unit. facts: further figures, for the JSON.
    """

    path: str
    figure: str
    goal: str = ""
    met: bool | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cost:
    """Of one repetition, in seconds: of the wall clock, and of this process's CPU (all threads)."""

    wall: float
    cpu: float

    def on(self, clock: Clock) -> float:
        return self.wall if clock == "wall" else self.cpu

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)


def now() -> Cost:
    """The two clocks."""
    return Cost(time.perf_counter(), time.process_time())


@dataclass
class Comparison:
    """Repetitions in turns: ``pairs`` of (Tidings, by hand)."""

    pairs: list[tuple[Cost, Cost]]

    def ratios(self, clock: Clock = "cpu") -> list[float]:
        """Cost of Tidings over cost by hand."""
        return [ours.on(clock) / hand.on(clock) for ours, hand in self.pairs]

    def ratio(self, clock: Clock = "cpu") -> float:
        return statistics.median(self.ratios(clock))

    def spread(self, clock: Clock = "cpu") -> tuple[float, float]:
        ratios = self.ratios(clock)
        return min(ratios), max(ratios)

    def ours(self, clock: Clock = "cpu") -> float:
        """Median cost of one repetition of Tidings, in seconds."""
        return statistics.median(ours.on(clock) for ours, _ in self.pairs)

    def hand(self, clock: Clock = "cpu") -> float:
        return statistics.median(hand.on(clock) for _, hand in self.pairs)


def compare(ours: Callable[[], Cost], hand: Callable[[], Cost], *, seconds: float, least: int = 3, most: int = 15) -> Comparison:
    """Run both in turns, who begins changing, for ``seconds`` but at least ``least`` times. The first pair is thrown away."""
    pairs: list[tuple[Cost, Cost]] = []
    until = time.perf_counter() + seconds
    ours(), hand()
    while len(pairs) < least or (len(pairs) < most and time.perf_counter() < until):
        if len(pairs) % 2:
            pairs.append((ours(), hand()))
        else:
            by_hand = hand()
            pairs.append((ours(), by_hand))
    return Comparison(pairs)


def as_rate(comparison: Comparison, clock: Clock = "wall") -> tuple[float, tuple[float, float]]:
    """The ratio of rates: 0.8 means 80 % of the rate by hand. With its spread."""
    low, high = comparison.spread(clock)
    return 1 / comparison.ratio(clock), (1 / high, 1 / low)


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder on the disk that temporary files are on (TMPDIR chooses another), gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="tidings-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def thousands(rate: float) -> str:
    """A rate a second in words."""
    return f"{rate:,.0f}/s"
