"""Which events a subscription never had in hand, though it is past them: noted where it happens, so that nobody takes them for handled.

It was rewound forward over them, also after it had lapsed, or got their type when it had read that far. The store's facts hold a
note for each subscription of which there is something to say: a JSON list, the oldest first.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..envelope import LANES
from .port import Lane

_NOWHERE = (0,) * LANES
FOREVER = 2**62
"""Where one goes on that has lapsed, until somebody says where: nothing is read before."""
MOST = 20
"""Of so many rewinds the note tells, the newest; retention ends it earlier."""


@dataclass(frozen=True, slots=True)
class Skip:
    """In each lane what lies above ``behind`` up to ``upto``, and ``open``, which was in hand then. ``types``: only these; empty: all."""

    behind: tuple[int, ...]
    upto: tuple[int, ...]
    open: frozenset[int]
    types: frozenset[str]

    def has(self, lane: int, position: int, type_: str) -> bool:
        return (not self.types or type_ in self.types) and (self.behind[lane] < position <= self.upto[lane] or position in self.open)


def note_of(subscription: str) -> str:
    return f"skips:{subscription}"


def skips_in(facts: Mapping[str, str], subscription: str) -> list[Skip]:
    rows = json.loads(facts.get(note_of(subscription), "[]"))
    return [Skip(tuple(row["behind"]), tuple(row["upto"]), frozenset(row["open"]), frozenset(row["types"])) for row in rows]


def rewound(known: Sequence[Skip], lanes: Iterable[Lane], to: int, retained: int) -> str | None:
    """The note's text once it goes on behind ``to``: what is above will be read (again). None: there is nothing to note."""
    upto = [to] * LANES
    behind, opened = list(upto), set[int]()
    for lane in lanes:
        if lane.position < to:
            behind[lane.lane] = lane.position
            opened |= set(lane.open)
    return _text([*(_clipped(skip, to) for skip in known), Skip(tuple(behind), tuple(upto), frozenset(opened), frozenset())], retained)


def retyped(known: Sequence[Skip], lanes: Iterable[Lane], before: Collection[str], now: Collection[str], retained: int) -> str | None:
    """The same when its types change. One that it gets anew was not read so far; of one that it had before nothing is said, since it was
    read for as long as it had it."""
    noted = frozenset[str]().union(*(skip.types for skip in known))
    upto = [0] * LANES
    for lane in lanes:
        upto[lane.lane] = lane.position
    skips = list(known)
    for types, reached in (
        (frozenset(now) - frozenset(before) - noted, tuple(upto)),
        (frozenset(before) - frozenset(now) - noted, _NOWHERE),
    ):
        if types:
            skips.append(Skip(_NOWHERE, reached, frozenset(), types))
    return _text(skips, retained)


def _clipped(skip: Skip, to: int) -> Skip:
    upto = tuple(min(position, to) for position in skip.upto)
    return Skip(skip.behind, upto, frozenset(position for position in skip.open if position <= to), skip.types)


def _text(skips: Sequence[Skip], retained: int) -> str | None:
    rewinds = [skip for skip in skips if not skip.types and not _is_over(skip, retained)][-MOST:]
    rows = [
        {**asdict(skip), "open": sorted(skip.open), "types": sorted(skip.types)}
        for skip in skips
        if skip.types or skip in rewinds  # of types it is to be known that they are not new
    ]
    return json.dumps(rows) if rows else None


def _is_over(skip: Skip, retained: int) -> bool:
    """Whether the log has nothing of it any more, or it will be read."""
    return not skip.open and all(max(behind, retained) >= upto for behind, upto in zip(skip.behind, skip.upto, strict=True))
