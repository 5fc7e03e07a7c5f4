"""A step for each item of a list, some at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.sagas.test_saga import ONCE, Placed, harness, journal, shop
from tidings import App, Refused, Saga


class Work:
    """Counts how many run at a time. ``gates``: who waits until the test lets him go on."""

    def __init__(self, url: str, *, limit: Any = 3, count: int = 10) -> None:
        self.app: App = shop(url)
        self.limit, self.running, self.most = limit, 0, 0
        self.calls: list[int] = []
        self.undone: list[int] = []
        self.refuses: set[int] = set()
        self.gates: dict[int, asyncio.Event] = {}

        async def pack(item: int, order_id: int) -> int:
            self.calls.append(item)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                if item in self.gates:
                    await self.gates[item].wait()
                await asyncio.sleep(0)
            finally:
                self.running -= 1
            if item in self.refuses:
                raise Refused(f"no {item}")
            return item * 10

        def unpack(item: int, order_id: int) -> None:
            self.undone.append(item)

        @self.app.saga(Placed)
        async def checkout(order: Placed, saga: Saga) -> list[int]:
            return await saga.steps(pack, range(count), order.order_id, limit=self.limit, undo=unpack, retry=ONCE)


async def test_all_are_called_some_at_a_time_and_their_results_stand_in_the_order_of_the_items(store_url: str) -> None:
    work = Work(store_url)
    work.gates[1] = asyncio.Event()
    async with harness(work.app) as shops:
        await shops.publish(Placed(order_id=1))
        while len(work.calls) < 10:  # all the others go past the one that is slow
            await asyncio.sleep(0.001)
        work.gates[1].set()
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, row.result) == ("completed", "[0,10,20,30,40,50,60,70,80,90]")
        assert work.most == 3
        assert sorted(work.calls) == list(range(10))
        assert journal(shops)[-1].branch == "0.2"


@pytest.mark.promise("effects once")
async def test_when_one_fails_those_beside_it_end_and_no_other_begins(store_url: str) -> None:
    work = Work(store_url)
    work.refuses.add(4)
    work.gates[3] = asyncio.Event()
    async with harness(work.app) as shops:
        await shops.publish(Placed(order_id=1))
        while not (4 in work.calls and work.running == 1):
            await asyncio.sleep(0.001)
        work.gates[3].set()
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, row.error) == ("compensated", "Refused: no 4")
        called = set(work.calls)
        assert called >= {0, 1, 2, 3, 4}
        assert len(called) <= 6
        assert sorted(work.undone) == sorted(called - {4})
        assert work.undone[0] == 3  # it ended last


@pytest.mark.promise("death at any instruction")
@pytest.mark.parametrize("after", [1, 5, 9])
async def test_a_dead_workers_list_goes_on_where_it_was_also_with_another_limit(store_url: str, after: int) -> None:
    work = Work(store_url)
    work.gates[after] = asyncio.Event()
    async with harness(work.app) as shops:
        await shops.publish(Placed(order_id=1))
        while after not in work.calls:
            await asyncio.sleep(0.001)
        await shops.crash()
        work.gates.clear()
        work.limit, known = 5, {int(entry.branch.split(".")[1]) - 1 for entry in journal(shops)}
        before = list(work.calls)
        await shops.restart()
        await shops.settle()
        assert shops.saga("checkout", 1).result == "[0,10,20,30,40,50,60,70,80,90]"
        again = work.calls[len(before) :]
        assert not known & set(again)
        assert {*before, *again} == set(range(10))


async def test_a_list_without_items_has_no_results_and_no_limit_is_a_mistake(store_url: str) -> None:
    none, wrong = Work(store_url, count=0), Work(store_url, limit=0)
    async with harness(none.app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert shops.saga("checkout", 1).result == "[]"
    async with harness(wrong.app) as shops:
        await shops.publish(Placed(order_id=2))
        await shops.settle()
        row = shops.saga("checkout", 2)
        assert row.state == "parked"
        assert (row.error or "").startswith(f"{__file__}:")
        assert "limit=0: so many steps at a time, 1 or more" in (row.error or "")
