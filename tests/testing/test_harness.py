from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidings import App, ConfigurationError, Context, Event, NotFound, PostgresStore, Retry
from tidings.testing import Call, Harness, ManualClock, Unsettled


class Placed(Event, key="order"):
    order: int


class Paid(Event, key="order"):
    order: int


class Gateway:
    def __init__(self, name: str) -> None:
        self.name = name


class Seen(Event, key="order", type="shop.Placed"):
    order: int


class Declined(Exception):
    pass


def shop(tmp_path: Path, **options: object) -> App:
    return App("shop", store=f"sqlite:///{tmp_path}/production.db", **options)  # type: ignore[arg-type]


async def test_what_was_published_and_handled(tmp_path: Path) -> None:
    app = shop(tmp_path)

    @app.subscribe(Placed)
    async def charge(event: Placed) -> Paid:
        return Paid(order=event.order)

    @app.subscribe(Paid)
    def ship(event: Paid) -> None: ...

    async with Harness(app) as harness:
        for order in (1, 2, 3):
            await harness.publish(Placed(order=order))
        await harness.settle()
        assert harness.published(Placed) == [Placed(order=1), Placed(order=2), Placed(order=3)]
        assert sorted(event.order for event in harness.published(Paid)) == [1, 2, 3]
        assert harness.handled(charge) == harness.handled("charge") == harness.handled(app.subscriptions["charge"])
        assert sorted(event.order for event in harness.handled(ship)) == [1, 2, 3]
        with pytest.raises(NotFound, match="there are charge, ship"):
            harness.handled("shipp")
    assert not (tmp_path / "production.db").exists()


async def test_each_harness_begins_with_an_empty_store_and_the_app_gets_its_own_back(tmp_path: Path) -> None:
    app = shop(tmp_path)
    seen: list[int] = []

    @app.subscribe(Placed)
    def note(event: Placed) -> None:
        seen.append(event.order)

    for order in (1, 2):
        async with Harness(app) as harness:
            await harness.publish(Placed(order=order))
            await harness.settle()
            assert harness.published(Placed) == [Placed(order=order)]
    assert seen == [1, 2]
    await app.publish(Placed(order=3), tx="own")
    app.close()
    assert (tmp_path / "production.db").exists()


async def test_another_gateway_for_each_test(tmp_path: Path) -> None:
    app = shop(tmp_path)
    used: list[str] = []

    @app.subscribe(Placed)
    def note(event: Placed, gateway: Gateway) -> None:
        used.append(gateway.name)

    for name in ("first", "second"):
        app.provide(Gateway, Gateway(name))
        async with Harness(app) as harness:
            await harness.publish(Placed(order=1))
            await harness.settle()
    assert used == ["first", "second"]


async def test_advance_stops_at_every_retry_on_its_way(tmp_path: Path) -> None:
    app = shop(tmp_path)
    when: list[float] = []

    @app.subscribe(Placed, retry=Retry(attempts=4, first=1, factor=2, jitter=0))
    async def fail(event: Placed) -> None:
        when.append(round(harness.clock.time() - start, 3))
        raise Declined

    async with Harness(app) as harness:
        start = harness.clock.time()
        await harness.publish(Placed(order=1))
        await harness.settle()
        assert when == [0]
        assert [row.state for row in harness.parked(fail)] == ["retry"]
        await harness.advance(0.9)
        assert when == [0]
        await harness.advance(timedelta(days=1))
        assert when == [0, 1, 3, 7]
        assert harness.parked(fail) == []
        (dead,) = harness.dead(fail)
        assert (dead.event, dead.attempts, dead.error) == (Placed(order=1), 4, "Declined")
        assert [call.attempt for call in harness.calls(fail)] == [1, 2, 3, 4]
        assert all(isinstance(call.error, Declined) for call in harness.calls(fail))
        assert harness.handled(fail) == []


async def test_advance_releases_scheduled_events_in_their_order(tmp_path: Path) -> None:
    app = shop(tmp_path)
    when: list[tuple[int, float]] = []

    @app.subscribe(Placed)
    def note(event: Placed) -> None:
        when.append((event.order, harness.clock.time() - start))

    async with Harness(app, start=datetime(2026, 3, 1, tzinfo=UTC)) as harness:
        start = harness.clock.time()
        await harness.publish(Placed(order=1), after=timedelta(hours=2))
        await harness.publish(Placed(order=2), at=datetime(2026, 3, 1, 1, tzinfo=UTC))
        assert [scheduled.envelope.key for scheduled in harness.scheduled()] == ["2", "1"]
        await harness.advance(3599)
        assert when == []
        await harness.advance(1)
        assert [order for order, _ in when] == [2]
        await harness.advance(86_400)
        assert [(order, round(moment)) for order, moment in when] == [(2, 3600), (1, 7200)]
        assert harness.scheduled() == []


async def test_a_crashed_worker_is_replaced(tmp_path: Path) -> None:
    app = shop(tmp_path)
    hang = asyncio.Event()

    @app.subscribe(Placed)
    async def slow(event: Placed, ctx: Context) -> None:
        if not hang.is_set():
            await hang.wait()

    async with Harness(app, patience=0.2) as harness:
        await harness.publish(Placed(order=1))
        with pytest.raises(Unsettled, match=r"slow has \d+ outstanding; in the hands of .*slow$"):
            await harness.settle()
        await harness.crash()
        hang.set()
        await harness.publish(Placed(order=2))
        await harness.settle()  # nobody is there to handle it
        assert harness.handled(slow) == []
        await harness.restart()
        assert sorted(event.order for event in harness.handled(slow)) == [1, 2]


