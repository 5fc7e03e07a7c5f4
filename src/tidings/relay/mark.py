"""How far a slot of the relay has come, as the broker keeps it beside the events, and what follows from it. Functions of values.

A *slot* is a share of the lanes with one sender. Its mark says up to which position everything of its lanes was sent. When it is opened the
mark must fit what the log and the store say; if it does not, somebody has to choose, since any guess would skip or repeat.

The number of slots may change. Each change begins a *generation*; slots of another number of slots are other slots, with marks of their
own. Whoever opens a slot first opens every slot of earlier generations that had any of its lanes, which shuts out whoever was still
sending, and closes it by a mark that says so. From then on nobody can send anything from there, and what its mark says of a lane is final.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ..envelope import LANES
from ..errors import ConfigurationError
from ..subscribe.sharing import group_of

VERSION = 1


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    Attributes:
        log, incarnation: whose positions these are. generation, slot, slots, lanes: how the lanes were shared out, and which share this is.
        position: everything of the slot's lanes up to here was sent, in each lane of ``ahead`` up to what it says there.
        row, event: position and id of the last event that was sent, or (0, "").
        late: events that were sent out of order, whose parked rows may still be there.
        closed: the generation that took over; nothing is sent from here any more.
    """

    log: str
    incarnation: int
    generation: int
    slot: int
    slots: int
    position: int = 0
    row: int = 0
    event: str = ""
    ahead: dict[int, int] = {}
    late: tuple[int, ...] = ()
    closed: int = 0
    lanes: int = LANES
    version: int = VERSION

    def reached(self, lane: int) -> int:
        return max(self.position, self.ahead.get(lane, 0))

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def decode(text: bytes | None, log: str, slot: int, slots: int) -> Mark | None:
    """The mark that a slot has, if it has one.

    Raises:
        ConfigurationError: it is none that this version can go on from.
    """
    if text is None:
        return None
    try:
        mark = msgspec.json.decode(text, type=Mark)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"what the broker keeps as the relay's position is none of ours: {error}") from error
    if (mark.version, mark.lanes) != (VERSION, LANES):
        raise ConfigurationError(
            f"the relay's position was written by another version of Tidings (version {mark.version}, {mark.lanes} lanes; this one has"
            f" {VERSION} and {LANES}); run that one"
        )
    if (mark.log, mark.slot, mark.slots) != (log, slot, slots):
        raise ConfigurationError(
            f"the relay's position is that of slot {mark.slot} of {mark.slots} of the log {mark.log}, not that of slot {slot} of {slots} of"
            f" {log}"
        )
    return mark


def lanes_of_slot(slot: int, slots: int) -> list[int]:
    return [lane for lane in range(LANES) if group_of(lane, slots) == slot]


class Earlier(NamedTuple):
    """A slot of another number of slots."""

    slot: int
    slots: int


def earlier(slot: int, history: Sequence[int]) -> list[Earlier]:
    """Slots of all other numbers of slots that there were, which had some of this one's lanes.

    Args:
        history: the number of slots of each generation, the present one last.
    """
    slots = history[-1]
    lanes = lanes_of_slot(slot, slots)
    found = {Earlier(group_of(lane, number), number) for number in set(history) - {slots} for lane in lanes}
    return sorted(found, key=lambda one: (one.slots, one.slot))


def reached(lanes: Collection[int], marks: Sequence[Mark]) -> dict[int, int]:
    """How far each lane has come by these marks: by the one of the latest generation that covers it. Those without any are left out."""
    found: dict[int, tuple[int, int]] = {}
    for mark in marks:
        if mark.generation == 0:  # closed before anything was sent
            continue
        for lane in set(lanes).intersection(lanes_of_slot(mark.slot, mark.slots)):
            found[lane] = max(found.get(lane, (0, 0)), (mark.generation, mark.reached(lane)))
    return {lane: position for lane, (_, position) in found.items()}


def disagreement(sent: Mapping[int, int], stored: Mapping[int, int], start: int) -> str | None:
    """Why it isn't clear where to go on, or None.

    Args:
        sent: how far each lane has come by the broker, those that it knows. stored: by the store. start: where the relay began.

    The store's position is written behind the broker's, so it may be lower, and never higher.
    """
    for lane, position in sorted(stored.items()):
        known = sent.get(lane)
        if known is None and position > start:
            return f"the broker keeps no position of lane {lane}, and the store says that it was sent up to {position}"
        if known is not None and known < position:
            return f"the broker says that lane {lane} was sent up to {known}, and the store that it was up to {position}"
    return None
