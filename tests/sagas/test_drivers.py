"""Async transactions of PostgreSQL as steps, and an older driver of the same instance in the same process."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.running import until
from tests.sagas.test_saga import Paid, Placed, harness, journal, payments, shop, table
from tidings import Context, Refused, Saga


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
async def test_an_async_steps_rows_its_events_and_its_line_are_one_commit(store_url: str) -> None:
    app = shop(store_url)

    async def charge(order_id: int, tx: psycopg.AsyncConnection[Any], ctx: Context) -> int:
        await tx.execute("INSERT INTO payments VALUES (%s)", (order_id * 10 + ctx.attempt,))
        ctx.publish(Paid(order_id=order_id))
        if ctx.attempt == 1:
            raise ConnectionError("not yet")
        return order_id

    async def refund(order_id: int, tx: psycopg.AsyncConnection[Any], result: object) -> None:
        await tx.execute("INSERT INTO payments VALUES (%s)", (-order_id,))

    async def refuse(tx: psycopg.AsyncConnection[Any]) -> None:
        await tx.execute("INSERT INTO payments VALUES (99)")
        raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order.order_id, undo=refund)
        await saga.sleep(10)
        await saga.step(refuse)

    async with harness(app) as shops:
        table(shops)
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert (payments(shops), shops.published(Paid)) == ([], [])
        await shops.advance(5)
        assert (payments(shops), shops.published(Paid)) == ([12], [Paid(order_id=1)])
        await shops.crash()
        await shops.restart()
        await shops.advance(20)
        assert shops.saga("checkout", 1).state == "compensated"
        assert (payments(shops), shops.published(Paid)) == ([-1, 12], [Paid(order_id=1)])
        assert [(one.kind, one.step, one.state) for one in journal(shops)] == [
            ("step", "charge", "done"), ("sleep", "sleep", "done"), ("step", "refuse", "refused"), ("undo", "charge", "done"),
        ]  # fmt: skip


@pytest.mark.promise("effects once")
async def test_an_older_driver_of_an_instance_ends_when_the_same_worker_takes_it_again(store_url: str) -> None:
    """As after a failover that lost the earlier claim: the store says that the instance is nobody's, and its driver still runs."""
    app, calls, cancelled = shop(store_url), list[int](), list[int]()

    async def charge(order_id: int) -> int:
        number = len(calls)
        calls.append(number)
        if number == 0:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
        return number

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        return await saga.step(charge, order.order_id)

    async with app:
        await app.publish(Placed(order_id=1), tx="own")
        await until(lambda: bool(calls))
        with app.store.transaction() as conn:
            conn.execute("UPDATE tidings_sagas SET worker = NULL, due = 1")
        assert app.sagas is not None
        app.sagas.hurry()
        assert await app.saga_result(checkout, 1, within=10) == 1
        assert cancelled == [0]
        assert [one.result for one in app.store.query(lambda unit: unit.sagas().journal("checkout", "1"))] == ["1"]
