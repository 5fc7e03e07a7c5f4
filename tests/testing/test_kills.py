"""The harness kills a saga's worker at a step, by name."""

from __future__ import annotations

import sqlite3

import pytest

from tidings import App, Context, Event, Refused, Saga
from tidings.testing import Harness, Unkilled


class Placed(Event, key="order_id"):
    order_id: int
    fails: bool = False


class Shop:
    def __init__(self) -> None:
        self.app = app = App("shop", store="sqlite:///never.db")
        self.calls: list[str] = []

        async def charge(order_id: int, ctx: Context) -> str:
            self.calls.append("charge")
            return "p1"

        def refund(order_id: int) -> None:
            self.calls.append("refund")

        def reserve(order_id: int, tx: sqlite3.Connection) -> None:
            self.calls.append("reserve")
            tx.execute("INSERT INTO reserved VALUES (?)", (order_id,))

        def send(fails: bool) -> None:
            self.calls.append("send")
            if fails:
                raise Refused("no")

        @app.saga(Placed)
        async def checkout(order: Placed, saga: Saga) -> str:
            payment = await saga.step(charge, order.order_id, undo=refund)
            await saga.step(reserve, order.order_id)
            await saga.step(send, order.fails)
            return payment


async def story(shop: Shop, harness: Harness, *, fails: bool = False) -> list[int]:
    with harness.transaction() as tx:
        tx.execute("CREATE TABLE reserved (order_id)")
    await harness.publish(Placed(order_id=1, fails=fails))
    await harness.settle()
    with harness.transaction() as tx:
        return [row[0] for row in tx.execute("SELECT * FROM reserved")]


@pytest.mark.parametrize(
    ("after", "within", "calls"),
    [
        (["charge"], [], ["charge", "reserve", "send"]),
        ([], ["charge"], ["charge", "charge", "reserve", "send"]),
        ([], ["reserve"], ["charge", "reserve", "reserve", "send"]),
        (["reserve", "send"], ["charge"], ["charge", "charge", "reserve", "send"]),
    ],
)
async def test_it_dies_there_and_another_one_goes_on(after: list[str], within: list[str], calls: list[str]) -> None:
    shop = Shop()
    async with Harness(shop.app) as harness:
        for step in after:
            harness.kill_after(step)
        for step in within:
            harness.kill_in(step)
        assert await story(shop, harness) == [1]
        assert harness.saga("checkout", 1).state == "completed"
        assert len(harness.faults.happened) == len(after) + len(within)
    assert shop.calls == calls


async def test_it_dies_in_an_undo_twice() -> None:
    shop = Shop()
    async with Harness(shop.app) as harness:
        harness.kill_in("undo charge", times=2)
        await story(shop, harness, fails=True)
        assert harness.saga("checkout", 1).state == "compensated"
    assert shop.calls == ["charge", "reserve", "send", "refund", "refund", "refund"]


async def test_who_is_never_killed_is_told() -> None:
    shop = Shop()
    with pytest.raises(Unkilled, match=r"kill_after\('chrage'\): nobody was killed there; steps that ended: charge, reserve, send"):
        async with Harness(shop.app) as harness:
            harness.kill_after("chrage")
            await story(shop, harness)
