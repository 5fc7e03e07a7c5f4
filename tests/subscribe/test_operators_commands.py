"""What an operator does is seen by running workers at once, not at the next renewal of their lease."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tidings import App, Event, Retry


class Asked(Event, key="number"):
    number: int


@pytest.mark.promise("nothing vanishes")
async def test_a_retried_dead_letter_runs_within_a_second(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", lease=60)
    broken = True
    handled = asyncio.Event()

    @app.subscribe(Asked, retry=Retry(attempts=1))
    async def answer(event: Asked) -> None:
        if broken:
            raise ValueError(event.number)
        handled.set()

    async with app:
        await app.publish(Asked(number=1), tx="own")
        async with asyncio.timeout(5):
            while not (dead := app.store.query(lambda unit: unit.parked("answer", ["dead"]))):
                await asyncio.sleep(0.005)
        broken = False
        position = dead[0].envelope.position
        await asyncio.wrap_future(app.store.write(lambda unit: unit.retry_dead("answer", position, 0)))
        async with asyncio.timeout(1):
            await handled.wait()
