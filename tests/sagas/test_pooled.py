"""Sagas behind a pooler, where each transaction may be another backend's."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from servers.pgbouncer import PgBouncer
from tests.sagas.test_saga import Placed, shop
from tidings import Refused, Saga, SagaFailed


@pytest.mark.promise("effects once")
async def test_many_at_once_end_as_they_should(postgres_url: str, pgbouncer: PgBouncer) -> None:
    app = shop(pgbouncer.url(postgres_url))
    with psycopg.connect(postgres_url) as conn:
        conn.execute("CREATE TABLE payments (id integer)")

    async def think(number: int) -> int:
        return number + 1

    def charge(order_id: int, tx: psycopg.Connection[Any]) -> int:
        tx.execute("INSERT INTO payments VALUES (%s)", (order_id,))
        return order_id

    def refund(order_id: int, tx: psycopg.Connection[Any]) -> None:
        tx.execute("INSERT INTO payments VALUES (%s)", (-order_id,))

    async def check(order_id: int) -> None:
        if order_id % 5 == 0:
            raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        number = 0
        for _ in range(3):
            number = await saga.step(think, number)
        await saga.step(charge, order.order_id, undo=refund)
        await saga.step(check, order.order_id)
        return number

    keys = range(1, 101)
    async with app:
        await asyncio.gather(*(app.start_saga(checkout, Placed(order_id=key), tx="own") for key in keys if key % 2))
        await asyncio.gather(*(app.publish(Placed(order_id=key), tx="own") for key in keys if not key % 2))
        ended = await asyncio.gather(*(_of(app.saga_result(checkout, key, within=60)) for key in keys))
    assert [result if isinstance(result, int) else type(result) for result in ended] == [3 if key % 5 else SagaFailed for key in keys]
    with psycopg.connect(postgres_url) as conn:
        found = sorted(row[0] for row in conn.execute("SELECT id FROM payments").fetchall())
    assert found == sorted([*keys, *(-key for key in keys if key % 5 == 0)])


async def _of(result: Any) -> Any:
    try:
        return await result
    except SagaFailed as failed:
        return failed
