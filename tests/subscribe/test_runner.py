"""What the options of a subscription do, through a worker on a real store."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.running import connection, until
from tidings import App, Context, Event, Retry
from tidings.store.sqlite.unit import SQLiteUnit
from tidings.store.sqlite.writer import FileWriter
from tidings.subscribe.checkpointing import QUIET_SECONDS, QUIET_TIMES
from tidings.testing import Harness


class Placed(Event, key="order"):
    order: int
    number: int = 0
    vip: bool = False


class Paid(Event, key="order"):
    order: int


class Customer(Event, key="customer"):
    customer: int


@pytest.fixture
def app() -> App:
    return App("shop", store="sqlite:///unused.db", drain=5)


async def publish(harness: Harness, *events: Any) -> None:
    with harness.transaction() as tx:
        for event in events:
            harness.apps[0].publish(event, tx=tx)
    await harness.settle()


@pytest.mark.parametrize("concurrency", [1, 3, 16])
@pytest.mark.parametrize("is_async", [True, False])
async def test_concurrency_is_a_limit_and_is_used(app: App, concurrency: int, is_async: bool) -> None:
    """Each handler waits until as many are inside as may be; one more would be seen."""
    inside = most = 0
    lock = threading.Lock()
    full = threading.Event()

    def enter(step: int) -> None:
        nonlocal inside, most
        with lock:
            inside += step
            most = max(most, inside)
            if inside == concurrency:
                full.set()

    async def wait(event: Placed) -> None:
        enter(1)
        while not full.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        enter(-1)

    def wait_in_a_thread(event: Placed) -> None:
        enter(1)
        full.wait(5)
        time.sleep(0.001)
        enter(-1)

    app.subscribe(Placed, name="slow", concurrency=concurrency)(wait if is_async else wait_in_a_thread)
    async with Harness(app) as harness:
        await publish(harness, *(Placed(order=order) for order in range(60)))
        assert len(harness.handled("slow")) == 60
    assert most == concurrency


@pytest.mark.promise("order per key")
async def test_keys_side_by_side_events_of_one_key_one_after_another(app: App) -> None:
    running: Counter[int] = Counter()
    seen: list[tuple[int, int]] = []

    @app.subscribe(Placed)
    async def handle(event: Placed) -> None:
        running[event.order] += 1
        assert running[event.order] == 1
        await asyncio.sleep(0.002 * (event.order % 3))
        seen.append((event.order, event.number))
        running[event.order] -= 1

    async with Harness(app) as harness:
        await publish(harness, *(Placed(order=order, number=number) for number in range(10) for order in range(12)))
        assert harness.dead(handle) == []
    assert len(seen) == 120
    for order in range(12):
        assert [number for key, number in seen if key == order] == list(range(10))


async def test_order_42_is_not_customer_42(app: App) -> None:
    gate = asyncio.Event()
    mail = app.subscription("mail", retry=Retry(first=3600))
    seen: list[str] = []

    @mail.on(Placed)
    async def placed(event: Placed) -> None:
        raise ValueError

    @mail.on(Customer)
    async def customer(event: Customer) -> None:
        seen.append("customer")
        gate.set()

    async with Harness(app) as harness:
        await publish(harness, Placed(order=42), Customer(customer=42))
        assert seen == ["customer"]
        assert [row.state for row in harness.parked(mail)] == ["retry"]


async def test_where_is_asked_before_and_the_rest_counts_as_handled(app: App) -> None:
    @app.subscribe(Placed, where=lambda event: event.vip)
    def alert(event: Placed) -> None: ...

    async with Harness(app) as harness:
        await publish(harness, *(Placed(order=order, vip=order % 10 == 0) for order in range(50)))
        assert sorted(event.order for event in harness.handled(alert)) == [0, 10, 20, 30, 40]
        assert harness.store.query(lambda unit: unit.behind("alert")).events == 0


async def test_a_where_that_fails_is_the_events_failure(app: App) -> None:
    def broken(event: Placed) -> bool:
        raise ZeroDivisionError

    app.subscribe(Placed, name="mail", where=broken, retry=Retry(attempts=1))(lambda event: None)
    async with Harness(app) as harness:
        await publish(harness, Placed(order=1))
        assert harness.dead("mail")[0].error.startswith("ZeroDivisionError")


@pytest.mark.parametrize("kind", ["async", "sync", "tx"])
async def test_a_handler_past_its_timeout_is_stopped_and_tried_again(app: App, kind: str) -> None:
    ended = threading.Event()

    def slow(ctx: Context) -> None:
        if ctx.attempt == 1 and ctx.key == "1":
            ended.wait(10)

    async def in_async(event: Placed, ctx: Context) -> None:
        if ctx.attempt == 1 and ctx.key == "1":
            await asyncio.sleep(3600)

    def in_sync(event: Placed, ctx: Context) -> None:
        slow(ctx)

    def in_tx(event: Placed, ctx: Context, tx: sqlite3.Connection) -> None:
        tx.execute("UPDATE counts SET count = count + 1")
        slow(ctx)

    handler: Any = {"async": in_async, "sync": in_sync, "tx": in_tx}[kind]
    app.subscribe(Placed, name="slow", timeout=0.1, retry=Retry(first=1, jitter=0))(handler)
    async with Harness(app) as harness:
        with harness.transaction() as tx:
            tx.execute("CREATE TABLE counts (count)")
            tx.execute("INSERT INTO counts VALUES (0)")
        await publish(harness, Placed(order=1), Placed(order=2))
        (parked,) = harness.parked("slow")
        assert parked.error == f"HandlerTimeout: {handler.__qualname__} ran for longer than 0.1 s"
        assert [event.order for event in harness.handled("slow")] == [2]
        ended.set()  # a thread can't be stopped: its key waits until it has ended
        await asyncio.sleep(0.05)
        await harness.advance(1)
        assert sorted(event.order for event in harness.handled("slow")) == [1, 2]
        if kind == "tx":
            with harness.transaction() as tx:
                assert tx.execute("SELECT count FROM counts").fetchone() == (2,)


async def test_a_handler_that_swallows_its_cancellation_has_failed_all_the_same(app: App) -> None:
    @app.subscribe(Placed, timeout=0.05, retry=Retry(attempts=1))
    async def stubborn(event: Placed) -> Paid:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return Paid(order=event.order)

    async with Harness(app) as harness:
        await publish(harness, Placed(order=1))
        assert harness.dead(stubborn)[0].error.startswith("HandlerTimeout")
        assert harness.published(Paid) == []


async def test_a_task_that_a_handler_cancels_is_its_own_failure(app: App) -> None:
    @app.subscribe(Placed, retry=Retry(attempts=1))
    async def cancels(event: Placed) -> None:
        task = asyncio.ensure_future(asyncio.sleep(3600))
        task.cancel()
        await task

    async with Harness(app) as harness:
        await publish(harness, Placed(order=1), Placed(order=2))
        assert [letter.error for letter in harness.dead(cancels)] == ["CancelledError", "CancelledError"]


@pytest.mark.promise("parking")
@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("waits", [True, False])
async def test_a_handler_that_cancels_its_own_task_has_failed(app: App, waits: bool, concurrency: int) -> None:
    """Libraries do it for their time-outs, and not all take it back. The subscription goes on, and its worker can be stopped."""

    @app.subscribe(Placed, concurrency=concurrency)
    async def cancels(event: Placed, ctx: Context) -> Paid | None:
        if event.order == 1 and ctx.attempt == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if waits:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        return Paid(order=event.order)

    async with asyncio.timeout(30), Harness(app) as harness:
        await publish(harness, *(Placed(order=order) for order in (1, 2, 1, 3)))
        await harness.advance(seconds=60)
        assert sorted(event.order for event in harness.handled(cancels)) == [1, 1, 2, 3]
        await publish(harness, Placed(order=4))
        assert [event.order for event in harness.published(Paid)][-1] == 4


@pytest.mark.promise("parking")
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("kind", ["plain", "timed", "tx", "shared", "list", "list tx", "tx beside async"])
async def test_what_ends_a_program_is_the_failure_of_a_synchronous_handler(app: App, kind: str, error: BaseException) -> None:
    def fail(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise error

    def plain(event: Placed, ctx: Context) -> None:
        fail(ctx)

    def tx(event: Placed, ctx: Context, tx: sqlite3.Connection) -> None:
        fail(ctx)

    def of_list(events: list[Placed], ctx: Context) -> None:
        fail(ctx)

    def of_list_tx(events: list[Placed], ctx: Context, tx: sqlite3.Connection) -> None:
        fail(ctx)

    handlers: dict[str, Any] = {"tx": tx, "shared": tx, "list": of_list, "list tx": of_list_tx, "tx beside async": tx}
    mixed = app.subscription("mixed", shared_tx=kind == "shared", timeout=60 if kind == "timed" else None, age=0.01)
    mixed.on(Placed)(handlers.get(kind, plain))
    if kind == "tx beside async":

        @mixed.on(Paid)
        async def other(event: Paid) -> None: ...

    async with asyncio.timeout(30), Harness(app) as harness:
        await publish(harness, Placed(order=1), Placed(order=2))
        assert [(row.error or "").split(":")[0] for row in harness.parked("mixed")] == [type(error).__name__] * 2
        await harness.advance(seconds=60)
        assert sorted(event.order for event in harness.handled("mixed")) == [1, 2]


async def test_a_coroutine_that_is_returned_is_told(app: App) -> None:
    """As by a decorator that isn't async itself."""

    async def real(event: Placed) -> None: ...

    @app.subscribe(Placed)
    def wrapped(event: Placed) -> Any:
        return real(event)

    async with Harness(app) as harness:
        await publish(harness, Placed(order=1))
        (row,) = harness.parked(wrapped)
        assert (row.error or "").endswith("wrapped returned a coroutine: make it `async def`, and what wraps it too")


