"""Who locks several instances on a server does so in one order, whatever their kin."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from servers.postgres import Postgres
from tidings import App, Event
from tidings.clock import ManualClock
from tidings.sagas.operator import Operator
from tidings.store import store_at
from tidings.store.port import WorkerRow
from tidings.store.sagas import Entry, Hold, Release, SagaRow, Start


class Placed(Event, key="order_id"):
    order_id: str


@pytest.mark.promise("bounded")
@pytest.mark.parametrize(("parent", "child"), [("1", "2"), ("2", "1"), ("B", "a"), ("a", "B")])
def test_an_operators_batch_with_a_parent_and_its_child_beside_the_child_that_ends(postgres_url: str, parent: str, child: str) -> None:
    """The batch has locked the first of them when the child ends, which locks both. Nobody's transaction is broken off for the other's."""
    clock = ManualClock()
    ours, theirs = store_at(postgres_url, clock=clock), store_at(postgres_url, clock=clock)
    ours.open()
    theirs.open()
    app = App("shop", store=ours)
    now = int(clock.time() * 1_000_000)
    row = WorkerRow("w", "shop", "here", 1, 1, (), True, 10.0)
    ours.write(lambda unit: unit.enrol(row, clock.monotonic() + 10)).result()
    ours.write(lambda unit: unit.sagas().start("checkout", 1, "shop", app.envelope(Placed(order_id=parent)), now)).result()
    begun = Start("checkout", 1, "shop", app.envelope(Placed(order_id=child)), now, "w", ("checkout", parent))
    ours.write(lambda unit: unit.sagas().start_all([begun])).result()
    rows = ours.query(lambda unit: unit.sagas().rows("checkout", (), 10))
    release = Release(Hold("checkout", child, "w", 1), "completed", None, None, None, None, now, None, ("checkout", parent))
    locked, tries = threading.Event(), {"batch": 0, "child": 0}

    def still(one: SagaRow) -> bool:
        """Called with the row locked."""
        if one.key == min(parent, child):
            tries["batch"] += 1
            locked.set()
            until_somebody_waits(postgres_url)
        return True

    def end(unit: Any) -> list[bool]:
        tries["child"] += 1
        return unit.sagas().release_all([release])

    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(lambda: Operator(theirs, "ann").many("pause", rows, reason="x", still=still))
        assert locked.wait(10)
        assert ours.write(end).result(30) == [True]
        done = {one.key: one.refused for one in batch.result(30)}
    assert tries == {"batch": 1, "child": 1}
    assert done[parent] is None
    ours.close()
    theirs.close()


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("postgres", [15], indirect=True)  # that one knows languages
@pytest.mark.parametrize("what", ["record", "release"])
def test_a_batch_beside_a_group_in_a_database_that_orders_texts_by_a_language(postgres: Postgres, postgres_url: str, what: str) -> None:
    """There ``a`` stands before ``B``; by code points it is the other way round."""
    clock = ManualClock()
    ours, theirs = store_at(postgres_url, clock=clock), store_at(postgres_url, clock=clock)
    ours.open()
    theirs.open()
    with psycopg.connect(postgres_url) as conn:
        conn.execute('ALTER TABLE tidings_sagas ALTER COLUMN key TYPE text COLLATE "en-x-icu"')
    app, keys, now = App("shop", store=ours), ("B", "a"), int(clock.time() * 1_000_000)
    row = WorkerRow("w", "shop", "here", 1, 1, (), True, 10.0)
    ours.write(lambda unit: unit.enrol(row, clock.monotonic() + 10)).result()
    starts = [Start("checkout", 1, "shop", app.envelope(Placed(order_id=key)), now, "w") for key in keys]
    ours.write(lambda unit: unit.sagas().start_all(starts)).result()
    rows = ours.query(lambda unit: unit.sagas().rows("checkout", (), 10))
    holds = [Hold("checkout", key, "w", 1) for key in keys]
    locked, tries = threading.Event(), {"batch": 0, "group": 0}

    def still(one: SagaRow) -> bool:
        if one.key == "B":
            tries["batch"] += 1
            locked.set()
            until_somebody_waits(postgres_url)
        return True

    def group(unit: Any) -> list[bool]:
        tries["group"] += 1
        if what == "record":
            return unit.sagas().record_all([(hold, Entry("step", "0", "charge", 1, 1, "done")) for hold in holds])
        return unit.sagas().release_all([Release(hold, "waiting", None, None, None, 0, now) for hold in holds])

    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(lambda: Operator(theirs, "ann").many("pause", rows, reason="x", still=still))
        assert locked.wait(10)
        assert ours.write(group).result(30) == [True, True]
        assert [one.refused for one in batch.result(30)] == [None, None]
    assert tries == {"batch": 1, "group": 1}
    ours.close()
    theirs.close()


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


def until_somebody_waits(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for _ in range(1000):
            if conn.execute(WAITING).fetchone() != (0,):
                return
            conn.execute("SELECT pg_sleep(0.005)")
    raise AssertionError("nobody waits")
