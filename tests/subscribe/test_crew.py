"""Events that end without a pause are never noted as begun; the others are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.running import settled, until
from tidings import App, Event


class Placed(Event, key="order"):
    order: int


def publish(app: App, *orders: int) -> None:
    app.open()
    with app.store.transaction() as tx:
        for order in orders:
            app.publish(Placed(order), tx=tx)
    app.close()


@pytest.mark.promise("death at any instruction")
def test_an_event_whose_handler_ends_the_program_is_handled_again(tmp_path: Path) -> None:
    """Even if whoever runs the loop lets it go on."""
    seen: list[int] = []

    def shop(ends: int | None) -> App:
        app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")

        @app.subscribe(Placed, name="handle")
        async def handle(event: Placed) -> None:
            if event.order == ends:
                raise SystemExit(3)
            seen.append(event.order)

        return app

    async def more(app: App, goal: set[int]) -> None:
        await app.publish(Placed(4), tx="own")
        await until(lambda: goal <= set(seen))
        await app.stop()

    async def again(app: App) -> None:
        async with app:
            await until(lambda: 2 in seen)

    publish(shop(None), 1, 2, 3)
    app, loop = shop(2), asyncio.new_event_loop()
    starting = loop.create_task(app.start())
    with pytest.raises(SystemExit):
        loop.run_forever()
    loop.run_until_complete(starting)
    loop.run_until_complete(more(app, {1, 3, 4}))
    loop.close()
    assert 2 not in seen
    asyncio.run(again(shop(None)))


@pytest.mark.promise("death at any instruction")
async def test_an_event_whose_handler_waits_is_open_while_others_go_on(tmp_path: Path) -> None:
    app, gate, seen = App("shop", store=f"sqlite:///{tmp_path}/shop.db"), asyncio.Event(), list[int]()

    @app.subscribe(Placed, checkpoint_age=0.01)
    async def handle(event: Placed) -> None:
        if event.order == 7:
            await gate.wait()
        seen.append(event.order)

    publish(app, *range(1, 200))
    async with app:
        assert app.worker is not None
        runner = app.worker.runners["handle"]
        await until(lambda: len(seen) == 198 and runner.checkpointing.outstanding() == 0)
        assert app.worker.handling() == [handle.__qualname__]
        runner.sweep()
        await until(lambda: app.store.query(lambda unit: unit.trimmable()) == 6)
        gate.set()
        await settled(app)
        assert len(seen) == 199
