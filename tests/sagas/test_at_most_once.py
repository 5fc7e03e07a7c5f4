"""Steps that are never called again by themselves, pivots, and undos side by side."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.sagas.test_saga import ONCE, Placed, Shipped, harness, journal, shop
from tidings import Context, NotDone, Refused, Retry, Saga, StepFailed


class Bank:
    """The world outside. ``dies``: the worker does, before or behind the booking."""

    def __init__(self, dies: str) -> None:
        self.dies = dies
        self.booked: list[str] = []
        self.calls = 0
        self.asked = 0
        self.dying = asyncio.Event()

    async def pay(self, order_id: int, ctx: Context) -> str:
        self.calls += 1
        if self.dies == "before" and self.calls == 1:
            self.dying.set()
            await asyncio.Event().wait()
        self.booked.append(ctx.idempotency_key)
        if self.dies == "behind":
            self.dying.set()
            await asyncio.Event().wait()
        if self.dies == "error":
            raise ConnectionError("no answer")
        return "paid"


@pytest.mark.promise("effects once")
@pytest.mark.promise("death at any instruction")
@pytest.mark.parametrize("dies", ["before", "behind", "never", "error"])
@pytest.mark.parametrize("finds", [True, False])
async def test_it_is_called_once_and_what_nobody_knows_is_found_out_or_parked(store_url: str, dies: str, finds: bool) -> None:
    app, bank, ended = shop(store_url), Bank(dies), list[str]()

    async def pay(order_id: int, ctx: Context) -> str:
        return await bank.pay(order_id, ctx)

    async def look(order_id: int, ctx: Context) -> str:
        bank.asked += 1
        if bank.asked == 1:
            raise ConnectionError("busy")
        if ctx.idempotency_key not in bank.booked:
            raise NotDone("no booking")
        return "paid all the same"

    def end(how: str) -> None:
        ended.append(how)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        try:
            how = await saga.step(pay, order.order_id, at_most_once=True, reconcile=look if finds else None)
        except StepFailed:
            how = "failed"
        await saga.step(end, how)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        if dies in ("before", "behind"):
            await bank.dying.wait()
            assert [one.state for one in journal(shops)] == ["begun"]
            await shops.crash()
            await shops.restart()
        await shops.settle()
        row = shops.saga("checkout", 1)
        if dies != "never" and finds:
            assert (row.state, row.error, ended) == ("waiting", "ConnectionError: busy", [])
            await shops.advance(60)
            assert ended == ["paid" if dies == "before" else "paid all the same"]
        elif dies == "never":
            assert ended == ["paid"]
        elif dies == "error":
            assert ended == ["failed"]
        else:
            assert row.state == "parked"
            assert "pay is tried once at most and was cut off, so nobody knows whether it happened" in (row.error or "")
            await shops.crash()
            await shops.restart()
            assert (shops.saga("checkout", 1).state, ended) == ("parked", [])
        assert bank.calls == (2 if dies == "before" and finds else 1)
        assert len(bank.booked) == (0 if dies == "before" and not finds else 1)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"at_most_once": True, "retry": ONCE}, "at_most_once=True is for a step without a transaction"),
        ({"reconcile": print}, "reconcile= goes with at_most_once=True"),
    ],
)
async def test_what_does_not_go_together(store_url: str, facts: dict[str, Any], says: str) -> None:
    app = shop(store_url)

    def pay(order_id: int) -> None: ...

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(pay, order.order_id, **facts)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert says in (shops.saga("checkout", 1).error or "")


# -- forward only


@pytest.mark.parametrize("how", ["error", "refused", "late"])
async def test_behind_its_pivot_it_only_goes_forward(store_url: str, how: str) -> None:
    app, undone, broken, attempts = shop(store_url), list[str](), [True], list[int]()

    def charge() -> None: ...

    def refund() -> None:
        undone.append("refund")

    def send(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if broken[0] and how == "error":
            raise ConnectionError("no answer")
        if broken[0] and how == "refused":
            raise Refused("no")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, undo=refund)
        await saga.pivot()
        if how == "late" and broken[0]:
            await saga.wait(Shipped, within=5)
        await saga.step(send, retry=Retry(attempts=2, first=1, jitter=0))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.advance(3600)
        row = shops.saga("checkout", 1)
        assert undone == []
        if how == "error":
            assert row.state == "waiting"
            assert len(attempts) > 10
        else:
            assert row.state == "parked"
            assert "behind its pivot, where a saga only goes forward" in (row.error or "")
        broken[0] = False
        if how == "error":
            await shops.advance(600)
            assert (shops.saga("checkout", 1).state, undone) == ("completed", [])


async def test_before_its_pivot_it_goes_back(store_url: str) -> None:
    app, undone = shop(store_url), list[str]()

    def charge() -> None: ...

    def refund() -> None:
        undone.append("refund")

    def refuse() -> None:
        raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, undo=refund)
        await saga.step(refuse)
        await saga.pivot()

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, undone) == ("compensated", ["refund"])


# -- undos side by side


async def test_a_groups_undos_run_side_by_side_and_the_others_wait_for_all(store_url: str) -> None:
    app, log, both, broken = shop(store_url), list[str](), asyncio.Barrier(2), [True]

    def work(name: str) -> None: ...

    async def undo(name: str) -> None:
        log.append(f"undo {name}")
        if name in ("b", "c"):
            await both.wait()
        if name == "c" and broken[0]:
            raise ConnectionError("no")

    async def alone(name: str) -> None:
        log.append(f"undo {name}")

    def refuse() -> None:
        raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(work, "a", undo=alone)
        await saga.step(work, "b", undo=undo, undo_group="stock")
        await saga.step(work, "d", undo=alone)
        await saga.step(work, "c", undo=undo, undo_group="stock")
        await saga.step(refuse)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert sorted(log) == ["undo b", "undo c"]
        assert shops.saga("checkout", 1).state == "compensating"
        broken[0], both = False, asyncio.Barrier(1)
        await shops.advance(10)
        assert log[2:] == ["undo c", "undo d", "undo a"]
        assert shops.saga("checkout", 1).state == "compensated"
