"""Connections that break while sagas run: what became of a commit is then unknown, and everything must end all the same."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
import pytest

from tidings import App, Event, Saga

SAGAS = 150
CUT = """SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database()
    AND pid <> pg_backend_pid() AND application_name LIKE 'tidings%' ORDER BY random() LIMIT 2) few"""


class Placed(Event, key="order_id"):
    order_id: int


@pytest.mark.slow
@pytest.mark.promise("nothing lost")
async def test_no_saga_is_lost_or_done_twice_when_connections_are_cut(postgres_url: str) -> None:
    app = App("shop", store=postgres_url, lease=30.0)  # nobody's lease runs out here: what is left lying is found by its own worker

    async def plain(order: Placed) -> int:
        await asyncio.sleep(0.001)
        return order.order_id

    def book(order: Placed, number: int, tx: psycopg.Connection[Any]) -> None:
        tx.execute("INSERT INTO booked VALUES (%s)", (number,))

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        number = await saga.step(plain, order)
        await saga.step(book, order, number)
        await saga.step(plain, order)

    rng = random.Random(7)
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as conn:
        await conn.execute("CREATE TABLE booked (number integer)")
        app.open()
        for number in range(SAGAS):
            await app.publish(Placed(order_id=number), tx="own")
        cuts = 0
        async with app, asyncio.timeout(90):
            states = "SELECT count(*) FILTER (WHERE state = 'completed') FROM tidings_sagas"
            row: Any = (0,)
            while row[0] < SAGAS:
                if cuts < 40:
                    found: Any = await (await conn.execute(CUT)).fetchone()
                    cuts += found[0]
                await asyncio.sleep(rng.uniform(0.01, 0.08))
                row = await (await conn.execute(states)).fetchone()
        app.close()
        assert cuts >= 10
        booked = [found[0] for found in await (await conn.execute("SELECT number FROM booked ORDER BY number")).fetchall()]
        assert booked == list(range(SAGAS))
