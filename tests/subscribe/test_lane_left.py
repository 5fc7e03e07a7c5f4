"""A lane that is given back while a handler runs: what was not taken of it must not be carried over by the cursor of the others."""

from __future__ import annotations

from tests.subscribe import rows_of
from tidings.event import EventType
from tidings.store.port import Lane
from tidings.subscribe.feed import Feed
from tidings.subscribe.handler import Handler
from tidings.subscribe.tail import Block


def test_a_checkpoint_of_a_lane_that_left_stops_where_it_left() -> None:
    event_type, rows = rows_of([1, 2, 1, 2])

    async def handle(event: object) -> None: ...

    feed = Feed("s", {event_type.name: Handler(handle, EventType(event_type.cls, "shop"), where=None, name="s")}, "key", chained=True)
    feed.add([Lane("s", number, 0, (), "me", 1) for number in (1, 2)])
    block = Block(0)
    block.rows, block.upto = rows, 4
    feed.put(block, 0)
    first = feed.take()
    assert first is not None
    assert first.row[0] == 1
    lane = first.lane
    feed.remove(1)
    while (taken := feed.take()) is not None:
        assert taken.row[1] == 2
    assert feed.cursor == 4
    assert lane.checkpoint({1}, feed.cursor)[2] == 1, "position 3 of lane 1 was never taken"
