"""A body is handed the result of its only step before the line is written, so that the last line and the end are one write; and nothing
that it asks for then is done before the line stands."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.running import until
from tests.sagas.test_saga import Placed, harness, journal, shop
from tidings import App, Retry, Saga
from tidings.errors import StoreError
from tidings.sagas.driver import Driver


def count_writes(app: App) -> list[Any]:
    store: Any = app.store
    plainly, jobs = store.write_plainly, list[Any]()

    def counted(job: Any) -> Any:
        jobs.append(job)
        return plainly(job)

    store.write_plainly = counted
    return jobs


async def add(number: int, step: int) -> int:
    return number + step


async def test_the_last_line_and_the_end_are_one_write(store_url: str) -> None:
    app = shop(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> int:
        number = order.total
        for step in range(5):
            number = await saga.step(add, number, step)
        return number

    async with app:
        counted = count_writes(app)
        await app.start_saga(checkout, Placed(order_id=1, total=1), tx="own")
        assert await app.saga_result(checkout, 1, within=20) == 11
        assert len(counted) == 5  # it was begun by the caller's own transaction
        await app.publish(Placed(order_id=2, total=1), tx="own")
        assert await app.saga_result(checkout, 2, within=20) == 11
        assert len(counted) == 11
        rows = [app.store.query(lambda unit, key=key: unit.sagas().row("checkout", key)) for key in ("1", "2")]  # type: ignore[misc]
        assert [(row.state, row.worker, row.epoch) for row in rows if row is not None] == [("completed", None, 1)] * 2


@pytest.mark.promise("effects once")
async def test_nothing_that_the_body_asks_for_is_done_before_the_line_stands(store_url: str) -> None:
    app, seen, called = shop(store_url), list[int](), list[int]()

    async def second(number: int) -> None:
        called.append(number)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        number = await saga.step(add, order.order_id, 1)
        seen.append(number)
        await saga.step(second, number)

    async with app:
        assert app.sagas is not None
        writer: Any = app.sagas.journal
        record, held = writer.record, asyncio.Event()

        def slowly(hold: Any, entry: Any, release: Any = None, told: Any = None) -> Any:
            async def later() -> None:
                await held.wait()
                record(hold, entry, release, told)

            slow.append(asyncio.ensure_future(later()))
            return told

        slow: list[asyncio.Future[None]] = []
        writer.record = slowly
        await app.publish(Placed(order_id=1), tx="own")
        await until(lambda: slow)
        await asyncio.sleep(0.3)
        assert (seen, called) == ([2], [])
        writer.record = record
        held.set()
        await app.saga_result(checkout, 1, within=20)
        assert (seen, called) == ([2], [2])


@pytest.mark.promise("effects once")
async def test_whoever_dies_before_the_line_stands_has_handed_on_nothing(store_url: str) -> None:
    """The line of the first step fails: what the body had of it is forgotten, and the step is done again."""
    app, seen, called = shop(store_url), list[int](), list[str]()

    async def first() -> int:
        called.append("first")
        return len(called)

    async def second(number: int) -> None:
        called.append(f"second {number}")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        number = await saga.step(first)
        seen.append(number)
        await saga.step(second, number)

    async with app:
        assert app.sagas is not None
        writer: Any = app.sagas.journal
        record = writer.record

        def failing(hold: Any, entry: Any, release: Any = None, told: Any = None) -> Any:
            writer.record = record
            told.set_exception(StoreError("the connection is gone"))
            return told

        writer.record = failing
        await app.publish(Placed(order_id=1), tx="own")
        await app.saga_result(checkout, 1, within=20)
        assert (seen, called) == ([1, 2], ["first", "first", "second 2"])
        lines = app.store.query(lambda unit: unit.sagas().journal("checkout", "1"))
        assert [(line.step, line.seq, line.result) for line in lines] == [("first", 1, "2"), ("second", 2, "null")]


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("place", ["first", "last"])
async def test_a_result_that_the_server_refuses_is_the_steps_failure(store_url: str, place: str) -> None:
    """As in a database that doesn't know some letter. The attempts count, and the body doesn't go on with what isn't there."""
    app, called = shop(store_url), list[str]()

    async def odd() -> str:
        called.append("odd")
        return "odd"

    async def plain() -> str:
        called.append("plain")
        return "plain"

    async def undo(result: object) -> None:
        called.append(f"undo {result}")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        if place == "last":
            await saga.step(plain)
        await saga.step(odd, retry=Retry(attempts=2, first=0.01), undo=undo)
        if place == "first":
            await saga.step(plain)

    async with harness(app) as shops:
        with psycopg.connect(store_url) as conn:
            conn.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$BEGIN RAISE EXCEPTION 'what letter is that' USING ERRCODE = '22P05'; END$$"
            )
            conn.execute(
                "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON tidings_saga_journal FOR EACH ROW WHEN (NEW.result = '\"odd\"')"
                " EXECUTE FUNCTION refuse()"
            )
        await shops.publish(Placed(order_id=1))
        await shops.advance(30)
        row = shops.saga("checkout", 1)
        assert (row.state, called) == ("compensated", [*(["plain"] if place == "last" else []), "odd", "odd", "undo UNKNOWN"])
        assert "what letter is that" in (row.error or "")
        assert [(line.kind, line.step, line.state, line.attempts) for line in journal(shops) if line.step == "odd"] == [
            ("step", "odd", "failed", 2), ("undo", "odd", "done", 1),
        ]  # fmt: skip


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("order", ["compensate", "cancel", "pause"])
async def test_what_an_operator_orders_beside_the_last_step_counts(store_url: str, order: str) -> None:
    """The end is refused, the line stands; so the step is undone, and was called once."""
    app, called = shop(store_url), list[str]()

    async def last() -> str:
        called.append("last")
        return "x"

    async def undo(result: object) -> None:
        called.append(f"undo {result}")

    @app.saga(Placed)
    async def checkout(placed: Placed, saga: Saga) -> None:
        await saga.step(last, undo=undo)

    async with harness(app) as shops:
        store: Any = app.store
        plainly, ordered = store.write_plainly, list[str]()

        def behind_them(job: Any) -> Any:
            def both(unit: Any) -> Any:
                if called and not ordered:
                    ordered.append(order)
                    if order == "pause":
                        unit.sagas().pause("checkout", "1", 5)
                    else:
                        unit.sagas().turn_back("checkout", "1", order, 5)
                return job(unit)

            return plainly(both)

        store.write_plainly = behind_them
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        await shops.advance(5)
        assert ordered == [order]
        state = {"compensate": "compensated", "cancel": "cancelled", "pause": "completed"}[order]
        assert shops.saga("checkout", 1).state == state
        assert called == (["last"] if order == "pause" else ["last", "undo x"])


@pytest.mark.promise("death at any instruction")
async def test_whoever_is_killed_behind_the_step_writes_nothing_more(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app, called = shop(store_url), list[str]()

    async def first() -> None:
        called.append("first")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(first)

    async with harness(app) as shops:
        assert app.sagas is not None
        sagas, write = app.sagas, Driver._write

        def kill() -> None:
            sagas.kill()
            for driver in sagas.drivers:
                for task in driver._running:
                    task.cancel()

        async def dying(self: Driver, *args: Any) -> None:
            monkeypatch.undo()
            asyncio.get_running_loop().call_soon(kill)
            await write(self, *args)

        monkeypatch.setattr(Driver, "_write", dying)
        await shops.publish(Placed(order_id=1))
        await until(lambda: called)
        await asyncio.sleep(0.2)
        assert journal(shops) == []
        await shops.crash()
        await shops.restart()
        await shops.settle()
        await shops.advance(60)
        assert (shops.saga("checkout", 1).state, called) == ("completed", ["first", "first"])
