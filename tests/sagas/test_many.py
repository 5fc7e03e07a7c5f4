"""One action on many instances, on both stores, beside workers and other operators."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.running import until
from tests.sagas.test_saga import Placed, Shipped, harness, shop
from tidings import ActionRefused, Retry, Saga
from tidings.sagas.selection import Selection
from tidings.store.sagas import CLOSED


def broken(order_id: int) -> str:
    if order_id != 4:
        raise ConnectionError("no answer")
    return "p4"


async def test_each_has_its_line_and_what_is_no_longer_so_is_left(store_url: str) -> None:
    app, selection = shop(store_url), Selection("checkout", waiting_for="broken")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(broken, order.order_id, retry=Retry(first=60, jitter=0))
        await saga.wait(Shipped)

    async with harness(app) as shops:
        for key in range(1, 8):
            await shops.publish(Placed(order_id=key))
        await shops.settle()
        pages = list(selection.pages(shops.store, 2))
        rows = [row for page in pages for row in page]
        assert (sorted(row.key for row in rows), max(map(len, pages))) == (["1", "2", "3", "5", "6", "7"], 2)
        ann = app.operator("ann")
        ann.skip("checkout", 2, "broken", "p2", reason="by hand")
        ann.cancel("checkout", 3, reason="gone")
        await shops.settle()
        done = ann.many("cancel", rows, reason="the bank has closed", still=selection.holds)
        assert {one.key: one.refused for one in done} == {
            "1": None, "2": "checkout 2 is no longer so: it is waiting", "3": "checkout 3 is no longer so: it is cancelled", "5": None,
            "6": None, "7": None,
        }  # fmt: skip
        await shops.settle()
        states = {key: shops.saga("checkout", key).state for key in range(1, 8)}
        assert states == {1: "cancelled", 2: "waiting", 3: "cancelled", 4: "waiting", 5: "cancelled", 6: "cancelled", 7: "cancelled"}
        for key in (1, 5, 6, 7):
            (action,) = shops.store.query(lambda unit, key=key: unit.sagas().actions("checkout", str(key)))  # type: ignore[misc]
            assert (action.actor, action.action, action.reason) == ("ann", "cancel", "the bank has closed")
        (again, *_) = ann.many("retry", rows[:1], reason="once more")
        assert again.refused == "checkout 1 is cancelled: nothing is left to be tried"
        with pytest.raises(ActionRefused, match="is none of what can be done to many: retry, skip"):
            ann.many("supply", rows, reason="x")


@pytest.mark.promise("effects once")
async def test_many_are_cancelled_beside_a_worker_and_other_operators(store_url: str) -> None:
    """Batches and single orders lock the same rows in the opposite order; what was accepted holds, and nothing is left over."""
    app, keys = shop(store_url), range(120)
    did, undid = Counter[int](), Counter[int]()

    async def work(key: int) -> None:
        await asyncio.sleep(0.002)
        did[key] += 1

    def undo(key: int) -> None:
        undid[key] += 1

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(work, order.order_id, undo=undo)
        await saga.wait(Shipped)
        await saga.step(work, order.order_id)

    def rows() -> list[Any]:
        return app.store.query(lambda unit: unit.sagas().rows(None, (), 1000))

    accepted = set[str]()

    def in_batches() -> None:
        ann = app.operator("ann")
        for _ in range(4):
            there = [row for row in rows() if row.state not in CLOSED and int(row.key) % 4]
            accepted.update(one.key for one in ann.many("cancel", there, reason="all") if one.row is not None)

    def one_by_one() -> None:
        bob = app.operator("bob")
        for row in [row for row in rows()[::-1] if int(row.key) % 3]:
            try:
                bob.cancel("checkout", row.key, reason="this one")
            except ActionRefused:
                continue
            accepted.add(row.key)

    async with app:
        for key in keys:
            await app.publish(Placed(order_id=key), tx="own")
        loop = asyncio.get_running_loop()
        await asyncio.gather(loop.run_in_executor(None, in_batches), loop.run_in_executor(None, one_by_one))
        await until(lambda: len(rows()) == len(keys), 30)
        for key in keys:
            await app.publish(Shipped(order_id=key), tx="own")
        await until(lambda: all(row.state in CLOSED for row in rows()), 60)
        ends = {row.key: row.state for row in rows()}
    assert len(accepted) > 20
    assert {ends[key] for key in accepted} == {"cancelled"}
    assert {end for key, end in ends.items() if key not in accepted} <= {"completed"}
    assert all(undid[int(key)] == (1 if did[int(key)] or undid[int(key)] else 0) for key in accepted)
