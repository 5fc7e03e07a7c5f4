"""What an uncaught exception of a body does: undo for an outcome of the business, and nothing at all for a mistake in the code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.sagas.asking import asks_for_tx
from tests.sagas.test_saga import ONCE, Placed, Shipped, harness, journal, shop
from tidings import NotInTime, Refused, Retry, Saga, SagaDefinitionError, StepFailed
from tidings.sagas.compensation import is_outcome
from tidings.store.sagas import Entry, Hold


class Declined(Exception): ...


class Broke(Declined): ...


def charge(order_id: int) -> str:
    return "paid"


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("how", ["plain", "group"])
async def test_a_mistake_in_the_body_refunds_nothing_and_goes_on_once_mended(store_url: str, how: str) -> None:
    app, undone, mended, ended = shop(store_url), list[int](), list[bool](), list[str]()

    def refund(order_id: int) -> None:
        undone.append(order_id)

    def end(payment: str) -> None:
        ended.append(payment)

    def refuse() -> None:
        raise Refused("no")

    async def branch(payment: str) -> None:
        if not mended:
            raise KeyError("typo")
        ended.append("mended")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        payment = await saga.step(charge, order.order_id, undo=refund)
        if how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(branch(payment))
                if not mended:
                    group.create_task(saga.step(refuse))
        else:
            await branch(payment)
        await saga.step(end, payment)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert row.state == "parked"
        assert f"{__file__}:" in (row.error or "")
        assert "raised KeyError: 'typo' behind charge" in (row.error or "") or how == "group"
        await shops.advance(3600)
        await shops.crash()
        await shops.restart()
        await shops.settle()
        assert (shops.saga("checkout", 1).state, undone, ended) == ("parked", [], [])
        mended.append(True)
        await shops.crash()
        await shops.restart()
        await shops.settle()
        if how == "plain":
            assert (shops.saga("checkout", 1).state, undone) == ("completed", [])
            assert ended[-1] == "paid"


@pytest.mark.parametrize("what", ["declared", "derived", "late", "failed", "refused", "group"])
async def test_an_outcome_of_the_business_is_undone(store_url: str, what: str) -> None:
    app, undone = shop(store_url), list[int]()

    def refund(order_id: int) -> None:
        undone.append(order_id)

    def fail() -> None:
        raise ConnectionError("no answer")

    def refuse() -> None:
        raise Refused("no")

    @app.saga(Placed, waits=[Shipped], failures=[Declined])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order.order_id, undo=refund)
        if what == "declared":
            raise Declined("card")
        if what == "derived":
            raise Broke("card")
        if what == "late":
            await saga.wait(Shipped, within=10)
        elif what == "failed":
            await saga.step(fail, retry=ONCE)
        elif what == "refused":
            await saga.step(refuse)
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(saga.step(refuse))
                group.create_task(saga.step(fail, retry=ONCE))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.advance(11)
        assert (shops.saga("checkout", 1).state, undone) == ("compensated", [1])


def test_which_errors_are_outcomes() -> None:
    none: tuple[Any, ...] = ()
    assert is_outcome(Refused("x"), none)
    assert is_outcome(StepFailed("x"), none)
    assert is_outcome(NotInTime("x"), none)
    assert not is_outcome(KeyError("x"), none)
    assert not is_outcome(asyncio.CancelledError(), none)
    assert not is_outcome(ExceptionGroup("both", [Refused("x"), KeyError("x")]), none)
    assert is_outcome(ExceptionGroup("both", [Refused("x"), Broke("x")]), (Declined,))


def test_failures_are_classes(store_url: str) -> None:
    async def checkout(order: Any, saga: Saga) -> None: ...

    for wrong in ([Exception], ["Declined"], [object], [BaseException]):
        with pytest.raises(SagaDefinitionError, match=r"failures=.* must be classes of exceptions"):
            shop(store_url).saga(Placed, failures=wrong)(checkout)  # type: ignore[arg-type]


@pytest.mark.promise("order per key")
async def test_what_falls_due_while_a_steps_line_is_written_is_handed_on_behind_it(store_url: str) -> None:
    """The journal's order is the body's, the first time too."""
    app, seen, held = shop(store_url), list[list[str]](), asyncio.Event()

    async def slow() -> str:
        return "slow"

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        order_of: list[str] = []
        seen.append(order_of)

        async def step() -> None:
            order_of.append(await saga.step(slow))

        async def sleep() -> None:
            await saga.sleep(0.05)
            order_of.append("slept")

        await asyncio.gather(step(), sleep())
        await saga.sleep(10)

    async with harness(app) as shops:
        assert app.sagas is not None
        attempts = app.sagas.attempts
        record, begun = attempts.record, asyncio.Event()

        async def slowly(hold: Hold, entry: Entry) -> None:
            if not begun.is_set():
                begun.set()
                await held.wait()
            await record(hold, entry)

        attempts.record = slowly  # type: ignore[method-assign]
        await shops.publish(Placed(order_id=1))
        await begun.wait()
        shops.clock.advance(1)
        while not journal(shops):
            await asyncio.sleep(0.005)
        assert seen == [[]]
        held.set()
        await shops.settle()
        assert seen == [["slow", "slept"]]
        assert [one.step for one in journal(shops)] == ["slow", "sleep"]
        await shops.advance(20)
        assert seen[-1] == ["slow", "slept"]


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("text", ["no \x00 answer", "no \ud800 answer"])
async def test_an_error_whose_text_no_store_could_keep_counts_as_any_other(store_url: str, text: str) -> None:
    """A zero byte, half a surrogate pair: PostgreSQL refuses one, both stores the other. The attempt must count all the same."""
    app, calls = shop(store_url), list[str]()

    def say_no() -> None:
        calls.append("refused")
        raise Refused(text)

    def fail() -> None:
        calls.append("failed")
        raise ConnectionError(text)

    def undo() -> None:
        calls.append("undo")
        raise ConnectionError(text)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        if order.order_id == 2:
            raise KeyError(ValueError(text))
        if order.order_id == 3:
            raise ValueError(text)
        try:
            await saga.step(say_no)
        except Refused as no:
            await saga.step(charge, len(str(no)))
        await saga.step(fail, retry=ONCE, undo=undo)

    async with harness(app) as shops:
        for key in (1, 2, 3):
            await shops.publish(Placed(order_id=key))
        await shops.settle()
        await shops.advance(3)
        assert calls[:3] == ["refused", "failed", "undo"]
        assert calls.count("undo") <= 3
        assert [shops.saga("checkout", key).state for key in (1, 2, 3)] == ["compensating", "parked", "parked"]
        await shops.crash()
        await shops.restart()
        await shops.advance(600)
        row = shops.saga("checkout", 1)
        said = text.replace("\x00", "\\x00").replace("\ud800", "\\ud800")
        assert (row.state, row.error) == ("stuck", f"StepFailed: fail failed after 1 attempts: ConnectionError: {said}")
        assert calls.count("failed") == 1


class Odd(BaseException): ...


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("error", [Odd("x"), SystemExit("x"), KeyboardInterrupt("x"), asyncio.CancelledError("x")], ids=repr)
@pytest.mark.parametrize("kind", ["def", "async def", "tx"])
async def test_what_ends_programs_and_tasks_is_a_steps_failure_as_any_other(store_url: str, kind: str, error: BaseException) -> None:
    """It would end the worker, or leave the instance in its hands with nobody at it."""
    app, calls = shop(store_url), list[str]()

    def fail(order_id: int) -> None:
        calls.append("fail")
        raise error

    async def fails(order_id: int) -> None:
        fail(order_id)

    @asks_for_tx(store_url)
    def fails_there(order_id: int, tx: Any) -> None:
        fail(order_id)

    async def undo(order_id: int) -> None:
        calls.append("undo")
        if calls.count("undo") == 1:
            raise error

    step: Any = {"def": fail, "async def": fails, "tx": fails_there}[kind]

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(step, order.order_id, undo=undo, retry=Retry(attempts=2, first=1, jitter=0))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        await shops.advance(5)
        row = shops.saga("checkout", 1)
        assert (row.state, calls) == ("compensated", ["fail", "fail", "undo", "undo"])
        assert f"after 2 attempts: {type(error).__name__}: x" in (row.error or "")
