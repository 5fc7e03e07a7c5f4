"""Steps of several instances in one transaction of the file: what goes wrong with one is nobody else's trouble."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from tests.sagas.test_saga import Placed
from tidings import App, Context, Retry, Saga
from tidings.sagas.shared_steps import SharedSteps
from tidings.sagas.step import Function
from tidings.store.sqlite.transactions import Transactions

SAGAS = 40
QUICK = Retry(attempts=3, first=0.01, most=0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "shop.db"
    with closing(sqlite3.connect(found)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("CREATE TABLE skus (sku INTEGER PRIMARY KEY)")
        conn.execute(
            "CREATE TABLE booked (order_id INTEGER, attempt INTEGER, sku INTEGER REFERENCES skus (sku) DEFERRABLE INITIALLY DEFERRED)"
        )
    return found


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A mark for each transaction of a step."""
    begun: list[str] = []
    begin = Transactions.begin

    def counted(self: Transactions, kind: str) -> Any:
        begun.append(kind)
        return begin(self, kind)

    monkeypatch.setattr(Transactions, "begin", counted)
    return begun


def booked(path: Path) -> list[tuple[int, int]]:
    with closing(sqlite3.connect(path)) as conn:
        return conn.execute("SELECT order_id, attempt FROM booked ORDER BY 1, 2").fetchall()


def shop(path: Path, book: Any) -> App:
    app = App("shop", store=f"sqlite:///{path}")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        return int(await saga.step(book, order.order_id, retry=QUICK))

    return app


async def run(app: App, *, apart: frozenset[int] = frozenset()) -> None:
    """All to their end; those ``apart`` fail."""
    app.open()
    for number in range(SAGAS):
        await app.publish(Placed(order_id=number), tx="own")
    async with app, asyncio.timeout(60):
        for number in range(SAGAS):
            if number in apart:
                with pytest.raises(Exception, match="failed after 3 attempts"):
                    await app.saga_result("checkout", number)
            else:
                assert await app.saga_result("checkout", number) == number
    app.close()


@pytest.mark.promise("effects once")
async def test_many_share_a_transaction_and_one_that_fails_undoes_only_itself(path: Path, commits: list[str]) -> None:
    calls = Counter[int]()

    def book(order_id: int, tx: sqlite3.Connection, ctx: Context) -> int:
        calls[order_id] += 1
        assert tx.row_factory is None
        tx.row_factory = sqlite3.Row
        tx.execute("INSERT INTO booked VALUES (?, ?, NULL)", (order_id, ctx.attempt))
        if order_id % 10 == 3 and ctx.attempt < 3:
            raise ConnectionError("the other side hung up")
        return order_id

    await run(shop(path, book))
    assert booked(path) == [(number, 3 if number % 10 == 3 else 1) for number in range(SAGAS)]
    assert all(calls[number] == (3 if number % 10 == 3 else 1) for number in range(SAGAS)), "a neighbour was run again"
    assert len(commits) < SAGAS / 2


@pytest.mark.promise("effects once")
async def test_a_row_that_the_commit_refuses_is_its_own_steps_failure(path: Path) -> None:
    """A deferred foreign key: nobody knows before the commit whose row it was, so each is tried alone."""

    def book(order_id: int, tx: sqlite3.Connection, ctx: Context) -> int:
        if order_id == 0:
            tx.execute("PRAGMA defer_foreign_keys = 1")
        tx.execute("INSERT INTO booked VALUES (?, ?, ?)", (order_id, ctx.attempt, 99 if order_id == 5 else None))
        return order_id

    app = shop(path, book)
    store: Any = app.store
    connect = store.connect

    def strict(**given: Any) -> sqlite3.Connection:
        conn = connect(**given)
        conn.execute("PRAGMA foreign_keys = 1")
        return conn

    store.connect = strict
    await run(app, apart=frozenset({5}))
    assert booked(path) == [(number, 1) for number in range(SAGAS) if number != 5]


@pytest.mark.promise("death at any instruction")
async def test_who_lost_his_instance_writes_nothing_and_his_neighbours_do(path: Path) -> None:
    lost = list[int]()
    calls = Counter[int]()

    def book(order_id: int, tx: sqlite3.Connection, ctx: Context) -> int:
        calls[order_id] += 1
        tx.execute("INSERT INTO booked VALUES (?, ?, NULL)", (order_id, ctx.attempt))
        if order_id == 5 and not lost:
            lost.append(order_id)  # as if another had taken it: what its line is checked against says so
            tx.execute("UPDATE tidings_sagas SET epoch = epoch + 1 WHERE key = '5'")
        return order_id

    await run(shop(path, book))
    assert lost == [5]
    assert calls == {number: 2 if number == 5 else 1 for number in range(SAGAS)}, "a neighbour was run again"
    assert booked(path) == [(number, 1) for number in range(SAGAS)]


@pytest.mark.promise("effects once")
async def test_one_that_tries_to_end_the_transaction_fails_alone(path: Path) -> None:
    def book(order_id: int, tx: sqlite3.Connection, ctx: Context) -> int:
        tx.execute("INSERT INTO booked VALUES (?, ?, NULL)", (order_id, ctx.attempt))
        if order_id % 10 == 3:
            tx.commit()
        return order_id

    apart = frozenset(number for number in range(SAGAS) if number % 10 == 3)
    await run(shop(path, book), apart=apart)
    assert booked(path) == [(number, 1) for number in range(SAGAS) if number not in apart]


@pytest.mark.promise("effects once")
async def test_a_step_that_takes_long_ends_the_transaction(path: Path, commits: list[str]) -> None:
    """Who else wants the file waits for one of them, not for all."""

    def book(order_id: int, tx: sqlite3.Connection, ctx: Context) -> int:
        tx.execute("INSERT INTO booked VALUES (?, ?, NULL)", (order_id, ctx.attempt))
        time.sleep(0.025)
        return order_id

    await run(shop(path, book))
    assert len(commits) == SAGAS


@pytest.mark.promise("effects once")
def test_a_session_and_what_has_a_timeout_have_transactions_of_their_own() -> None:
    def plain(order_id: int, tx: sqlite3.Connection) -> None: ...
    def orm(order_id: int, tx: Session) -> None: ...
    def outside(order_id: int) -> None: ...

    assert SharedSteps.takes(Function(plain, "the step"), None)
    assert not SharedSteps.takes(Function(plain, "the step"), 1.0)
    assert not SharedSteps.takes(Function(orm, "the step"), None)
    assert not SharedSteps.takes(Function(outside, "the step"), None)
