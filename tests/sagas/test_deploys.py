"""A waiting population meets changed code: it goes on or is parked as promised, and ``check`` foretells which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sagas.test_saga import Placed, Shipped, harness, journal, shop
from tidings import App, Saga
from tidings.sagas.check import Problem, problem_of
from tidings.testing import Harness

ran: list[str] = []


def charge(order_id: int) -> str:
    ran.append("charge")
    return "paid"


def reserve(order_id: int) -> str:
    ran.append("reserve")
    return "reserved"


def audit(order_id: int) -> None:
    ran.append("audit")


def bill(order_id: int) -> str:
    ran.append("bill")
    return "paid"


def send(by: str) -> None:
    ran.append(f"send {by}")


def undo(order_id: int) -> None:
    ran.append("undo")


async def same(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id, undo=undo)
    await saga.step(reserve, order.order_id)
    shipped = await saga.wait(Shipped)
    await saga.step(send, shipped.by)


async def more_behind(order: Placed, saga: Saga) -> None:
    await same(order, saga)
    await saga.step(audit, order.order_id)


async def renamed(order: Placed, saga: Saga) -> None:
    await saga.step(bill, order.order_id)
    await saga.step(reserve, order.order_id)
    await saga.wait(Shipped)


async def reordered(order: Placed, saga: Saga) -> None:
    await saga.step(reserve, order.order_id)
    await saga.step(charge, order.order_id)
    await saga.wait(Shipped)


async def removed(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id)
    await saga.wait(Shipped)


async def added(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id)
    await saga.step(audit, order.order_id)
    await saga.step(reserve, order.order_id)
    await saga.wait(Shipped)


async def other_arguments(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id)
    await saga.step(reserve, order.order_id + 1)
    await saga.wait(Shipped)


async def broken(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id)
    await saga.step(reserve, order.order_id)
    raise KeyError("typo")


async def foreign(order: Placed, saga: Saga) -> None:
    import asyncio

    await saga.step(charge, order.order_id)
    await saga.step(reserve, order.order_id)
    await asyncio.sleep(1)


async def added_as_a_change(order: Placed, saga: Saga) -> None:
    await saga.step(charge, order.order_id, undo=undo)
    if await saga.changed("audit"):
        await saga.step(audit, order.order_id)
    await saga.step(reserve, order.order_id)
    shipped = await saga.wait(Shipped)
    await saga.step(send, shipped.by)


CODE: list[tuple[Callable[..., Any], str]] = [
    (same, ""),
    (more_behind, ""),
    (added_as_a_change, ""),
    (renamed, "the journal says that the body called charge here, and now it calls bill"),
    (reordered, "called charge here, and now it calls reserve"),
    (removed, "called reserve here, and now it calls shop.Shipped"),
    (added, "called reserve here, and now it calls audit"),
    (other_arguments, "reserve is called with other arguments"),
    (broken, "the body raised KeyError"),
    (foreign, "asks the event loop for"),
]


def declared(url: str, main: Any, version: int = 1) -> App:
    app = shop(url)
    app.saga(Placed, name="checkout", version=version, waits=[Shipped])(main)
    return app


def problem(shops: Harness, app: App, version: int | None = None) -> Problem | None:
    row = shops.saga("checkout", 1)
    return problem_of(row, journal(shops), app.saga_definitions, app.type_of, version)


@pytest.mark.promise("death at any instruction")
@pytest.mark.parametrize(("code", "says"), CODE, ids=[code.__name__ for code, _ in CODE])
async def test_it_goes_on_or_is_parked_and_check_foretells_it(store_url: str, code: Any, says: str) -> None:
    ran.clear()
    app = declared(store_url, same)
    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert ran == ["charge", "reserve"]
        new = declared(store_url, code)
        foretold = problem(shops, new)
        assert ran == ["charge", "reserve"], "nothing is run"
        await shops.crash()
        app._sagas["checkout", 1] = new._sagas["checkout", 1]
        await shops.restart()
        await shops.publish(Shipped(order_id=1, by="air"))
        await shops.settle()
        row = shops.saga("checkout", 1)
        if says:
            assert foretold is not None
            assert says in foretold.problem
            assert (row.state, row.error) == ("parked", foretold.problem)
            assert ran == ["charge", "reserve"]
        else:
            assert (foretold, row.state) == (None, "completed")
            assert ran == ["charge", "reserve", "send air", *(["audit"] if code is more_behind else [])]


async def test_a_change_is_asked_for_once_and_can_be_taken_out_again(store_url: str) -> None:
    """Who began before goes the old way, who began behind it the new one, at each run."""
    ran.clear()
    app = declared(store_url, same)
    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        app._sagas["checkout", 1] = declared(store_url, added_as_a_change)._sagas["checkout", 1]
        await shops.crash()
        await shops.restart()
        await shops.publish(Placed(order_id=2))
        await shops.settle()
        assert ran == ["charge", "reserve", "charge", "audit", "reserve"]
        for _ in range(2):
            await shops.crash()
            await shops.restart()
        await shops.publish(Shipped(order_id=1))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, shops.saga("checkout", 2).state) == ("completed", "waiting")

        async def always(order: Placed, saga: Saga) -> None:
            await saga.step(charge, order.order_id, undo=undo)
            await saga.step(audit, order.order_id)
            await saga.step(reserve, order.order_id)
            await saga.wait(Shipped)

        app._sagas["checkout", 1] = declared(store_url, always)._sagas["checkout", 1]
        await shops.crash()
        await shops.restart()
        await shops.publish(Shipped(order_id=2))
        await shops.settle()
        assert shops.saga("checkout", 2).state == "completed"


async def test_a_version_without_code_is_told(store_url: str) -> None:
    app = declared(store_url, same)
    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        found = problem(shops, declared(store_url, same, version=2))
        assert found is not None
        assert found.problem == "it is of version 1, and there is code only of version 2"
        nothing = shop(store_url)
        found = problem(shops, nothing)
        assert found is not None
        assert found.problem.endswith("none of this saga")


async def test_an_instance_that_fits_goes_on_with_another_version(store_url: str) -> None:
    ran.clear()
    app = declared(store_url, same)
    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        app.saga(Placed, name="checkout", version=2, waits=[Shipped])(renamed)
        app.saga(Placed, name="checkout", version=3, waits=[Shipped])(more_behind)
        assert problem(shops, app, 2) is not None
        assert problem(shops, app, 3) is None
        row = shops.saga("checkout", 1)
        stale = shops.saga("checkout", 1)
        stale.epoch -= 1
        assert not shops.store.write(lambda unit: unit.sagas().migrate(stale, 3, "me", "new", 1)).result()
        assert shops.store.write(lambda unit: unit.sagas().migrate(row, 3, "me", "new", 1)).result()
        await shops.crash()
        await shops.restart()
        await shops.publish(Shipped(order_id=1, by="air"))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, shops.saga("checkout", 1).version) == ("completed", 3)
        assert ran == ["charge", "reserve", "send air", "audit"]
        (action,) = shops.store.query(lambda unit: unit.sagas().actions("checkout", "1"))
        assert (action.action, action.actor, action.reason) == ("migrate to version 3", "me", "new")
