"""What the commands tell of records that an intake could not read."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Tidings, said
from tidings import SQLiteStore
from tidings.brokers.port import Partition, Received
from tidings.relay.unread import dead_letter
from tidings.store.port import Unit


def _took(path: Path) -> None:
    """An intake that has read three records, two of which it could not read."""
    store = SQLiteStore(f"sqlite:///{path}")
    store.open()

    def work(unit: Unit) -> None:
        intake = unit.intake("intake")
        intake.register("payment", "127.0.0.1:9092", 1)
        one = Partition("orders", 0)
        intake.begin(*one, "id", 3, 3)
        for offset in (0, 2):
            unit.park(dead_letter("intake", Received(*one, offset, None, b"?", (), 1), "id", "it is no JSON", intake.next_dead(), 1))

    store.write(work).result()
    store.close()


def test_records_that_could_not_be_read_are_counted(store: Path, tidings: Tidings) -> None:
    tidings("status", "--fail-if", "dead=2", store=store)
    _took(store)
    told = tidings("status", "--fail-if", "dead=2", store=store, code=1)
    assert "intake intake: dead 2, the limit is 2" in told.stderr
    assert "2 records could not be read: tidings dead list intake" in told.output
    tidings("status", "--fail-if", "dead=3", store=store)
    assert said(tidings("status", "--json", store=store))["intakes"] == [{"intake": "intake", "app": "payment", "dead": 2}]
    assert "2 records could not be read: tidings dead list intake" in tidings("intake", "list", store=store).output
    tidings("dead", "drop", "intake", "--all", "--yes", store=store)
    assert "could not be read" not in tidings("status", store=store).output
    tidings("status", "--fail-if", "dead=2", store=store)
