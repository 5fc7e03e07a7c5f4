"""What instances write together: each gets what it wrote, and nobody's trouble is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tidings import App, Event
from tidings.envelope import Envelope
from tidings.sagas.journal_writer import JournalWriter
from tidings.store import store_at
from tidings.store.port import Store, Unit, WorkerRow
from tidings.store.sagas import Entry, Hold, Release, Start


class Placed(Event, key="order_id"):
    order_id: int


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = store_at(store_url)
    store.open()
    row = WorkerRow("a", "shop", "here", 1, 1, (), True, 10.0)
    store.write(lambda unit: unit.enrol(row, store.clock.monotonic() + 60)).result()
    yield store
    store.close()


def envelope(store: Store, order: int) -> Envelope:
    return App("shop", store=store).envelope(Placed(order_id=order))


def entry(step: str = "charge", result: str = "1") -> Entry:
    return Entry("step", "0", step, 1, 1, "done", result, digest="d")


async def begin(writer: JournalWriter, store: Store, orders: range) -> list[bool | None]:
    told: list[bool | None] = []
    starts = [Start("checkout", 1, "shop", envelope(store, order), 100, "a") for order in orders]
    await asyncio.gather(*(writer.start(one, told.append) for one in starts))
    return told


async def test_many_instances_are_made_written_and_let_go_of_together(store: Store) -> None:
    writer, orders = JournalWriter(store), range(1, 41)
    assert await begin(writer, store, orders) == [True] * 40
    assert await begin(writer, store, range(40, 42)) == [False, True]  # one of them was there
    holds = [Hold("checkout", str(order), "a", 1) for order in orders]
    assert all(await asyncio.gather(*(writer.record(hold, entry(result=hold.key)) for hold in holds)))
    released = await asyncio.gather(*(writer.release(Release(hold, "completed", None, None, None, None, 7)) for hold in holds))
    assert all(released)
    for hold in holds:
        (line,) = store.query(lambda unit, key=hold.key: unit.sagas().journal("checkout", key))  # type: ignore[misc]
        assert line == entry(result=hold.key)
        row = store.query(lambda unit, key=hold.key: unit.sagas().row("checkout", key))  # type: ignore[misc]
        assert row is not None
        assert (row.state, row.since, row.worker, row.envelope.key) == ("completed", 7, None, hold.key)


@pytest.mark.promise("death at any instruction")
async def test_who_lost_his_instance_loses_only_his_own_lines(store: Store) -> None:
    writer = JournalWriter(store)
    await begin(writer, store, range(1, 6))
    holds = [Hold("checkout", str(order), "a", 1) for order in range(1, 6)]
    late = holds[2]._replace(epoch=0)
    lines = [holds[0], holds[1], late, holds[3], holds[4]]
    assert await asyncio.gather(*(writer.record(hold, entry()) for hold in lines)) == [True, True, False, True, True]
    ends = [Release(hold, "completed", None, None, None, None, 7) for hold in lines]
    assert await asyncio.gather(*map(writer.release, ends)) == [True, True, False, True, True]
    assert store.query(lambda unit: unit.sagas().journal("checkout", "3")) == []
    row = store.query(lambda unit: unit.sagas().row("checkout", "3"))
    assert row is not None
    assert (row.state, row.worker) == ("running", "a")


async def test_a_line_that_the_store_refuses_is_nobody_elses_trouble(store: Store) -> None:
    writer = JournalWriter(store)
    await begin(writer, store, range(1, 4))
    holds = [Hold("checkout", str(order), "a", 1) for order in range(1, 4)]
    lines = [entry(), entry(result="\ud800"), entry()]  # half a character: no UTF-8 has it
    told = await asyncio.gather(*map(writer.record, holds, lines), return_exceptions=True)
    assert told[0] is told[2] is True
    assert isinstance(told[1], UnicodeEncodeError)


async def test_a_line_to_be_tried_again_is_replaced_and_one_that_stands_is_not(store: Store) -> None:
    writer = JournalWriter(store)
    await begin(writer, store, range(1, 3))
    holds = [Hold("checkout", str(order), "a", 1) for order in range(1, 3)]
    retrying = Entry("step", "0", "charge", 1, None, "retrying", error="no", due=5, digest="d")
    assert await asyncio.gather(*(writer.record(hold, retrying) for hold in holds)) == [True, True]
    assert await asyncio.gather(*(writer.record(hold, entry()) for hold in holds)) == [True, True]
    assert await asyncio.gather(*(writer.record(hold, entry(result="2")) for hold in holds)) == [False, False]
    for key in ("1", "2"):
        (line,) = store.query(lambda unit, key=key: unit.sagas().journal("checkout", key))  # type: ignore[misc]
        assert (line.state, line.result, line.seq) == ("done", "1", 1)


async def test_whoever_stopped_waiting_an_instance_that_begins_is_told_of(store: Store) -> None:
    writer, told = JournalWriter(store), list[bool | None]()
    task = asyncio.ensure_future(writer.start(Start("checkout", 1, "shop", envelope(store, 1), 100, "a"), told.append))
    await asyncio.sleep(0)
    task.cancel()
    await begin(writer, store, range(2, 3))
    assert told == [True]


async def test_what_was_ordered_meanwhile_counts_in_a_group_too(store: Store) -> None:
    writer, orders = JournalWriter(store), range(1, 6)
    await begin(writer, store, orders)
    holds = [Hold("checkout", str(order), "a", 1) for order in orders]

    def order(unit: Unit) -> None:
        sagas = unit.sagas()
        sagas.turn_back("checkout", "1", "compensate", 5)
        sagas.turn_back("checkout", "2", "cancel", 5)
        sagas.pause("checkout", "3", 5)
        sagas.turn_back("checkout", "5", "compensate", 5)

    store.write(order).result()
    pivots = [Entry("pivot", "0", "pivot", 1, 1, "done") for _ in holds]
    assert await asyncio.gather(*map(writer.record, holds, pivots)) == [False, False, True, True, False]
    ends = [
        Release(holds[0], "completed", None, None, None, None, 7),
        Release(holds[1], "compensated", None, None, "why", None, 7),
        Release(holds[2], "waiting", 900, "[]", None, 0, 7),
        Release(holds[3], "completed", None, None, None, None, 7, "9"),
        Release(holds[4], "waiting", 900, "[]", None, 0, 7),
    ]
    assert await asyncio.gather(*map(writer.release, ends)) == [False, True, True, True, True]
    rows = [store.query(lambda unit, key=hold.key: unit.sagas().row("checkout", key)) for hold in holds]  # type: ignore[misc]
    assert [(row.state, row.since, row.due, row.worker, row.pause, row.error, row.result) for row in rows if row is not None] == [
        ("running", 100, None, "a", None, None, None),
        ("cancelled", 7, None, None, None, "why", None),
        ("paused", 7, None, None, "waiting", None, None),
        ("completed", 7, None, None, None, None, "9"),
        ("waiting", 7, 7, None, None, None, None),
    ]


async def test_a_child_that_ends_beside_others_tells_its_parent(store: Store) -> None:
    writer = JournalWriter(store)
    await begin(writer, store, range(1, 4))
    child = Start("checkout", 1, "shop", envelope(store, 4), 100, "a", ("checkout", "1"))
    assert await writer.start(child, lambda _: None)
    holds = [Hold("checkout", str(order), "a", 1) for order in range(1, 5)]
    ends = [Release(hold, "completed", None, None, None, None, 7) for hold in holds[1:3]]
    ends += [
        Release(holds[3], "completed", None, None, None, None, 7, "9", ("checkout", "1")),
        Release(holds[0], "waiting", 900, "[]", None, 0, 7),
    ]
    assert await asyncio.gather(*map(writer.release, ends)) == [True] * 4
    row = store.query(lambda unit: unit.sagas().row("checkout", "1"))
    assert row is not None
    assert (row.state, row.arrived, row.due) == ("waiting", 1, 7)
    assert store.query(lambda unit: unit.sagas().ended([("checkout", "4")])) == [("checkout", "4", "completed", "9", None)]


@pytest.mark.promise("death at any instruction")
async def test_a_last_line_and_the_end_are_written_together_beside_others(store: Store) -> None:
    """In one group: instances that begin, lines, ends, and lines with ends; one is another worker's by now, one is to be undone."""
    writer = JournalWriter(store)
    await begin(writer, store, range(1, 9))
    holds = [Hold("checkout", str(order), "a", 1) for order in range(1, 9)]
    late = holds[2]._replace(epoch=0)
    store.write(lambda unit: unit.sagas().turn_back("checkout", "5", "compensate", 5)).result()

    def end(hold: Hold) -> Release:
        return Release(hold, "completed", None, None, None, None, 7, "9")

    told: list[bool | None] = []
    asked: list[Any] = [
        writer.start(Start("checkout", 1, "shop", envelope(store, 9), 100, "a"), told.append),
        writer.start(Start("checkout", 1, "shop", envelope(store, 8), 100, "a"), told.append),
        writer.record(holds[0], entry()),
        writer.record(holds[1], entry(), end(holds[1])),
        writer.record(late, entry(), end(late)),
        writer.release(end(holds[3])),
        writer.record(holds[4], entry(), end(holds[4])),
        writer.record(holds[5], entry(), end(holds[5])),
    ]
    assert await asyncio.gather(*asked) == [True, False, True, True, False, True, False, True]
    assert told == [True, False]

    def state(order: int) -> tuple[str, str | None, list[str]]:
        row = store.query(lambda unit: unit.sagas().row("checkout", str(order)))
        lines = store.query(lambda unit: unit.sagas().journal("checkout", str(order)))
        assert row is not None
        return row.state, row.result, [line.step for line in lines]

    assert [state(order) for order in (1, 2, 3, 4, 5, 6, 9)] == [
        ("running", None, ["charge"]),
        ("completed", "9", ["charge"]),
        ("running", None, []),
        ("completed", "9", []),
        ("running", None, ["charge"]),  # the line stands, the end doesn't
        ("completed", "9", ["charge"]),
        ("running", None, []),
    ]


