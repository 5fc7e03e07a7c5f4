"""What of the log a subscription keeps from being trimmed, because it has not passed it: when that is an alarm, and when it lapses.

A subscription that lapses loses its lanes: nothing waits for it any more, whoever still works for it is fenced, and nobody can take them
until ``rewind`` makes them anew, where someone has chosen to go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..errors import ConfigurationError
from ..spelling import spelled_options

if TYPE_CHECKING:
    from ..store.port import Lane, SubscriptionRow, Unit


@spelled_options
@dataclass(frozen=True, slots=True)
class Backlog:
    """So much and no more: a limit is passed when either of the two is.

    Args:
        age: of the oldest event that is held.
        events: positions of the log that are held, other types' included.

    Raises:
        ConfigurationError: neither is given, or one is not more than nothing.
    """

    age: timedelta | None = None
    events: int | None = None

    def __post_init__(self) -> None:
        if self.age is None and self.events is None:
            raise ConfigurationError("Backlog(): give an age=timedelta(…), a number of events=…, or both")
        age, events = self.age, self.events
        if not _is(age, timedelta) or (age is not None and age <= timedelta(0)):
            raise ConfigurationError(f"Backlog(age={age!r}): a timedelta, more than nothing")
        if not _is(events, int) or (events is not None and events < 1):
            raise ConfigurationError(f"Backlog(events={events!r}): a whole number from 1")

    def passed_by(self, held: Held, now: int) -> bool:
        """Whether it holds more. ``now`` in microseconds since 1970."""
        if self.events is not None and held.events > self.events:
            return True
        return self.age is not None and held.oldest is not None and now - held.oldest > self.age / timedelta(microseconds=1)

    def text(self) -> str:
        """As the store keeps it, so that any app's worker can look."""
        return msgspec.json.encode({"age": None if self.age is None else self.age.total_seconds(), "events": self.events}).decode()


def _is(value: Any, kind: type) -> bool:
    return value is None or (isinstance(value, kind) and not isinstance(value, bool))


def limit_in(text: str) -> Backlog:
    """What ``Backlog.text`` wrote."""
    found = msgspec.json.decode(text)
    return Backlog(None if found["age"] is None else timedelta(seconds=found["age"]), found["events"])


class Held(NamedTuple):
    """``position``: all up to here is passed. ``oldest``: time of the first event behind it, microseconds since 1970; None if none is."""

    name: str
    position: int
    events: int
    oldest: int | None

    def words(self, now: int) -> str:
        """One line about it."""
        age = 0.0 if self.oldest is None else max(0.0, (now - self.oldest) / 1e6)
        span = f"{age / 86_400:.1f} days" if age >= 86_400 else f"{age / 3600:.1f} hours" if age >= 3600 else f"{age:.0f} s"
        return f"holds {self.events:,} rows of the log behind position {self.position:,}, the oldest for {span}"


def lapsed_text(row: SubscriptionRow) -> str:
    """What to do about one that has lapsed."""
    where = "" if row.lapsed is None else f" behind position {row.lapsed[1]:,}"
    return (
        f"{row.name} has lapsed{where}: it held more of the log than it may. It stays where it is until you choose where it goes on:"
        f" `tidings subscription rewind {row.name} --to start` (what is left of the log), `--to now`, or a time"
    )


def reached(lanes: list[Lane]) -> int:
    """The position up to which nothing is open in any of the lanes."""
    return min(min((lane.position, *(position - 1 for position in lane.open))) for lane in lanes)


def held_by(unit: Unit, rows: list[SubscriptionRow]) -> list[Held]:
    """Of each subscription that has not lapsed."""
    head, retained = unit.head(), unit.retained()
    by_name: dict[str, list[Lane]] = {}
    for lane in unit.lanes():
        by_name.setdefault(lane.subscription, []).append(lane)
    found = []
    for row in rows:
        if row.name in by_name:
            position = max(reached(by_name[row.name]), retained)
            first = unit.select(after=position, limit=1) if position < head else []
            found.append(Held(row.name, position, max(0, head - position), first[0].time if first else None))
    return found


def lapse_if_due(unit: Unit, name: str, now: int) -> Held | None:
    """Let it lapse if it still holds more than its own limit, in the caller's transaction; what it held then."""
    row = next((row for row in unit.subscriptions() if row.name == name and row.lapse is not None), None)
    if row is None:
        return None
    held = next(iter(held_by(unit, [row])), None)
    if held is None or row.lapse is None or not limit_in(row.lapse).passed_by(held, now):
        return None
    return held if unit.lapse(name, held.position, now) else None
