from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import types
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.running import sqlite
from tidings import (
    App,
    ConfigurationError,
    Context,
    Event,
    InvalidEvent,
    ManualClock,
    OutsideTransaction,
    Receipt,
    Retry,
    SQLiteStore,
    StoreError,
    StoreFailed,
    StoreNotInitialised,
)
from tidings.envelope import lane_of
from tidings.testing import Harness


class Placed(Event, key="order"):
    order: int


class Paid(Event, key="order"):
    order: int


class Ping(Event, key=None):
    pass


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = App("shop", store=SQLiteStore(f"sqlite:///{tmp_path}/shop.db", clock=ManualClock(1_700_000_000)), topic="orders")
    app.open()
    yield app
    app.close()


def log(app: App) -> list[Any]:
    return app.store.query(lambda unit: unit.select(limit=1000))


def test_a_receipt_says_where_the_event_is(app: App) -> None:
    receipt = app.publish(Placed(order=42), tx="own").result()
    (envelope,) = log(app)
    assert (receipt.event_id, receipt.lane, receipt.position) == (envelope.event_id, envelope.lane, envelope.position)
    assert uuid.UUID(receipt.event_id).version == 7
    assert receipt.lane == lane_of("order", "42")
    assert (envelope.topic, envelope.type, envelope.version, envelope.source) == ("orders", "shop.Placed", 1, "shop")
    assert (envelope.key_name, envelope.key, envelope.data) == ("order", "42", b'{"order":42}')
    assert (envelope.time, envelope.causation_id, envelope.headers) == (1_700_000_000_000_000, None, None)
    assert envelope.correlation_id == envelope.event_id


def test_events_without_a_key_spread_over_the_lanes(app: App) -> None:
    assert len({app.publish(Ping(), tx="own").result().lane for _ in range(300)}) > 40


async def test_own_transactions_from_tasks_and_threads(app: App) -> None:
    receipts = await asyncio.gather(*(app.publish(Placed(order=order), tx="own") for order in range(100)))
    assert sorted(receipt.position or 0 for receipt in receipts) == list(range(1, 101))
    with ThreadPoolExecutor(4) as threads:
        more = list(threads.map(lambda order: app.publish(Placed(order=order), tx="own").result(10), range(100)))
    assert sorted(receipt.position or 0 for receipt in more) == list(range(101, 201))


@pytest.mark.parametrize("forgotten", ["before", "behind"])
def test_a_failure_that_nobody_asks_for_is_logged(forgotten: str, app: App, caplog: pytest.LogCaptureFixture) -> None:
    app.store.write(lambda unit: unit.register("x", "x", [], "key", 0, 0)).result()
    conn = sqlite3.connect(sqlite(app).path)
    conn.execute("DROP TABLE tidings_log")
    conn.close()
    with caplog.at_level(logging.ERROR, "tidings.publish"):
        if forgotten == "before":
            app.publish(Placed(order=1), tx="own")
            app.close()  # behind it
        else:
            publishing = app.publish(Placed(order=1), tx="own")
            app.close()
            assert not caplog.messages
            del publishing
    assert [message[:71] for message in caplog.messages] == [
        "a publish that nobody awaited failed, so its event is NOT published: " + caplog.messages[0][69:71]
    ]


def test_headers_and_traceparent(app: App) -> None:
    app.publish(Placed(order=1), tx="own", headers={"tenant": "a", "traceparent": "00-x-y-01"}).result()
    (envelope,) = log(app)
    assert (envelope.headers, envelope.traceparent) == ('{"tenant":"a"}', "00-x-y-01")


@pytest.mark.parametrize("headers", [{"Tenant": "a"}, {"ten-ant": "a"}, {"tenant": 1}, {1: "a"}, {"": "a"}])
def test_headers_that_cloudevents_does_not_know(app: App, headers: Any) -> None:
    with pytest.raises(InvalidEvent, match="names are lower-case letters and digits"):
        app.publish(Placed(order=1), tx="own", headers=headers)


@pytest.mark.parametrize("name", ["id", "type", "data", "partitionkey"])
def test_a_header_that_would_hide_an_attribute(app: App, name: str) -> None:
    with pytest.raises(InvalidEvent, match=f"header '{name}': this is an attribute of every CloudEvent"):
        app.publish(Placed(order=1), tx="own", headers={name: "a"})


def test_headers_are_a_dictionary(app: App) -> None:
    with pytest.raises(InvalidEvent, match="headers='tenant': give a dictionary of texts"):
        app.publish(Placed(order=1), tx="own", headers="tenant")  # type: ignore[call-overload]


