"""Orders of operators beside what else a saga can say: pivots, steps tried once at most, children, deploys."""

from __future__ import annotations

import asyncio

import pytest

from tests.running import until
from tests.sagas.test_children import PickedUp, Wanted, World
from tests.sagas.test_saga import ONCE, Placed, Shipped, harness, journal, shop
from tidings import ActionRefused, Context, Refused, Saga
from tidings.sagas.check import problem_of


@pytest.mark.promise("effects once")
async def test_behind_its_pivot_nothing_is_undone_by_hand(store_url: str) -> None:
    app, did = shop(store_url), list[str]()

    def work(order_id: int) -> None:
        did.append("work")

    def undo(order_id: int) -> None:
        did.append("undo")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(work, order.order_id, undo=undo)
        await saga.pivot()
        await saga.wait(Shipped)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        with pytest.raises(ActionRefused, match="is behind its pivot"):
            app.operator("ann").cancel("checkout", 1, reason="late")
        await shops.publish(Shipped(order_id=1))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, did) == ("completed", ["work"])


@pytest.mark.promise("death at any instruction")
async def test_an_order_that_was_accepted_before_the_pivot_counts(store_url: str) -> None:
    """The order comes while the step before the pivot ends: the driver may not have heard of it when it writes the pivot."""
    app, did = shop(store_url), list[str]()

    def work(order_id: int) -> None:
        app.operator("ann").cancel("checkout", order_id, reason="just in time")
        did.append("work")

    def undo(order_id: int) -> None:
        did.append("undo")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(work, order.order_id, undo=undo)
        await saga.pivot()

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, did) == ("cancelled", ["work", "undo"])
        assert [entry.kind for entry in journal(shops) if entry.kind == "pivot"] == []


@pytest.mark.promise("nothing vanishes")
@pytest.mark.promise("effects once")
@pytest.mark.parametrize("says", ["done", "not done", "not done, and it dies again"])
async def test_what_nobody_knows_of_is_told_by_a_person(store_url: str, says: str) -> None:
    app, begun, sent = shop(store_url), asyncio.Event(), list[str]()
    calls, keys, hangs = list[int](), set[str](), [True]

    async def pay(order_id: int, ctx: Context) -> str:
        calls.append(ctx.attempt)
        keys.add(ctx.idempotency_key)
        begun.set()
        if hangs[0]:
            await asyncio.Event().wait()
        return "p8"

    def send(payment: str) -> None:
        sent.append(payment)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(send, await saga.step(pay, order.order_id, at_most_once=True))

    async with harness(app) as shops:

        async def dies() -> None:
            await asyncio.wait_for(begun.wait(), 10)
            begun.clear()
            await shops.crash()
            await shops.restart()
            await shops.advance(60)
            assert shops.saga("checkout", 1).state == "parked"
            assert "`tidings saga retry --not-done` if not" in (shops.saga("checkout", 1).error or "")

        await shops.publish(Placed(order_id=1))
        await dies()
        ann = app.operator("ann")
        with pytest.raises(ActionRefused, match="has no step 'send' of which nobody knows whether it happened; there is 'pay'"):
            ann.retry("checkout", 1, not_done="send", reason="the bank knows nothing of it")
        ann.retry("checkout", 1, reason="perhaps it was nothing")
        await shops.settle()
        assert (shops.saga("checkout", 1).state, len(calls)) == ("parked", 1)  # that says nothing of the step
        if says == "done":
            ann.skip("checkout", 1, "pay", "p7", reason="the bank says it was booked")
        else:
            hangs[0] = says == "not done, and it dies again"
            ann.retry("checkout", 1, not_done="pay", reason="the bank knows nothing of it")
            if hangs[0]:  # then it isn't known again
                await dies()
                hangs[0] = False
                ann.retry("checkout", 1, not_done="pay", reason="nor of that")
        await shops.settle()
        assert (shops.saga("checkout", 1).state, sent) == ("completed", ["p7" if says == "done" else "p8"])
        assert (len(calls), len(keys)) == ({"done": 1, "not done": 2}.get(says, 3), 1)
        actions = shops.store.query(lambda unit: unit.sagas().actions("checkout", "1"))
        assert actions[1].detail == ('pay: "p7"' if says == "done" else "pay: not done")
        with pytest.raises(ActionRefused, match="is completed"):
            ann.retry("checkout", 1, not_done="pay", reason="once more")


