"""Publishing in the caller's own transaction: process CPU against an INSERT made by hand in the same loop, with the same driver."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiosqlite
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tidings import App

from .byhand import INSERT, connect, order, row, store
from .measure import Comparison, Cost, Row, compare, folder, now

SIZE = 1000
"""Events in a transaction where the commit is not counted. Where it is, each event has a transaction of its own."""


def run(quick: bool) -> Iterator[Row]:
    seconds = 1.0 if quick else 4.0
    for name, measure in (("sqlite3", _sqlite3), ("SQLAlchemy Session", _session), ("aiosqlite", _aiosqlite)):
        for commits in (False, True):
            with folder() as path:
                app = store(path / "log.db")
                try:
                    comparison, count = measure(app, path / "log.db", commits, seconds)
                finally:
                    app.close()
            goal = 1.10 if commits else 1.15
            ours, hand = (1e6 * cost / count for cost in (comparison.ours(), comparison.hand()))
            yield Row(
                f"publish, {name}, {'with its commit' if commits else 'without the commit'}",
                f"{ours:.1f} µs CPU (by hand {hand:.1f})",
                f"≤ {goal:.2f}×",
                comparison.ratio() <= goal,
                comparison.ratio(),
                comparison.spread(),
                {
                    "ours_us": ours,
                    "by_hand_us": hand,
                    "wall_ratio": comparison.ratio("wall"),
                    "events": count,
                    "commits_per_event": 1 if commits else 1 / SIZE,
                },
            )


def _transactions(commits: bool) -> tuple[int, int]:
    return (300, 1) if commits else (5, SIZE)


def _sqlite3(app: App, path: Path, commits: bool, seconds: float) -> tuple[Comparison, int]:
    conn = connect(path)
    transactions, size = _transactions(commits)

    def timed(publish: Callable[[int], object]) -> Cost:
        total = Cost(0, 0)
        for _ in range(transactions):
            began = now() if commits else None
            conn.execute("BEGIN IMMEDIATE")
            began = began or now()
            for number in range(size):
                publish(number)
            ended = now()
            conn.execute("COMMIT")
            total += (now() if commits else ended) - began
        return total

    def ours(number: int) -> None:
        app.publish(order(number), tx=conn)

    def hand(number: int) -> None:
        conn.execute(INSERT, row(order(number))).lastrowid  # noqa: B018

    try:
        return compare(lambda: timed(ours), lambda: timed(hand), seconds=seconds), transactions * size
    finally:
        conn.close()


_SESSION_INSERT = sa.text(
    "INSERT INTO tidings_log (lane, topic, type, version, key_name, key, event_id, time, source, data, correlation_id, causation_id,"
    " traceparent, headers) VALUES (:lane, :topic, :type, :version, :key_name, :key, :event_id, :time, :source, :data,"
    " :correlation_id, :causation_id, :traceparent, :headers)"
)
_NAMES = (
    "lane", "topic", "type", "version", "key_name", "key", "event_id", "time", "source", "data", "correlation_id", "causation_id",
    "traceparent", "headers",
)  # fmt: skip


def _session(app: App, path: Path, commits: bool, seconds: float) -> tuple[Comparison, int]:
    engine = sa.create_engine(f"sqlite:///{path}")

    @sa.event.listens_for(engine, "connect")
    def settings(conn: sqlite3.Connection, _: object) -> None:
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA wal_autocheckpoint = 2000")

    transactions, size = _transactions(commits)

    def timed(publish: Callable[[Session, int], object]) -> Cost:
        total = Cost(0, 0)
        for _ in range(transactions):
            with Session(engine) as session:
                began = now() if commits else None
                session.execute(sa.text("SELECT 1"))
                began = began or now()
                for number in range(size):
                    publish(session, number)
                ended = now()
                session.commit()
                total += (now() if commits else ended) - began
        return total

    def ours(session: Session, number: int) -> None:
        app.publish(order(number), tx=session)

    def hand(session: Session, number: int) -> None:
        session.execute(_SESSION_INSERT, dict(zip(_NAMES, row(order(number)), strict=True)))

    try:
        return compare(lambda: timed(ours), lambda: timed(hand), seconds=seconds), transactions * size
    finally:
        engine.dispose()


def _aiosqlite(app: App, path: Path, commits: bool, seconds: float) -> tuple[Comparison, int]:
    transactions, size = _transactions(commits)

    async def timed(conn: aiosqlite.Connection, publish: Callable[[int], Awaitable[object]]) -> Cost:
        total = Cost(0, 0)
        for _ in range(transactions):
            began = now() if commits else None
            await conn.execute("BEGIN IMMEDIATE")
            began = began or now()
            for number in range(size):
                await publish(number)
            ended = now()
            await conn.commit()
            total += (now() if commits else ended) - began
        return total

    async def opened() -> aiosqlite.Connection:
        conn = await aiosqlite.connect(path, isolation_level=None)
        await conn.execute("PRAGMA synchronous = FULL")
        await conn.execute("PRAGMA wal_autocheckpoint = 2000")
        return conn

    with asyncio.Runner() as runner:
        conn = runner.run(opened())

        async def ours(number: int) -> None:
            await app.publish(order(number), tx=conn)

        async def hand(number: int) -> None:
            (await conn.execute(INSERT, row(order(number)))).lastrowid  # noqa: B018

        try:
            comparison = compare(lambda: runner.run(timed(conn, ours)), lambda: runner.run(timed(conn, hand)), seconds=seconds)
        finally:
            runner.run(conn.close())
    return comparison, transactions * size