@pytest.mark.promise("parking")
async def test_a_list_of_whose_tasks_one_is_cancelled_has_failed(app: App) -> None:
    @app.subscribe(Placed, size=10, age=0.01)
    async def lists(events: list[Placed], ctx: Context) -> None:
        if ctx.attempt == 1:
            task = asyncio.ensure_future(asyncio.sleep(3600))
            task.cancel()
            await task

    async with asyncio.timeout(30), Harness(app) as harness:
        await publish(harness, Placed(order=1), Placed(order=2))
        assert [row.error for row in harness.parked(lists)] == ["CancelledError", "CancelledError"]
        await harness.advance(seconds=60)
        assert sorted(event.order for event in harness.handled(lists)) == [1, 2]


async def test_a_program_that_forgets_to_stop_its_app_ends(tmp_path: Path) -> None:
    """Its handlers are cancelled with everything else of the loop, and are not taken for failed ones."""
    script = f"""
import asyncio
from tidings import App, Event

app = App("shop", store="sqlite:///{tmp_path}/forgets.db")


class Placed(Event, key="order"):
    order: int


@app.subscribe(Placed, concurrency=1)
async def waits(event: Placed) -> None:
    began.set()
    await asyncio.sleep(3600)


async def main() -> None:
    global began
    began = asyncio.Event()
    await app.start()
    await app.publish(Placed(order=1), tx="own")
    await began.wait()


asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await asyncio.wait_for(process.wait(), 30) == 0
    with connection(tmp_path / "forgets.db") as conn:
        assert conn.execute("SELECT count(*) FROM tidings_parked").fetchone() == (0,)


async def test_a_dead_letter_is_told_in_the_log(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody has set logging up, too: what is tried again is no news, this is."""

    @app.subscribe(Placed, retry=Retry(attempts=2))
    async def fails(event: Placed) -> None:
        raise ValueError("no")

    async with Harness(app) as harness:
        await publish(harness, Placed(order=1))
        assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []
        await harness.advance(seconds=60)
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "fails: event 1 becomes a dead letter, attempt 2 was its last: ValueError: no (`tidings dead show fails 1`)"
    )


