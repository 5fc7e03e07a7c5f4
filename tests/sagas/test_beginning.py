"""An instance that is called for beside its worker."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.running import until
from tests.sagas.test_saga import Placed, shop
from tidings import App, ConfigurationError, Saga
from tidings.store.sagas import SagaRow, SagaUnit


def count(app: App, calls: list[int]) -> Any:
    async def charge(order_id: int) -> int:
        calls.append(order_id)
        return order_id

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        return await saga.step(charge, order.order_id)

    return checkout


def row(app: App, key: int) -> SagaRow | None:
    return app.store.query(lambda unit: unit.sagas().row("checkout", str(key)))


async def test_what_is_called_for_beside_its_worker_is_in_hand_at_once(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks for it."""
    claimed: list[Any] = []
    claim = SagaUnit.claim

    def counted(unit: Any, *args: Any) -> Any:
        found = claim(unit, *args)
        claimed.extend(found)
        return found

    monkeypatch.setattr(SagaUnit, "claim", counted)
    app, calls = shop(store_url), list[int]()
    checkout = count(app, calls)
    async with app:
        for key in range(1, 20):
            receipt = await app.start_saga(checkout, Placed(order_id=key), tx="own")
            assert receipt.position is None
            assert await app.saga_result(checkout, key, within=20) == key
        assert (calls, claimed) == (list(range(1, 20)), [])


@pytest.mark.promise("effects once")
async def test_it_begins_once_however_often_and_from_wherever_it_is_called_for(store_url: str) -> None:
    """On the worker's loop, from threads, by events, all at once, and more than there is room for."""
    app, calls = shop(store_url), list[int]()
    checkout = count(app, calls)

    def call(key: int) -> None:
        app.start_saga(checkout, Placed(order_id=key), tx="own").result()

    async with app:
        asked: list[Any] = []
        for key in range(1, 151):
            asked += [app.start_saga(checkout, Placed(order_id=key), tx="own") for _ in range(2)]
            asked.append(asyncio.to_thread(call, key))
            asked.append(app.publish(Placed(order_id=key), tx="own"))
        await asyncio.gather(*asked)
        assert [await app.saga_result(checkout, key, within=30) for key in range(1, 151)] == list(range(1, 151))
        assert sorted(calls) == list(range(1, 151))
        assert app.sagas is not None
        sagas = app.sagas
        await until(lambda: not sagas.in_flight)
        assert app.store.query(lambda unit: unit.sagas().held(sagas._worker)) == set()


async def test_a_call_that_is_taken_back_leaves_no_place_taken(store_url: str) -> None:
    app, calls = shop(store_url), list[int]()
    checkout = count(app, calls)
    async with app:
        assert app.sagas is not None

        async def call(key: int) -> None:
            await app.start_saga(checkout, Placed(order_id=key), tx="own")

        for key in range(1, 40):
            task = asyncio.ensure_future(call(key))
            for _ in range(key % 3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: not app.sagas.outstanding() if app.sagas is not None else False)
        made = [key for key in range(1, 40) if (found := row(app, key)) is not None and found.state == "completed"]
        assert sorted(calls) == made


async def test_beside_a_worker_that_ends_it_is_somebody_elses(store_url: str) -> None:
    app, calls = shop(store_url), list[int]()
    checkout = count(app, calls)
    async with app:
        assert app.worker is not None
    app.open()
    await app.start_saga(checkout, Placed(order_id=1), tx="own")
    found = row(app, 1)
    assert found is not None
    assert (found.worker, calls) == (None, [])
    app.close()
    other = shop(store_url)
    checkout = count(other, calls)
    async with other:
        assert await other.saga_result(checkout, 1, within=20) == 1


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("most", [1, 2])
async def test_no_more_are_in_hand_than_said_and_none_is_left(store_url: str, most: int) -> None:
    app, running, seen = App("shop", store=store_url, saga_concurrency=most), set[int](), list[int]()

    async def slow(order_id: int) -> int:
        running.add(order_id)
        seen.append(len(running))
        await asyncio.sleep(0.02)
        running.discard(order_id)
        return order_id

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        return await saga.step(slow, order.order_id)

    async with app:
        await asyncio.gather(*(app.start_saga(checkout, Placed(order_id=key), tx="own") for key in range(1, 11)))
        await asyncio.gather(*(app.publish(Placed(order_id=key), tx="own") for key in range(11, 21)))
        assert [await app.saga_result(checkout, key, within=30) for key in range(1, 21)] == list(range(1, 21))
    assert max(seen) == most


async def test_as_many_steps_block_at_once_as_are_in_hand(store_url: str) -> None:
    app, together = shop(store_url), threading.Barrier(90)

    def block() -> int:
        return together.wait(20)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        return await saga.step(block)

    async with app:
        await asyncio.gather(*(app.start_saga(checkout, Placed(order_id=key), tx="own") for key in range(1, 91)))
        assert sorted([await app.saga_result(checkout, key, within=30) for key in range(1, 91)]) == list(range(90))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "8", True])
def test_a_number_of_instances_that_can_not_be_is_told(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="saga_concurrency"):
        App("shop", store="sqlite:///x.db", saga_concurrency=wrong)
