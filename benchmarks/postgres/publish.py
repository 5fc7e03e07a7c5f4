"""Publishing in the caller's own transaction: process CPU against the same INSERT of a ready row, on a connection of the same driver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tidings import App

from ..byhand import COLUMNS, order, row
from ..measure import Comparison, Cost, Row, compare, now
from .byhand import database, store

SIZE = 500
"""Events in a transaction where the commit is not counted. Where it is, each event has a transaction of its own."""
INSERT = f"INSERT INTO tidings_log ({COLUMNS}) VALUES ({', '.join(['%s'] * 14)}) RETURNING position"
NUMBERED = f"INSERT INTO tidings_log ({COLUMNS}) VALUES ({', '.join(f'${number}' for number in range(1, 15))}) RETURNING position"
NAMES = COLUMNS.split(", ")
NAMED = sa.text(f"INSERT INTO tidings_log ({COLUMNS}) VALUES ({', '.join(f':{name}' for name in NAMES)}) RETURNING position")


def run(quick: bool) -> Iterator[Row]:
    seconds = 1.0 if quick else 4.0
    with database(pinned=True) as url:
        app = store(url)
        try:
            for name, measure in MEASURES.items():
                for commits in (False, True):
                    transactions, size = (200, 1) if commits else (2, SIZE)
                    ready = [row(order(number)) for number in range(size)]
                    comparison = measure(app, url, transactions, ready, commits, seconds)
                    count = transactions * size
                    ours, hand = (1e6 * cost / count for cost in (comparison.ours(), comparison.hand()))
                    yield Row(
                        f"PostgreSQL: publish, {name}, {'with its commit' if commits else 'without the commit'}",
                        f"{ours:.1f} µs CPU (by hand {hand:.1f})",
                        "≤ 1.15×" if commits else "",
                        comparison.ratio() <= 1.15 if commits else None,
                        comparison.ratio(),
                        comparison.spread(),
                        {"ours_us": ours, "by_hand_us": hand, "wall_ratio": comparison.ratio("wall"), "events": count},
                    )
        finally:
            app.close()


Ready = list[tuple[Any, ...]]


def _timed(transactions: int, size: int, commits: bool, begin: Callable[[], Any], put: Callable[[Any, int], object],
           commit: Callable[[Any], object]) -> Cost:  # fmt: skip
    total = Cost(0, 0)
    for _ in range(transactions):
        began = now() if commits else None
        tx = begin()
        began = began or now()
        for number in range(size):
            put(tx, number)
        ended = now()
        commit(tx)
        total += (now() if commits else ended) - began
    return total


async def _timed_async(transactions: int, size: int, commits: bool, begin: Callable[[], Awaitable[Any]],
                       put: Callable[[Any, int], Awaitable[object]], commit: Callable[[Any], Awaitable[object]]) -> Cost:  # fmt: skip
    total = Cost(0, 0)
    for _ in range(transactions):
        began = now() if commits else None
        tx = await begin()
        began = began or now()
        for number in range(size):
            await put(tx, number)
        ended = now()
        await commit(tx)
        total += (now() if commits else ended) - began
    return total


def _psycopg(app: App, url: str, transactions: int, ready: Ready, commits: bool, seconds: float) -> Comparison:
    with psycopg.connect(url) as conn:

        def begin() -> Any:
            return conn

        def ours(tx: Any, number: int) -> None:
            app.publish(order(number), tx=tx)

        def hand(tx: Any, number: int) -> None:
            tx.execute(INSERT, ready[number]).fetchone()

        def commit(tx: Any) -> None:
            tx.commit()

        return compare(
            lambda: _timed(transactions, len(ready), commits, begin, ours, commit),
            lambda: _timed(transactions, len(ready), commits, begin, hand, commit),
            seconds=seconds,
        )


def _psycopg2(app: App, url: str, transactions: int, ready: Ready, commits: bool, seconds: float) -> Comparison:
    conn = psycopg2.connect(url)

    def ours(tx: Any, number: int) -> None:
        app.publish(order(number), tx=tx)

    def hand(tx: Any, number: int) -> None:
        cursor = tx.cursor()
        cursor.execute(INSERT, ready[number])
        cursor.fetchone()

    try:
        return compare(
            lambda: _timed(transactions, len(ready), commits, lambda: conn, ours, lambda tx: tx.commit()),
            lambda: _timed(transactions, len(ready), commits, lambda: conn, hand, lambda tx: tx.commit()),
            seconds=seconds,
        )
    finally:
        conn.close()


def _session(app: App, url: str, transactions: int, ready: Ready, commits: bool, seconds: float) -> Comparison:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))

    def begin() -> Any:
        session = Session(engine)
        session.execute(sa.text("SELECT 1"))
        return session

    def ours(tx: Any, number: int) -> None:
        app.publish(order(number), tx=tx)

    def hand(tx: Any, number: int) -> None:
        tx.execute(NAMED, dict(zip(NAMES, ready[number], strict=True))).fetchone()

    def commit(tx: Any) -> None:
        tx.commit()
        tx.close()

    try:
        return compare(
            lambda: _timed(transactions, len(ready), commits, begin, ours, commit),
            lambda: _timed(transactions, len(ready), commits, begin, hand, commit),
            seconds=seconds,
        )
    finally:
        engine.dispose()


def _django(app: App, url: str, transactions: int, ready: Ready, commits: bool, seconds: float) -> Comparison:
    from django.db.backends.postgresql.base import DatabaseWrapper

    connection = DatabaseWrapper(_django_settings(url), alias="default")

    def begin() -> Any:
        connection.set_autocommit(False)
        return connection

    def ours(tx: Any, number: int) -> None:
        app.publish(order(number), tx=tx)

    def hand(tx: Any, number: int) -> None:
        with tx.cursor() as cursor:
            cursor.execute(INSERT, ready[number])
            cursor.fetchone()

    def commit(tx: Any) -> None:
        tx.commit()
        tx.set_autocommit(True)

    try:
        return compare(
            lambda: _timed(transactions, len(ready), commits, begin, ours, commit),
            lambda: _timed(transactions, len(ready), commits, begin, hand, commit),
            seconds=seconds,
        )
    finally:
        connection.close()


def _django_settings(url: str) -> dict[str, Any]:
    from urllib.parse import urlsplit

    import django.conf

    if not django.conf.settings.configured:
        django.conf.settings.configure(USE_TZ=True)
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql", "NAME": parts.path[1:], "USER": parts.username, "PASSWORD": "", "HOST": parts.hostname,
        "PORT": str(parts.port), "OPTIONS": {}, "TIME_ZONE": None, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True,
        "ATOMIC_REQUESTS": False, "TEST": {}, "DISABLE_SERVER_SIDE_CURSORS": False,
    }  # fmt: skip


def _async_psycopg(app: App, url: str, transactions: int, ready: Ready, commits: bool, seconds: float) -> Comparison:
    with asyncio.Runner() as runner:
        conn: Any = runner.run(psycopg.AsyncConnection.connect(url))

        async def begin() -> Any:
            return conn

        async def ours(tx: Any, number: int) -> None:
            await app.publish(order(number), tx=tx)

        async def hand(tx: Any, number: int) -> None:
            await (await tx.execute(INSERT, ready[number])).fetchone()

        async def commit(tx: Any) -> None:
            await tx.commit()

        try:
            return compare(
                lambda: runner.run(_timed_async(transactions, len(ready), commits, begin, ours, commit)),
                lambda: runner.run(_timed_async(transactions, len(ready), commits, begin, hand, commit)),
                seconds=seconds,
            )
        finally:
            runner.run(conn.close())


def _asyncpg(app: App, url: str, transactions: int, ready: Ready, commits: bool, seconds: float) -> Comparison:
    with asyncio.Runner() as runner:
        conn: Any = runner.run(asyncpg.connect(url))
        open_now: list[Any] = []

        async def begin() -> Any:
            transaction = conn.transaction()
            await transaction.start()
            open_now.append(transaction)
            return conn

        async def ours(tx: Any, number: int) -> None:
            await app.publish(order(number), tx=tx)

        async def hand(tx: Any, number: int) -> None:
            await tx.fetchval(NUMBERED, *ready[number])

        async def commit(tx: Any) -> None:
            await open_now.pop().commit()

        try:
            return compare(
                lambda: runner.run(_timed_async(transactions, len(ready), commits, begin, ours, commit)),
                lambda: runner.run(_timed_async(transactions, len(ready), commits, begin, hand, commit)),
                seconds=seconds,
            )
        finally:
            runner.run(conn.close())


def _async_session(app: App, url: str, transactions: int, ready: Ready, commits: bool, seconds: float) -> Comparison:
    with asyncio.Runner() as runner:
        engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))

        async def begin() -> Any:
            session = AsyncSession(engine)
            await session.execute(sa.text("SELECT 1"))
            return session

        async def ours(tx: Any, number: int) -> None:
            await app.publish(order(number), tx=tx)

        async def hand(tx: Any, number: int) -> None:
            (await tx.execute(NAMED, dict(zip(NAMES, ready[number], strict=True)))).fetchone()

        async def commit(tx: Any) -> None:
            await tx.commit()
            await tx.close()

        try:
            return compare(
                lambda: runner.run(_timed_async(transactions, len(ready), commits, begin, ours, commit)),
                lambda: runner.run(_timed_async(transactions, len(ready), commits, begin, hand, commit)),
                seconds=seconds,
            )
        finally:
            runner.run(engine.dispose())


MEASURES = {
    "psycopg": _psycopg,
    "async psycopg": _async_psycopg,
    "asyncpg": _asyncpg,
    "psycopg2": _psycopg2,
    "SQLAlchemy Session on psycopg": _session,
    "SQLAlchemy AsyncSession on asyncpg": _async_session,
    "Django": _django,
}
