"""For tests that run workers in this process: waiting for what other threads do, and for a worker that has nothing left to do."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tidings import App, SQLiteStore
from tidings.store.port import Unit


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that other threads do."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.003)


def idle(app: App) -> bool:
    """Whether this app's worker has taken everything of the log and has nothing left that needs no time to pass."""
    worker = app.worker
    if worker is None:
        return True
    head = app.store.query(lambda unit: unit.head())
    runners = [runner for runner in worker.runners.values() if runner.held_lanes()]
    return all(runner.feed.closed or runner.feed.cursor >= head for runner in runners) and worker.outstanding() == 0


async def settled(*apps: App, seconds: float = 20.0) -> None:
    """Wait until the apps' workers are idle."""
    for app in apps:
        if app.worker is not None:
            app.worker.poke()
    await until(lambda: all(idle(app) for app in apps), seconds)


def sqlite(app: App) -> SQLiteStore:
    """The app's store, which the test knows to be a file."""
    assert isinstance(app.store, SQLiteStore)
    return app.store


def ask(app: App, question: Callable[[Unit], object]) -> object:
    return app.store.query(question)


@contextmanager
def connection(path: Path, **options: object) -> Iterator[sqlite3.Connection]:
    """A user's own connection to the store's file, closed at the end."""
    conn = sqlite3.connect(path, isolation_level=None, **options)  # type: ignore[call-overload]
    try:
        yield conn
    finally:
        conn.close()


@contextmanager
def committed(conn: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A transaction of the user's."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield conn
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
