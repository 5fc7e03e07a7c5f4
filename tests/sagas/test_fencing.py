"""A worker that is frozen inside a step past its lease, and goes on when another has the instance."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.running import until
from tests.sagas.asking import asks_for_tx
from tidings import App, Context, Event, Saga
from tidings.clock import ManualClock
from tidings.store import store_at


class Placed(Event, key="order_id"):
    order_id: int


class Paid(Event, key="order_id"):
    order_id: int


def closed(app: App) -> bool:
    row = app.store.query(lambda unit: unit.sagas().row("checkout", "1"))
    return row is not None and row.state == "completed"


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
@pytest.mark.parametrize(
    ("store_url", "kind"),  # who is frozen in a transaction on a file holds the file: nobody can take over
    [("sqlite", "outside"), ("sqlite", "async"), ("postgres", "outside"), ("postgres", "async"), ("postgres", "tx")],
    indirect=["store_url"],
)
async def test_a_frozen_worker_that_wakes_up_records_nothing(store_url: str, kind: str) -> None:
    """Nothing of the first one's step stays: no entry, no row of its transaction, no event; and it does nothing further."""
    clock, mark = ManualClock(), "?" if store_url.startswith("sqlite") else "%s"
    frozen, go_on, calls = threading.Event(), threading.Event(), list[str]()

    def shop(name: str) -> App:
        app = App("shop", store=store_at(store_url, clock=clock))

        def wait() -> None:
            calls.append(name)
            if name == "first":
                frozen.set()
                assert go_on.wait(20)

        def outside(order: Placed, ctx: Context) -> str:
            wait()
            ctx.publish(Paid(order_id=order.order_id))
            return name

        async def slowly(order: Placed, ctx: Context) -> str:
            await asyncio.to_thread(outside, order, ctx)
            return name

        @asks_for_tx(store_url)
        def charge(order: Placed, tx: Any, ctx: Context) -> str:
            outside(order, ctx)
            tx.execute(f"INSERT INTO payments VALUES ({mark})", (name,))
            return name

        @asks_for_tx(store_url)
        def end(order: Placed, by: str, tx: Any) -> None:
            tx.execute(f"INSERT INTO payments VALUES ({mark})", (f"end of {by} by {name}",))

        outside.__name__ = slowly.__name__ = "charge"
        step: Any = {"outside": outside, "tx": charge, "async": slowly}[kind]

        @app.saga(Placed)
        async def checkout(order: Placed, saga: Saga) -> None:
            by = await saga.step(step, order)
            await saga.step(end, order, by)

        return app

    first, second = shop("first"), shop("second")
    first.open()
    with first.store.transaction() as conn:
        conn.execute("CREATE TABLE payments (what text)")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(first)
        await first.publish(Placed(order_id=1), tx="own")
        await until(frozen.is_set)
        clock.advance(first.worker.lease + 1)  # type: ignore[union-attr]
        await stack.enter_async_context(second)
        assert second.worker is not None
        await second.worker.balance()
        await until(lambda: closed(second))
        go_on.set()
        await until(lambda: first.sagas is not None and not first.sagas.drivers)
        assert paid(second) == ["end of second by second", *(["second"] if kind == "tx" else [])]
        assert calls == ["first", "second"]
        journal = second.store.query(lambda unit: unit.sagas().journal("checkout", "1"))
        assert [(one.step, one.result) for one in journal] == [("charge", '"second"'), ("end", "null")]
        assert len(second.store.query(lambda unit: unit.select(limit=10, types=["shop.Paid"]))) == 1


@pytest.mark.promise("death at any instruction")
async def test_what_a_dead_worker_had_is_taken_over_as_soon_as_its_lease_is_over(store_url: str) -> None:
    """By one whose own lease is long, so that it asks the store seldom."""
    calls: list[tuple[str, float]] = []

    def shop(name: str, lease: float) -> App:
        app = App("shop", store=store_url, lease=lease)

        async def charge(order: Placed) -> None:
            calls.append((name, time.monotonic()))
            if name == "first":
                await asyncio.sleep(60)

        @app.saga(Placed)
        async def checkout(order: Placed, saga: Saga) -> None:
            await saga.step(charge, order)

        return app

    first, second = shop("first", 2.0), shop("second", 60.0)
    async with first, second:
        while "first" not in (names := [name for name, _ in calls]):  # whoever handles the event has the instance
            if names:
                calls.clear()
            await first.publish(Placed(order_id=len(first.store.query(lambda unit: unit.select(limit=1000))) + 1), tx="own")
            await asyncio.sleep(0.3)
        dead, first.worker = first.worker, None
        assert dead is not None
        await dead.crash()
        calls.clear()
        died = time.monotonic()
        await until(lambda: bool(calls), 20)
        assert calls[0][0] == "second"
        assert calls[0][1] - died < 5.0


def paid(app: App) -> list[str]:
    with app.store.transaction() as conn:
        return sorted(row[0] for row in conn.execute("SELECT what FROM payments").fetchall())


@pytest.mark.promise("effects once")
async def test_a_transaction_whose_instance_is_another_workers_leaves_nothing(store_url: str) -> None:
    """As its transaction sees it when it is to be committed; the proof is in it, not before it."""
    app, mark, attempts = App("shop", store=store_url), "?" if store_url.startswith("sqlite") else "%s", list[int]()

    @asks_for_tx(store_url)
    def charge(order: Placed, tx: Any) -> None:
        attempts.append(len(attempts) + 1)
        tx.execute(f"INSERT INTO payments VALUES ({mark})", (f"attempt {len(attempts)}",))
        if len(attempts) == 1:
            tx.execute("UPDATE tidings_sagas SET epoch = epoch + 1")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order)

    app.open()
    with app.store.transaction() as conn:
        conn.execute("CREATE TABLE payments (what text)")
    async with app:
        await app.publish(Placed(order_id=1), tx="own")
        await until(lambda: closed(app))
        assert paid(app) == ["attempt 2"]
    app.close()