async def test_rate_is_kept(app: App) -> None:
    times: list[float] = []

    @app.subscribe(Placed, rate=50)
    async def paced(event: Placed) -> None:
        times.append(time.monotonic())

    async with Harness(app) as harness:
        await publish(harness, *(Placed(order=order) for order in range(30)))
    assert len(times) == 30
    assert times[-1] - times[0] >= (30 - 7) / 50


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("tx", [True, False])
async def test_lists(app: App, is_async: bool, tx: bool) -> None:
    sizes: list[int] = []

    def note(events: list[Placed], ctx: Context) -> Paid:
        sizes.append(len(events))
        assert ctx.each is not None
        assert [one.key for one in ctx.each] == [str(event.order) for event in events]
        return Paid(order=len(events))

    def in_sync(events: list[Placed], ctx: Context) -> Paid:
        return note(events, ctx)

    async def in_async(events: list[Placed], ctx: Context) -> Paid:
        return note(events, ctx)

    def in_tx(events: list[Placed], ctx: Context, tx: sqlite3.Connection) -> Paid:
        tx.executemany("INSERT INTO seen VALUES (?)", [(event.order,) for event in events])
        return note(events, ctx)

    async def in_async_tx(events: list[Placed], ctx: Context, tx: sqlite3.Connection) -> Paid:
        return in_tx(events, ctx, tx)

    handler: Any = {(False, False): in_sync, (True, False): in_async, (False, True): in_tx, (True, True): in_async_tx}[is_async, tx]
    app.subscribe(Placed, name="lists", size=10, age=0.1)(handler)
    async with Harness(app) as harness:
        with harness.transaction() as conn:
            conn.execute("CREATE TABLE seen (number)")
        await publish(harness, *(Placed(order=order) for order in range(25)))
        assert sum(sizes) == 25
        assert max(sizes) == 10
        assert [event.order for event in harness.published(Paid)] == sizes
        if tx:
            with harness.transaction() as conn:
                assert conn.execute("SELECT count(DISTINCT number), count(*) FROM seen").fetchone() == (25, 25)