def test_when_an_event_is_due(app: App) -> None:
    app.publish(Placed(order=1), tx="own", after=timedelta(hours=1)).result()
    app.publish(Placed(order=2), tx="own", at=datetime(2030, 1, 1, tzinfo=UTC)).result()
    receipt = app.publish(Placed(order=3), tx="own", at=datetime(2020, 1, 1, tzinfo=UTC)).result()
    assert receipt.position is None
    assert [scheduled.due for scheduled in app.scheduled()] == [
        int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000,
        (1_700_000_000 + 3600) * 1_000_000,
        int(datetime(2030, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000,
    ]
    assert app.cancel(receipt.event_id)
    assert not app.cancel(receipt.event_id)
    assert len(app.scheduled()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": datetime(2030, 1, 1)}, "a time without a time zone is ambiguous; use datetime.now(UTC)"),
        ({"at": datetime(2030, 1, 1, tzinfo=UTC), "after": timedelta(1)}, "give at= or after=, not both"),
        ({"at": "2030-01-01"}, "publish(at='2030-01-01'): give a datetime with a time zone"),
        ({"after": 5}, "publish(after=5): give a timedelta"),
        ({"after": timedelta.max}, "that is behind the year 9999"),
    ],
)
def test_when_it_can_not_be_due(app: App, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        app.publish(Placed(order=1), tx="own", **options)
    assert message in str(caught.value)
    assert log(app) == []


async def test_the_thread_of_a_story(tmp_path: Path) -> None:
    """Correlation, causation, trace and tenant go on through everything that a handler publishes, by whatever means."""
    app = App("shop", store="sqlite:///unused.db")
    seen: dict[int, Context] = {}

    @app.subscribe(Placed)
    def place(event: Placed, ctx: Context, tx: sqlite3.Connection) -> Paid:
        seen[event.order] = ctx
        ctx.publish(Paid(order=event.order + 1))
        app.publish(Paid(order=event.order + 2), tx=tx)
        return Paid(order=event.order + 3)

    async with Harness(app) as harness:
        receipt = await harness.publish(Placed(order=10), headers={"traceparent": "00-a-b-01", "tenant": "x"})
        await harness.settle()
        first, *rest = harness.log()
        assert [envelope.key for envelope in rest] == ["12", "11", "13"]
        for envelope in rest:
            assert envelope.correlation_id == first.correlation_id == receipt.event_id
            assert envelope.causation_id == receipt.event_id
            assert envelope.traceparent == "00-a-b-01"
            assert envelope.header("subscription") == "place"
        ctx = seen[10]
        assert (ctx.correlation_id, ctx.causation_id, ctx.headers) == (receipt.event_id, None, {"tenant": "x"})


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_handler_does_not_wait_for_itself(tmp_path: Path, is_async: bool) -> None:
    """It holds the write lock; a publish of its own transaction would wait for that for ever."""
    app = App("shop", store="sqlite:///unused.db")

    if is_async:

        @app.subscribe(Placed, retry=Retry(attempts=1))
        async def handle(event: Placed, tx: sqlite3.Connection) -> None:
            await app.publish(Paid(order=1), tx="own")

    else:

        @app.subscribe(Placed, retry=Retry(attempts=1))
        def handle(event: Placed, tx: sqlite3.Connection) -> None:  # type: ignore[misc]
            app.publish(Paid(order=1), tx="own").result()

    async with Harness(app) as harness:
        await harness.publish(Placed(order=1))
        await harness.settle()
        (dead,) = harness.dead("handle")
        assert dead.error.startswith("OutsideTransaction: this handler holds the store's write lock")


async def test_a_handler_without_tx_may_publish_in_a_transaction_of_its_own(tmp_path: Path) -> None:
    app = App("shop", store="sqlite:///unused.db")

    @app.subscribe(Placed)
    async def handle(event: Placed) -> None:
        await app.publish(Paid(order=1), tx="own")

    async with Harness(app) as harness:
        receipt = await harness.publish(Placed(order=1))
        await harness.settle()
        assert harness.published(Paid) == [Paid(order=1)]
        assert harness.log()[1].causation_id == receipt.event_id


def test_publishing_without_opening_opens(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    with pytest.raises(OutsideTransaction):
        app.publish(Placed(order=1))
    app.publish(Placed(order=1), tx="own").result()
    assert len(log(app)) == 1
    app.close()
    app.publish(Placed(order=2), tx="own").result()
    assert len(log(app)) == 2
    app.close()


def test_closing_from_another_thread_waits_for_what_was_published(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    publishing = [app.publish(Placed(order=order), tx="own") for order in range(50)]
    closing = threading.Thread(target=app.close)
    closing.start()
    closing.join(10)
    assert [one.result(0).position for one in publishing] == list(range(1, 51))


async def test_a_task_that_is_cancelled_takes_its_event_back(app: App) -> None:
    """As long as nobody has begun with it; its neighbours are published."""
    begun, gate = threading.Event(), threading.Event()

    def hold(unit: Any) -> None:
        begun.set()
        gate.wait(10)

    app.store.write(hold)
    while not begun.is_set():  # what comes then is in no group with it
        await asyncio.sleep(0.001)
    tasks = [asyncio.ensure_future(_published(app, order)) for order in range(6)]
    shared = app.publish(Placed(order=99), tx="own")
    twice = [asyncio.ensure_future(_awaited(shared)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in (*tasks[::2], twice[0]):
        task.cancel()
    await asyncio.sleep(0)
    gate.set()
    done = await asyncio.gather(*tasks, *twice, return_exceptions=True)
    assert [type(one) for one in done] == [asyncio.CancelledError, Receipt] * 3 + [asyncio.CancelledError] * 2
    assert [envelope.key for envelope in log(app)] == ["1", "3", "5"]
    with pytest.raises(CancelledError):
        shared.result(0)


async def test_a_task_that_is_cancelled_too_late_has_published(app: App) -> None:
    begun, gate = threading.Event(), threading.Event()

    def job(unit: Any) -> None:
        begun.set()
        gate.wait(10)

    await asyncio.sleep(0)
    with sqlite(app).turn:  # so that all are in one group
        task = asyncio.ensure_future(_published(app, 1))
        await asyncio.sleep(0.01)
        app.store.write(job)
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.01)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await app.publish(Placed(order=2), tx="own")
    assert [envelope.key for envelope in log(app)] == ["1", "2"]


async def _published(app: App, order: int) -> Receipt:
    return await app.publish(Placed(order=order), tx="own")


async def _awaited(publishing: Any) -> Any:
    return await publishing


async def test_a_publish_that_fails_takes_none_of_its_group_with_it(app: App) -> None:
    conn = sqlite3.connect(sqlite(app).path)
    conn.execute("CREATE TRIGGER refuse BEFORE INSERT ON tidings_log WHEN new.key = '3' BEGIN SELECT RAISE(ABORT, 'not three'); END")
    conn.close()
    with sqlite(app).turn:
        tasks = [asyncio.ensure_future(_published(app, order)) for order in range(6)]
        await asyncio.sleep(0.01)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [Receipt, Receipt, Receipt, StoreFailed, Receipt, Receipt]
    assert [envelope.key for envelope in log(app)] == ["0", "1", "2", "4", "5"]


def test_a_loop_that_ended_is_not_waited_for(app: App) -> None:
    async def leave() -> None:
        asyncio.get_running_loop().call_later(0.01, asyncio.get_running_loop().stop)
        await app.publish(Placed(order=1), tx="own")

    loop = asyncio.new_event_loop()
    with sqlite(app).turn:
        task = loop.create_task(leave())
        loop.run_forever()
        loop.close()
    assert app.publish(Placed(order=2), tx="own").result(10).position == 2
    del task


def test_a_result_that_does_not_come_in_time(app: App) -> None:
    with sqlite(app).turn:
        publishing = app.publish(Placed(order=1), tx="own")
        with pytest.raises(TimeoutError):
            publishing.result(0.01)
    assert publishing.result(10).position == publishing.result(10).position == 1


@pytest.mark.parametrize("topic", ["o'brien", "'); DELETE FROM tidings_log; --", "a\0b", "?"])
def test_any_topic(tmp_path: Path, topic: str) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", topic=topic)
    for order in (1, 2):
        app.publish(Placed(order=order), tx="own").result(10)
    assert [(envelope.topic, envelope.key) for envelope in log(app)] == [(topic, "1"), (topic, "2")]
    app.close()


def _with_an_order(namespace: dict[str, Any]) -> None:
    namespace["__annotations__"] = {"order": int}


def test_more_event_classes_than_statements_are_kept(app: App) -> None:
    classes: list[Any] = [types.new_class(f"Kind{number}", (Event,), {"key": "order"}, _with_an_order) for number in range(200)]
    conn = sqlite3.connect(sqlite(app).path)
    with conn:
        for order in (1, 2):
            for cls in classes:
                app.publish(cls(order=order), tx=conn)
    conn.close()
    assert [(envelope.type, envelope.key) for envelope in log(app)] == [
        (f"shop.Kind{number}", str(order)) for order in (1, 2) for number in range(200)
    ]


def test_a_store_that_was_made_anew(tmp_path: Path) -> None:
    """The app is opened again on another log: the old one's connections are refused, open as they are."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.publish(Placed(order=1), tx="own").result(10)
    old = sqlite3.connect(tmp_path / "shop.db")
    app.publish(Placed(order=2), tx=old)
    old.commit()
    app.close()
    (tmp_path / "shop.db").rename(tmp_path / "old.db")
    app.publish(Placed(order=3), tx="own").result(10)
    with pytest.raises(StoreError):
        app.publish(Placed(order=4), tx=old)
    old.close()
    assert [envelope.key for envelope in log(app)] == ["3"]
    app.close()


def test_the_stores_file_put_back_to_one_without_tables(app: App) -> None:
    conn = sqlite3.connect(sqlite(app).path)
    for kind, name in conn.execute("SELECT type, name FROM sqlite_master WHERE name LIKE 'tidings_%' AND type <> 'index'").fetchall():
        conn.execute(f"DROP {kind} {name}")
    with pytest.raises(StoreNotInitialised, match="tidings store init"):
        app.publish(Placed(order=1), tx=conn)
    conn.close()
