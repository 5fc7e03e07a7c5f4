"""Starting a saga by a call, in one's own transaction, and awaiting what it returns, from any process."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.running import until
from tests.sagas.test_saga import Placed, Shipped, harness, shop
from tidings import App, InvalidEvent, NotFound, NotInTime, OutsideTransaction, Refused, Saga, SagaFailed, SagaParked


@dataclass
class Outcome:
    order_id: int
    by: str


def sell(app: App) -> Any:
    def refuse() -> None:
        raise Refused("no stock")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> Outcome:
        if order.total == 0:
            await saga.step(refuse)
        if order.total < 0:
            raise KeyError("typo")
        shipped = await saga.wait(Shipped)
        return Outcome(order.order_id, shipped.by)

    return checkout


def connected(url: str) -> Any:
    return sqlite3.connect(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else psycopg.connect(url)


def instances(app: App) -> int:
    return len(app.store.query(lambda unit: unit.sagas().rows(None, (), 100)))


@pytest.mark.promise("atomic publish")
async def test_it_is_started_if_and_only_if_the_transaction_commits(store_url: str) -> None:
    app = shop(store_url)
    checkout = sell(app)
    app.open()
    conn = connected(store_url)
    app.start_saga(checkout, Placed(order_id=1), tx=conn)
    conn.rollback()
    assert instances(app) == 0
    app.start_saga(checkout, Placed(order_id=1), tx=conn)
    app.start_saga("checkout", Placed(order_id=1), tx=conn)
    assert instances(app) == 0
    conn.commit()
    assert instances(app) == 1
    await app.start_saga(checkout, Placed(order_id=1), tx="own")
    app.start_saga(checkout, Placed(order_id=2), tx="own").result()
    assert instances(app) == 2
    assert app.store.query(lambda unit: unit.head()) == 0, "nothing was published"
    conn.close()
    app.close()


@pytest.mark.parametrize("first", ["call", "event"])
async def test_one_that_is_started_by_an_event_and_by_a_call_is_one(store_url: str, first: str) -> None:
    app = shop(store_url)
    checkout = sell(app)
    async with harness(app) as shops:
        for how in (first, "event", "call"):
            if how == "call":
                await app.start_saga(checkout, Placed(order_id=1), tx="own")
            else:
                await shops.publish(Placed(order_id=1))
            await shops.settle()
        assert shops.saga("checkout", 1).state == "waiting"
        await shops.publish(Shipped(order_id=1, by="air"))
        await shops.settle()
        assert await app.saga_result(checkout, 1, within=5) == Outcome(1, "air")


async def test_a_result_is_awaited_from_another_process_and_nobody_polls_for_it(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another app object on the same store stands for the process; that it is woken, and how often it asks, is counted."""
    monkeypatch.setattr("tidings.sagas.result.POLL_SECONDS", 60.0)
    worker, other = shop(store_url), shop(store_url)
    checkout = sell(worker)
    asked = sell(other)
    async with worker:
        other.open()
        await worker.start_saga(checkout, Placed(order_id=1), tx="own")
        waiting = [asyncio.ensure_future(_of(other, asked)) for _ in range(5)]
        in_thread: list[Any] = []
        thread = threading.Thread(target=lambda: in_thread.append(other.saga_result("checkout", 1, within=20).result()))
        thread.start()
        await until(lambda: any(row.state == "waiting" for row in worker.store.query(lambda unit: unit.sagas().rows(None, (), 10))))
        await asyncio.sleep(0.2)
        asks = 0
        query = other.store.query

        def counted(job: Any) -> Any:
            nonlocal asks
            asks += 1
            return query(job)

        other.store.query = counted  # type: ignore[method-assign]
        began = asyncio.get_running_loop().time()
        await worker.publish(Shipped(order_id=1, by="air"), tx="own")
        assert await asyncio.gather(*waiting) == [Outcome(1, "air")] * 5
        took = asyncio.get_running_loop().time() - began
        await asyncio.to_thread(thread.join, 10)
        assert in_thread == [Outcome(1, "air")]
        assert took < 8, "woken, not by the poll behind it"
        assert asks < 40
    other.close()


async def test_who_waits_is_told_of_an_end_that_publishes_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.sagas.result.POLL_SECONDS", 60.0)
    worker, other = shop(store_url), shop(store_url)

    async def nap(order: Placed, saga: Saga) -> int:
        await saga.sleep(0.3)
        return order.order_id

    worker.saga(Placed)(nap)
    other.saga(Placed)(nap)
    async with worker:
        other.open()
        await worker.start_saga("nap", Placed(order_id=1), tx="own")
        began = asyncio.get_running_loop().time()
        assert await other.saga_result("nap", 1, within=20) == 1
        assert asyncio.get_running_loop().time() - began < 8, "the store's own poll takes ten seconds"
    other.close()


async def _of(app: App, saga: Any) -> Any:
    return await app.saga_result(saga, 1, within=20)


async def test_what_did_not_end_well_is_raised(store_url: str) -> None:
    app = shop(store_url)
    checkout = sell(app)
    async with harness(app) as shops:
        for number, total in ((1, 0), (2, -1), (3, 10)):
            await app.start_saga(checkout, Placed(order_id=number, total=total), tx="own")
        await shops.settle()
        with pytest.raises(SagaFailed, match=r"checkout 1 is compensated: Refused: no stock") as failed:
            await app.saga_result(checkout, 1, within=5)
        assert failed.value.facts["state"] == "compensated"
        with pytest.raises(SagaParked, match=r"checkout 2 is parked: .*KeyError: 'typo'"):
            await app.saga_result(checkout, 2, within=5)
        with pytest.raises(NotInTime, match=r"checkout 3 hasn't ended within 0\.0"):
            await app.saga_result(checkout, 3, within=0.02)
        with pytest.raises(NotInTime):
            await app.saga_result(checkout, "nobody's", within=0.02)
        with pytest.raises(NotFound, match="no saga 'nothing'; there are: checkout"):
            app.saga_result("nothing", 1)


def test_bad_starts(store_url: str) -> None:
    app = shop(store_url)
    checkout = sell(app)
    with pytest.raises(InvalidEvent, match=r"is started by shop\.Placed, not by Shipped"):
        app.start_saga(checkout, Shipped(order_id=1), tx="own")
    with pytest.raises(OutsideTransaction):
        app.start_saga(checkout, Placed(order_id=1))
    app.close()


async def test_a_result_that_can_not_be_kept_parks(store_url: str) -> None:
    app = shop(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> Any:
        return object()

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, "checkout returned object, which can't be kept" in (row.error or "")) == ("parked", True)
