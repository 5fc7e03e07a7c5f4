"""The services' own tables and transactions, on both kinds of store."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from apps.checkout import tables, transactions
from apps.checkout.tables import cents, money, run
from apps.checkout.transactions import FileTransactions, ServerTransactions


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "shop.db"
    monkeypatch.setattr(tables, "STORE_URL", f"sqlite:///{path}")
    tables.create("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
    return path


def numbers(path: Path) -> list[int]:
    conn = sqlite3.connect(path)
    try:
        return [n for (n,) in conn.execute("SELECT n FROM numbers ORDER BY n")]
    finally:
        conn.close()


async def test_one_that_fails_undoes_only_itself(file: Path) -> None:
    till = FileTransactions(f"sqlite:///{file}")

    def work(tx: sqlite3.Connection, n: int) -> int:
        tx.execute("INSERT INTO numbers VALUES (?)", (n,))
        if n % 7 == 0:
            raise ValueError(n)
        return n

    asked = [till.run(lambda tx, n=n: work(tx, n)) for n in range(50)]  # type: ignore[misc]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    good = [n for n in range(50) if n % 7]
    assert [answer for answer in answers if isinstance(answer, int)] == good
    assert sum(isinstance(answer, ValueError) for answer in answers) == 50 - len(good)
    assert numbers(file) == good
    with pytest.raises(sqlite3.IntegrityError):
        await till.run(lambda tx: work(tx, 1))
    till.close()


async def test_it_waits_for_whoever_writes(file: Path) -> None:
    till = FileTransactions(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asked = [asyncio.ensure_future(till.run(lambda tx, n=n: tx.execute("INSERT INTO numbers VALUES (?)", (n,)))) for n in range(3)]  # type: ignore[misc]
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in asked)
    other.execute("COMMIT")
    await asyncio.gather(*asked)
    other.close()
    till.close()
    assert numbers(file) == [0, 1, 2]


async def test_who_waits_too_long_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "BUSY_SECONDS", 0.05)
    till = FileTransactions(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        await till.run(lambda tx: None)
    other.execute("COMMIT")
    assert await till.run(lambda tx: 1) == 1
    other.close()
    till.close()


async def test_on_a_server_they_run_side_by_side(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "STORE_URL", postgres_url)
    tables.create("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
    till = ServerTransactions(postgres_url)
    met = threading.Barrier(2, timeout=10)

    def work(tx: Any, n: int) -> int:
        run(tx, "INSERT INTO numbers VALUES (?)", (n,))
        met.wait()  # two are under way at once, or this fails
        if n:
            raise ValueError(n)
        return n

    answers = await asyncio.gather(till.run(lambda tx: work(tx, 0)), till.run(lambda tx: work(tx, 1)), return_exceptions=True)
    assert answers[0] == 0
    assert isinstance(answers[1], ValueError)
    assert await till.run(lambda tx: run(tx, "SELECT n FROM numbers").fetchall()) == [(0,)]
    till.close()


def test_cents() -> None:
    assert cents(Decimal("12.34")) == 1234
    assert money(1234) == Decimal("12.34")
    with pytest.raises(ValueError, match="fraction"):
        cents(Decimal("1.005"))
