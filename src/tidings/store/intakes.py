"""What an intake asks of a store: how far it has read each partition of a broker, and what it has seen.

A partition's ``next`` offset is moved from what the intake believes it to be, in the transaction of the events that lie between, or not at
all. So whoever woke up late, or no longer has the partition, writes nothing: no lease is needed for that, and nothing is ever taken twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..envelope import LANES

NO_MARKS = ("",) * LANES


@dataclass(slots=True)
class IntakeRow:
    """An intake as the store knows it. ``broker``: its address as it may be shown; ``since``: microseconds since 1970."""

    name: str
    app: str
    broker: str
    since: int


@dataclass(slots=True)
class Offset:
    """How far a partition was read.

    ``topic_id``: which topic of that name it was. ``next``: the offset to be read next. ``end``: what the broker had when it was last
    asked. ``reached``: time of the last record taken, microseconds since 1970; 0 if there was none. ``owner``: the worker that reads it.
    ``trouble``: why it is not read; ``resume``: where an operator wants it to go on (``first``, ``end`` or an offset).
    """

    topic: str
    partition: int
    topic_id: str
    next: int
    end: int = 0
    reached: int = 0
    owner: str | None = None
    trouble: str | None = None
    resume: str | None = None

    @property
    def behind(self) -> int:
        """Offsets that were not read yet, as far as is known."""
        return max(0, self.end - self.next)


class Move(NamedTuple):
    """One partition's step: from ``expected`` to ``next``, if it is still that topic. ``reached``: 0 leaves it as it is."""

    topic: str
    partition: int
    topic_id: str
    expected: int
    next: int
    end: int
    reached: int


class MarkRow(NamedTuple):
    """The highest sequence of one log's events that was taken from a partition, by lane: texts that ascend, empty where there was none.

    ``series``: of the log; in another one the sequences begin anew.
    """

    topic: str
    partition: int
    log_id: str
    series: str
    lanes: Sequence[str]


class IntakeUnit(Protocol):
    """The statements of one intake in one transaction (``Unit.intake``)."""

    def register(self, app: str, broker: str, now: int) -> None: ...
    def offsets(self) -> list[Offset]: ...
    def begin(self, topic: str, partition: int, topic_id: str, next: int, end: int) -> None:
        """Make a partition known; does nothing if it is."""
        ...

    def own(self, partitions: Collection[tuple[str, int]], owner: str) -> None:
        """Say who reads these, for ``status``; those that he had before and are not among them are nobody's."""
        ...

    def move(self, moves: Sequence[Move]) -> list[tuple[str, int]]:
        """Go on in each partition that stands where it is expected; those that don't. Whoever moves the same one at the same time waits."""
        ...

    def trouble(self, topic: str, partition: int, why: str | None) -> None: ...
    def resume(self, topic: str, partition: int | None, where: str) -> int:
        """An operator's wish, for one partition or all of the topic's; how many there are. Raises ``Unit.control``."""
        ...

    def settle(self, topic: str, partition: int, topic_id: str, next: int, end: int) -> None:
        """What an operator wished is decided: go on there, without trouble."""
        ...

    def marks(self, topic: str, partition: int) -> list[MarkRow]: ...
    def set_marks(self, rows: Sequence[MarkRow]) -> None: ...
    def unseen(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those that are not in the window; they are from now on. Whoever asks for the same one at the same time waits."""
        ...

    def forget(self, keep: int) -> int:
        """Leave the ``keep`` newest in the window; how many went."""
        ...

    def lock(self) -> None:
        """Nobody else has this, or asks for ``next_dead``, until the end of the transaction."""
        ...

    def next_dead(self) -> int:
        """A number for a record that could not be read, which stands where others have their position."""
        ...


def packed(lanes: Sequence[str]) -> str:
    return ",".join(lanes)


def unpacked(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
