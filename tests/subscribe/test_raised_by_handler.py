"""Errors that look like the store's trouble and are the handler's own: each counts as an attempt, whatever the handler asks for."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from servers.folder import free_port
from tidings import App, Context, Event, Retry
from tidings.errors import StoreBusy, WrongStore
from tidings.testing import Harness


class Placed(Event, key="order_id"):
    order_id: int


RETRY = Retry(attempts=2, first=1, factor=1, jitter=0)


def plain_async(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY)
    async def fails(event: Placed) -> None:
        fail()


def plain_sync(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY)
    def fails(event: Placed) -> None:
        fail()


def timed(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY, timeout=30)
    def fails(event: Placed) -> None:
        fail()


def a_list(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY, age=0)
    def fails(events: list[Placed]) -> None:
        fail()


def an_async_list(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY, age=0)
    async def fails(events: list[Placed]) -> None:
        fail()


def in_tx(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY)
    def fails(event: Placed, tx: sqlite3.Connection) -> None:
        fail()


def in_shared_tx(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY, shared_tx=True)
    def fails(event: Placed, tx: sqlite3.Connection) -> None:
        fail()


def in_tx_of_a_list(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY, age=0)
    def fails(events: list[Placed], tx: sqlite3.Connection) -> None:
        fail()


def in_async_tx(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY)
    async def fails(event: Placed, tx: aiosqlite.Connection) -> None:
        fail()


def in_session(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY)
    def fails(event: Placed, tx: Session) -> None:
        fail()


def in_psycopg(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY)
    def fails(event: Placed, tx: psycopg.Connection[Any]) -> None:
        fail()


def in_async_psycopg(app: App, fail: Callable[[], None]) -> None:
    @app.subscribe(Placed, retry=RETRY)
    async def fails(event: Placed, tx: psycopg.AsyncConnection[Any], ctx: Context) -> None:
        fail()


WAYS = (
    plain_async, plain_sync, timed, a_list, an_async_list, in_tx, in_shared_tx, in_tx_of_a_list, in_async_tx, in_session,
)  # fmt: skip


def another_store() -> None:
    raise WrongStore("the transaction given is on another file")


def another_file_is_busy(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as one, closing(sqlite3.connect(path, timeout=0)) as other:
        one.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE t (a)")


def another_file_is_missing(path: Path) -> None:
    sqlite3.connect(path / "nowhere" / "other.db")


def another_app_is_busy() -> None:
    try:
        raise sqlite3.OperationalError("database is locked")
    except sqlite3.OperationalError as error:
        raise StoreBusy("locked") from error


async def attempts_of(app: App, **options: Any) -> list[str]:
    async with Harness(app, **options) as harness:
        await harness.publish(Placed(1))
        await harness.settle()
        await harness.advance(2)
        [letter] = harness.dead("fails")
        assert letter.attempts == 2
        # By attempt: with a shared transaction one that failed is called a second time, to see that it was this one.
        return list({call.attempt: type(call.error).__name__ for call in harness.calls("fails")}.values())


@pytest.mark.promise("nothing vanishes")
@pytest.mark.parametrize("error", ["another store", "another app busy", "hung up", "another file busy", "another file missing"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_handlers_own_trouble_counts(tmp_path: Path, way: Callable[[App, Callable[[], None]], None], error: str) -> None:
    def hang_up() -> None:
        raise ConnectionError("hung up")

    fail, name = {
        "another store": (another_store, "WrongStore"),
        "another app busy": (another_app_is_busy, "StoreBusy"),
        "hung up": (hang_up, "ConnectionError"),
        "another file busy": (lambda: another_file_is_busy(tmp_path / "other.db"), "OperationalError"),
        "another file missing": (lambda: another_file_is_missing(tmp_path), "OperationalError"),
    }[error]
    app = App("shop", store=f"sqlite:///{tmp_path / 'unused.db'}")
    way(app, fail)
    engines: Any = {"transactions": lambda path: sqlalchemy.create_engine(f"sqlite:///{path}")} if way is in_session else {}
    assert await attempts_of(app, **engines) == [name, name]


@pytest.mark.promise("nothing vanishes")
@pytest.mark.parametrize("way", [in_psycopg, in_async_psycopg])
async def test_another_server_that_cannot_be_reached_counts(postgres_url: str, way: Callable[[App, Callable[[], None]], None]) -> None:
    port = free_port()

    def elsewhere() -> None:
        psycopg.connect(f"postgresql://nobody@127.0.0.1:{port}/nothing", connect_timeout=2)

    app = App("shop", store=postgres_url)
    way(app, elsewhere)
    assert await attempts_of(app, store=postgres_url) == ["OperationalError"] * 2
