"""A handler that upserts a row in its transaction, for each driver, against its own loop that does the same and keeps its place in that
transaction. The server is pinned to one core, the client to another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tidings import App, Context, Retry

from ..byhand import DATA, OrderPlaced, decode
from ..measure import Cost, Row, as_rate, compare, now, thousands
from .byhand import CHECKPOINT, READ, connect, database, fill, forget, place

UPSERT = (
    "INSERT INTO totals VALUES (%s, 1, %s) ON CONFLICT (order_id)"
    " DO UPDATE SET events = totals.events + 1, total = totals.total + excluded.total"
)
NAMED = sa.text(UPSERT.replace("%s", ":a", 1).replace("%s", ":b", 1))
NUMBERED = UPSERT.replace("%s", "$1", 1).replace("%s", "$2", 1)
SIZE = 1000
"""Events in one transaction by hand; what a shared transaction of Tidings holds at most."""
KEYS = 10_000


def run(quick: bool) -> Iterator[Row]:
    count = 5_000 if quick else 30_000
    few = 500 if quick else 2_000
    seconds = 2.0 if quick else 8.0
    with database(pinned=True) as url:
        fill(url, count, keys=KEYS)
        with connect(url) as conn:
            conn.execute(
                "CREATE TABLE totals (order_id integer PRIMARY KEY, events integer NOT NULL, total float8 NOT NULL) WITH (fillfactor = 50)"
            )
        for name in HANDS:
            if name in SHARED:
                comparison = compare(
                    lambda: tidings(url, name, count),  # noqa: B023
                    lambda: by_hand(url, name, count, SIZE),  # noqa: B023
                    seconds=seconds,
                )
                yield _row(f"PostgreSQL: handler that upserts in its transaction, {name}", comparison, count, 0.80)
            if name == "psycopg":
                comparison = compare(
                    lambda: tidings(url, "psycopg", count, failing=1000), lambda: by_hand(url, "psycopg", count, SIZE), seconds=seconds
                )
                yield _row("   the same, psycopg, 0.1 % failing once", comparison, count, None)
            comparison = compare(
                lambda: tidings(url, name, few, shared=False, start=count - few),  # noqa: B023
                lambda: by_hand(url, name, few, 1, start=count - few),  # noqa: B023
                seconds=seconds / 2,
            )
            yield _row(f"   a transaction for each event, {name}", comparison, few, 0.80)


def _row(path: str, comparison: Any, count: int, goal: float | None) -> Row:
    ratio, spread = as_rate(comparison)
    return Row(
        path,
        f"{thousands(count / comparison.ours('wall'))} (by hand {thousands(count / comparison.hand('wall'))})",
        "" if goal is None else f"≥ {100 * goal:.0f} %",
        None if goal is None else ratio >= goal,
        ratio,
        spread,
        {"cpu_us": 1e6 * comparison.ours() / count, "by_hand_cpu_us": 1e6 * comparison.hand() / count},
    )


def tidings(url: str, name: str, count: int, *, shared: bool = True, start: int = 0, failing: int = 0) -> Cost:
    """``failing``: every so many-th event fails at its first attempt and is handled 50 ms later; 0 for none."""
    _empty(url)
    given: Any = None
    if name.startswith("SQLAlchemy"):
        given = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), pool_size=20)
    elif name == "psycopg2":
        given = lambda: psycopg2.connect(url)  # noqa: E731
    app = App("bench", url, transactions=given)
    options: Any = {"name": "totals", "start": start, "shared_tx": shared and name in SHARED, "retry": Retry(first=0.05, jitter=0.0)}

    if name == "psycopg":

        @app.subscribe(OrderPlaced, **options)
        def total(event: OrderPlaced, ctx: Context, tx: psycopg.Connection[Any]) -> None:
            if failing and ctx.attempt == 1 and ctx.position % failing == 7:
                raise RuntimeError("not today")
            tx.execute(UPSERT, (event.order_id, float(event.total)))
    elif name == "psycopg2":

        @app.subscribe(OrderPlaced, **options)
        def total2(event: OrderPlaced, tx: psycopg2.extensions.connection) -> None:
            with tx.cursor() as cursor:
                cursor.execute(UPSERT, (event.order_id, float(event.total)))
    elif name == "SQLAlchemy Session":

        @app.subscribe(OrderPlaced, **options)
        def total_in_session(event: OrderPlaced, tx: Session) -> None:
            tx.execute(NAMED, {"a": event.order_id, "b": float(event.total)})
    elif name == "async psycopg":

        @app.subscribe(OrderPlaced, **options)
        async def total_async(event: OrderPlaced, tx: psycopg.AsyncConnection[Any]) -> None:
            await tx.execute(UPSERT, (event.order_id, float(event.total)))
    else:

        @app.subscribe(OrderPlaced, **options)
        async def total_asyncpg(event: OrderPlaced, tx: asyncpg.Connection) -> None:
            await tx.execute(NUMBERED, event.order_id, float(event.total))

    async def main() -> Cost:
        began = now()
        async with app:
            worker = app.worker
            assert worker is not None
            while worker.runners["totals"].handled < count:  # committed, not only called
                worker.settled.clear()
                await worker.settled.wait()
        return now() - began

    cost = asyncio.run(main())
    if isinstance(given, sa.Engine):
        given.dispose()
    _check(url, count)
    forget(url, "totals")
    return cost


def by_hand(url: str, name: str, count: int, size: int, *, start: int = 0) -> Cost:
    """The same statements in the same driver: read, upsert, keep the place, commit."""
    _empty(url)
    with place(url):
        pass
    with ExitStack() as stack:
        cost = HANDS[name](url, size, start, stack)
    _check(url, count)
    return cost


def _psycopg(url: str, size: int, start: int, stack: ExitStack) -> Cost:
    conn = stack.enter_context(connect(url))
    reader = conn.cursor(binary=True)
    began = now()
    position = start
    while rows := reader.execute(READ, (position, size)).fetchall():
        conn.execute("BEGIN")
        for row in rows:
            event = decode(row[DATA])
            conn.execute(UPSERT, (event.order_id, float(event.total)))
        position = rows[-1][0]
        conn.execute(CHECKPOINT, (position,))
        conn.execute("COMMIT")
    return now() - began


def _psycopg2(url: str, size: int, start: int, stack: ExitStack) -> Cost:
    reader = stack.enter_context(connect(url)).cursor(binary=True)
    conn = psycopg2.connect(url)
    stack.callback(conn.close)
    began = now()
    position = start
    while rows := reader.execute(READ, (position, size)).fetchall():
        for row in rows:
            event = decode(row[DATA])
            with conn.cursor() as cursor:
                cursor.execute(UPSERT, (event.order_id, float(event.total)))
        position = rows[-1][0]
        with conn.cursor() as cursor:
            cursor.execute(CHECKPOINT, (position,))
        conn.commit()
    return now() - began


def _session(url: str, size: int, start: int, stack: ExitStack) -> Cost:
    reader = stack.enter_context(connect(url)).cursor(binary=True)
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    stack.callback(engine.dispose)
    keep = sa.text("UPDATE by_hand_place SET position = :position WHERE id = 1")
    began = now()
    position = start
    while rows := reader.execute(READ, (position, size)).fetchall():
        with Session(engine) as session:
            for row in rows:
                event = decode(row[DATA])
                session.execute(NAMED, {"a": event.order_id, "b": float(event.total)})
            position = rows[-1][0]
            session.execute(keep, {"position": position})
            session.commit()
    return now() - began


def _async_psycopg(url: str, size: int, start: int, stack: ExitStack) -> Cost:
    async def main() -> Cost:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            reader = conn.cursor(binary=True)
            began = now()
            position = start
            while True:
                rows = await (await reader.execute(READ, (position, 1000))).fetchall()
                if not rows:
                    return now() - began
                for at in range(0, len(rows), size):
                    part = rows[at : at + size]
                    await conn.execute("BEGIN")
                    for row in part:
                        event = decode(row[DATA])
                        await conn.execute(UPSERT, (event.order_id, float(event.total)))
                    position = part[-1][0]
                    await conn.execute(CHECKPOINT, (position,))
                    await conn.execute("COMMIT")

    return asyncio.run(main())


def _asyncpg(url: str, size: int, start: int, stack: ExitStack) -> Cost:
    async def main() -> Cost:
        conn = await asyncpg.connect(url)
        keep = "UPDATE by_hand_place SET position = $1 WHERE id = 1"
        began = now()
        position = start
        while True:
            rows = await conn.fetch(READ.replace("%s", "$1", 1).replace("%s", "$2", 1), position, 1000)
            if not rows:
                cost = now() - began
                await conn.close()
                return cost
            for at in range(0, len(rows), size):
                part = rows[at : at + size]
                async with conn.transaction():
                    for row in part:
                        event = decode(row[DATA])
                        await conn.execute(NUMBERED, event.order_id, float(event.total))
                    position = part[-1][0]
                    await conn.execute(keep, position)

    return asyncio.run(main())


HANDS: dict[str, Callable[[str, int, int, ExitStack], Cost]] = {
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "SQLAlchemy Session": _session,
    "async psycopg": _async_psycopg,
    "asyncpg": _asyncpg,
}
SHARED = {"psycopg", "psycopg2", "SQLAlchemy Session"}
"""Async handlers have a transaction each: one that was shared would make them wait for each other."""


def _empty(url: str) -> None:
    with connect(url) as conn:
        conn.execute("TRUNCATE totals")


def _check(url: str, count: int) -> None:
    with connect(url) as conn:
        events = conn.execute("SELECT sum(events) FROM totals").fetchall()[0][0]
    if events != count:
        raise AssertionError(f"{events} of {count} events are in the table")
