"""A log that went back in time: a promoted standby that lacks the last transactions, a restored dump. Nothing is skipped in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from click.testing import CliRunner
from sqlalchemy.orm import Session

from servers.folder import Missing
from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tests.promises import untested
from tests.running import settled, until
from tidings import App, Event, LogWentBack
from tidings.cli import cli


class Placed(Event, key="order"):
    order: int


def rows(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url) as conn:
        return [row[0] if len(row) == 1 else row for row in conn.execute(statement.encode())]


def reachable(url: str, statement: str) -> list[Any] | None:
    try:
        return rows(url, statement)
    except psycopg.OperationalError:
        return None


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("effects once")
@pytest.mark.promise("death at any instruction")
@pytest.mark.slow
@pytest.mark.parametrize("version", [15, 18])
@pytest.mark.parametrize("pooled", [False, True])
async def test_a_standby_that_lacks_the_last_transactions_is_promoted(version: int, pooled: bool) -> None:
    """The worker lives on and has seen positions that are now given to other events: those are handled all the same, each once."""
    try:
        server = Postgres(version)
    except Missing as why:
        untested("nothing lost", str(why))
    with server, ExitStack() as stack:
        url = server.new_database()
        with psycopg.connect(url) as conn:
            conn.execute("CREATE TABLE done (number int)")
        way = stack.enter_context(PgBouncer(server)).url(url) if pooled else url
        app, seen = App("shop", store=way, lease=2.0), list[int]()

        @app.subscribe(Placed)
        def pay(event: Placed, tx: psycopg.Connection[Any]) -> None:
            tx.execute("INSERT INTO done VALUES (%s)", (event.order,))

        @app.subscribe(Placed)
        async def mail(event: Placed) -> None:
            seen.append(event.order)

        async def published(orders: range) -> None:
            for order in orders:
                await app.publish(Placed(order=order), tx="own")

        async with app:
            await published(range(10))
            await until(lambda: len(seen) == 10)
            await settled(app)
            backup = await asyncio.to_thread(server.backup)
            await until(lambda: reachable(way, "SELECT 1") == [1])
            await published(range(10, 30))
            await until(lambda: len(seen) >= 30, 20)
            await settled(app)
            await asyncio.to_thread(server.go_back_to, backup)
            await until(lambda: reachable(way, "SELECT pg_is_in_recovery()") == [False], 20)
            assert rows(url, "SELECT max(position) FROM tidings_log") == [10]
            await published(range(30, 36))
            assert rows(url, "SELECT min(position) FROM tidings_log WHERE position > 10")[0] < 31, "seen before, under another event"
            await until(lambda: set(seen) >= set(range(36)), 20)
            await until(lambda: len(rows(url, "SELECT number FROM done")) >= 16, 20)
            await settled(app)
        assert sorted(rows(url, "SELECT number FROM done")) == [*range(10), *range(30, 36)]
        assert rows(url, "SELECT count(*) FROM tidings_parked") == [0]


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("effects once")
@pytest.mark.slow
@pytest.mark.parametrize("version", [15, 18])
async def test_a_failover_to_another_server_that_lags_behind(version: int) -> None:
    """Streaming replication, asynchronous; the application knows both servers, and goes to whichever can be written to."""
    try:
        primary = Postgres(version)
    except Missing as why:
        untested("nothing lost", str(why))
    with primary, ExitStack() as stack:
        name = primary.new_database().rpartition("/")[2]
        with psycopg.connect(primary.url(name)) as conn:
            conn.execute("CREATE TABLE done (number int)")
        standby = stack.enter_context(await asyncio.to_thread(lambda: Postgres(primary=primary)))
        both = f"postgresql://{primary.user}@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{name}?target_session_attrs=read-write"
        app, seen = App("shop", store=both, lease=2.0), list[int]()

        @app.subscribe(Placed)
        def pay(event: Placed, tx: psycopg.Connection[Any]) -> None:
            tx.execute("INSERT INTO done VALUES (%s)", (event.order,))

        @app.subscribe(Placed)
        async def mail(event: Placed) -> None:
            seen.append(event.order)

        async with app:
            for order in range(10):
                await app.publish(Placed(order=order), tx="own")
            await settled(app)
            await until(lambda: reachable(standby.url(name), "SELECT count(*) FROM done") == [10], 20)
            await asyncio.to_thread(standby.cut_off)
            for order in range(10, 30):
                await app.publish(Placed(order=order), tx="own")
            await settled(app)
            assert len(seen) == 30
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.promote)
            await until(lambda: reachable(both, "SELECT max(position) FROM tidings_log") == [10], 20)
            for order in range(30, 36):
                await app.publish(Placed(order=order), tx="own")
            assert rows(both, "SELECT min(position) FROM tidings_log WHERE position > 10")[0] <= 43  # a sequence is logged 32 ahead
            await until(lambda: set(seen) >= set(range(36)), 30)
            await until(lambda: len(rows(both, "SELECT number FROM done")) >= 16, 20)
            await settled(app)
        assert sorted(rows(both, "SELECT number FROM done")) == [*range(10), *range(30, 36)]
        assert rows(both, "SELECT count(*) FROM tidings_parked") == [0]


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("effects once")
async def test_a_dump_that_was_made_under_load_is_restored_elsewhere(postgres: Postgres) -> None:
    """What it holds is handled on from where it stood, and what is published then, at positions that others had, too."""

    def shop(url: str) -> App:
        app = App("shop", store=url)

        @app.subscribe(Placed)
        def pay(event: Placed, tx: psycopg.Connection[Any]) -> None:
            tx.execute("INSERT INTO done VALUES (%s)", (event.order,))

        return app

    url = postgres.new_database()
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE done (number int)")
    async with shop(url) as app:
        publishing = asyncio.create_task(_publish(app, range(2_000)))
        await until(lambda: rows(url, "SELECT count(*) FROM done")[0] > 100)
        dump = await asyncio.to_thread(postgres.dump, url)
        await publishing
        await settled(app)
    assert sorted(rows(url, "SELECT number FROM done")) == [*range(2_000)]
    other = await asyncio.to_thread(postgres.restore, dump)
    kept = rows(other, "SELECT count(*) FROM tidings_log")[0]
    assert rows(other, "SELECT count(*) FROM done")[0] <= kept < 2_000
    async with shop(other) as app:
        await _publish(app, range(5_000, 5_100))
        # The worker that the dump knows has its share of the lanes until its lease is over.
        await until(lambda: rows(other, "SELECT count(*) FROM done")[0] >= kept + 100, 30)
        await settled(app)
    assert sorted(rows(other, "SELECT number FROM done")) == [*range(kept), *range(5_000, 5_100)]
    for one in (url, other):
        postgres.drop_database(one)


async def _publish(app: App, orders: range) -> None:
    for order in orders:
        await app.publish(Placed(order=order), tx="own")


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("kind", ["psycopg", "Session"])
async def test_a_checkpoint_from_before_is_not_taken(postgres_url: str, kind: str) -> None:
    """Handlers were at work when the server became another: nothing they do counts, and it is done again."""
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    app, gate, begun = App("shop", store=postgres_url, transactions=engine), asyncio.Event(), list[int]()

    @app.subscribe(Placed, name="slow")
    async def slow(event: Placed) -> None:
        begun.append(event.order)
        if len(begun) == 1:
            await gate.wait()

    def pay(event: Placed, tx: Any) -> None:
        tx.execute(sqlalchemy.text("SELECT 1") if kind == "Session" else "SELECT 1")

    pay.__annotations__ = {"event": Placed, "tx": Session if kind == "Session" else psycopg.Connection}
    app.subscribe(Placed, name="pay")(pay)
    async with app:
        await app.publish(Placed(order=1), tx="own")
        await until(lambda: begun == [1] and sum(rows(postgres_url, "SELECT position FROM tidings_lanes WHERE subscription = 'pay'")) > 0)
        before = rows(postgres_url, "SELECT max(epoch) FROM tidings_lanes")[0]
        with psycopg.connect(postgres_url, autocommit=True) as conn:
            conn.execute("UPDATE tidings_meta SET value = 'elsewhere' WHERE name = 'history'")
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await app.publish(Placed(order=2), tx="own")
        await until(lambda: rows(postgres_url, "SELECT min(epoch) FROM tidings_lanes")[0] > before)
        gate.set()
        await until(lambda: begun.count(1) == 2 and 2 in begun)
        await settled(app)
    engine.dispose()
    assert rows(postgres_url, "SELECT value FROM tidings_meta WHERE name = 'history'") != ["elsewhere"]


@pytest.mark.promise("nothing lost")
async def test_a_log_that_ends_below_what_was_read_is_not_run(store_url: str, take_back: Callable[[int], None]) -> None:
    """Restored without the rest. It says so, and goes on where nothing is mistaken for something else once an operator has said so."""

    def make() -> tuple[App, list[int]]:
        app, seen = App("shop", store=store_url), list[int]()

        @app.subscribe(Placed, name="pay")
        async def pay(event: Placed) -> None:
            seen.append(event.order)

        return app, seen

    app, seen = make()
    async with app:
        for order in range(20):
            await app.publish(Placed(order=order), tx="own")
        await until(lambda: len(seen) == 20)
        await settled(app)
    take_back(8)
    app, seen = make()
    with pytest.raises(LogWentBack, match="the log ends at position 8, and the subscription 'pay' has read up to 20"):
        async with app:
            pass
    ran = CliRunner().invoke(cli, ["store", "acknowledge", "--yes", "--store", store_url])
    assert ran.exit_code == 0, ran.output
    assert ran.output == "incarnation 2; the next event gets a position above 20\n"
    app, seen = make()
    async with app:
        receipt = await app.publish(Placed(order=20), tx="own")
        assert receipt.position == 21
        await until(lambda: seen == [20])


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def take_back(store_url: str) -> Callable[[int], None]:
    """Lets the log end earlier, and leaves everything else."""

    def back(to: int) -> None:
        if store_url.startswith("sqlite"):
            import sqlite3

            conn = sqlite3.connect(store_url.removeprefix("sqlite:///"))
            conn.execute("DELETE FROM tidings_log WHERE position > ?", (to,))
            conn.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'tidings_log'", (to,))
            conn.commit()
            conn.close()
        else:
            with psycopg.connect(store_url) as conn2:
                conn2.execute("DELETE FROM tidings_log WHERE position > %s", (to,))
                conn2.execute("SELECT setval('tidings_log_position_seq', %s)", (to,))

    return back
