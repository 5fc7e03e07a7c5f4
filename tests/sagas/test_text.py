"""What a body's text tells, before it is run."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.sagas.test_saga import Cancelled, Placed, Shipped, shop
from tidings import App, Context, Saga, SagaDefinitionError
from tidings.sagas.text import certain, mistakes, warnings_of


def charge(order_id: int, ctx: Context) -> str: ...  # type: ignore[empty-body]
def refund(order_id: int, result: str) -> None: ...
def takes_two(order_id: int, other: int) -> None: ...


Main = Callable[[Placed, Saga], Any]


async def unawaited(order: Placed, saga: Saga) -> None:
    saga.step(charge, order.order_id)  # type: ignore[unused-coroutine]  # here


async def lambda_undo(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id, undo=lambda order_id: None)  # here


async def lambda_step(order: Placed, saga: Saga) -> None:
    await asyncio.gather(saga.steps(lambda item: item, [1], limit=2))  # here


async def no_time(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id, timeout=0)  # here


async def no_wait(order: Placed, saga: Saga) -> None:
    await saga.wait(Shipped, within=-1.5)  # here


async def no_sleep(order: Placed, saga: Saga) -> None:
    if order.order_id:
        await saga.sleep(0)  # here


@pytest.mark.parametrize(
    ("main", "why"),
    [
        (unawaited, "saga.step(…) isn't awaited, so it would do nothing: await saga.step(…)"),
        (lambda_undo, "undo= is a lambda, and the journal needs a name: write it as a `def`"),
        (lambda_step, "the step is a lambda"),
        (no_time, "timeout=0 must be more than 0"),
        (no_wait, "within=-1.5 must be more than 0"),
        (no_sleep, "sleep of 0 must be more than 0"),
    ],
)
def test_what_can_not_be_right_is_told_where_it_is_declared(main: Main, why: str) -> None:
    app = App("shop", store="sqlite:///never.db")
    with pytest.raises(SagaDefinitionError) as error:
        app.saga(Placed, waits=[Shipped])(main)
    assert str(error.value).startswith(f"the saga {main.__name__!r}: {__file__}:{line(main)}: {why}")
    assert not app.saga_definitions


def line(main: Main) -> int:
    import inspect

    lines, first = inspect.getsourcelines(main)
    return next(first + number for number, text in enumerate(lines) if "# here" in text)


async def wrong_undo(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id, undo=takes_two)  # here


async def wrong_call(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id, amount=5)  # here


async def wrong_each(order: Placed, saga: Saga) -> None:
    await saga.steps(sys.modules[__name__].charge, [1, 2], limit=2)
    await saga.steps(takes_two, [1, 2], limit=2, undo=refund)  # here


@pytest.mark.parametrize(
    ("main", "why"),
    [
        (wrong_undo, "takes_two can't be called with what the step is given: missing a required argument: 'other'"),
        (wrong_call, "charge can't be called with what the step is given: got an unexpected keyword argument 'amount'"),
        (wrong_each, "takes_two can't be called with what the step is given: missing a required argument: 'other'"),
    ],
)
def test_a_signature_that_does_not_fit_is_found_without_running_it(main: Main, why: str) -> None:
    (mistake,) = mistakes(main)
    assert mistake == f"{__file__}:{line(main)}: {why}"


async def right(order: Placed, saga: Saga) -> str:
    async def helps(item: int) -> str:
        return await saga.step(charge, item, undo=refund)

    charged = charge if order.order_id else takes_two
    many = [order.order_id]
    await saga.step(charged, 1, 2)
    await saga.step(takes_two, *many)
    await asyncio.gather(helps(1), saga.step(charge, order_id=5, undo=refund, timeout=1))
    task = asyncio.create_task(saga.wait(Shipped, within=5))
    await task
    return await saga.step(charge, order.order_id)


def wrapped(main: Any) -> Any:
    @functools.wraps(main)
    async def outer(event: Placed, saga: Saga) -> Any:
        return await main(event, saga)

    return outer


@pytest.mark.parametrize("main", [right, wrapped(right), eval("lambda: 0"), print])
def test_what_is_right_or_can_not_be_known_is_let_alone(main: Any) -> None:
    assert [*certain(main), *mistakes(main)] == []


def test_what_is_worth_a_look(store_url: str) -> None:
    app = shop(store_url)

    @app.saga(Placed, waits=[Cancelled])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order.order_id, undo=refund)
        try:
            await saga.step(takes_two, order.order_id, 2)
            await saga.wait(Shipped, Cancelled)
            await saga.step(charge, order.order_id, undo=refund)
        except (ValueError, asyncio.CancelledError):
            raise
        finally:
            print("left")
        await saga.pivot()
        await saga.step(takes_two, order.order_id, 2)
        await saga.step(takes_two, order.order_id, 3)

    (definition,) = app.saga_definitions.values()
    told = [text.partition(": ")[2] for text in warnings_of(definition, app.type_of)]
    left = "is run, also whenever a worker lets go of an instance that waits: keep effects out"
    assert [text.partition(" (line ")[0] for text in told] == [
        f"this `finally` {left}",
        f"this `except (ValueError, asyncio.CancelledError)` {left}",
        "it waits for shop.Shipped, which it doesn't declare",
        "takes_two has no undo, and charge",
    ]
