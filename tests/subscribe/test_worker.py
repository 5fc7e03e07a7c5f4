"""Several workers on one store: fair share, start positions, operators' commands, retention."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.running import connection, settled, until
from tidings import App, ConfigurationError, Event, ManualClock, SQLiteStore, SubscriptionNameTaken
from tidings.testing import Harness


class Placed(Event, key="order"):
    order: int


def replica(tmp_path: Path, seen: list[tuple[int, int]], number: int, **options: Any) -> App:
    """A process of the service ``shop``, as far as one process can show it."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", lease=0.6)

    @app.subscribe(Placed, name="mail", **options)
    async def handle(event: Placed) -> None:
        seen.append((number, event.order))
        await asyncio.sleep(0)

    return app


@asynccontextmanager
async def running(*apps: App) -> AsyncIterator[None]:
    for app in apps:
        await app.start()
    try:
        yield
    finally:
        for app in apps:
            if app.worker is not None:
                await app.stop()


def shares(app: App, name: str = "mail") -> list[int]:
    held = Counter(lane.worker for lane in app.store.query(lambda unit: unit.lanes(name)))
    return sorted(count for worker, count in held.items() if worker is not None)


async def test_lanes_are_shared_fairly_and_taken_over(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    apps = [replica(tmp_path, seen, number) for number in range(3)]
    async with running(*apps):
        await until(lambda: [round(share / 4) for share in shares(apps[0])] == [5, 5, 6])
        for order in range(100):
            await apps[0].publish(Placed(order=order), tx="own")
        await settled(*apps)
        assert sorted(order for _, order in seen) == list(range(100))
        assert len({number for number, _ in seen}) == 3
        await apps[2].stop()
        await until(lambda: shares(apps[0]) == [32, 32])
        await apps[1].stop()
        await until(lambda: shares(apps[0]) == [64])


class Paid(Event, key="order"):
    order: int


@pytest.fixture(params=["sqlite", "postgres"])
def a_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


def deployed(store: str, seen: list[tuple[str, str, int]], version: str, *types: type[Placed] | type[Paid]) -> App:
    """A version of the service ``shop``, whose subscription has handlers for these types."""
    app = App("shop", store=store, lease=0.6)
    books = app.subscription("books", checkpoint_age=0.01)
    for cls in types:

        async def handle(event: Placed | Paid, name: str = cls.__name__) -> None:
            seen.append((version, name, event.order))
            await asyncio.sleep(0)

        books.on(cls)(handle)
    return app


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("back", [False, True])
async def test_a_version_that_lacks_a_type_passes_by_nothing_of_it(a_store: str, back: bool) -> None:
    """While a newer version of the subscription runs beside it, whichever was started first. When that has ended, the older one goes on."""
    seen: list[tuple[str, str, int]] = []
    old, new = deployed(a_store, seen, "old", Placed), deployed(a_store, seen, "new", Placed, Paid)
    first, second = (new, old) if back else (old, new)
    async with running(first):
        for number in range(40):
            await first.publish(Placed(order=number), tx="own")
        await until(lambda: len(seen) == 40)
        async with running(second):
            for number in range(100, 140):
                await second.publish(Paid(order=number), tx="own")
                await second.publish(Placed(order=number), tx="own")
            all_of_them = {("new", name, number) for name in ("Paid", "Placed") for number in range(100, 140)}
            await until(lambda: all_of_them <= set(seen))  # the old one may call its handler until it hears that it has no lanes
            for order in range(100, 140):
                assert [name for version, name, number in seen if (version, number) == ("new", order)] == ["Paid", "Placed"]
            await new.stop()
            await old.publish(Placed(order=77), tx="own")
            await until(lambda: seen[-1] == ("old", "Placed", 77))


@pytest.mark.promise("nothing lost")
async def test_a_claim_that_meets_a_newer_version_is_taken_back(tmp_path: Path) -> None:
    """It is made by what the store said before the newer one was there."""
    store, seen = f"sqlite:///{tmp_path}/shop.db", list[tuple[str, str, int]]()
    old, new = deployed(store, seen, "old", Placed), deployed(store, seen, "new", Placed, Paid)
    async with running(old):
        worker = old.worker
        assert worker is not None
        before = old.store.query(worker._snapshot)
        async with running(new):
            await until(lambda: shares(new, "books") == [64])
            old.store.write(lambda unit: unit.free("books")).result()
            row = next(row for row in before[1] if row.name == "books")
            await worker._share(worker.runners["books"], row, before[2], [], True)
            assert not worker.runners["books"].held_lanes()
            assert worker.id not in {lane.worker for lane in old.store.query(lambda unit: unit.lanes("books"))}


async def test_a_worker_that_died_is_replaced_after_its_lease(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    apps = [replica(tmp_path, seen, number) for number in range(2)]
    async with running(*apps):
        await until(lambda: shares(apps[0]) == [32, 32])
        dead, apps[1].worker = apps[1].worker, None
        assert dead is not None
        await dead.crash()
        await until(lambda: shares(apps[0]) == [64])
        await until(lambda: len(apps[0].store.query(lambda unit: unit.workers())) == 1)
    apps[1].close()


@pytest.mark.parametrize(("order", "concurrency", "expected"), [("log", 16, [64]), ("key", 1, [64]), ("key", 2, [32, 32])])
async def test_not_more_workers_than_the_concurrency_over_all_of_them(
    tmp_path: Path, order: str, concurrency: int, expected: list[int]
) -> None:
    seen: list[tuple[int, int]] = []
    apps = [replica(tmp_path, seen, number, order=order, concurrency=concurrency) for number in range(3)]
    async with running(*apps):
        await until(lambda: shares(apps[0]) == expected)
        for _ in range(30):
            await asyncio.sleep(0.01)
            assert len(shares(apps[0])) <= len(expected)
        await until(lambda: shares(apps[0]) == expected)  # a lease may run out on a machine that stands still


@pytest.mark.parametrize(
    ("start", "expected"),
    [("start", [1, 2, 3, 4, 5]), ("now", [5]), (2, [3, 4, 5]), (datetime(2026, 1, 1, 1, tzinfo=UTC), [2, 3, 4, 5]), (10**9, [5])],
)
async def test_where_a_new_subscription_begins(tmp_path: Path, start: Any, expected: list[int]) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    app = App("shop", store=SQLiteStore(f"sqlite:///{tmp_path}/shop.db", clock=clock))
    seen: list[int] = []

    @app.subscribe(Placed, start=start)
    def note(event: Placed) -> None:
        seen.append(event.order)

    for order in range(1, 5):
        await app.publish(Placed(order=order), tx="own")
        clock.advance(3600)
    async with app:
        await app.publish(Placed(order=5), tx="own")
        await settled(app)
        assert sorted(seen) == expected
    async with app:  # where it begins is decided once
        await settled(app)
    assert sorted(seen) == expected


async def test_pausing_stops_and_resuming_goes_on() -> None:
    app = App("shop", store="sqlite:///unused.db")

    @app.subscribe(Placed)
    def note(event: Placed) -> None: ...

    async with Harness(app) as harness:
        harness.store.write(lambda unit: unit.set_paused("note", True)).result(5)
        assert app.worker is not None
        await app.worker.balance()
        await harness.publish(Placed(order=1))
        await harness.settle()
        assert harness.handled(note) == []
        harness.store.write(lambda unit: unit.set_paused("note", False)).result(5)
        await app.worker.balance()
        await harness.settle()
        assert harness.handled(note) == [Placed(order=1)]


async def test_a_rewound_subscription_handles_again() -> None:
    app = App("shop", store="sqlite:///unused.db")

    @app.subscribe(Placed)
    def note(event: Placed) -> None: ...

    async with Harness(app) as harness:
        for order in (1, 2, 3):
            await harness.publish(Placed(order=order))
        await harness.settle()
        harness.store.write(lambda unit: unit.rewind("note", 1)).result(5)
        assert app.worker is not None
        await app.worker.balance()
        await harness.settle()
        assert sorted(call.event.order for call in harness.calls(note)) == [1, 2, 2, 3, 3]


async def test_a_removed_subscription_ends_and_the_worker_goes_on() -> None:
    app = App("shop", store="sqlite:///unused.db")

    @app.subscribe(Placed)
    def note(event: Placed) -> None: ...

    @app.subscribe(Placed)
    def other(event: Placed) -> None: ...

    async with Harness(app) as harness:
        harness.store.write(lambda unit: unit.remove("note")).result(5)
        assert app.worker is not None
        await app.worker.balance()
        await harness.publish(Placed(order=1))
        await harness.settle()
        assert harness.handled(other) == [Placed(order=1)]
        assert harness.calls(note) == []


async def test_another_apps_subscription_name(tmp_path: Path) -> None:
    shop, mail = (App(name, store=f"sqlite:///{tmp_path}/shop.db") for name in ("shop", "mail"))
    for app in (shop, mail):
        app.subscribe(Placed, name="notes")(lambda event: None)
    async with shop:
        with pytest.raises(
            SubscriptionNameTaken,
            match=r"^the subscription 'notes' belongs to the app 'shop'; give yours another name, for example 'mail-notes'$",
        ):
            await mail.start()
        assert mail.worker is None


async def test_running_twice(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.subscribe(Placed, name="notes")(lambda event: None)
    async with app:
        with pytest.raises(ConfigurationError, match="the app 'shop' runs already"):
            await app.start()


async def test_an_app_without_subscriptions_runs(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", retention=timedelta(days=1))
    async with app:
        await app.publish(Placed(order=1), tx="own")


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("concurrencies", [(3, 2), (2, 3), (16, 5, 7), (1, 64, 3)])
async def test_workers_of_different_concurrency_leave_no_lane_unread(tmp_path: Path, concurrencies: tuple[int, ...]) -> None:
    """A rolling deploy that changes it: the groups of old and new workers don't begin at the same lanes."""
    seen: list[tuple[int, int]] = []
    apps = [replica(tmp_path, seen, number, concurrency=concurrency) for number, concurrency in enumerate(concurrencies)]
    async with running(*apps):
        await until(lambda: sum(shares(apps[0])) == 64)
        for order in range(200):
            await apps[0].publish(Placed(order=order), tx="own")
        await until(lambda: len(seen) >= 200)  # not `settled`: a lane that is changing hands is nobody's work
        assert sorted(order for _, order in seen) == list(range(200))
        await apps[0].stop()
        await until(lambda: sum(shares(apps[1])) == 64)


async def test_a_commit_that_is_no_event_leaves_an_idle_worker_listening(tmp_path: Path) -> None:
    """Other processes' checkpoints, and rows of the application itself: what comes behind them is still noticed at once."""
    seen: list[int] = []
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", lease=60.0)

    @app.subscribe(Placed, name="mail")
    async def handle(event: Placed) -> None:
        seen.append(event.order)

    async def came(count: int) -> None:
        await until(lambda: len(seen) >= count, 5.0)

    async with app:
        with connection(tmp_path / "shop.db") as conn:
            for order in range(3):
                await settled(app)
                conn.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY)")
                conn.execute("INSERT INTO orders VALUES (?)", (order,))
                await asyncio.sleep(0.05)
                conn.execute("BEGIN IMMEDIATE")
                app.publish(Placed(order=order), tx=conn)
                conn.execute("COMMIT")
                await came(order + 1)
    assert seen == [0, 1, 2]


async def test_a_commit_in_the_moment_of_the_stop_does_not_hold_it_up(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    await app.start()
    worker = app.worker
    assert worker is not None
    await until(lambda: worker._committed._waiters)  # it listens for commits
    worker._committed.set()
    async with asyncio.timeout(10):
        await app.stop()
