"""What operators do to instances, on both stores: by a clock that the test moves, and racing with a worker."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.running import until
from tests.sagas.asking import asks_for_tx
from tidings import ActionRefused, App, Context, Event, NotFound, Operator, Retry, Saga
from tidings.store.sagas import CLOSED, Action
from tidings.testing import Harness


class Placed(Event, key="order_id"):
    order_id: int


class Shipped(Event, key="order_id"):
    order_id: int
    parcel: str = "p1"


class Shop:
    """A saga of charge, reserve and a wait; ``down`` names what doesn't answer."""

    def __init__(self, url: str) -> None:
        self.app = App("shop", store=url)
        self.down: set[str] = set()
        self.did: list[str] = []
        self.got: list[Any] = []
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

        def done(name: str) -> None:
            if name in self.down:
                raise ConnectionError(f"no answer from {name}")
            self.did.append(name)

        async def charge(order_id: int) -> str:
            if self.gate is not None:
                self.entered.set()
                await self.gate.wait()
            done("charge")
            return "p1"

        def refund(order_id: int, result: str | None) -> None:
            self.got.append(result)
            done("refund")

        def reserve(order_id: int) -> None:
            done("reserve")

        def release(order_id: int) -> None:
            done("release")

        def send(parcel: str, payment: str) -> None:
            self.got.append((parcel, payment))
            done("send")

        @self.app.saga(Placed, waits=[Shipped])
        async def checkout(order: Placed, saga: Saga) -> None:
            payment = await saga.step(charge, order.order_id, undo=refund, retry=Retry(first=60, jitter=0))
            await saga.sleep(10)
            await saga.step(reserve, order.order_id, undo=release, retry=Retry(first=60, jitter=0))
            shipped = await saga.wait(Shipped, within=timedelta(days=3))
            await saga.step(send, shipped.parcel, payment)

        self.shops = Harness(self.app, store=url)

    @property
    def operator(self) -> Operator:
        return self.app.operator("ann")

    def state(self, key: int = 1) -> str:
        return self.shops.saga("checkout", key).state

    def actions(self) -> list[Action]:
        return self.shops.store.query(lambda unit: unit.sagas().actions("checkout", "1"))


@pytest.fixture
def shop(store_url: str) -> Shop:
    return Shop(store_url)


async def test_a_step_is_skipped_with_a_result_and_undone_with_it(shop: Shop) -> None:
    shop.down = {"charge"}
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        with pytest.raises(ActionRefused, match="no 'chrge' that could be skipped; there is 'charge'"):
            shop.operator.skip("checkout", 1, "chrge", reason="typo")
        shop.operator.skip("checkout", 1, "charge", "by hand", reason="paid at the counter")
        await shops.settle()
        assert shop.did == []
        shop.operator.skip("checkout", 1, "sleep", reason="nobody should wait")
        await shops.settle()
        assert shop.did == ["reserve"]
        with pytest.raises(ActionRefused, match="waits for an event there; `tidings saga supply`"):
            shop.operator.skip("checkout", 1, "shop.Shipped", reason="it came")
        shop.operator.cancel("checkout", 1, reason="changed her mind")
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, row.error) == ("cancelled", "cancelled by ann: changed her mind")
        assert (shop.did, shop.got) == (["reserve", "release", "refund"], ["by hand"])
        assert [(one.actor, one.action, one.reason, one.detail) for one in shop.actions()] == [
            ("ann", "skip", "paid at the counter", 'charge: "by hand"'), ("ann", "skip", "nobody should wait", "sleep"),
            ("ann", "cancel", "changed her mind", None),
        ]  # fmt: skip


async def test_a_result_that_does_not_fit_parks_it_and_is_given_again(shop: Shop) -> None:
    shop.down = {"charge"}
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        shop.operator.skip("checkout", 1, "charge", {"not": "a text"}, reason="guess")
        await shops.settle()
        assert shop.state() == "parked"
        shop.operator.skip("checkout", 1, "charge", "p7", reason="the right one")
        await shops.advance(11)
        assert (shop.state(), shop.did) == ("waiting", ["reserve"])


