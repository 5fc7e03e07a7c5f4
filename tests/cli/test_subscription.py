from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said


def rows(store: Path, sql: str) -> list[tuple[object, ...]]:
    conn = sqlite3.connect(store)
    found = conn.execute(sql).fetchall()
    conn.close()
    return found


def test_list(filled: Path, tidings: Tidings) -> None:
    assert "shop.PaymentSucceeded" in tidings("subscription", "list", store=filled).output
    assert [row["name"] for row in said(tidings("subscription", "list", "--json", store=filled))] == ["charge_card", "inventory"]


def test_pause_and_resume(store: Path, tidings: Tidings) -> None:
    control = rows(store, "SELECT CAST(value AS INTEGER) FROM tidings_meta WHERE name = 'control'")[0][0]
    tidings("subscription", "pause", "inventory", store=store)
    assert said(tidings("subscription", "list", "--json", store=store))[1]["paused"] is True
    assert "paused" in tidings("status", store=store).output
    tidings("status", "--fail-if", "paused", store=store, code=1)
    tidings("subscription", "resume", "inventory", store=store)
    assert said(tidings("subscription", "list", "--json", store=store))[1]["paused"] is False
    assert rows(store, "SELECT value FROM tidings_meta WHERE name = 'control'") == [(str(int(str(control)) + 2),)]  # running workers see it


@pytest.mark.parametrize(
    ("to", "position", "left"), [("start", 0, 0), ("now", 7, 2), ("3", 3, 1), ("999", 7, 2), ("1h", 0, 0), ("2999-01-01", 7, 2)]
)
def test_rewind(to: str, position: int, left: int, store: Path, tidings: Tidings) -> None:
    done = said(tidings("subscription", "rewind", "inventory", "--to", to, "--yes", "--json", store=store))
    assert done["position"] == position
    assert set(rows(store, "SELECT position, open, worker FROM tidings_lanes WHERE subscription = 'inventory'")) == {(position, None, None)}
    assert rows(store, "SELECT count(*) FROM tidings_parked WHERE subscription = 'inventory'") == [(left,)]


def test_rewind_asks_and_says_what_it_means(store: Path, tidings: Tidings) -> None:
    before = rows(store, "SELECT * FROM tidings_lanes")
    result = tidings("subscription", "rewind", "charge_card", "--to", "start", store=store, code=1, input="n\n")
    assert "handled again" in result.output
    assert rows(store, "SELECT * FROM tidings_lanes") == before


def test_remove(store: Path, tidings: Tidings) -> None:
    assert "1 dead letter" in tidings("subscription", "remove", "charge_card", store=store, input="y\n").output
    assert [row["name"] for row in said(tidings("subscription", "list", "--json", store=store))] == ["inventory"]
    assert rows(store, "SELECT count(*) FROM tidings_lanes WHERE subscription = 'charge_card'") == [(0,)]


@pytest.mark.parametrize("command", ["pause nobody", "resume nobody", "rewind nobody --to now --yes", "remove nobody --yes"])
def test_one_that_is_not_there(command: str, filled: Path, tidings: Tidings) -> None:
    assert "there is no subscription 'nobody'" in tidings("subscription", *command.split(), store=filled, code=2).output


def test_a_place_that_is_none(filled: Path, tidings: Tidings) -> None:
    assert "no time" in tidings("subscription", "rewind", "inventory", "--to", "-3", store=filled, code=2).output
