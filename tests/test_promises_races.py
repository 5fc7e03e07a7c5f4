"""Moments at which two things happen at once: each test makes the moment, without waiting for luck."""

from __future__ import annotations

import pytest

from tidings import Context, Event
from tidings.event import EventType
from tidings.store.port import Lane
from tidings.subscribe.feed import Feed
from tidings.subscribe.handler import Handler
from tidings.subscribe.tail import Block


class Paid(Event, key="order_id"):
    order_id: int


def row(position: int, key: str = "1", lane: int = 0) -> tuple:
    return (position, lane, "shop", "shop.Paid", 1, "order_id", key, f"id-{position}", 0, "shop", b'{"order_id":1}', f"id-{position}", None, None, None)  # fmt: skip


def feed_of(order: str = "key", *, chained: bool = False) -> Feed:
    def handle(event: Paid, ctx: Context) -> None: ...

    handler = Handler(handle, EventType(Paid, "shop"), where=None, name="handle")
    feed = Feed("sub", {"shop.Paid": handler}, order, chained=chained)  # type: ignore[arg-type]
    feed.add([Lane("sub", number, 0, (), "me", 1) for number in range(64)])
    return feed


@pytest.mark.promise("effects once")
def test_a_block_that_grows_between_fetching_and_taking_gives_each_event_once() -> None:
    feed = feed_of()
    block = Block(0)
    block.rows, block.upto = [row(1), row(2)], 2
    feed.put(block, 0)
    block.rows, block.upto = [*block.rows, row(3)], 3  # another subscription of the process has read on
    taken = [ctx.position for ctx in iter(feed.take, None)]
    feed.put(block, 2)
    taken += [ctx.position for ctx in iter(feed.take, None)]
    assert taken == [1, 2, 3]
