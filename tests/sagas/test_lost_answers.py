"""The store commits, and its answer is lost: the instance is then this living worker's, which knows nothing of it, and its lease lasts."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.running import sqlite, until
from tests.sagas.asking import asks_for_tx
from tests.store.postgres.proxy import Proxy
from tidings import App, Event, Saga
from tidings.store.sagas import SagaRow, Start

LEASE = 300.0
"""Seconds: nobody's lease runs out here."""
WITHIN = 20.0


class Placed(Event, key="order_id"):
    order_id: int


class Losing:
    """A file's connection that reports an I/O error behind the COMMIT of a transaction in which a statement had ``at`` in its text."""

    def __init__(self, conn: sqlite3.Connection, at: str) -> None:
        self._conn = conn
        self._at = at
        self._armed = False
        self.cuts = 0

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        self._armed = self._armed or (self.cuts == 0 and self._at in statement)
        return self._conn.execute(statement, *arguments)

    def commit(self) -> None:
        self._conn.commit()
        if self._armed:
            self._armed, self.cuts = False, 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)


def shop(url: str) -> tuple[App, Any]:
    app, mark = App("shop", store=url, lease=LEASE), "?" if url.startswith("sqlite") else "%s"

    @asks_for_tx(url)
    def charge(order: Placed, tx: Any) -> int:
        tx.execute(f"INSERT INTO charged VALUES ({mark})", (order.order_id,))
        return order.order_id

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        return await saga.step(charge, order)

    app.open()
    with app.store.transaction() as conn:
        conn.execute("CREATE TABLE charged (id integer)")
    return app, checkout


def charged(app: App) -> list[int]:
    with app.store.transaction() as conn:
        return [row[0] for row in conn.execute("SELECT id FROM charged").fetchall()]


def row(app: App) -> SagaRow:
    found = app.store.query(lambda unit: unit.sagas().row("checkout", "1"))
    assert found is not None
    return found


def lose(app: App, at: str) -> Losing:
    writer = sqlite(app).writer
    conn: Any = Losing(writer._conn, at)
    writer._conn, writer._unit = conn, sqlite(app).unit(conn)
    return conn


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    made = Proxy(urlsplit(postgres_url).port or 0)
    yield made
    made.close()


@pytest.fixture
def behind_proxy(postgres_url: str, proxy: Proxy) -> str:
    return postgres_url.replace(f":{urlsplit(postgres_url).port}/", f":{proxy.port}/")


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("lost", ["start", "claim"])
async def test_an_instance_that_was_taken_without_a_word_goes_on_on_a_file(store_url: str, lost: str) -> None:
    app, checkout = shop(store_url)
    async with app:
        losing = lose(app, "INSERT INTO tidings_sagas" if lost == "start" else "UPDATE tidings_sagas SET worker")
        if lost == "start":
            await app.publish(Placed(order_id=1), tx="own")
        else:  # from elsewhere, so that it isn't in hand at once
            await asyncio.to_thread(lambda: app.start_saga(checkout, Placed(order_id=1), tx="own").result())
        assert await app.saga_result(checkout, 1, within=WITHIN) == 1
        assert losing.cuts == 1
        assert row(app).epoch == 2  # it was had before
        assert charged(app) == [1]


@pytest.mark.promise("nothing lost")
async def test_an_instance_that_was_made_without_a_word_goes_on_on_a_server(behind_proxy: str, proxy: Proxy) -> None:
    """The INSERT is its own commit, and nobody asks what became of it."""
    app, checkout = shop(behind_proxy)
    async with app:
        proxy.at, proxy.cut = b"INSERT INTO tidings_sagas", "after"
        await app.publish(Placed(order_id=1), tx="own")
        assert await app.saga_result(checkout, 1, within=WITHIN) == 1
        assert proxy.cuts == 1
        assert (row(app).epoch, charged(app)) == (2, [1])


@pytest.mark.promise("nothing lost")
async def test_an_instance_that_could_not_be_let_go_of_goes_on_when_the_server_is_back(behind_proxy: str, proxy: Proxy) -> None:
    app, checkout = shop(behind_proxy)
    async with app:
        proxy.at, proxy.cut, proxy.last = b"INSERT INTO charged", "before", True
        await app.start_saga(checkout, Placed(order_id=1), tx="own")
        await until(lambda: proxy.cuts)
        proxy.go_down()
        await until(lambda: proxy.refused > 15, WITHIN)
        proxy.down = False
        assert await app.saga_result(checkout, 1, within=WITHIN) == 1
        assert (row(app).epoch, charged(app)) == (2, [1])


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_an_instance_that_is_begun_again_while_it_is_looked_for_goes_on(store_url: str) -> None:
    """The event comes once more, and what is there already isn't taken for one that is only just being made."""
    app, checkout = shop(store_url)
    async with app:
        sagas, gate = app.sagas, threading.Event()
        assert sagas is not None
        lost = Start("checkout", 1, "shop", app.envelope(Placed(order_id=1)), sagas.now(), sagas._worker)
        assert app.store.write(lambda unit: unit.sagas().start(*lost)).result()
        app.store.write(lambda unit: gate.wait(WITHIN))
        again = asyncio.ensure_future(sagas.begin("checkout", 1, lost.envelope))
        await until(lambda: sagas._starting)
        sagas._doubt = True
        sagas.hurry()
        await until(lambda: not sagas._doubt)
        gate.set()
        await again
        assert await app.saga_result(checkout, 1, within=WITHIN) == 1
        assert (row(app).epoch, charged(app)) == (2, [1])