async def test_the_missing_event_is_supplied_to_the_instance_alone(shop: Shop) -> None:
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await shops.advance(11)
        before = len(shops.log())
        with pytest.raises(ActionRefused, match=r"waits for shop\.Shipped, not for shop\.Placed"):
            shop.operator.supply("checkout", Placed(order_id=1), reason="lost")
        shop.operator.supply("checkout", Shipped(order_id=1, parcel="p9"), reason="the carrier's mail was lost")
        await shops.settle()
        assert (shop.state(), shop.got, len(shops.log())) == ("completed", [("p9", "p1")], before)


async def test_compensate_undoes_and_a_stuck_undo_is_retried_or_skipped(shop: Shop) -> None:
    shop.down = {"release", "refund"}
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await shops.advance(11)
        shop.operator.compensate("checkout", 1, reason="the supplier is closed")
        await shops.advance(60)
        assert shop.state() == "stuck"
        for action in (shop.operator.cancel, shop.operator.compensate):
            with pytest.raises(ActionRefused, match="is being undone already"):
                action("checkout", 1, reason="now")
        shop.operator.skip("checkout", 1, "reserve", reason="put back by hand")
        await shops.settle()
        assert (shop.state(), shop.did) == ("compensating", ["charge", "reserve"])
        shop.down = set()
        shop.operator.retry("checkout", 1, reason="the bank is open")
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, row.error) == ("compensated", "compensated by ann: the supplier is closed")
        assert shop.did == ["charge", "reserve", "refund"]


async def test_what_is_paused_runs_nothing_keeps_events_and_goes_on_where_it_was(shop: Shop) -> None:
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        shop.operator.pause("checkout", 1, reason="the auditors are here")
        await shops.publish(Shipped(order_id=1))
        await shops.advance(3600)
        assert (shop.state(), shop.did) == ("paused", ["charge"])
        with pytest.raises(ActionRefused, match="is paused already"):
            shop.operator.pause("checkout", 1, reason="again")
        with pytest.raises(ActionRefused, match="is paused; `tidings saga resume`"):
            shop.operator.retry("checkout", 1, reason="again")
        await shops.crash()
        await shops.restart()
        await shops.settle()
        assert shop.state() == "paused"
        shop.operator.resume("checkout", 1, reason="they left")
        await shops.settle()
        assert (shop.state(), shop.did) == ("completed", ["charge", "reserve", "send"])


async def test_a_paused_one_that_is_cancelled_goes_back(shop: Shop) -> None:
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        shop.operator.pause("checkout", 1, reason="wait")
        shop.operator.cancel("checkout", 1, reason="no")
        await shops.settle()
        assert (shop.state(), shop.did) == ("cancelled", ["charge", "refund"])


async def test_one_that_is_paused_while_it_is_undone_stops_between_undos(shop: Shop) -> None:
    shop.down = {"release"}
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await shops.advance(11)
        shop.operator.compensate("checkout", 1, reason="no")
        await shops.settle()
        shop.down = set()
        shop.operator.pause("checkout", 1, reason="not now")
        await shops.advance(600)
        assert (shop.state(), shop.did) == ("paused", ["charge", "reserve"])
        shop.operator.resume("checkout", 1, reason="now")
        await shops.settle()
        assert (shop.state(), shop.did) == ("compensated", ["charge", "reserve", "release", "refund"])


@pytest.mark.parametrize("action", ["cancel", "pause"])
async def test_an_order_while_a_step_runs_counts_behind_it(shop: Shop, action: str) -> None:
    """And what can't be done meanwhile is refused by name."""
    shop.gate = asyncio.Event()
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await asyncio.wait_for(shop.entered.wait(), 5)
        with pytest.raises(ActionRefused, match=r"is being worked on by .*; look again in a moment"):
            shop.operator.retry("checkout", 1, reason="quick")
        with pytest.raises(ActionRefused, match=r"is being worked on by .*; look again in a moment"):
            shop.operator.skip("checkout", 1, "charge", reason="quick")
        getattr(shop.operator, action)("checkout", 1, reason="stop")
        shop.gate.set()
        await shops.settle()
        if action == "pause":
            assert (shop.state(), shop.did) == ("paused", ["charge"])
            shop.operator.resume("checkout", 1, reason="go")
            await shops.advance(11)
            assert shop.did == ["charge", "reserve"]
        else:
            assert (shop.state(), shop.did, shop.got) == ("cancelled", ["charge", "refund"], ["p1"])


