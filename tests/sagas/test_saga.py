"""What sagas do, on both stores, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.sagas.asking import asks_for_tx
from tidings import (
    App,
    Context,
    Event,
    NotFound,
    NotInTime,
    Refused,
    Retry,
    Saga,
    SagaDefinitionError,
    SagaError,
    StepFailed,
)
from tidings.sagas.step import UNKNOWN
from tidings.store.sagas import Entry
from tidings.testing import Harness


class Placed(Event, key="order_id"):
    order_id: int
    total: int = 10


class Shipped(Event, key="order_id"):
    order_id: int
    by: str = "ship"


class Cancelled(Event, key="order_id"):
    order_id: int


class Paid(Event, key="order_id"):
    order_id: int


class Registered(Event, key="customer_id"):
    customer_id: int


ONCE = Retry(attempts=1)
TWICE = Retry(attempts=2, first=10, jitter=0)


def shop(url: str) -> App:
    return App("shop", store=url)


def harness(app: App) -> Harness:
    return Harness(app, store=app.store.url)


def journal(harness: Harness, key: int = 1, saga: str = "checkout") -> list[Entry]:
    return harness.store.query(lambda unit: unit.sagas().journal(saga, str(key)))


def table(harness: Harness) -> None:
    with harness.transaction() as conn:
        conn.execute("CREATE TABLE payments (id integer)")


def payments(harness: Harness) -> list[int]:
    with harness.transaction() as conn:
        return [row[0] for row in conn.execute("SELECT id FROM payments ORDER BY id").fetchall()]


@pytest.mark.promise("effects once")
async def test_it_runs_once_for_each_key_and_its_results_are_handed_on(store_url: str) -> None:
    app, mark, sent = shop(store_url), "?" if store_url.startswith("sqlite") else "%s", list[Any]()

    @asks_for_tx(store_url)
    def charge(order: Placed, tx: Any, ctx: Context) -> dict[str, int]:
        tx.execute(f"INSERT INTO payments VALUES ({mark})", (order.order_id,))
        ctx.publish(Paid(order_id=order.order_id))
        return {"amount": order.total}

    async def send(order: Placed, payment: dict[str, int]) -> None:
        sent.append((order.order_id, payment))

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        payment = await saga.step(charge, order)
        await saga.step(send, order, payment)

    async with harness(app) as shops:
        table(shops)
        await shops.publish(Placed(order_id=1))
        await shops.publish(Placed(order_id=1, total=99))
        await shops.publish(Placed(order_id=2))
        await shops.settle()
        assert shops.saga("checkout", 1).state == shops.saga("checkout", 2).state == "completed"
        assert sorted(sent) == [(1, {"amount": 10}), (2, {"amount": 10})]
        assert payments(shops) == [1, 2]
        (paid, _) = [envelope for envelope in shops.log() if envelope.type == "shop.Paid"]
        (placed, *_) = [envelope for envelope in shops.log() if envelope.key == paid.key]
        assert (paid.correlation_id, paid.causation_id) == (placed.correlation_id, placed.event_id)


@pytest.mark.promise("atomic publish")
async def test_a_step_that_fails_in_its_transaction_leaves_nothing(store_url: str) -> None:
    app, mark, attempts = shop(store_url), "?" if store_url.startswith("sqlite") else "%s", list[int]()

    @asks_for_tx(store_url)
    def charge(order: Placed, tx: Any, ctx: Context) -> None:
        tx.execute(f"INSERT INTO payments VALUES ({mark})", (order.order_id,))
        ctx.publish(Paid(order_id=order.order_id))
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("not yet")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order, retry=TWICE)

    async with harness(app) as shops:
        table(shops)
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, row.error) == ("waiting", "ValueError: not yet")
        assert (payments(shops), shops.published(Paid)) == ([], [])
        await shops.advance(10)
        assert shops.saga("checkout", 1).state == "completed"
        assert (payments(shops), shops.published(Paid), attempts) == ([1], [Paid(order_id=1)], [1, 2])


async def test_a_step_that_ends_its_transaction_gets_an_error_and_counts_as_not_done(store_url: str) -> None:
    app, mark = shop(store_url), "?" if store_url.startswith("sqlite") else "%s"

    @asks_for_tx(store_url)
    def charge(order: Placed, tx: Any) -> None:
        tx.execute(f"INSERT INTO payments VALUES ({mark})", (order.order_id,))
        tx.commit()

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order, retry=ONCE)

    async with harness(app) as shops:
        table(shops)
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert payments(shops) == []
        assert [(one.state, (one.error or "")[:16]) for one in journal(shops)] == [("failed", "TransactionEnded")]
        assert shops.saga("checkout", 1).state == "compensated"


async def test_what_succeeded_or_is_unknown_is_undone_last_first_and_a_refusal_is_not(store_url: str) -> None:
    app, undone, errors = shop(store_url), list[Any](), list[str]()

    def first(order: Placed) -> int:
        return 1

    def unknown(order: Placed) -> int:
        raise ConnectionError("no answer")

    def refused(order: Placed) -> int:
        raise Refused("no stock")

    def undo_first(order: Placed, result: object) -> None:
        undone.append(("first", result))

    def undo_unknown(order: Placed, result: object) -> None:
        undone.append(("unknown", result))

    def undo_refused(order: Placed) -> None:
        undone.append("refused")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(first, order, undo=undo_first)
        try:
            await saga.step(unknown, order, undo=undo_unknown, retry=ONCE)
        except StepFailed as error:
            errors.append(str(error))
        await saga.step(refused, order, undo=undo_refused)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert (row.state, row.error) == ("compensated", "Refused: no stock")
        assert undone == [("unknown", UNKNOWN), ("first", 1)]
        assert errors == ["unknown failed after 1 attempts: ConnectionError: no answer"]
        assert [(one.kind, one.step, one.state) for one in journal(shops)][-2:] == [("undo", "unknown", "done"), ("undo", "first", "done")]


async def test_a_refusal_can_be_caught_and_gone_round(store_url: str) -> None:
    app = shop(store_url)

    def by_air(order: Placed) -> str:
        raise Refused("too heavy")

    def by_ship(order: Placed, why: str) -> str:
        return f"ship: {why}"

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        try:
            await saga.step(by_air, order)
        except Refused as error:
            await saga.step(by_ship, order, str(error))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert shops.saga("checkout", 1).state == "completed"
        assert [(one.step, one.state, one.attempts) for one in journal(shops)] == [("by_air", "refused", 1), ("by_ship", "done", 1)]
        assert journal(shops)[1].result == '"ship: too heavy"'


async def test_an_undo_that_fails_is_stuck_after_five_times_goes_on_and_is_never_called_compensated(store_url: str) -> None:
    app, broken = shop(store_url), [True]

    def charge(order: Placed) -> None: ...

    def refund(order: Placed, ctx: Context) -> None:
        if broken[0]:
            raise ConnectionError("bank closed")

    def refuse(order: Placed) -> None:
        raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order, undo=refund)
        await saga.step(refuse, order)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert shops.saga("checkout", 1).state == "compensating"
        await shops.advance(60)
        row = shops.saga("checkout", 1)
        assert row.state == "stuck"
        assert '"for":"undo refund"' in (row.waits or "")
        await shops.advance(3600)
        assert shops.saga("checkout", 1).state == "stuck"
        broken[0] = False
        app.operator("me").retry("checkout", row.key, reason="bank open")
        await shops.settle()
        assert shops.saga("checkout", 1).state == "compensated"
        (action,) = shops.store.query(lambda unit: unit.sagas().actions("checkout", "1"))
        assert (action.actor, action.action, action.reason) == ("me", "retry", "bank open")


async def test_an_undo_with_attempts_of_its_own_waits_for_a_person_when_they_are_used_up(store_url: str) -> None:
    """Also while another undo of its group is tried again beside it."""
    app, tries, others = shop(store_url), list[int](), list[int]()

    def charge(order: Placed) -> None: ...

    def release(order: Placed, ctx: Context) -> None:
        others.append(ctx.attempt)
        if len(others) < 8:
            raise ConnectionError("nobody there")

    def refund(order: Placed, ctx: Context) -> None:
        tries.append(ctx.attempt)
        if ctx.attempt < 4:
            raise ConnectionError("bank closed")

    def refuse(order: Placed) -> None:
        raise Refused("no")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order, undo=refund, undo_retry=TWICE, undo_group="all")
        await saga.step(charge, order, undo=release, undo_group="all")
        await saga.step(refuse, order)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, tries) == ("compensating", [1])
        await shops.advance(10)
        assert (shops.saga("checkout", 1).state, tries) == ("stuck", [1, 2])
        await shops.crash()
        await shops.restart()
        await shops.advance(86_400)
        row = shops.saga("checkout", 1)
        assert (row.state, row.due, tries) == ("stuck", None, [1, 2])
        assert len(others) == 8
        app.operator("me").retry("checkout", 1, reason="bank open")
        await shops.settle()
        assert (shops.saga("checkout", 1).state, tries) == ("stuck", [1, 2, 3])
        app.operator("me").retry("checkout", 1, reason="now it is")
        await shops.settle()
        assert (shops.saga("checkout", 1).state, tries) == ("compensated", [1, 2, 3, 4])


async def test_sleeping_survives_a_crash_and_ends_when_it_should(store_url: str) -> None:
    app, woken = shop(store_url), list[float]()

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.sleep(timedelta(days=3))
        await saga.step(wake, saga.now())

    def wake(at: datetime) -> None:
        woken.append(at.timestamp())

    async with harness(app) as shops:
        began = shops.clock.time()
        await shops.publish(Placed(order_id=1))
        await shops.advance(timedelta(days=1))
        await shops.crash()
        await shops.restart()
        await shops.advance(timedelta(days=1, hours=23))
        assert woken == []
        await shops.advance(timedelta(hours=1))
        assert len(woken) == 1
        assert 0 <= woken[0] - began - 3 * 86_400 < 0.1


async def test_an_event_is_waited_for_also_if_it_came_before_and_each_is_had_once(store_url: str) -> None:
    app, got = shop(store_url), list[Any]()

    def note(*events: Shipped) -> None:
        got.append(events)

    @app.saga(Placed, waits=[Shipped, Cancelled])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.sleep(10)
        first = await saga.wait(Shipped)
        second = await saga.wait(Shipped, Cancelled, within=60)
        await saga.step(note, first, second)
        try:
            await saga.wait(Shipped, within=60)
        except NotInTime:
            await saga.step(note)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        await shops.publish(Shipped(order_id=1, by="a"))
        await shops.publish(Shipped(order_id=2, by="another order's"))
        await shops.settle()
        await shops.advance(11)
        row = shops.saga("checkout", 1)
        assert (row.state, '"for":"shop.Shipped | shop.Cancelled"' in (row.waits or "")) == ("waiting", True)
        await shops.publish(Shipped(order_id=1, by="b"))
        await shops.settle()
        assert got == [(Shipped(order_id=1, by="a"), Shipped(order_id=1, by="b"))]
        await shops.advance(59)
        assert shops.saga("checkout", 1).state == "waiting"
        await shops.advance(2)
        assert got[1:] == [()]
        assert shops.saga("checkout", 1).state == "completed"
        await shops.publish(Shipped(order_id=1, by="late"))
        await shops.settle()
        assert shops.dead("checkout") == []


async def test_parallel_steps_and_chance_are_the_same_whoever_goes_on(store_url: str) -> None:
    """Same-named steps in two branches end in the other order than they began, the worker dies, and the results stay where they belong."""
    app, got, going = shop(store_url), list[Any](), {"a": asyncio.Event(), "b": asyncio.Event()}
    chances: list[Any] = []

    async def ask(supplier: str) -> str:
        await going[supplier].wait()
        return f"from {supplier}"

    def note(what: list[Any]) -> None:
        got.append(what)

    async def branch(saga: Saga, supplier: str) -> list[Any]:
        first = await saga.step(ask, supplier)
        await saga.sleep(10)
        return [supplier, first]

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        chances.append((saga.random(), saga.uuid()))
        found = await asyncio.gather(branch(saga, "a"), branch(saga, "b"))
        await saga.step(note, list(found))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        while shops.store.query(lambda unit: unit.sagas().row("checkout", "1")) is None:
            await asyncio.sleep(0.005)
        going["b"].set()
        while not journal(shops):
            await asyncio.sleep(0.005)
        going["a"].set()
        await shops.settle()
        assert [(one.branch, one.result) for one in journal(shops)] == [("0.2", '"from b"'), ("0.1", '"from a"')]
        await shops.crash()
        await shops.restart()
        await shops.advance(20)
        assert got == [[["a", "from a"], ["b", "from b"]]]
        assert len(chances) > 1
        assert len(set(chances)) == 1
        assert isinstance(chances[0][1], uuid.UUID)


async def test_a_sibling_of_what_failed_ends_before_anything_is_undone(store_url: str) -> None:
    app, order_of, go_on = shop(store_url), list[str](), asyncio.Event()

    async def slow(order: Placed) -> None:
        await go_on.wait()
        order_of.append("slow ended")

    def undo_slow(order: Placed) -> None:
        order_of.append("slow undone")

    def quick(order: Placed) -> None:
        order_of.append("quick refused")
        raise Refused("no")

    async def branch(order: Placed, saga: Saga) -> None:
        await saga.step(slow, order, undo=undo_slow)
        await saga.step(quick, order)  # never comes to this

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await asyncio.gather(branch(order, saga), saga.step(quick, order))

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        while not journal(shops):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # time enough to undo what must not be undone yet
        assert order_of == ["quick refused"]
        go_on.set()
        await shops.settle()
        assert order_of == ["quick refused", "slow ended", "slow undone"]
        assert shops.saga("checkout", 1).state == "compensated"


async def test_a_time_out_is_an_attempt_with_an_unknown_outcome(store_url: str) -> None:
    app, undone = shop(store_url), list[object]()

    async def hangs(order: Placed) -> None:
        await asyncio.Event().wait()

    def undo(order: Placed, result: object) -> None:
        undone.append(result)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(hangs, order, undo=undo, retry=ONCE, timeout=0.02)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert shops.saga("checkout", 1).state == "compensated"
        assert undone == [UNKNOWN]
        assert "hangs ran for longer than 0.02 s" in (journal(shops)[0].error or "")


async def test_two_versions_stand_side_by_side(store_url: str) -> None:
    app, ended = shop(store_url), list[str]()

    def note(what: str) -> None:
        ended.append(what)

    @app.saga(Placed, name="checkout")
    async def old(order: Placed, saga: Saga) -> None:
        await saga.sleep(100)
        await saga.step(note, f"old {order.order_id}")

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()

        @app.saga(Placed, name="checkout", version=2)
        async def new(order: Placed, saga: Saga) -> None:
            await saga.step(note, f"new {order.order_id}")

        await shops.crash()
        await shops.restart()
        await shops.publish(Placed(order_id=2))
        await shops.advance(200)
        assert ended == ["new 2", "old 1"]


# -- code that doesn't fit


async def parked(app: App) -> str:
    """Why an instance is parked."""
    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        row = shops.saga("checkout", 1)
        assert row.state == "parked", row
        return row.error or ""


def nothing(*args: object) -> None: ...


async def test_code_that_does_not_fit_the_journal_is_parked_by_name_and_goes_on_once_mended(store_url: str) -> None:
    app, which, ended = shop(store_url), ["charge"], list[str]()

    def charge(order: Placed) -> int:
        return 1

    def bill(order: Placed) -> int:
        ended.append("billed")
        return 2

    def end(result: int) -> None:
        ended.append(f"ended {result}")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        result = await saga.step(charge if which[0] == "charge" else bill, order)
        await saga.sleep(10)
        await saga.step(end, result)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        which[0] = "bill"
        await shops.advance(20)
        row = shops.saga("checkout", 1)
        assert row.state == "parked"
        assert "the journal says that the body called charge here, and now it calls bill" in (row.error or "")
        assert f"{__file__}:" in (row.error or "")
        await shops.advance(3600)
        assert ended == []
        which[0] = "charge"
        await shops.crash()
        await shops.restart()
        await shops.settle()
        assert (shops.saga("checkout", 1).state, ended) == ("completed", ["ended 1"])


async def test_other_arguments_than_before_are_no_fit(store_url: str) -> None:
    app, total = shop(store_url), [1]

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(nothing, total[0])
        total[0] += 1
        await saga.sleep(1)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.advance(2)
        row = shops.saga("checkout", 1)
        assert row.state == "parked"
        assert "nothing is called with other arguments" in (row.error or "")


@pytest.mark.parametrize("what", ["sleep", "timeout", "thread", "future"])
async def test_awaiting_anything_else_names_the_line(store_url: str, what: str) -> None:
    app = shop(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        if what == "sleep":
            await asyncio.sleep(1)
        elif what == "timeout":
            async with asyncio.timeout(1):
                await saga.step(nothing)
        elif what == "thread":
            await asyncio.to_thread(nothing)
        else:
            await asyncio.Event().wait()

    error = await parked(app)
    assert f"{__file__}:" in error
    assert "saga.step, saga.sleep, saga.wait" in error


# -- bad input


def takes_one(order: Placed) -> None: ...
def takes_two(order: Placed, more: int) -> None: ...
def returns_a_socket(order: Placed) -> Any:
    return object()


def returns_much(order: Placed) -> str:
    return "x" * 1024 * 1024


async def use(saga: Saga, order: Placed, what: str) -> None:
    match what:
        case "argument":
            await saga.step(nothing, object())
        case "lambda":
            await saga.step(takes_one, order, undo=lambda order: None)
        case "undo":
            await saga.step(takes_one, order, undo=takes_two)
        case "timeout":
            await saga.step(takes_one, order, timeout=0)
        case "sleep":
            await saga.sleep(0)
        case "wait":
            await saga.wait(Shipped)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("argument", "nothing is given what the journal can't keep"),
        ("lambda", "has no name of its own"),
        ("undo", "takes_two can't be called with what the step is given"),
        ("timeout", "timeout=0: seconds, more than 0"),
        ("sleep", "give a time of more than 0 seconds"),
        ("wait", r"waits for shop.Shipped, which it doesn't declare: @app.saga(…, waits=[Shipped])"),
    ],
)
async def test_what_can_not_be_is_parked_with_the_fix(store_url: str, what: str, says: str) -> None:
    app = shop(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        try:
            await use(saga, order, what)
        except Exception:
            await saga.step(nothing)  # swallowing it doesn't help

    assert says in await parked(app)


@pytest.mark.parametrize(("step", "says"), [(returns_a_socket, "can't keep"), (returns_much, "a result may have 1,048,576")])
async def test_a_result_that_can_not_be_kept_fails_its_step(store_url: str, step: Any, says: str) -> None:
    app = shop(store_url)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(step, order)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        assert shops.saga("checkout", 1).state == "compensated"
        assert says in (journal(shops)[0].error or "")


def test_bad_declarations(store_url: str) -> None:
    app = shop(store_url)

    async def body(order: Any, saga: Saga) -> None: ...
    async def short(order: Any) -> None: ...
    def plain(order: Any, saga: Saga) -> None: ...

    with pytest.raises(SagaDefinitionError, match="must be `async def`"):
        app.saga(Placed)(plain)  # type: ignore[arg-type]
    with pytest.raises(SagaDefinitionError, match=r"async def short\(event, saga\)"):
        app.saga(Placed)(short)  # type: ignore[arg-type]
    with pytest.raises(SagaDefinitionError, match="version=0 must be a whole number from 1"):
        app.saga(Placed, version=0)(body)
    with pytest.raises(SagaDefinitionError, match=r"one for each order_id, and shop\.Registered has customer_id instead"):
        app.saga(Placed, waits=[Registered])(body)
    with pytest.raises(SagaDefinitionError, match=r"is started by shop\.Placed, so it can't wait for it too"):
        app.saga(Placed, waits=[Placed])(body)
    app.saga(Placed)(body)
    with pytest.raises(SagaDefinitionError, match="has a saga 'body' of version 1"):
        app.saga(Placed)(body)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda app: app.saga(works), r"@app\.saga\(works\): name the event that starts it, @app\.saga\(OrderPlaced\)"),
        (lambda app: app.saga(Placed, waits=Shipped), r"waits=<class '.*Shipped'>\): give a list of classes, waits=\[…\]"),
        (lambda app: app.saga(Placed, waits=["Shipped"]), "give a list of classes"),
        (lambda app: app.saga(Placed, failures=ValueError), r"failures=<class 'ValueError'>\): give a list of classes, failures=\[…\]"),
        (lambda app: app.saga(Cancelled, name="works", version=2)(works), r"that shop\.Placed starts, as it must start all its versions"),
    ],
)
def test_what_is_declared_wrongly_is_told_at_once(wrong: Any, why: str) -> None:
    app = App("shop", store="sqlite:///never.db")
    app.saga(Placed)(works)
    with pytest.raises(SagaDefinitionError, match=why):
        wrong(app)


async def works(order: Placed, saga: Saga) -> None: ...


async def test_operators_may_name_a_saga_by_its_function_and_nobody_blocks_a_loop_with_a_result(store_url: str) -> None:
    app = shop(store_url)

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.wait(Shipped)

    async with harness(app) as shops:
        await shops.publish(Placed(order_id=1))
        await shops.settle()
        with pytest.raises(SagaError, match="would block the loop that runs here: await it instead"):
            app.saga_result(checkout, 1).result()
        assert app.operator("ann").pause(checkout, 1, reason="let me look").state == "paused"
        app.operator("ann").resume(checkout, 1, reason="well")
        app.operator("ann").supply(checkout, Shipped(order_id=1), reason="it was lost")
        await shops.settle()
        assert shops.saga("checkout", 1).state == "completed"
        with pytest.raises(NotFound, match="there is no saga 'works' in this app; give its name"):
            app.operator("ann").pause(works, 1, reason="x")


class Bank:
    def __init__(self, name: str = "bank") -> None:
        self.name = name
        self.booked: list[str] = []

    def book(self, what: str) -> None:
        self.booked.append(what)


class Till: ...


async def test_steps_and_undos_get_what_the_app_provides(store_url: str) -> None:
    app, bank, tills = shop(store_url), Bank(), list[Till]()
    app.provide(Bank, bank)

    async def charge(order_id: int, bank: Bank, amount: int, ctx: Context, till: Till) -> str:
        bank.book(f"charge {order_id} {amount} at attempt {ctx.attempt}")
        tills.append(till)
        return bank.name

    def refund(order_id: int, amount: int, bank: Bank, result: str) -> None:
        bank.book(f"refund {order_id} {amount} {result}")

    def refuse(bank: Bank) -> None:
        raise Refused(bank.name)

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order.order_id, amount=order.total, undo=refund)
        await saga.step(refuse, Bank("my own")) if order.order_id == 2 else await saga.step(refuse)

    app.provide(Till, Till)  # at each call
    async with harness(app) as shops:
        for key in (1, 2):
            await shops.publish(Placed(order_id=key))
        await shops.settle()
        assert (shops.saga("checkout", 1).state, shops.saga("checkout", 1).error) == ("compensated", "Refused: bank")
        assert [one for one in bank.booked if one.split()[1] == "1"] == ["charge 1 10 at attempt 1", "refund 1 10 bank"]
        assert len(tills) == len({id(till) for till in tills}) == 2
        assert shops.saga("checkout", 2).state == "parked"
        assert "refuse can't be called with what the step is given: too many positional" in (shops.saga("checkout", 2).error or "")
