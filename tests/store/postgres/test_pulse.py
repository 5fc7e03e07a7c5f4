"""The lease on a server: renewed by one statement, and the lanes looked at only when something has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.running import until
from tidings import App, Event


class Placed(Event, key="order"):
    order: int


def shop(url: str) -> App:
    app = App("shop", url, lease=1.0)

    @app.subscribe(Placed, name="mail")
    async def mail(event: Placed) -> None: ...

    return app


def held(app: App) -> int:
    assert app.worker is not None
    return len(app.worker.runners["mail"].held_lanes())


@pytest.mark.promise("nothing lost")
async def test_lanes_of_a_dead_worker_are_taken_over_by_who_has_only_pulses(postgres_url: str) -> None:
    one, two = shop(postgres_url), shop(postgres_url)
    async with one:
        async with two:
            await until(lambda: held(one) == held(two) == 32, 20)
            assert two.worker is not None
            await two.worker.crash()
            await until(lambda: held(one) == 64, 20)


async def test_nobody_looks_at_the_lanes_while_nothing_changes(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = shop(postgres_url)
    async with app:
        worker = app.worker
        assert worker is not None
        await until(lambda: held(app) == 64, 20)
        for _ in range(2):  # the first sees what this worker itself has taken
            await worker.balance()
        looks: list[object] = []
        query = app.store.query

        def counted(job: Callable[[Any], Any]) -> Any:
            looks.append(job)
            return query(job)

        monkeypatch.setattr(app.store, "query", counted)
        before = worker.renewed
        await worker.balance()
        assert worker.renewed > before
        assert looks == []
        app.store.write(lambda unit: unit.set_paused("mail", True)).result(10)
        await worker.balance()
        assert looks
        assert worker.runners["mail"].paused


@pytest.mark.promise("nothing lost")
async def test_lanes_that_are_let_go_of_while_somebody_looks_are_claimed_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store says that they are ours as before, so no pulse tells of it; and the look under way has seen them in our hands."""
    app = App("shop", postgres_url, lease=60.0)

    @app.subscribe(Placed, name="mail")
    async def mail(event: Placed) -> None: ...

    async with app:
        worker = app.worker
        assert worker is not None
        await until(lambda: held(app) == 64, 20)
        runner, look = worker.runners["mail"], worker._look_at_control
        await worker.balance()

        async def look_and_let_go(force: bool = False) -> None:
            await look(force)
            monkeypatch.setattr(worker, "_look_at_control", look)
            for lane in runner.held_lanes()[:5]:
                runner.drop(lane)
            runner.feed.expired()

        monkeypatch.setattr(worker, "_look_at_control", look_and_let_go)
        app.store.write(lambda unit: unit.set_paused("mail", False)).result(10)  # something has changed
        await worker.balance()
        await until(lambda: held(app) == 64, 20)


@pytest.mark.promise("nothing lost")
async def test_what_was_scheduled_by_who_died_before_saying_so_is_found(postgres_url: str) -> None:
    """A listening worker's own looks, which come of the clock alone, leave that to its pulse."""
    app = App("shop", postgres_url, lease=3.0)
    seen: list[int] = []

    @app.subscribe(Placed, name="mail")
    async def mail(event: Placed) -> None:
        seen.append(event.order)

    async with app:
        await app.publish(Placed(order=1), tx="own", after=timedelta(hours=1))
        await until(lambda: app.worker is not None and app.worker._due is not None)
        waker: Any = app.worker and app.worker._waker
        await until(lambda: waker._slow, 20)
        await asyncio.sleep(0.6)  # twice the pace at which a worker asks what is due
        with psycopg.connect(postgres_url) as conn:  # which tells nobody
            conn.execute("UPDATE tidings_scheduled SET due = 0")
        await until(lambda: seen == [1], 20)
