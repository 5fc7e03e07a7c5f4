"""From the return of the commit to the handler in another process, on an idle store, for each driver; and what an idle worker asks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from servers.postgres import Postgres
from tidings import App

from ..byhand import order
from ..measure import Row, percentile
from ..program import Program
from .byhand import SETTINGS, store


def run(quick: bool) -> Iterator[Row]:
    count = 50 if quick else 300
    seconds = 5.0 if quick else 30.0
    with Postgres(settings={**SETTINGS, "log_statement": "all", "log_min_duration_statement": "-1"}) as server:
        url = server.new_database()
        app = store(url)
        try:
            for name, publisher in PUBLISHERS.items():
                with Program("worker", url, "latency") as worker:
                    worker.ask("go")
                    time.sleep(0.5)
                    committed = publisher(app, url, count)
                    time.sleep(1.0)
                    times = worker.ask("times")
                if len(times) != count:
                    raise AssertionError(f"{len(times)} of {count} events came")
                behind = [(at - committed[number]) / 1e6 for number, at in times]
                p50, p99 = percentile(behind, 0.5), percentile(behind, 0.99)
                yield Row(
                    f"PostgreSQL: return of the commit to handler, idle, other process, {name}",
                    f"p50 {p50:.2f} ms, p99 {p99:.2f} ms",
                    "p50 ≤ 5 ms",
                    p50 <= 5,
                    facts={"p50_ms": p50, "p99_ms": p99},
                )
        finally:
            app.close()
        with Program("worker", url, "latency") as worker:
            worker.ask("go")
            time.sleep(5.0)
            cpu, asked = worker.ask("cpu"), _statements(server)
            time.sleep(seconds)
            share, rate = (worker.ask("cpu") - cpu) / seconds, (_statements(server) - asked) / seconds
        yield Row(
            "PostgreSQL: idle worker",
            f"{rate:.2f} statements/s, {100 * share:.2f} % of a core",
            "< 1 statement/s",
            rate < 1,
            facts={"statements": rate, "share": share},
        )


def _statements(server: Postgres) -> int:
    """Everything that the server was asked: its log has a line for each."""
    log = server.log()
    return log.count("LOG:  statement:") + log.count("LOG:  execute")


def _pause() -> float:
    return 0.01 + 0.03 * random.random()


def _psycopg(app: App, url: str, count: int) -> dict[int, int]:
    committed = {}
    with psycopg.connect(url) as conn:
        for number in range(count):
            time.sleep(_pause())
            app.publish(order(number), tx=conn)
            conn.commit()
            committed[number] = time.monotonic_ns()
    return committed


def _session(app: App, url: str, count: int) -> dict[int, int]:
    committed = {}
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    for number in range(count):
        time.sleep(_pause())
        with Session(engine) as session:
            app.publish(order(number), tx=session)
            session.commit()
            committed[number] = time.monotonic_ns()
    engine.dispose()
    return committed


def _asynchronous(publish: Callable[[App, str, int, dict[int, int]], Awaitable[None]]) -> Callable[[App, str, int], dict[int, int]]:
    def publisher(app: App, url: str, count: int) -> dict[int, int]:
        committed: dict[int, int] = {}

        async def main() -> None:
            await publish(app, url, count, committed)

        asyncio.run(main())
        return committed

    return publisher


async def _asyncpg(app: App, url: str, count: int, committed: dict[int, int]) -> None:
    conn: Any = await asyncpg.connect(url)
    for number in range(count):
        await asyncio.sleep(_pause())
        async with conn.transaction():
            await app.publish(order(number), tx=conn)
        committed[number] = time.monotonic_ns()
    await conn.close()


async def _async_psycopg(app: App, url: str, count: int, committed: dict[int, int]) -> None:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        for number in range(count):
            await asyncio.sleep(_pause())
            await app.publish(order(number), tx=conn)
            await conn.commit()
            committed[number] = time.monotonic_ns()


def _django(app: App, url: str, count: int) -> dict[int, int]:
    from django.db.backends.postgresql.base import DatabaseWrapper

    from .publish import _django_settings

    committed = {}
    connection = DatabaseWrapper(_django_settings(url), alias="default")
    for number in range(count):
        time.sleep(_pause())
        connection.set_autocommit(False)
        app.publish(order(number), tx=connection)
        connection.commit()
        committed[number] = time.monotonic_ns()
    connection.close()
    return committed


PUBLISHERS: dict[str, Callable[[App, str, int], dict[int, int]]] = {
    "psycopg": _psycopg,
    "async psycopg": _asynchronous(_async_psycopg),
    "asyncpg": _asynchronous(_asyncpg),
    "SQLAlchemy Session": _session,
    "Django": _django,
}