async def test_a_step_that_is_being_found_out_is_told_by_a_person_too(store_url: str) -> None:
    """Its reconcile function waits for another attempt."""
    app, begun, hangs, ended = shop(store_url), set[int](), [True], list[str]()

    async def pay(order_id: int) -> str:
        begun.add(order_id)
        if hangs[0]:
            await asyncio.Event().wait()
        return "p8"

    def look(order_id: int) -> str:
        raise ConnectionError("the bank is closed")

    def end(how: str) -> None:
        ended.append(how)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(end, await saga.step(pay, order.order_id, at_most_once=True, reconcile=look))

    async with harness(app) as shops:
        for order in (1, 2):
            await shops.publish(Placed(order_id=order))
        await until(lambda: len(begun) == 2)
        await shops.crash()
        hangs[0] = False
        await shops.restart()
        await shops.settle()
        assert shops.saga("checkout", 1).state == "waiting"
        app.operator("ann").retry("checkout", 1, not_done="pay", reason="not there")
        app.operator("ann").skip("checkout", 2, "pay", "p7", reason="booked")
        await shops.settle()
        assert [shops.saga("checkout", order).state for order in (1, 2)] == ["completed", "completed"]
        assert sorted(ended) == ["p7", "p8"]


@pytest.mark.parametrize("how", ["compensate", "cancel"])
async def test_a_parent_is_undone_by_hand_with_its_child_which_is_paused(store_url: str, how: str) -> None:
    world = World()
    app = world.app(store_url, waits=True)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(world.work, "charge", undo=world.undo)
        await saga.child(world.parcel, Wanted(parcel_id=f"p{order.order_id}"))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        ann = app.operator("ann")
        ann.pause("parcel", "p1", reason="let me look")
        await shops.settle()
        getattr(ann, how)("checkout", 1, reason="the customer has gone")
        await shops.advance(60)
        assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == ("compensating", "paused")
        assert world.log == ["charge", "book", "label"]
        ann.resume("parcel", "p1", reason="go on")
        await shops.advance(60)
        ended = "cancelled" if how == "cancel" else "compensated"
        assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == (ended, "compensated")
        assert world.log == ["charge", "book", "label", "undo label", "undo book", "undo charge"]
        await shops.publish(PickedUp(parcel_id="p1"))
        await shops.settle()
        assert shops.saga("parcel", "p1").state == "compensated"


async def test_check_knows_what_was_ordered(store_url: str) -> None:
    app, down = shop(store_url), [True]

    def work(order_id: int) -> None: ...

    def undo(order_id: int) -> None:
        if down[0]:
            raise ConnectionError("no answer")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(work, order.order_id, undo=undo, retry=ONCE)
        await saga.wait(Shipped)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        ann = app.operator("ann")
        ann.cancel("checkout", 1, reason="the customer has gone")
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, row.back) == ("compensating", "cancel")
        assert problem_of(row, journal(shops), app.saga_definitions, app.type_of) is None
        ann.pause("checkout", 1, reason="let me look")
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert row.state == "paused"
        assert problem_of(row, journal(shops), app.saga_definitions, app.type_of) is None
        down[0] = False
        ann.resume("checkout", 1, reason="go on")
        await shops.advance(60)
        assert shops.saga("checkout", 1).state == "cancelled"


async def test_a_refusal_that_comes_with_an_order_is_undone_once(store_url: str) -> None:
    app, did = shop(store_url), list[str]()

    def work(order_id: int) -> None:
        did.append("work")

    def undo(order_id: int) -> None:
        did.append("undo")

    def refuse(order_id: int) -> None:
        app.operator("ann").compensate("checkout", order_id, reason="at the same time")
        raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(work, order.order_id, undo=undo)
        await saga.step(refuse, order.order_id)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, did) == ("compensated", ["work", "undo"])
