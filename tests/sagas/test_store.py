"""What a store keeps of sagas: who holds an instance, and who writes for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tidings import App, Event
from tidings.clock import ManualClock
from tidings.store import store_at
from tidings.store.port import Store, WorkerRow
from tidings.store.sagas import Entry, Hold, SagaRow, SagaUnit

KNOWN = [("checkout", 1)]


class Placed(Event, key="order_id"):
    order_id: int


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """With one instance, of key 1, and two workers that live."""
    clock = ManualClock()
    store = store_at(store_url, clock=clock)
    store.open()
    envelope = App("shop", store=store).envelope(Placed(order_id=1))
    store.write(lambda unit: unit.sagas().start("checkout", 1, "shop", envelope, 100)).result()
    for name in ("a", "b"):
        row = WorkerRow(name, "shop", "here", 1, 1, (), True, 10.0)
        store.write(lambda unit, row=row: unit.enrol(row, clock.monotonic() + 10)).result()  # type: ignore[misc]
    yield store
    store.close()


def claim(store: Store, worker: str, now: int = 1000) -> list[SagaRow]:
    return store.write(lambda unit: unit.sagas().claim(KNOWN, worker, now, 10)).result()


def hold_of(row: SagaRow) -> Hold:
    return Hold(row.saga, row.key, row.worker or "", row.epoch)


def record(store: Store, hold: Hold, step: str = "charge", seq: int | None = 1, state: str = "done") -> bool:
    return store.write(lambda unit: unit.sagas().record(hold, Entry("step", "0", step, 1, seq, state))).result()


def test_who_lives_keeps_what_he_holds_and_who_died_does_not(store: Store) -> None:
    (row,) = claim(store, "a")
    assert claim(store, "b") == []
    assert store.query(lambda unit: unit.sagas().look(KNOWN, 1000)[:2]) == (False, None)
    assert isinstance(store.clock, ManualClock)
    store.clock.advance(11)
    assert store.query(lambda unit: unit.sagas().look(KNOWN, 1000).found)
    store.write(lambda unit: unit.renew("b", store.clock.monotonic() + 10, None)).result()
    (taken,) = claim(store, "b")
    assert (taken.worker, taken.epoch) == ("b", row.epoch + 1)
    assert not record(store, hold_of(row))
    assert record(store, hold_of(taken))


@pytest.mark.promise("effects once")
def test_an_earlier_hold_of_the_same_worker_is_not_a_later_one(store: Store) -> None:
    (before,) = claim(store, "a")
    store.write(lambda unit: unit.sagas().free(hold_of(before), 500)).result()
    (after,) = claim(store, "a")
    assert not record(store, hold_of(before))
    assert not store.write(lambda unit: unit.sagas().turn(hold_of(before), "compensating", None, 1)).result()
    assert not store.write(
        lambda unit: unit.sagas().release(hold_of(before), "completed", due=None, waits=None, error=None, arrived=None, now=1)
    ).result()
    assert record(store, hold_of(after))


def test_a_line_is_written_once_but_for_one_that_is_tried_again(store: Store) -> None:
    (row,) = claim(store, "a")
    hold = hold_of(row)
    assert record(store, hold, seq=None, state="retrying")
    assert record(store, hold)
    assert not record(store, hold, state="failed")
    assert [(one.step, one.state) for one in store.query(lambda unit: unit.sagas().journal("checkout", "1"))] == [("charge", "done")]


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("knows", [0, 1])
def test_an_event_that_comes_while_an_instance_is_let_go_of_makes_it_due(store: Store, knows: int) -> None:
    (row,) = claim(store, "a")
    event = App("shop", store=store).envelope(Placed(order_id=1))
    assert store.write(lambda unit: unit.sagas().deliver("checkout", event, 2000)).result()
    store.write(
        lambda unit: unit.sagas().release(hold_of(row), "waiting", due=9000, waits=None, error=None, arrived=knows, now=2001)
    ).result()
    assert store.query(lambda unit: unit.sagas().look(KNOWN, 3000)[:2]) == ((True, 2001) if knows == 0 else (False, 9000))


@pytest.mark.promise("death at any instruction")
@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_nobody_takes_an_instance_whose_step_is_being_committed(store: Store) -> None:
    """And its siblings don't wait for each other."""
    (row,) = claim(store, "a")
    hold = hold_of(row)
    with store.transaction() as first, store.transaction() as second:
        assert store.unit(first).sagas().record(hold, Entry("step", "0", "charge", 1, 1, "done"))
        assert store.unit(second).sagas().record(hold, Entry("step", "0", "reserve", 1, 2, "done"))
        assert isinstance(store.clock, ManualClock)
        store.clock.advance(11)
        store.write(lambda unit: unit.renew("b", store.clock.monotonic() + 10, None)).result()
        assert claim(store, "b") == []
    (taken,) = claim(store, "b")
    assert taken.epoch == row.epoch + 1
    assert len(store.query(lambda unit: unit.sagas().journal("checkout", "1"))) == 2