async def test_time_passes_for_living_workers_without_losing_their_lanes(tmp_path: Path) -> None:
    app, other = shop(tmp_path), App("mail", store="sqlite:///mail.db", lease=1)

    @app.subscribe(Placed)
    def first(event: Placed) -> None: ...

    @other.subscribe(Seen)
    def second(event: Seen) -> None: ...

    async with Harness(app, other) as harness:
        before = harness.store.query(lambda unit: {(lane.subscription, lane.lane): (lane.worker, lane.epoch) for lane in unit.lanes()})
        await harness.advance(10_000)
        after = harness.store.query(lambda unit: {(lane.subscription, lane.lane): (lane.worker, lane.epoch) for lane in unit.lanes()})
        assert before == after
        await harness.publish(Placed(order=1))
        await harness.settle()
        assert harness.handled(first) == [Placed(order=1)]
        assert harness.handled(second) == [Seen(order=1)]


async def test_an_effect_that_was_rolled_back_is_a_call_but_not_handled(tmp_path: Path) -> None:
    app = shop(tmp_path)

    @app.subscribe(Placed, retry=Retry(attempts=2, first=1, jitter=0))
    def commits(event: Placed, ctx: Context, tx: sqlite3.Connection) -> None:
        tx.execute("INSERT INTO effects VALUES (?)", (event.order,))
        if ctx.attempt == 1:
            try:
                tx.commit()
            except sqlite3.Error:
                pass  # it doesn't notice; its transaction doesn't count all the same

    async with Harness(app) as harness:
        with harness.transaction() as tx:
            tx.execute("CREATE TABLE effects (number)")
        with harness.transaction() as tx:
            app.publish(Placed(order=1), tx=tx)
        await harness.settle()
        assert harness.calls(commits) == [Call(Placed(order=1), 1, None)]
        assert harness.handled(commits) == []
        with harness.transaction() as tx:
            assert tx.execute("SELECT * FROM effects").fetchall() == []
        await harness.advance(1)
        assert harness.handled(commits) == [Placed(order=1)]
        with harness.transaction() as tx:
            assert tx.execute("SELECT * FROM effects").fetchall() == [(1,)]


async def test_a_list_counts_each_of_its_events(tmp_path: Path) -> None:
    app = shop(tmp_path)

    @app.subscribe(Placed, size=2, age=0.05)
    def two(events: list[Placed]) -> None: ...

    async with Harness(app) as harness:
        for order in (1, 2, 3):
            await harness.publish(Placed(order=order))
        await harness.settle()
        assert harness.handled(two) == [Placed(order=1), Placed(order=2), Placed(order=3)]


async def test_an_error_at_the_start_leaves_the_app_as_it_was(tmp_path: Path) -> None:
    app = shop(tmp_path)
    own = app.store
    app.subscription("empty")
    with pytest.raises(ConfigurationError, match="has no handler"):
        async with Harness(app):
            pass
    assert app.store is own
    assert app.worker is None
    with pytest.raises(ConfigurationError, match="needs an app"):
        Harness()
    with pytest.raises(ConfigurationError, match="time zone"):
        Harness(app, start=datetime(2026, 1, 1))


@pytest.mark.promise("nothing lost")
async def test_settle_never_returns_early(tmp_path: Path) -> None:
    """A chain of three subscriptions, each publishing for the next: whenever settle returns, the last has handled everything."""
    app = shop(tmp_path)
    Step = [type(f"Step{number}", (Event,), {"__annotations__": {"n": int}, "__module__": __name__}, key="n") for number in range(4)]
    for number in range(3):

        def go_on(event: object, *, to: object = Step[number + 1]) -> object:
            return to(n=event.n)  # type: ignore[operator,attr-defined]

        app.subscribe(Step[number], name=f"step-{number}")(go_on)

    async with Harness(app) as harness:
        for n in range(60):
            await harness.publish(Step[0](n=n))
            await harness.settle()
            assert len(harness.published(Step[3])) == n + 1


@pytest.mark.parametrize("given", ["a URL", "a store", "a function"])
async def test_on_a_database_that_the_test_brings(tmp_path: Path, postgres_url: str, given: str) -> None:
    app = shop(tmp_path)

    @app.subscribe(Placed, retry=Retry(attempts=2, first=60, jitter=0))
    def pay(event: Placed, tx: psycopg.Connection[Any], ctx: Context) -> Paid:
        tx.execute("INSERT INTO payments VALUES (%s, %s)", (event.order, ctx.attempt))
        if event.order == 1 and ctx.attempt == 1:
            raise Declined
        return Paid(event.order)

    stores: dict[str, Any] = {
        "a URL": postgres_url,
        "a store": PostgresStore(postgres_url, clock=ManualClock()),
        "a function": lambda clock: PostgresStore(postgres_url, clock=clock),
    }
    async with Harness(app, store=stores[given]) as harness:
        with harness.transaction() as tx:
            tx.execute("CREATE TABLE payments (id int, attempt int)")
            app.publish(Placed(1), tx=tx)
            app.publish(Placed(2), tx=tx)
        await harness.settle()
        assert harness.published(Paid) == [Paid(2)]
        await harness.crash()
        await harness.restart()
        assert harness.published(Paid) == [Paid(2)]
        await harness.advance(60)
        assert harness.published(Paid) == [Paid(2), Paid(1)]
        assert harness.handled(pay) == [Placed(2), Placed(1)]
        with psycopg.connect(harness.path) as conn:
            assert conn.execute("SELECT * FROM payments ORDER BY id").fetchall() == [(1, 2), (2, 1)]
    assert str(app.store.url).endswith("production.db")


def test_a_store_on_the_real_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ManualClock"):
        Harness(shop(tmp_path), store=PostgresStore("postgresql://nobody@127.0.0.1:1/none"))
