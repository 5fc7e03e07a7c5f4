"""The proof of a saga: what it tries, and what it finds wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.sagas.asking import asks_for_tx
from tidings import App, Context, Event, NotFound, Refused, Saga, StepFailed, Unknown
from tidings.testing import Harness, prove


class Placed(Event, key="order_id"):
    order_id: int


class Shipped(Event, key="order_id"):
    order_id: int


class Wanted(Event, key="parcel_id"):
    parcel_id: str


class Shop:
    """Money in a table, stock outside, a parcel as a child; ``wrong`` names what is wrong with it."""

    def __init__(self, url: str, wrong: str = "") -> None:
        self.app = app = App("shop", store="sqlite:///never.db", lease=1.0)
        self.stock: dict[str, int] = {}
        self.runs = 0

        @asks_for_tx(url)
        def charge(order_id: int, tx: Any) -> str:
            tx.execute(f"INSERT INTO payments VALUES ({order_id})")
            return "p1"

        @asks_for_tx(url)
        def refund(order_id: int, tx: Any) -> None:
            gone = tx.execute(f"DELETE FROM payments WHERE id = {order_id}").rowcount
            if wrong == "undo" and gone != 1:
                raise LookupError("there is no such payment")

        async def reserve(order_id: int, ctx: Context) -> None:
            self.stock[ctx.idempotency_key] = 1

        async def release(order_id: int, result: Unknown | None) -> None:
            self.stock.clear()

        async def book(parcel: str) -> str:
            return parcel

        async def unbook(parcel: str) -> None: ...

        def receipt(order_id: int) -> None: ...

        @app.saga(Wanted)
        async def parcel(wanted: Wanted, saga: Saga) -> str:
            return await saga.step(book, wanted.parcel_id, undo=unbook)

        @app.saga(Placed, waits=[Shipped])
        async def checkout(order: Placed, saga: Saga) -> None:
            self.runs += 1
            await saga.step(charge, order.order_id, undo=None if wrong == "none" else refund)
            if wrong == "chance" and self.runs % 2 == 0:
                await saga.step(reserve, order.order_id)
            async with asyncio.TaskGroup() as group:
                group.create_task(saga.step(reserve, order.order_id, undo=release))
                group.create_task(saga.child(parcel, Wanted(parcel_id="x1")))
            await saga.wait(Shipped, within=timedelta(days=3))
            await saga.pivot()
            await saga.step(receipt, order.order_id)

    def prepare(self, harness: Harness) -> None:
        self.runs = 0
        self.stock.clear()
        with harness.transaction() as conn:
            conn.execute("CREATE TABLE payments (id integer)")

    async def check(self, harness: Harness) -> None:
        with harness.transaction() as conn:
            (payments,) = conn.execute("SELECT count(*) FROM payments").fetchone()
        assert payments == (harness.saga("checkout", 1).state == "completed"), "money without goods"
        assert len(self.stock) == payments


@pytest.fixture(params=["sqlite", "postgres"])
def stores(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A kind, and what makes an empty one for each run."""
    if request.param == "sqlite":
        yield "sqlite", {}
    else:
        from tidings.store import store_at

        server = request.getfixturevalue("postgres")
        yield "postgres", {"store": lambda clock: store_at(server.new_database(), clock=clock)}


async def test_a_saga_that_holds_is_tried_at_every_point(stores: Any) -> None:
    kind, options = stores
    shop = Shop(kind)
    proof = await prove(
        shop.app,
        Placed(order_id=1),
        then=[Shipped(order_id=1)],
        prepare=shop.prepare,
        check=shop.check,
        most=6 if options else 200,
        **options,
    )
    assert proof.runs[0] == "undisturbed: completed, completed"
    assert proof.left == set()
    if options:
        assert (len(proof.runs), proof.kills) == (6, 5)
    else:
        assert "its worker killed in charge, before anything was written: completed, completed" in proof.runs
        assert "its worker killed after book: completed, completed" in proof.runs
        assert "book refused, its worker killed after undo charge: compensated, compensated" in proof.runs
        assert not any("receipt refused" in run for run in proof.runs), "it is behind the pivot"
        assert (len(proof.runs), proof.kills) == (37, 30)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("undo", "charge without an answer: checkout 1 is stuck, it waits for undo refund (LookupError: there is no such payment)"),
        ("none", "without an answer: money without goods"),
        ("chance", ": checkout 1 is parked: the journal says that the body called reserve in branch 0.1 here, and now it calls reserve ("),
    ],
    ids=["undo", "none", "chance"],
)
async def test_what_is_wrong_is_told_with_the_run_in_which_it_is(wrong: str, says: str) -> None:
    shop = Shop("sqlite", wrong)
    with pytest.raises(AssertionError) as error:
        await prove(shop.app, Placed(order_id=1), then=[Shipped(order_id=1)], prepare=shop.prepare, check=shop.check)
    assert says in str(error.value)


async def test_what_nobody_publishes_is_told_or_is_a_deadline_that_passes() -> None:
    app = App("shop", store="sqlite:///never.db")

    def work() -> None: ...

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(work)
        await saga.wait(Shipped, within=timedelta(days=3) if order.order_id == 2 else None)

    with pytest.raises(AssertionError, match=r"undisturbed: checkout 1 is waiting, it waits for shop\.Shipped"):
        await prove(app, Placed(order_id=1))
    proof = await prove(app, Placed(order_id=2))
    assert proof.runs[0] == "undisturbed: compensated"
    assert proof.left == {"work"}
    with pytest.raises(NotFound, match="Shipped starts no saga of the app 'shop'"):
        await prove(app, Shipped(order_id=1))


async def test_another_way_and_a_step_tried_once_at_most_end_as_they_may() -> None:
    app = App("shop", store="sqlite:///never.db")

    async def pay() -> str:
        return "paid"

    async def other() -> str:
        return "otherwise"

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> str:
        try:
            return await saga.step(pay, at_most_once=True)
        except (Refused, StepFailed):
            return await saga.step(other)

    proof = await prove(app, Placed(order_id=1))
    assert "its worker killed in pay, before anything was written: parked" in proof.runs
    assert "pay refused: completed" in proof.runs