def test_an_event_for_nobody_is_left_alone(store: Store) -> None:
    other = App("shop", store=store).envelope(Placed(order_id=2))
    assert not store.write(lambda unit: unit.sagas().deliver("checkout", other, 1)).result()
    assert not store.write(lambda unit: unit.sagas().start("checkout", 1, "shop", other._replace(key="1"), 1)).result()


def order(store: Store, what: str) -> None:
    def write(unit: Any) -> None:
        if what == "pause":
            unit.sagas().pause("checkout", "1", 1500)
        else:
            unit.sagas().turn_back("checkout", "1", what, 1500)

    store.write(write).result()


def release(store: Store, row: SagaRow, state: str) -> bool:
    return store.write(
        lambda unit: unit.sagas().release(hold_of(row), state, due=9000, waits=None, error=None, arrived=0, now=2000)
    ).result()


def row_of(store: Store) -> SagaRow:
    row = store.query(lambda unit: unit.sagas().row("checkout", "1"))
    assert row is not None
    return row


def test_one_that_is_to_be_undone_is_neither_completed_nor_rests(store: Store) -> None:
    (row,) = claim(store, "a")
    order(store, "cancel")
    assert not release(store, row, "completed")
    assert release(store, row, "waiting")
    assert store.query(lambda unit: unit.sagas().look(KNOWN, 3000)[:2]) == (True, 2000)
    (again,) = claim(store, "b", 3000)
    assert again.back == "cancel"
    assert release(store, again, "compensated")
    assert row_of(store).state == "cancelled"


@pytest.mark.parametrize("freed", [False, True])
def test_one_that_is_to_be_paused_is_paused_by_whoever_lets_go_of_it(store: Store, freed: bool) -> None:
    (row,) = claim(store, "a")
    order(store, "pause")
    assert row_of(store).state == "running"
    if freed:
        assert store.write(lambda unit: unit.sagas().free(hold_of(row), 2000)).result()
    else:
        assert release(store, row, "waiting")
    found = row_of(store)
    assert (found.state, found.due, found.pause) == ("paused", None, "running" if freed else "waiting")
    event = App("shop", store=store).envelope(Placed(order_id=1))
    assert store.write(lambda unit: unit.sagas().deliver("checkout", event, 3000)).result()
    assert store.query(lambda unit: unit.sagas().look(KNOWN, 9999)[:2]) == (False, None)
    store.write(lambda unit: unit.sagas().resume("checkout", "1", 4000)).result()
    found = row_of(store)
    assert (found.state, found.due, found.pause) == ("running" if freed else "waiting", 4000, None)


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_what_is_due_is_found_by_its_index_and_not_among_all_that_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[Any, ...]]] = []
    run = SagaUnit._run

    def note(unit: SagaUnit, statement: str, *arguments: Any) -> Any:
        asked.append((statement, arguments))
        return run(unit, statement, *arguments)

    monkeypatch.setattr(SagaUnit, "_run", note)
    store.query(lambda unit: unit.sagas().look(KNOWN, 1000))
    store.write(lambda unit: unit.sagas().claim(KNOWN, "a", 0, 10)).result()
    monkeypatch.undo()
    assert len(asked) == 3
    for statement, arguments in asked:
        plan = store.query(lambda unit: unit.sagas()._run(f"EXPLAIN QUERY PLAN {statement}", *arguments).fetchall())  # noqa: B023
        used = [str(row[3]) for row in plan if "tidings_sagas" in str(row[3])]
        assert used
        assert all("INDEX tidings_sagas_due" in one or "INDEX tidings_sagas_worker" in one for one in used), used


def test_the_sagas_that_have_instances_are_named_without_reading_them_all(store: Store) -> None:
    app = App("shop", store=store)
    for number, name in enumerate(["parcel", "checkout", "return", "parcel", "nap"], 2):
        envelope = app.envelope(Placed(order_id=number))
        store.write(lambda unit, name=name, envelope=envelope: unit.sagas().start(name, 1, "shop", envelope, 100)).result()  # type: ignore[misc]
    assert store.query(lambda unit: unit.sagas().names()) == ["checkout", "nap", "parcel", "return"]
    assert store.query(lambda unit: unit.sagas().names(2)) == ["checkout", "nap"]


def test_in_an_empty_store_no_saga_is_named(store_url: str) -> None:
    store = store_at(store_url)
    store.open()
    assert store.query(lambda unit: unit.sagas().names()) == []
    store.close()
