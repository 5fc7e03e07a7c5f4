"""Events for the contract suites."""

from __future__ import annotations

from typing import Any

from ...envelope import Envelope, lane_of

NOW = 1_700_000_000_000_000
SECOND = 1_000_000


def an_event(number: int = 1, key: str | None = "1", **fields: Any) -> Envelope:
    """An envelope that isn't written yet."""
    event_id = f"00000000-0000-7000-8000-{number:012d}"
    values = {
        "position": 0,
        "lane": lane_of("order", key) if key is not None else lane_of(None, event_id),
        "topic": "shop",
        "type": "shop.Placed",
        "version": 1,
        "key_name": None if key is None else "order",
        "key": key,
        "event_id": event_id,
        "time": NOW + number,
        "source": "shop",
        "data": b'{"order":%d}' % number,
        "correlation_id": event_id,
        "causation_id": None,
        "traceparent": None,
        "headers": None,
    }
    return Envelope(**{**values, **fields})