async def test_a_worker_that_dies_while_it_is_turned_back_is_followed_by_one_that_goes_on_there(shop: Shop) -> None:
    """What the body would have called next is neither run nor undone."""
    shop.gate = asyncio.Event()
    async with shop.shops as shops:
        await shops.publish(Placed(order_id=1))
        await asyncio.wait_for(shop.entered.wait(), 5)
        shop.operator.cancel("checkout", 1, reason="stop")
        shop.down = {"refund"}
        shop.gate.set()
        await shops.settle()
        assert shop.state() == "compensating"
        await shops.crash()
        await shops.restart()
        shop.down = set()
        await shops.advance(10)
        assert (shop.state(), shop.did) == ("cancelled", ["charge", "refund"])


async def test_what_ended_behind_an_order_is_undone_and_leads_to_nothing(store_url: str) -> None:
    """Of two steps at once, one ends behind the order: its result is handed to nobody, by the next worker neither."""
    app, did, gates = App("shop", store=store_url), list[str](), {name: asyncio.Event() for name in ("quick", "slow")}
    down, entered = [True], set[str]()

    async def quick() -> None:
        entered.add("quick")
        await gates["quick"].wait()

    async def slow() -> None:
        entered.add("slow")
        await gates["slow"].wait()
        did.append("slow")

    def unslow() -> None:
        if down[0]:
            raise ConnectionError("no answer")
        did.append("unslow")

    def third() -> None:
        did.append("third")

    def unthird() -> None:
        did.append("unthird")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await asyncio.gather(saga.step(quick), saga.step(slow, undo=unslow))
        await saga.step(third, undo=unthird)

    def ordered() -> bool:
        journal = app.store.query(lambda unit: unit.sagas().journal("checkout", "1"))
        return any(entry.kind == "back" for entry in journal)

    async with Harness(app, store=store_url) as shops:
        await shops.publish(Placed(order_id=1))
        await until(lambda: len(entered) == 2)
        app.operator("ann").cancel("checkout", 1, reason="no")
        await until(lambda: app.sagas is not None and any(driver.asked for driver in app.sagas.drivers))
        gates["quick"].set()
        await until(ordered)
        gates["slow"].set()
        await shops.settle()
        assert shops.saga("checkout", 1).state == "compensating"
        await shops.crash()
        await shops.restart()
        down[0] = False
        await shops.advance(10)
        assert (shops.saga("checkout", 1).state, did) == ("cancelled", ["slow", "unslow"])


async def test_what_makes_no_sense_is_refused(shop: Shop) -> None:
    async with shop.shops as shops:
        with pytest.raises(NotFound, match="there is no saga 'checkout' of key '7'"):
            shop.operator.retry("checkout", 7, reason="x")
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        with pytest.raises(ActionRefused, match="is not paused: it is"):
            shop.operator.resume("checkout", 1, reason="x")
        with pytest.raises(ActionRefused, match="the reason is empty"):
            shop.operator.cancel("checkout", 1, reason=" ")
        with pytest.raises(ActionRefused, match="the actor's name is empty"):
            shop.app.operator(" ")
        await shops.publish(Shipped(order_id=1))
        await shops.advance(11)
        assert shop.state() == "completed"
        for name in ("retry", "pause", "resume", "compensate", "cancel"):
            with pytest.raises(ActionRefused, match="checkout 1 is completed"):
                getattr(shop.operator, name)("checkout", 1, reason="x")
        assert shop.actions() == []


