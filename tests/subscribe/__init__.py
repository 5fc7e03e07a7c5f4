"""Tests of the subscribe room, and rows to feed it with."""

from __future__ import annotations

from typing import Any

from tidings import Event
from tidings.event import EventType


class Counted(Event, key="number"):
    number: int


def rows_of(lanes: list[int]) -> tuple[EventType, list[tuple[Any, ...]]]:
    """Rows at positions 1, 2, … in these lanes, each with a key of its own."""
    event_type = EventType(Counted, "shop")
    rows: list[tuple[Any, ...]] = []
    for position, lane in enumerate(lanes, 1):
        data = event_type.to_bytes(Counted(number=position))
        name = event_type.name
        rows.append((position, lane, "shop", name, 1, "number", str(position), f"id-{position}", 0, "shop", data, "c", None, None, None))
    return event_type, rows
