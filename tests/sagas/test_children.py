"""Sagas that are steps of others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.running import until
from tests.sagas.test_saga import Placed, Shipped, harness, shop
from tidings import App, ChildFailed, Event, Refused, Saga


class Wanted(Event, key="parcel_id"):
    parcel_id: str
    fails: bool = False


class PickedUp(Event, key="parcel_id"):
    parcel_id: str


class World:
    """What was done and undone, in its order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.broken = False
        self.pivots = False

    def app(self, url: str, *, waits: bool = False) -> App:
        app = shop(url)

        def work(name: str) -> str:
            self.log.append(name)
            return name

        def undo(name: str) -> None:
            if self.broken:
                raise ConnectionError("no answer")
            self.log.append(f"undo {name}")

        def refuse() -> None:
            raise Refused("no")

        self.work, self.undo, self.refuse = work, undo, refuse

        @app.saga(Wanted, waits=[PickedUp])
        async def parcel(wanted: Wanted, saga: Saga) -> str:
            await saga.step(work, "book", undo=undo)
            await saga.step(work, "label", undo=undo)
            if waits:
                await saga.wait(PickedUp)
            if self.pivots:
                await saga.pivot()
            if wanted.fails:
                await saga.step(refuse)
            return f"label of {wanted.parcel_id}"

        self.parcel = parcel
        return app