@pytest.mark.promise("effects once")
async def test_orders_race_with_a_worker_and_what_was_accepted_holds(store_url: str) -> None:
    """Sagas of quick transactional steps while operators cancel, pause and resume at random: an accepted cancel never ends as completed,
    what was done is undone exactly once, and nothing is left over."""
    app, rng, mark = App("shop", store=store_url), random.Random(5), "?" if store_url.startswith("sqlite") else "%s"
    insert = f"INSERT INTO effects VALUES ({mark}, {mark})"

    def step(name: str) -> Any:
        @asks_for_tx(store_url)
        def did(key: int, tx: Any, ctx: Context) -> None:
            tx.execute(insert, (key, name))

        did.__name__ = name
        return did

    names = ("a", "b", "c")
    forward, back = [step(name) for name in names], [step(f"un{name}") for name in names]

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        for do, undo in zip(forward, back, strict=True):
            await saga.step(do, order.order_id, undo=undo)

    app.open()
    with app.store.transaction() as conn:
        (conn.execute if hasattr(conn, "execute") else conn.raw.execute)("CREATE TABLE effects (key integer, name text)")
    keys, wanted, refused = range(150), dict[int, str](), Counter[str]()
    operator = app.operator("ann")

    def act() -> None:
        while sum(one in CLOSED for one in states().values()) < len(keys) - 20:
            there = [key for key, state in states().items() if state not in CLOSED]
            if not there:
                continue
            key, action = rng.choice(there), rng.choice(("cancel", "compensate", "pause", "resume"))
            try:
                getattr(operator, action)("checkout", key, reason="race")
            except (ActionRefused, NotFound) as error:
                refused[type(error).__name__] += 1
            else:
                if action in ("cancel", "compensate"):
                    wanted[key] = {"cancel": "cancelled", "compensate": "compensated"}[action]

    def states() -> dict[int, str]:
        return {int(row.key): row.state for row in app.store.query(lambda unit: unit.sagas().rows(None, (), 1000))}

    async with app:
        acting = asyncio.get_running_loop().run_in_executor(None, act)
        for key in keys:
            await app.publish(Placed(order_id=key), tx="own")
        await acting

        def closed() -> bool:
            found = states()
            for key, state in found.items():
                if state == "paused":
                    operator.resume("checkout", key, reason="end")
            return len(found) == len(keys) and all(state in CLOSED for state in found.values())

        await until(closed, 30)
        ends = states()
    assert {key: ends[key] for key in wanted} == wanted
    assert {state for key, state in ends.items() if key not in wanted} <= {"completed"}
    app.open()
    with app.store.transaction() as conn:
        rows = (conn.execute if hasattr(conn, "execute") else conn.raw.execute)("SELECT key, name FROM effects").fetchall()
    app.close()
    effects = Counter((int(key), name) for key, name in rows)
    assert set(effects.values()) == {1}
    for key, end in ends.items():
        for name in names:
            did, undid = effects[key, name], effects[key, f"un{name}"]
            assert (did, undid) == (1, 0) if end == "completed" else undid >= did
    assert len(wanted) > 10
    assert set(ends.values()) == {"completed", "compensated", "cancelled"}


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (0, "checkout 1 has nothing that is to be tried again: it waits for its sleep to end (`tidings saga skip … sleep` ends it)"),
        (11, "checkout 1 has nothing that is to be tried again: it waits for shop.Shipped (`tidings saga supply` hands it the event)"),
    ],
    ids=["sleep", "wait"],
)
async def test_what_fails_at_nothing_is_not_tried_again(shop: Shop, after: int, why: str) -> None:
    async with shop.shops:
        await shop.shops.publish(Placed(order_id=1))
        await shop.shops.advance(after)
        with pytest.raises(ActionRefused) as refused:
            shop.operator.retry("checkout", 1, reason="it does nothing")
        assert str(refused.value) == why
        assert shop.actions() == []


async def test_an_event_is_supplied_and_not_skipped_by_its_short_name_either(shop: Shop) -> None:
    async with shop.shops:
        await shop.shops.publish(Placed(order_id=1))
        await shop.shops.advance(11)
        for name in ("Shipped", "shop.Shipped"):
            with pytest.raises(ActionRefused, match="checkout 1 waits for an event there; `tidings saga supply` supplies it"):
                shop.operator.skip("checkout", 1, name, reason="it is here")
