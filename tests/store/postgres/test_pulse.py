"""The lease on a server: renewed by one statement, and the lanes looked at only when something has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