@pytest.mark.promise("death at any instruction")
@pytest.mark.parametrize("crashes", [False, True])
async def test_a_parent_waits_for_its_child_and_has_its_result(store_url: str, crashes: bool) -> None:
    world = World()
    app, got = world.app(store_url, waits=True), list[Any]()

    def note(label: str) -> None:
        got.append(label)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(note, await saga.child(world.parcel, Wanted(parcel_id=f"p{order.order_id}")))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row, child = shops.saga("checkout", 1), shops.saga("parcel", "p1")
        assert (row.state, '"for":"the child parcel p1"' in (row.waits or ""), child.state) == ("waiting", True, "waiting")
        assert child.parent == ("checkout", "1")
        assert child.envelope.correlation_id == row.envelope.correlation_id
        if crashes:
            await shops.crash()
            await shops.restart()
        await shops.publish(PickedUp(parcel_id="p1"))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == ("completed", "completed")
        assert (got, world.log) == (["label of p1"], ["book", "label"])


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("crashes", [False, True])
async def test_a_completed_child_is_undone_through_its_own_steps_in_its_place(store_url: str, crashes: bool) -> None:
    world = World()
    app = world.app(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(world.work, "charge", undo=world.undo)
        await saga.child(world.parcel, Wanted(parcel_id="p1"))
        await saga.step(world.work, "reserve", undo=world.undo)
        await saga.sleep(10)
        await saga.step(world.refuse)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert shops.saga("parcel", "p1").state == "completed"
        world.broken = crashes
        await shops.advance(11)
        if crashes:
            world.broken = False
            await shops.crash()
            await shops.restart()
            await shops.advance(60)
        assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == ("compensated", "compensated")
        assert world.log == ["charge", "book", "label", "reserve", "undo reserve", "undo label", "undo book", "undo charge"]


@pytest.mark.parametrize("caught", [False, True])
async def test_a_child_that_was_undone_by_itself_is_a_failure_that_can_be_caught(store_url: str, caught: bool) -> None:
    world = World()
    app = world.app(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> str:
        await saga.step(world.work, "charge", undo=world.undo)
        try:
            return str(await saga.child("parcel", Wanted(parcel_id="p1", fails=True)))
        except ChildFailed as error:
            if not caught:
                raise
            return str(error)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert world.log == ["charge", "book", "label", "undo label", "undo book", *([] if caught else ["undo charge"])]
        if caught:
            assert await app.saga_result("checkout", 1, within=5) == "the child parcel p1: compensated: Refused: no"
        else:
            assert (row.state, row.error) == ("compensated", "ChildFailed: the child parcel p1: compensated: Refused: no")


async def test_a_child_that_still_runs_is_undone_where_it_stands(store_url: str) -> None:
    world = World()
    app, go_on = world.app(store_url, waits=True), asyncio.Event()

    async def refuse_later() -> None:
        await go_on.wait()
        raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await asyncio.gather(saga.child(world.parcel, Wanted(parcel_id="p1")), saga.step(refuse_later))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        while len(world.log) < 2:
            await asyncio.sleep(0.005)
        go_on.set()
        await shops.settle()
        assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == ("compensated", "compensated")
        assert world.log == ["book", "label", "undo label", "undo book"]
        await shops.publish(PickedUp(parcel_id="p1"))
        await shops.settle()
        assert shops.saga("parcel", "p1").state == "compensated"


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("way", ["parent fails", "operator"])
async def test_a_child_at_a_long_step_hears_that_it_is_to_be_undone(store_url: str, way: str) -> None:
    """As of an operator's order: it begins nothing behind that step, and is undone."""
    app, entered, go_on, fail = shop(store_url), asyncio.Event(), asyncio.Event(), asyncio.Event()
    log = list[str]()

    async def long(name: str) -> None:
        entered.set()
        await go_on.wait()
        log.append(name)

    def work(name: str) -> None:
        log.append(name)

    def undo(name: str) -> None:
        log.append(f"undo {name}")

    async def refuse() -> None:
        await fail.wait()
        raise Refused("no")

    @app.saga(Wanted)
    async def parcel(wanted: Wanted, saga: Saga) -> None:
        await saga.step(long, "print", undo=undo)
        await saga.step(work, "label", undo=undo)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        child = saga.child(parcel, Wanted(parcel_id="p1"))
        await (child if way == "operator" else asyncio.gather(child, saga.step(refuse)))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await asyncio.wait_for(entered.wait(), 10)
        if way == "operator":
            app.operator("ann").cancel("checkout", 1, reason="the customer has gone")
        fail.set()
        await until(lambda: shops.saga("parcel", "p1").undo is not None)
        await until(lambda: app.sagas is not None and any(one.asked and one.row.saga == "parcel" for one in app.sagas.drivers))
        go_on.set()
        await shops.settle()
        assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == (
            "cancelled" if way == "operator" else "compensated", "compensated",
        )  # fmt: skip
        assert log == ["print", "undo label", "undo print"]  # the body has called for the label, which nobody began


async def test_a_child_that_is_asleep_is_undone_at_once(store_url: str) -> None:
    world = World()
    app = world.app(store_url)

    @app.saga(Placed, name="nap")
    async def nap(order: Placed, saga: Saga) -> None:
        await saga.step(world.work, "nap", undo=world.undo)
        await saga.sleep(86_400)

    @app.saga(Shipped)
    async def checkout(order: Shipped, saga: Saga) -> None:
        await asyncio.gather(saga.child(nap, Placed(order_id=1)), fails(saga))

    async def fails(saga: Saga) -> None:
        await saga.sleep(10)
        await saga.step(world.refuse)

    async with harness(app) as shops:
        await shops.publish(Shipped(order_id=1))
        await shops.advance(11)
        assert (shops.saga("checkout", 1).state, shops.saga("nap", 1).state) == ("compensated", "compensated")
        assert world.log == ["nap", "undo nap"]


async def test_an_instance_that_is_nobodys_child_stays_what_it_is(store_url: str) -> None:
    world = World()
    app = world.app(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.child(world.parcel, Wanted(parcel_id="p1"))

    async with harness(app) as shops:
        await shops.publish(Wanted(parcel_id="p1"))
        await shops.settle()
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, shops.saga("parcel", "p1").state) == ("compensated", "completed")
        assert "there is an instance of its key that isn't this one's child" in (row.error or "")
        assert world.log == ["book", "label"]


@pytest.mark.parametrize("why", ["stuck", "parked"])
async def test_a_parent_is_never_called_compensated_when_its_child_is_not(store_url: str, why: str) -> None:
    world = World()
    world.pivots = why == "parked"
    app = world.app(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.child(world.parcel, Wanted(parcel_id="p1"))
        await saga.step(world.refuse)

    world.broken = True
    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        await shops.advance(600)
        assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == ("compensating", why)
        if why == "stuck":
            world.broken = False
            await shops.advance(600)
            assert (shops.saga("checkout", 1).state, shops.saga("parcel", "p1").state) == ("compensated", "compensated")
        else:
            assert "its parent checkout 1 is undone, but it is behind its pivot" in (shops.saga("parcel", "p1").error or "")


async def test_no_such_child(store_url: str) -> None:
    world = World()
    app = world.app(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        if order.order_id == 1:
            await saga.child("nothing", Wanted(parcel_id="p1"))
        await saga.child(world.parcel, Shipped(order_id=1))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.publish(Placed(order_id=2))
        await shops.settle()
        assert "this app has no saga 'nothing' that could be a child" in (shops.saga("checkout", 1).error or "")
        assert "is started by shop.Wanted, not by Shipped" in (shops.saga("checkout", 2).error or "")