async def test_many_are_on_their_way_at_the_same_time_and_each_hears_of_its_own(store: Store) -> None:
    """On a server a second group doesn't wait for the first."""
    writer, orders = JournalWriter(store), range(1, 101)
    await begin(writer, store, orders)

    async def one(order: int) -> list[bool]:
        hold = Hold("checkout", str(order), "a", 1 if order % 7 else 0)
        lines = [Entry("step", "0", "charge", number, number, "done", str(order), digest="d") for number in range(1, 6)]
        end = Release(hold, "completed", None, None, None, None, 7)
        found = [await writer.record(hold, line) for line in lines[:-1]]
        return [*found, await writer.record(hold, lines[-1], end)]

    for order, told in zip(orders, await asyncio.gather(*map(one, orders)), strict=True):
        assert told == [bool(order % 7)] * 5
    for order in orders:
        lines = store.query(lambda unit, key=str(order): unit.sagas().journal("checkout", key))  # type: ignore[misc]
        assert [line.result for line in lines] == ([str(order)] * 5 if order % 7 else [])


async def test_who_tells_a_parent_has_no_place_in_a_group(store: Store) -> None:
    release = Release(Hold("checkout", "1", "a", 1), "completed", None, None, None, None, 7, None, ("checkout", "2"))
    with pytest.raises(ValueError, match="parent"):
        JournalWriter(store).record(release.hold, entry(), release)
