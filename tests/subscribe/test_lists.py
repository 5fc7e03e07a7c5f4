from __future__ import annotations

import asyncio

import pytest

from tidings import App, Event
from tidings.testing import Harness


class Placed(Event, key="order"):
    order: int


@pytest.mark.promise("nothing lost")
async def test_work_that_comes_just_when_it_goes_to_sleep_wakes_it() -> None:
    """Whoever waits for work can be woken as soon as it has looked in vain; there is no gap between the two."""
    app = App("shop", store="sqlite:///unused.db")

    @app.subscribe(Placed, size=10, age=0.01)
    async def handle(events: list[Placed]) -> None: ...

    async with Harness(app) as harness:
        await harness.settle()
        assert app.worker is not None
        crew = app.worker.runners["handle"].crew
        looked = False
        take = app.worker.runners["handle"].feed.take

        def look() -> object:
            nonlocal looked
            looked = True
            return take()

        app.worker.runners["handle"].feed.take = look  # type: ignore[method-assign,assignment]
        crew.sleepers._work_left = lambda: True
        crew.sleepers.wake()  # for nothing: it looks, and goes to sleep again
        while not looked:
            await asyncio.sleep(0)
        assert crew.sleepers.asleep
