"""What a subscription may hold of the log: alarms, and lapsing by name."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from servers.postgres import Postgres
from tests.running import settled, until
from tidings import App, Backlog, ConfigurationError, Event, ManualClock
from tidings.cli import cli
from tidings.cli.status import Condition, _failing, gather
from tidings.subscribe.backlog import limit_in, reached


class Placed(Event, key="order"):
    order: int


DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


def clock_at_noon() -> ManualClock:
    return ManualClock(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "give an age"),
        ({"age": timedelta(0)}, "more than nothing"),
        ({"age": 5}, "a timedelta"),
        ({"events": 0}, "a whole number from 1"),
        ({"events": 1.5}, "a whole number from 1"),
        ({"events": True}, "a whole number from 1"),
    ],
)
def test_a_limit_that_is_none(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Backlog(**wrong)  # type: ignore[arg-type]


def test_a_lapse_that_is_none(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    with pytest.raises(ConfigurationError, match="give a Backlog"):
        app.subscription("mail", lapse=timedelta(days=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [Backlog(age=DAY), Backlog(events=7), Backlog(age=timedelta(seconds=1.5), events=10**12)])
def test_as_the_store_keeps_it(limit: Backlog) -> None:
    assert limit_in(limit.text()) == limit


async def test_only_by_name_it_lapses_and_then_someone_has_to_choose(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two subscriptions that nobody runs: the log waits for one of them, and not for the other."""
    clock = clock_at_noon()
    seen: list[int] = []

    def shop(**options: object) -> App:
        return App("shop", store=url, clock=clock, **options)  # type: ignore[arg-type]

    first = shop()
    first.subscribe(Placed, name="mail")(lambda event: None)
    first.subscribe(Placed, name="analytics", lapse=Backlog(age=2 * DAY))(lambda event: seen.append(event.order))
    async with first:
        for order in range(3):
            await first.publish(Placed(order), tx="own")
        await settled(first)
        await swept(first, "mail", 3)
        await swept(first, "analytics", 3)
    seen.clear()
    other = App("stock", store=url, clock=clock, retention=timedelta(hours=1), alarm=Backlog(age=DAY, events=50))
    other.subscribe(Placed, name="stock")(lambda event: None)
    async with other:
        worker = other.worker
        assert worker is not None
        for order in range(3, 10):
            await first.publish(Placed(order), tx="own")
        await settled(other)
        await swept(other, "stock", 10)
        clock.advance(DAY.total_seconds() - 10)
        await worker.look_at_backlogs()
        assert "alarm" not in worker._info()
        clock.advance(20)
        await worker.look_at_backlogs()
        assert sorted(worker._info()["alarm"]) == ["analytics", "mail"]
        assert worker._info()["alarm"]["mail"] == "holds 7 rows of the log behind position 3, the oldest for 1.0 days"
        assert caplog.text.count("mail holds 7 rows") == 1
        await worker.balance()
        shown = {row["name"]: row for row in gather(other.store)["subscriptions"]}  # by the clock of the test
        assert {name for name, row in shown.items() if row["alarm"]} == {"mail", "analytics"}
        condition = Condition().convert("alarm", None, None)
        assert [_failing(shown[name], (condition,)) for name in ("mail", "stock")] == [["mail: alarm"], []]

        clock.advance(DAY.total_seconds())
        await worker.look_at_backlogs()
        rows = {row.name: row for row in other.store.query(lambda unit: unit.subscriptions())}
        assert (rows["mail"].lapsed, rows["stock"].lapsed) == (None, None)
        assert rows["analytics"].lapsed is not None
        assert rows["analytics"].lapsed[1] == 3
        assert "analytics holds 7 rows of the log behind position 3" in caplog.text
        assert other.store.query(lambda unit: unit.trimmable()) == 3, "mail is waited for"
        first.store.write(lambda unit: unit.remove("mail")).result()
        assert other.store.query(lambda unit: unit.trimmable()) == 10
        await worker._trim_chunk(8)
        assert run(url, "subscription", "list").output.count("lapsed") == 1
        assert run(url, "status", "--fail-if", "lapsed").exit_code == 1

    # It doesn't run, and says why; everything else in its app does.
    again, mailed = shop(), []
    again.subscribe(Placed, name="mail", start="now")(lambda event: mailed.append(event.order))
    again.subscribe(Placed, name="analytics", lapse=Backlog(age=2 * DAY))(lambda event: seen.append(event.order))
    async with again:
        assert "analytics has lapsed behind position 3" in caplog.text
        await again.publish(Placed(10), tx="own")
        await until(lambda: mailed == [10])
        refused = run(url, "subscription", "resume", "analytics")
        assert refused.exit_code == 2
        assert "rewind analytics --to start" in refused.output
        assert seen == []
        chosen = run(url, "subscription", "rewind", "analytics", "--to", "start", "--yes")
        assert chosen.exit_code == 0, chosen.output
        await again.worker.balance()  # type: ignore[union-attr]
        await until(lambda: seen == [8, 9, 10])
        assert run(url, "status", "--fail-if", "lapsed").exit_code == 0
    for app in (first, other, again):
        app.store.close()


async def test_without_retention_nothing_lapses(tmp_path: Path) -> None:
    """Nothing goes away there, so letting go of it would help nobody."""
    clock = clock_at_noon()
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", clock=clock)
    app.subscribe(Placed, name="mail", lapse=Backlog(events=1))(lambda event: None)
    app.open()
    app.store.write(lambda unit: unit.register("idle", "old", ["shop.Placed"], "key", 0, 0, Backlog(events=1).text())).result()
    async with app:
        for order in range(5):
            await app.publish(Placed(order), tx="own")
        assert app.worker is not None
        await app.worker.look_at_backlogs()
    assert [row.lapsed for row in app.store.query(lambda unit: unit.subscriptions())] == [None, None]


@pytest.mark.promise("effects once")
async def test_whoever_still_works_for_one_that_lapsed_is_fenced(url: str) -> None:
    clock = clock_at_noon()
    app = App("shop", store=url, clock=clock, retention=timedelta(hours=1), lease=60)
    begun, gate = asyncio.Event(), asyncio.Event()

    @app.subscribe(Placed, name="mail", lapse=Backlog(events=3))
    async def mail(event: Placed) -> None:
        begun.set()
        await gate.wait()

    async with app:
        worker = app.worker
        assert worker is not None
        for order in range(5):
            await app.publish(Placed(order), tx="own")
        await begun.wait()
        await worker.look_at_backlogs()
        assert app.store.query(lambda unit: unit.lanes()) == []
        gate.set()
        await worker.balance()
        assert worker.runners["mail"].held_lanes() == []
        app.store.write(lambda unit: unit.rewind("mail", 0)).result()
        await worker.balance()
        await settled(app)
        await until(lambda: app.store.query(lambda unit: unit.behind("mail").events) == 0)
    app.store.close()


async def swept(app: App, name: str, position: int) -> None:
    """The lanes of ``name`` in which nothing came by are written down, too."""
    assert app.worker is not None
    runner = app.worker.runners[name]
    runner.sweep()
    await until(lambda: app.store.query(lambda unit: reached(unit.lanes(name))) == position)


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--store", url], env={"COLUMNS": "200"})
