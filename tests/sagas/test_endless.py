"""Processes without an end, events that come too late, and instances that go away."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.sagas.test_saga import Placed, Shipped, harness, journal, shop
from tidings import App, Context, NotFound, Refused, Saga, SagaDefinitionError
from tidings.testing import Harness


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("undoes", [True, False])
async def test_it_begins_anew_with_new_state_and_carries_on_what_is_to_be_undone(store_url: str, undoes: bool) -> None:
    app, log, keys = shop(store_url), list[str](), set[str]()

    def work(name: str, ctx: Context) -> str:
        log.append(name)
        keys.add(ctx.idempotency_key)
        return name

    def undo(name: str, result: str, ctx: Context) -> None:
        log.append(f"undo {name} {result}")
        if ctx.attempt == 1 and name == "1":
            raise ConnectionError("busy")

    def refuse() -> None:
        raise Refused("no")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        shipped = await saga.wait(Shipped)
        await saga.step(work, f"{order.total}", undo=undo if undoes else None)
        if shipped.by == "end":
            await saga.step(refuse)
        saga.restart(Placed(order_id=order.order_id, total=order.total + 1))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1, total=0))
        for number in range(3):
            await shops.publish(Shipped(order_id=1, by=str(number)))
            await shops.settle()
            if number == 1:
                await shops.crash()
                await shops.restart()
        assert (log, len(keys), shops.saga("checkout", 1).state) == (["0", "1", "2"], 3, "waiting")
        assert len(journal(shops)) == (9 if undoes else 0)
        await shops.publish(Shipped(order_id=1, by="end"))
        await shops.settle()
        await shops.advance(10)
        assert shops.saga("checkout", 1).state == "compensated"
        back = ["undo 3 3", "undo 2 2", "undo 1 1", "undo 1 1", "undo 0 0"] if undoes else []
        assert log[3:] == ["3", *back]


async def test_each_event_is_had_once_in_all_runs(store_url: str) -> None:
    app, had = shop(store_url), list[str]()

    def note(by: str) -> None:
        had.append(by)

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(note, (await saga.wait(Shipped)).by)
        saga.restart(order)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        for by in "ab":
            await shops.publish(Shipped(order_id=1, by=by))
        await shops.settle()
        (first, second) = [one for one in shops.log() if one.type == "shop.Shipped"]
        for event in (first, second):  # as after a crash of the subscription
            await_ = shops.store.write(lambda unit, event=event: unit.sagas().deliver("checkout", event, 1))  # type: ignore[misc]
            assert await_.result()
        await shops.advance(5)
        assert had == ["a", "b"]


@pytest.mark.parametrize("what", ["class", "key", "busy"])
async def test_bad_restarts(store_url: str, what: str) -> None:
    app = shop(store_url)

    def nothing() -> None: ...

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        import asyncio

        if what == "busy":
            task = asyncio.create_task(saga.sleep(100))
            await saga.step(nothing)
            assert not task.done()
        saga.restart(Shipped(order_id=1) if what == "class" else Placed(order_id=2 if what == "key" else 1))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert row.state == "parked"
        says = "restarts while it still awaits something else" if what == "busy" else "restarts with a shop.Placed of its own key 1"
        assert says in (row.error or "")


# -- too late


@pytest.mark.promise("nothing vanishes")
@pytest.mark.parametrize("policy", ["ignore", "dead", "sync", "async"])
async def test_what_comes_for_a_closed_saga_follows_the_policy(store_url: str, policy: str) -> None:
    app, handled = shop(store_url), list[Any]()

    def late(event: Shipped, ctx: Context) -> None:
        handled.append(event)

    async def too_late(event: Shipped, ctx: Context) -> None:
        handled.append(event)

    given: Any = {"sync": late, "async": too_late}.get(policy, policy)

    @app.saga(Placed, waits=[Shipped], late=given)
    async def checkout(order: Placed, saga: Saga) -> None: ...

    async with harness(app) as shops:
        await shops.publish(Shipped(order_id=1, by="nobody's yet"))
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        await shops.publish(Shipped(order_id=1, by="late"))
        await shops.settle()
        dead = shops.dead("checkout")
        assert [one.event.by for one in dead] == (["late"] if policy == "dead" else [])
        assert not dead or "checkout 1 is completed since before it came" in dead[0].error
        assert [one.by for one in handled] == (["late"] if "sync" in policy else [])


def test_a_policy_that_is_none(store_url: str) -> None:
    async def checkout(order: Any, saga: Saga) -> None: ...

    with pytest.raises(SagaDefinitionError, match='late=\'keep\' must be "ignore", "dead", or a function'):
        shop(store_url).saga(Placed, late="keep")(checkout)  # type: ignore[arg-type]


# -- going away


def rows(shops: Harness) -> list[str]:
    with shops.transaction() as conn:
        return [row[0] for row in conn.execute("SELECT state FROM tidings_sagas ORDER BY saga, key").fetchall()]


@pytest.mark.promise("bounded")
@pytest.mark.promise("effects once")
async def test_a_closed_saga_goes_away_and_its_start_event_read_again_begins_nothing(store_url: str) -> None:
    app = App("shop", store=store_url, retention=timedelta(days=1))
    charged: list[int] = []

    def charge(order_id: int) -> None:
        charged.append(order_id)

    @app.saga(Placed)
    async def parcel(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order.order_id)

    @app.saga(Shipped)
    async def checkout(shipped: Shipped, saga: Saga) -> None:
        await saga.child(parcel, Placed(order_id=shipped.order_id))
        await saga.sleep(timedelta(days=3))

    async with harness(app) as shops:
        assert app.sagas is not None
        await shops.publish(Placed(order_id=1))
        await shops.publish(Shipped(order_id=2))
        await shops.settle()
        assert await app.sagas.forget() == 0
        await shops.advance(timedelta(days=1, seconds=1))
        assert await app.sagas.forget() == 1
        assert rows(shops) == ["waiting", "gone", "completed"], "a child is kept until its parent is closed"
        assert journal(shops, saga="parcel") == []
        placed = shops.log()[0]
        assert not shops.store.write(lambda unit: unit.sagas().start("parcel", 1, "shop", placed, 1)).result()
        await app.start_saga(parcel, Placed(order_id=1), tx="own")
        await shops.settle()
        assert charged == [1, 2]
        with pytest.raises(NotFound, match="ended so long ago"):
            await app.saga_result(parcel, 1, within=5)
        assert [row.key for row in shops.store.query(lambda unit: unit.sagas().rows(None, (), 10))] == ["2", "2"]
        await shops.advance(timedelta(days=3))
        assert await app.sagas.forget() >= 1
        with shops.transaction() as conn:
            conn.execute("UPDATE tidings_meta SET value = '100' WHERE name = 'retained'")
        await shops.advance(timedelta(days=2))
        assert await app.sagas.forget() >= 1
        assert rows(shops).count("gone") <= 1
        await shops.advance(timedelta(days=2))
        await app.sagas.forget()
        assert rows(shops) == [], "tombstones go when the log has let go of their start"
