"""The body on its own loop, read a journal."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from tidings import App, Event, Retry, Saga, SagaDefinitionError
from tidings.sagas.body import Body
from tidings.sagas.compensation import STUCK_AFTER, due, state_after
from tidings.sagas.journal import read_to
from tidings.sagas.saga import define
from tidings.store.sagas import Entry


class Placed(Event, key="order_id"):
    order_id: int


def ask(supplier: str) -> str:
    raise AssertionError("never called here")


def order(supplier: str) -> None:
    raise AssertionError("never called here")


def undo(supplier: str) -> None: ...


def begun(main: Any) -> Body:
    app = App("shop", store="sqlite:///never.db")
    definition = define(None, 1, main, app.type_of(Placed), [])
    body = Body(main, "seed", 1_000)
    body.begin(Placed(order_id=1), Saga(definition, "1", body, app.type_of))
    return body


def entry(body: Body, branch: str, seq: int, result: str, step: str = "ask") -> Entry:
    digest = body.calls["step", branch, step, 1].digest
    return Entry("step", branch, step, 1, seq, "done", f'"{result}"', ended=1_000 + seq, digest=digest)


async def first_of_two(event: Placed, saga: Saga) -> None:
    tasks = [asyncio.create_task(saga.step(ask, name, undo=undo), name=name) for name in ("a", "b")]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    (winner,) = done
    await saga.step(order, winner.get_name())


@pytest.mark.parametrize(("journal", "winner"), [(["0.1", "0.2"], "a"), (["0.2", "0.1"], "b")])
def test_results_are_handed_on_in_the_order_of_the_journal_one_by_one(journal: list[str], winner: str) -> None:
    body = begun(first_of_two)
    read_to(body, [entry(body, branch, seq, branch) for seq, branch in enumerate(journal, 1)])
    assert body.calls["step", "0", "order", 1].args == (winner,)
    assert body.now == 1_002


def test_the_last_that_ended_is_undone_first() -> None:
    body = begun(first_of_two)
    read_to(body, [entry(body, "0.2", 1, "b"), entry(body, "0.1", 2, "a")])
    assert [call.key[1] for call in due(body.calls.values())] == ["0.1", "0.2"]
    body = begun(first_of_two)
    read_to(body, [entry(body, "0.1", 1, "a")])
    assert [call.key[1] for call in due(body.calls.values())] == ["0.2", "0.1"], "the unknown one was the last"


def test_chance_and_time_are_the_same_at_each_run() -> None:
    seen: list[Any] = []

    async def main(event: Placed, saga: Saga) -> None:
        seen.append((saga.random(), saga.uuid(), saga.now()))

    begun(main)
    begun(main)
    assert seen[0] == seen[1]


def test_nothing_of_a_body_that_was_left_does_anything() -> None:
    tried: list[str] = []

    async def main(event: Placed, saga: Saga) -> None:
        try:
            await saga.step(ask, "a")
        finally:
            try:
                await saga.step(ask, "in the finally")
            except Exception as error:
                tried.append(str(error))

    body = begun(main)
    body.leave()
    assert len(body.calls) == 1
    assert "called from the saga's body only" in tried[0]


def test_stuck_is_said_after_a_number_of_failures() -> None:
    assert [state_after(attempts) for attempts in (1, STUCK_AFTER - 1, STUCK_AFTER, 100)] == [
        "compensating",
        "compensating",
        "stuck",
        "stuck",
    ]


def line_of(fn: Any, text: str) -> str:
    lines, first = inspect.getsourcelines(fn)
    return f"{__file__}:{next(first + number for number, line in enumerate(lines) if text in line)}"


def test_calls_side_by_side_know_their_line_of_the_body() -> None:
    """They are tasks of nothing but a call of ours: what is above them on the stack is whoever runs the program."""

    async def helps(saga: Saga) -> None:
        await saga.step(order, "c")  # the helper's own

    async def main(event: Placed, saga: Saga) -> None:
        await asyncio.gather(saga.step(ask, "a"), saga.step(ask, "b"), helps(saga))  # here

    body = begun(main)
    here, own = line_of(main, "# here"), line_of(helps, "# the helper's own")
    assert [(call.key[2], call.line) for call in body.calls.values()] == [("ask", here), ("ask", here), ("order", own)]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda saga: saga.step(ask, "a", timeout=0), "ask: timeout=0: seconds, more than 0"),
        (lambda saga: saga.step(ask, "a", undo=lambda supplier: None), "has no name of its own, which the journal needs"),
        (lambda saga: saga.step(ask, "a", undo=first_of_two), "first_of_two can't be called with what the step is given"),
        (lambda saga: saga.step(asyncio.Event().wait()), "is no function: give the function, and behind it what it is called with"),
        (lambda saga: saga.step(ask, "a", undo_retry=Retry()), "ask: undo_retry= goes with undo="),
        (lambda saga: saga.step(5), "the step 5 is no function"),
        (lambda saga: saga.sleep(0), "0: give a time of more than 0 seconds"),
        (lambda saga: saga.wait(Placed, within=0), "waits for shop.Placed, which it doesn't declare"),
        (lambda saga: saga.wait(int), "int is not an event"),
        (lambda saga: saga.child("none", Placed(order_id=1)), "this app has no saga 'none' that could be a child"),
        (lambda saga: saga.steps(ask, ["a"], limit=-1), "limit=-1: so many steps at a time, 1 or more"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_what_cant_be_run_as_it_is_written_is_told_with_its_line(wrong: Any, why: str, beside: bool) -> None:
    async def main(event: Placed, saga: Saga) -> None:
        await (asyncio.gather(wrong(saga)) if beside else wrong(saga))  # here

    fault = begun(main).fault
    assert isinstance(fault, SagaDefinitionError)
    assert str(fault).startswith(f"{line_of(main, '# here')}: ")
    assert why in str(fault)


def test_a_mistake_that_comes_up_in_us_is_told_with_the_bodys_line() -> None:
    async def main(event: Placed, saga: Saga) -> None:
        await saga.sleep("3 days")  # type: ignore[arg-type]  # here

    body = begun(main)
    assert body.error is not None
    assert str(body.failure(body.error)).startswith(f"{line_of(main, '# here')}: the body raised TypeError")
