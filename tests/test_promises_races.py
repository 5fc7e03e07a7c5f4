"""Moments at which two things happen at once: each test makes the moment, without waiting for luck."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.running import sqlite, until
from tidings import App, Context, Event, Retry
from tidings.event import EventType
from tidings.store.port import KeyState, Lane
from tidings.store.sqlite.writer import WriteTurn
from tidings.subscribe.feed import Feed
from tidings.subscribe.handler import Handler
from tidings.subscribe.parked_keys import ParkedKeys
from tidings.subscribe.tail import Block


class Paid(Event, key="order_id"):
    order_id: int


def row(position: int, key: str = "1", lane: int = 0) -> tuple:
    name = f"id-{position}"
    return (position, lane, "shop", "shop.Paid", 1, "order_id", key, name, 0, "shop", b'{"order_id":1}', name, None, None, None)


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


@pytest.mark.promise("order per key")
@pytest.mark.parametrize("shared", [True, False])
async def test_the_loop_hears_of_commits_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """Else "the key is free" of a retry that succeeded could come behind "it has a follower" of the commit after it."""
    app = App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}")
    heard: list[str] = []

    @app.subscribe(Paid, shared_tx=shared)
    def pay(event: Paid, tx: sqlite3.Connection) -> None:
        heard.append("handled")

    async with app:
        assert app.worker is not None
        runner, turn = app.worker.runners["pay"], sqlite(app).turn
        post, release = runner.on_loop, turn.release

        def posted(step: Callable[[], None]) -> None:
            heard.append("posted")
            post(step)

        def released() -> None:
            heard.append("released")
            release()

        monkeypatch.setattr(runner, "on_loop", posted)
        monkeypatch.setattr(turn, "release", released)
        await app.publish(Paid(1), tx="own")
        await until(lambda: "handled" in heard and "released" in (behind := heard[heard.index("handled") :]) and "posted" in behind)
        begun = heard[heard.index("handled") :]
        assert begun.index("posted") < begun.index("released")


@pytest.mark.promise("bounded")
def test_checkpoints_go_ahead_of_handlers_that_queue_for_the_file() -> None:
    turn = WriteTurn()
    order: list[str] = []
    turn.acquire()
    for number in range(3):
        turn.request(partial(order.append, f"handler {number}"))
    turn.request(partial(order.append, "writer"), first=True)
    for _ in range(4):
        turn.release()
    assert order == ["writer", "handler 0", "handler 1", "handler 2"]


@pytest.mark.promise("independence")
async def test_lanes_that_come_with_a_parked_key_do_not_hold_the_subscription(tmp_path: Path) -> None:
    """How many keys may be parked depends on the lanes held: to be counted anew before the keys that come with them are."""
    app = App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}")
    seen: list[int] = []

    @app.subscribe(Paid, retry=Retry(attempts=3, first=60))
    async def pay(event: Paid) -> None:
        if event.order_id == 1:
            raise ConnectionError("hung up")
        seen.append(event.order_id)

    async with app:
        assert app.worker is not None
        await app.publish(Paid(1), tx="own")
        await until(lambda: app.store.query(lambda unit: unit.count_parked("pay")) == (1, 0, 0))
        app.store.write(lambda unit: unit.rewind("pay", 1)).result(5)  # takes every lane, and the parked row stays
        await app.worker.balance()
        await app.publish(Paid(2), tx="own")
        await until(lambda: seen == [2])


@pytest.mark.promise("effects once")
async def test_a_head_that_has_just_ended_is_not_scheduled_again(tmp_path: Path) -> None:
    """Its end is not committed yet, and the commit of a follower, made before, still tells of it."""
    app = App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}")
    app.open()
    feed = feed_of()
    parked = ParkedKeys("sub", "key", {}, app.store, feed, app.clock)
    key, told = ("order_id", "1"), KeyState(0, ("order_id", "1"), "retry", 1, 1, 0.0)
    parked.unsettled[key] = 1
    parked.apply(key, told)
    assert key in parked.keys
    assert parked.due_now() == 0
    parked.settled(key)
    parked.apply(key, told)
    assert parked.due_now() == 1
    parked.close()
    app.close()
