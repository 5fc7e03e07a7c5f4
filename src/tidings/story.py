"""What happened to one key: its events, what they led to, and how each subscription stands with each of them. Read in one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .envelope import Envelope
from .store.port import EVERYTHING, FailedAttempt, Lane, Parked, Scheduled, SubscriptionRow
from .store.skips import skips_in


@dataclass(slots=True)
class Handling:
    """How one subscription stands with one event.

    ``state``: ``handled`` (also where its ``where=`` left it out), ``pending``, ``retry`` (parked until ``parked.due``), ``waiting``
    (parked behind an earlier event of its key), ``dead``, ``dropped``, ``skipped`` (it was rewound forward over it), or ``unread``
    (it got this type when it was past the event).
    """

    subscription: SubscriptionRow
    state: str
    parked: Parked | None
    failed: list[FailedAttempt]
    published: list[Told] = field(default_factory=list)


@dataclass(slots=True)
class Told:
    """An event, how it was handled, and the events it led to that no subscription names as its own. ``missing``: trimmed from the log."""

    envelope: Envelope
    handlings: list[Handling]
    others: list[Told] = field(default_factory=list)
    missing: bool = False


@dataclass(slots=True)
class Story:
    """All stories that a key has a part in, as trees by causation. ``more``: there are older events of the key than were asked for."""

    key_name: str
    key: str
    events: int
    roots: list[Told]
    scheduled: list[Scheduled]
    more: bool


def story_of(unit: Any, key_name: str, key: str, *, limit: int = 500) -> Story:
    """The newest ``limit`` events of a key, with everything of the same correlation ids (at most ten times as many)."""
    own: list[Envelope] = unit.select(key=(key_name, key), limit=limit + 1, newest=True)
    more, own = len(own) > limit, own[-limit:]
    parked_own: list[Parked] = unit.parked(key=(key_name, key))
    scheduled: list[Scheduled] = unit.scheduled(10_000)
    mine = [one for one in scheduled if (one.envelope.key_name, one.envelope.key) == (key_name, key)]
    ids = {row.correlation_id for row in (*own, *(row.envelope for row in parked_own), *(one.envelope for one in mine))}
    rows: list[Envelope] = unit.select(correlation_ids=sorted(ids), limit=10 * limit) if ids else []
    by_position = {row.position: row for row in (*own, *rows)}
    trimmed = {row.envelope.position: row.envelope for row in parked_own if row.envelope.position not in by_position}
    by_position.update(trimmed)
    positions = sorted(by_position)

    judge = _Judge(
        unit.subscriptions(), unit.lanes(), unit.parked(positions=positions, limit=100_000), unit.attempts(positions), unit.facts()
    )
    told = {row.event_id: Told(row, judge.handlings(row), missing=position in trimmed) for position, row in sorted(by_position.items())}
    roots = []
    for one in told.values():
        cause = told.get(one.envelope.causation_id or "")
        if cause is None or cause is one:
            roots.append(one)
            continue
        by = one.envelope.header("subscription")
        handling = next((handling for handling in cause.handlings if handling.subscription.name == by), None)
        (cause.others if handling is None else handling.published).append(one)
    return Story(key_name, key, len(told), roots, [one for one in scheduled if one in mine or one.envelope.correlation_id in ids], more)


class _Judge:
    """Checkpoints, parked rows, failed attempts and what was skipped, asked event by event."""

    def __init__(
        self,
        subscriptions: Sequence[SubscriptionRow],
        lanes: Iterable[Lane],
        parked: Iterable[Parked],
        attempts: Iterable[FailedAttempt],
        facts: Mapping[str, str],
    ) -> None:
        self._subscriptions = subscriptions
        self._lanes = {(lane.subscription, lane.lane): lane for lane in lanes}
        self._parked = {(row.subscription, row.envelope.position): row for row in parked}
        self._failed: dict[tuple[str, int], list[FailedAttempt]] = {}
        self._skips = {row.name: skips_in(facts, row.name) for row in subscriptions}
        for one in attempts:
            self._failed.setdefault((one.subscription, one.position), []).append(one)

    def handlings(self, row: Envelope) -> list[Handling]:
        return [
            self._handling(subscription, row)
            for subscription in self._subscriptions
            if _reads(subscription, row) and row.position > subscription.start
        ]

    def _handling(self, subscription: SubscriptionRow, row: Envelope) -> Handling:
        parked = self._parked.get((subscription.name, row.position))
        failed = self._failed.get((subscription.name, row.position), [])
        lane = self._lanes.get((subscription.name, row.lane))
        if parked is not None:
            state = parked.state
        elif lane is None or row.position > lane.position or row.position in lane.open:
            state = "pending"
        elif failed and failed[-1].outcome == "dropped":
            state = "dropped"
        else:
            skip = next((skip for skip in self._skips[subscription.name] if skip.has(row.lane, row.position, row.type)), None)
            state = "handled" if skip is None else "unread" if skip.types else "skipped"
        return Handling(subscription, state, parked, [one for one in failed if one.outcome != "dropped"])


def _reads(subscription: SubscriptionRow, row: Envelope) -> bool:
    return row.type in subscription.types or (EVERYTHING in subscription.types and row.source == subscription.app)
