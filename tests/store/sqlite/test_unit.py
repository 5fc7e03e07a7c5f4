"""What is SQLite's own in the statements of a unit; the rest is in the contract of stores."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidings import App, Event, ManualClock, SQLiteStore
from tidings.store.port import WorkerRow
from tidings.store.sqlite.schema import name_of
from tidings.store.sqlite.unit import APPEND, EVENT, SCHEDULE, append_with, only_in
from tidings.testing.contracts.store import NOW, an_event


class Placed(Event, key="order"):
    order: int


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(f"sqlite:///{tmp_path}/shop.db", clock=ManualClock(NOW / 1e6))
    store.open()
    yield store
    store.close()


def test_the_check_of_the_store_rides_with_the_insert(store: SQLiteStore) -> None:
    with store.transaction() as conn:
        for statement, values in ((APPEND, an_event()[1:]), (SCHEDULE, ("id", NOW, *an_event()[1:]))):
            with pytest.raises(sqlite3.OperationalError, match=r"no such table: main\.tidings_is_123e4567e89b"):
                conn.execute(only_in("123e4567-e89b-12d3-a456-426614174000", statement), values)
            assert conn.execute(only_in(store.log_id, statement), values).rowcount == 1
    assert store.query(lambda unit: (unit.head(), len(unit.scheduled()))) == (1, 1)


def test_the_check_holds_for_a_statement_that_is_prepared_already(store: SQLiteStore) -> None:
    with store.transaction() as conn:
        statement = only_in(store.log_id, APPEND)
        conn.execute(statement, an_event()[1:])
        conn.execute(f"DROP VIEW {name_of(store.log_id)}")
        with pytest.raises(sqlite3.OperationalError, match=r"no such table: main\.tidings_is_"):
            conn.execute(statement, an_event()[1:])


@pytest.mark.parametrize(
    "value",
    [
        "orders",
        "o'brien",
        "'",
        "''",
        "'); DROP TABLE tidings_log; --",
        "?",
        ":a",
        "\\'\n\"`[]",
        "VALUES (?",
        "ümläut 🙂",
        "",
        None,
        1,
        -1,
        2**63 - 1,
        -(2**63),
    ],
)
def test_a_value_in_a_statement_is_the_value_that_would_be_bound(store: SQLiteStore, value: Any) -> None:
    column = "version" if isinstance(value, int) else "topic" if value is not None else "headers"
    place = EVENT.split(", ").index(column)
    bound = list(an_event()[1:])
    bound[place] = value
    with store.transaction() as conn:
        conn.execute(APPEND, bound)
        conn.execute(only_in(store.log_id, append_with({column: value})), bound[:place] + bound[place + 1 :])
    first, second = store.read(0, 2)[0]
    assert first[1:] == second[1:] == tuple(bound)


@pytest.mark.parametrize("value", ["a\0b", 2**63])
def test_a_value_that_can_not_stand_in_a_statement(value: Any) -> None:
    with pytest.raises(ValueError, match=r"zero byte|real number"):
        append_with({"topic": value})


@pytest.mark.promise("publishing never waits")
def test_one_publish_is_one_statement(store: SQLiteStore) -> None:
    app = App("shop", store=store)
    conn = sqlite3.connect(store.path)
    statements: list[str] = []
    app.publish(Placed(order=0), tx=conn)
    conn.set_trace_callback(statements.append)
    for order in range(5):
        app.publish(Placed(order=order), tx=conn)
    assert len(statements) == 5
    assert all(statement.startswith("INSERT INTO main.tidings_log") for statement in statements)
    conn.rollback()
    conn.close()
    app.close()


def test_leases_of_another_boot_are_over(store: SQLiteStore) -> None:
    """The monotonic clock began anew, so its figures mean nothing."""
    row = WorkerRow("a", "shop", "host", 1, NOW, ("mail",), True, 1e9)
    store.write(lambda unit: unit.enrol(row, 1e9)).result(5)
    assert store.query(lambda unit: unit.workers())[0].alive
    conn = sqlite3.connect(store.path)
    with conn:
        conn.execute("UPDATE tidings_workers SET boot = 'another'")
    conn.close()
    assert not store.query(lambda unit: unit.workers())[0].alive


def test_the_dead_are_buried_when_their_lanes_have_gone(store: SQLiteStore) -> None:
    store.write(lambda unit: unit.register("mail", "shop", [], "key", 0, NOW)).result(5)
    for name, until in (("a", 0.0), ("b", 1e9)):
        row = WorkerRow(name, "shop", "host", 1, NOW, ("mail",), True, until)
        store.write(lambda unit, row=row, until=until: unit.enrol(row, until)).result(5)  # type: ignore[misc]

    def names() -> list[str]:
        return [worker.worker for worker in store.query(lambda unit: unit.workers())]

    with store.transaction() as conn:
        conn.execute("UPDATE tidings_lanes SET worker = 'a'")
    store.write(lambda unit: unit.bury()).result(5)
    assert names() == ["a", "b"]
    store.write(lambda unit: unit.claim("mail", "b", 1, 1)).result(5)
    store.write(lambda unit: unit.bury()).result(5)
    assert names() == ["b"]


@pytest.mark.promise("bounded")
def test_what_may_be_trimmed_is_what_everyone_has_passed(store: SQLiteStore) -> None:
    store.write(lambda unit: unit.append([an_event(number) for number in range(20)])).result(5)
    assert store.query(lambda unit: unit.trimmable()) == 20  # nobody reads
    for name in ("mail", "ship"):
        store.write(lambda unit, name=name: unit.register(name, "shop", [], "key", 10, NOW)).result(5)  # type: ignore[misc]
    assert store.query(lambda unit: unit.trimmable()) == 10
    with store.transaction() as conn:
        conn.execute("UPDATE tidings_lanes SET position = 15")
        conn.execute("UPDATE tidings_lanes SET open = '[12, 14]' WHERE lane = 5 AND subscription = 'ship'")
    assert store.query(lambda unit: unit.trimmable()) == 11
    assert store.write(lambda unit: unit.trim(11, 5_000)).result(5) == 11
    assert store.query(lambda unit: unit.retained()) == 11


def test_a_new_subscription_begins_behind_what_was_trimmed(store: SQLiteStore) -> None:
    store.write(lambda unit: unit.append([an_event(number) for number in range(10)])).result(5)
    store.write(lambda unit: unit.trim(4, 5_000)).result(5)
    assert store.query(lambda unit: unit.retained()) == 4