async def test_one_of_a_list_fails_and_is_found(app: App) -> None:
    @app.subscribe(Placed, size=10, age=0.02, retry=Retry(attempts=2, first=1, jitter=0))
    def all_or_none(events: list[Placed]) -> None:
        if any(event.order == 3 for event in events):
            raise ValueError("3")

    async with Harness(app) as harness:
        await publish(harness, *(Placed(order=order) for order in range(10)))
        await harness.advance(5)
        assert [letter.event.order for letter in harness.dead(all_or_none)] == [3]
        assert sorted(event.order for event in harness.handled(all_or_none)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


async def test_several_subscriptions_of_one_type_each_have_everything(app: App) -> None:
    for number in range(5):
        app.subscribe(Placed, name=f"mail{number}")(lambda event: None)
    async with Harness(app) as harness:
        await publish(harness, *(Placed(order=order) for order in range(20)))
        for number in range(5):
            assert len(harness.handled(f"mail{number}")) == 20


async def test_a_class_that_has_changed(app: App) -> None:
    """Events of the older shape are in the log: what the new class can't read is a dead letter that says why, the rest goes on."""

    class Older(Event, key="order", type="shop.Placed"):
        order: int
        colour: str = "red"

    class Newer(Event, key="order", type="shop.Placed", version=2):
        order: int
        total: int

    @app.subscribe(Newer)
    def handle(event: Newer) -> None: ...

    async with Harness(app) as harness:
        await publish(harness, Older(order=1), Newer(order=2, total=3))
        assert harness.handled(handle) == [Newer(order=2, total=3)]
        (letter,) = harness.dead(handle)
        assert letter.attempts == 1  # waiting would not change it
        assert letter.error == (
            "UndecodableEvent: event 1 (shop.Placed version 1) does not fit Newer: Object missing required field `total`"
        )


async def test_stop_waits_for_what_runs_and_writes_its_checkpoint(app: App, tmp_path: Any) -> None:
    seen: list[int] = []
    began = asyncio.Event()

    @app.subscribe(Placed, concurrency=2)
    async def slow(event: Placed) -> None:
        began.set()
        await asyncio.sleep(0.05)
        seen.append(event.order)

    real = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    real.subscriptions.update(app.subscriptions)
    for order in range(20):
        await real.publish(Placed(order=order), tx="own")
    async with real:
        await began.wait()
    first = len(seen)
    assert 1 <= first < 20
    async with real:
        while len(seen) < 20:
            await asyncio.sleep(0.005)
    assert sorted(seen) == list(range(20))  # none twice


@pytest.mark.parametrize("slow", [1_000, 1_010, 1_199])
async def test_a_slow_handler_holds_back_nobody_it_shares_a_trip_with(app: App, slow: int) -> None:
    """Quick synchronous handlers share a trip to a thread; then one of them takes its time."""
    seen: list[int] = []
    go = threading.Event()

    @app.subscribe(Placed)
    def note(event: Placed) -> None:
        if event.order == slow:
            go.wait(20)
        seen.append(event.order)

    async with Harness(app) as harness:
        await publish(harness, *(Placed(order=order) for order in range(1_000)))
        with harness.transaction() as tx:
            for order in range(1_000, 1_200):
                app.publish(Placed(order=order), tx=tx)
        async with asyncio.timeout(10):
            while len(seen) < 1_199:
                await asyncio.sleep(0.01)
            with harness.transaction() as tx:
                app.publish(Placed(order=1_200), tx=tx)
            while len(seen) < 1_200:
                await asyncio.sleep(0.01)
        go.set()
        await harness.settle()
    assert sorted(seen) == list(range(1_201))


async def test_readers_at_rest_write_together(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself would hold the file as long as all of them."""
    readers = 20
    for number in range(readers):

        @app.subscribe(Placed, name=f"reader{number}")
        async def note(event: Placed) -> None: ...

    async with Harness(app) as harness:
        await publish(harness, Placed(order=0))
        groups: list[int] = []
        advance, transact = SQLiteUnit.advance, FileWriter.transact

        def counted(unit: SQLiteUnit, *given: Any) -> Any:
            groups[-1] += 1
            time.sleep(0.0005)
            return advance(unit, *given)

        def grouped(writer: FileWriter, group: Any) -> Any:
            groups.append(0)
            return transact(writer, group)

        monkeypatch.setattr(SQLiteUnit, "advance", counted)
        monkeypatch.setattr(FileWriter, "transact", grouped)
        for order in range(1, 60):
            with harness.transaction() as tx:
                app.publish(Placed(order=order), tx=tx)
            await asyncio.sleep(0.005 + 0.003 * (order % 3))
        monkeypatch.undo()
        await harness.settle()
    written = [count for count in groups if count]
    assert sum(written) / len(written) > readers / 2, written


@pytest.mark.parametrize(("takes", "quiet"), [(0.0, QUIET_SECONDS), (0.02, QUIET_TIMES * 0.02)])
async def test_a_trickle_of_events_is_not_a_trickle_of_checkpoints(
    app: App, monkeypatch: pytest.MonkeyPatch, takes: float, quiet: float
) -> None:
    seen: list[int] = []

    @app.subscribe(Placed)
    async def note(event: Placed) -> None:
        seen.append(event.order)

    async with Harness(app) as harness:
        await publish(harness, Placed(order=0))
        writes: list[float] = []
        advance = SQLiteUnit.advance

        def counted(unit: SQLiteUnit, *given: Any) -> Any:
            writes.append(time.monotonic())
            time.sleep(takes)  # a busy file
            return advance(unit, *given)

        monkeypatch.setattr(SQLiteUnit, "advance", counted)
        for order in range(1, 60):
            with harness.transaction() as tx:
                app.publish(Placed(order=order), tx=tx)
            await asyncio.sleep(0.005)
        await harness.settle()
    assert len(seen) == 60
    pauses = [later - sooner for sooner, later in itertools.pairwise(writes[:-1])]  # the last one is the end of the worker
    few = sum(pause < 0.5 * quiet for pause in pauses)
    assert few <= (2 if takes else 0), pauses  # before the first nobody knows what one takes; a sweep may come between


@pytest.mark.parametrize("kind", ["async", "sync", "transaction", "shared", "list"])
async def test_who_stops_begins_nothing_more_of_a_parked_key(tmp_path: Path, kind: str) -> None:
    """Its events are handled one behind the commit of the other; what is cut off between begin and end would be done again. Another
    subscription keeps the worker from ending at once."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    begun: list[int] = []
    ended: list[int] = []
    at_work = asyncio.Event()
    stopped = 0

    def begin(number: int) -> None:
        begun.append(number)
        if begun == [0]:
            raise ConnectionError("the other side hung up")

    async def handle(event: Placed) -> None:
        begin(event.number)
        await asyncio.sleep(0.002)
        ended.append(event.number)

    def handle_in_a_thread(event: Placed) -> None:
        begin(event.number)
        time.sleep(0.002)
        ended.append(event.number)

    def handle_in_a_transaction(event: Placed, tx: sqlite3.Connection) -> None:
        handle_in_a_thread(event)

    async def handle_a_list(events: list[Placed]) -> None:
        for event in events:
            await handle(event)

    handler: Any = {"async": handle, "sync": handle_in_a_thread, "list": handle_a_list}.get(kind, handle_in_a_transaction)
    by_kind: dict[str, dict[str, Any]] = {"shared": {"shared_tx": True}, "list": {"size": 50, "age": 0.0}}
    app.subscribe(Placed, name="mail", retry=Retry(first=0.001), **by_kind.get(kind, {}))(handler)

    @app.subscribe(Paid)
    async def slow(event: Paid) -> None:
        at_work.set()
        await asyncio.sleep(0.5)

    async with app:
        for number in range(200):
            await app.publish(Placed(order=1, number=number), tx="own")
        while len(ended) < 5:
            await asyncio.sleep(0)
        await app.publish(Paid(order=1), tx="own")
        await at_work.wait()
        stopped = len(begun)
    assert begun[1:] == ended
    assert len(begun) <= stopped + 10  # before the worker has heard of it


@pytest.mark.promise("effects once")
async def test_who_hangs_in_his_transaction_costs_those_before_and_behind_him_nothing(tmp_path: Path) -> None:
    """They share the trip to the thread: what is committed is not done again, what was not begun is."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    calls = Counter[int]()
    go_on = threading.Event()

    @app.subscribe(Placed, timeout=0.2, retry=Retry(first=0.01))
    def mail(event: Placed, tx: sqlite3.Connection) -> None:
        calls[event.order] += 1
        tx.execute("INSERT INTO mails VALUES (?)", (event.order,))
        if event.order == 3 and calls[3] == 1:
            go_on.wait(10)

    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE mails (id INTEGER)")
    app.open()
    with app.store.transaction() as conn:
        for order in range(6):
            app.publish(Placed(order=order), tx=conn)

    def mails() -> list[int]:
        with connection(tmp_path / "shop.db") as conn:
            return [row[0] for row in conn.execute("SELECT id FROM mails ORDER BY 1")]

    async with app:
        await until(lambda: sum(calls.values()) >= 6)
        go_on.set()  # its key waits for the thread
        await until(lambda: len(mails()) == 6)
    assert mails() == [0, 1, 2, 3, 4, 5]
    assert calls == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
