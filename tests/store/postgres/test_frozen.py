"""A worker that freezes inside a transaction, and rows that many handlers want at once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.promises import ROOT
from tests.running import settled, until
from tidings import App, Event, Retry

LEASE = 1.0


class Placed(Event, key="order", type="shop.Placed"):
    order: int


FREEZING = """
import os, signal, sys
from typing import Any
import psycopg
from tidings import App, Event
from tidings.store.postgres.unit import PostgresUnit

url, where = sys.argv[1:]

class Placed(Event, key="order", type="shop.Placed"):
    order: int

app = App("shop", store=url, lease=1.0)

def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)

if where == "checkpoint":
    advance = PostgresUnit.advance
    def advancing(self: Any, *args: Any) -> Any:
        found = advance(self, *args)
        if getattr(self._conn, "mark", None) is not None:  # in a handler's transaction
            freeze()
        return found
    PostgresUnit.advance = advancing

@app.subscribe(Placed, name="pay")
def pay(event: Placed, tx: psycopg.Connection) -> None:
    tx.execute("INSERT INTO done VALUES (%s)", (event.order,))
    tx.execute("UPDATE stock SET left_over = left_over - 1")
    if where == "first write":
        freeze()

app.run()
"""


def rows(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url) as conn:
        return conn.execute(statement.encode()).fetchall()


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("publishing never waits")
@pytest.mark.promise("effects once")
@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("where", ["first write", "checkpoint"])
async def test_a_frozen_worker_holds_nobody_up_for_longer_than_its_lease(postgres_url: str, tmp_path: Path, where: str) -> None:
    """Its row locks, its lanes and the horizon are free again; and when it thaws, nothing of what it began counts."""
    with psycopg.connect(postgres_url) as conn:
        conn.execute("CREATE TABLE done (number int); CREATE TABLE stock (left_over int); INSERT INTO stock VALUES (100)")
    app = App("shop", store=postgres_url, lease=LEASE)

    @app.subscribe(Placed, name="pay")
    def pay(event: Placed, tx: psycopg.Connection[Any]) -> None:
        tx.execute("INSERT INTO done VALUES (%s)", (event.order,))
        tx.execute("UPDATE stock SET left_over = left_over - 1")

    app.open()
    with (tmp_path / "log").open("wb") as log:
        frozen = _start(postgres_url, where, log)
    try:
        lanes = "SELECT count(*) FROM tidings_lanes WHERE worker IS NOT NULL"
        await until(
            lambda: rows(postgres_url, "SELECT to_regclass('tidings_lanes')") != [(None,)] and rows(postgres_url, lanes) == [(64,)], 30
        )
        await app.publish(Placed(order=1), tx="own")
        await until(lambda: Path(f"/proc/{frozen.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", 30)
        began = time.monotonic()
        async with app:
            before = time.monotonic()
            with psycopg.connect(postgres_url) as conn:  # publishers don't notice
                for order in range(2, 6):
                    app.publish(Placed(order=order), tx=conn)
            assert time.monotonic() - before < LEASE
            await until(lambda: len(rows(postgres_url, "SELECT number FROM done")) == 5, 30)
            took = time.monotonic() - began
            assert app.store.holders() == []
            frozen.send_signal(signal.SIGCONT)
            for order in range(6, 9):
                await app.publish(Placed(order=order), tx="own")
            await until(lambda: len(rows(postgres_url, "SELECT number FROM done")) == 8, 30)
            await asyncio.to_thread(_end, frozen)
            await settled(app)
    finally:
        frozen.kill()
        frozen.wait()
    assert took < 4 * LEASE
    assert sorted(rows(postgres_url, "SELECT number FROM done")) == [(number,) for number in range(1, 9)]
    assert rows(postgres_url, "SELECT left_over FROM stock") == [(92,)]


def _start(url: str, where: str, log: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", FREEZING, url, where], cwd=ROOT, stdout=log, stderr=log)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait(20)


@pytest.mark.promise("effects once")
async def test_batches_that_want_the_same_shelves_in_another_order_cost_no_attempt(postgres_url: str) -> None:
    """Two subscriptions, each many events a transaction: they deadlock, and run again as if nothing had been."""
    with psycopg.connect(postgres_url) as conn:
        conn.execute("ALTER DATABASE " + postgres_url.rpartition("/")[2] + " SET deadlock_timeout = '20ms'")
        conn.execute("CREATE TABLE stock (sku int PRIMARY KEY, left_over int); INSERT INTO stock SELECT n, 0 FROM generate_series(0, 7) n")
    app, met = App("shop", store=postgres_url), [0]

    def take(event: Placed, tx: psycopg.Connection[Any], sku: int) -> None:
        try:
            tx.execute("UPDATE stock SET left_over = left_over + 1 WHERE sku = %s", (sku,))
        except psycopg.errors.DeadlockDetected:
            met[0] += 1
            raise
        time.sleep(0.002)

    @app.subscribe(Placed, shared_tx=True, retry=Retry(attempts=1))
    def up(event: Placed, tx: psycopg.Connection[Any]) -> None:
        take(event, tx, event.order % 8)

    @app.subscribe(Placed, shared_tx=True, retry=Retry(attempts=1))
    def down(event: Placed, tx: psycopg.Connection[Any]) -> None:
        take(event, tx, 7 - event.order % 8)

    app.open()
    with psycopg.connect(postgres_url) as conn:
        for order in range(400):
            app.publish(Placed(order=order), tx=conn)
    async with app:
        await until(lambda: rows(postgres_url, "SELECT sum(left_over) FROM stock") == [(800,)], 60)
        await settled(app)
    assert rows(postgres_url, "SELECT DISTINCT left_over FROM stock") == [(100,)]
    assert rows(postgres_url, "SELECT count(*) FROM tidings_attempts") == [(0,)]
    assert met[0] > 0, "or this proves nothing"
