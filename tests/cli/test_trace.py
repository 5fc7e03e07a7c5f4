from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Tidings, said
from tidings import SQLiteStore


def states(told: dict[str, Any]) -> dict[str, str]:
    return {handling["subscription"]: handling["state"] for handling in told["handlings"]}


def handling(told: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in told["handlings"] if one["subscription"] == name)
    return found


def test_a_story_that_went_well(filled: Path, tidings: Tidings) -> None:
    story = said(tidings("trace", "order", "42", "--json", store=filled))
    assert story["key_name"] == "order_id"
    (placed,) = story["stories"]
    assert states(placed) == {"charge_card": "handled", "inventory": "handled"}
    (paid,) = handling(placed, "charge_card")["published"]
    assert paid["event"]["type"] == "shop.PaymentSucceeded"
    assert paid["event"]["causationid"] == placed["event"]["id"]
    assert states(paid) == {"inventory": "handled"}
    assert [one["event"]["type"] for one in story["scheduled"]] == ["shop.Reminder"]


def test_failed_attempts_are_told(filled: Path, tidings: Tidings) -> None:
    story = said(tidings("trace", "order_id", "43", "--json", store=filled))
    charge = handling(story["stories"][0], "charge_card")
    assert charge["state"] == "handled"
    assert [(one["attempt"], one["error"]) for one in charge["failed_attempts"]] == [(1, "RuntimeError: the gateway timed out")]


def test_parked_and_what_waits_behind_it(filled: Path, tidings: Tidings) -> None:
    story = said(tidings("trace", "order_id", "45", "--json", store=filled))
    placed = story["stories"][0]
    assert states(placed) == {"charge_card": "handled", "inventory": "retry"}
    assert handling(placed, "inventory")["next_attempt"] is not None
    assert states(handling(placed, "charge_card")["published"][0]) == {"inventory": "waiting"}


def test_dead_and_dropped(store: Path, tidings: Tidings) -> None:
    assert "dead letter after 2 attempts" in tidings("trace", "order_id", "47", store=store).output
    tidings("dead", "drop", "charge_card", "4", "--yes", store=store)
    assert "dropped by an operator" in tidings("trace", "order_id", "47", store=store).output


def test_the_tree_as_people_see_it(filled: Path, tidings: Tidings) -> None:
    output = tidings("trace", "order_id", "43", store=filled).output
    order = [
        "order_id 43: 2 events",
        "2 shop.OrderPlaced",
        "charge_card: handled at attempt 2",
        "attempt 1 failed",
        "the gateway timed out",
    ]
    order += ["shop.PaymentSucceeded", "inventory: handled", "scheduled shop.Reminder"]
    at = 0
    for words in order:
        at = output.index(words, at)
    assert '{"order_id":43}' in output
    assert '{"order_id":43}' not in tidings("trace", "order_id", "43", "--no-data", store=filled).output


def test_texts_are_no_markup(filled: Path, tidings: Tidings) -> None:
    assert "card [red]declined[/red]" in tidings("trace", "order_id", "47", store=filled).output


def test_pending(store: Path, tidings: Tidings) -> None:
    tidings("publish", "shop.OrderPlaced", '{"order_id": 50}', "--key-name", "order_id", store=store)
    tidings("subscription", "pause", "inventory", store=store)
    output = tidings("trace", "order_id", "50", store=store).output
    assert "charge_card: pending\n" in output.replace(" \n", "\n")
    assert "inventory: pending, it is paused" in output


def test_what_a_subscription_never_had_to_read_is_not_told_as_handled(store: Path, tidings: Tidings) -> None:
    conn = sqlite3.connect(store)
    conn.execute("UPDATE tidings_subscriptions SET start = 3 WHERE name = 'inventory'")
    conn.commit()
    conn.close()
    story = said(tidings("trace", "order_id", "42", "--json", store=store))
    assert states(story["stories"][0]) == {"charge_card": "handled"}


def test_what_a_rewind_skipped_is_not_told_as_handled(store: Path, tidings: Tidings) -> None:
    tidings("subscription", "pause", "inventory", store=store)
    tidings("publish", "shop.OrderPlaced", '{"order_id": 50}', "--key-name", "order_id", store=store)
    tidings("subscription", "rewind", "inventory", "--to", "now", "--yes", store=store)
    for order, state in (("42", "handled"), ("50", "skipped")):
        story = said(tidings("trace", "order_id", order, "--json", store=store))
        assert states(story["stories"][0])["inventory"] == state
    assert "inventory: skipped by a rewind" in tidings("trace", "order_id", "50", store=store).output
    tidings("subscription", "rewind", "inventory", "--to", "start", "--yes", store=store)
    assert "inventory: pending" in tidings("trace", "order_id", "50", store=store).output


def test_what_came_before_its_type_is_not_told_as_handled(store: Path, tidings: Tidings) -> None:
    with contextlib.closing(SQLiteStore(f"sqlite:///{store}")) as opened:
        opened.open()
        types = ["shop.OrderPlaced", "shop.PaymentSucceeded"]
        opened.write(lambda unit: unit.register("charge_card", "shop", types, "key", 0, 0)).result()
    output = tidings("trace", "order_id", "42", store=store).output
    assert "charge_card: handled" in output
    assert "charge_card: not read: the subscription got this type later" in output


def test_a_dead_letter_outlives_the_log(store: Path, tidings: Tidings) -> None:
    tidings("store", "trim", "--upto", "7", "--yes", store=store)
    assert tidings("log", store=store).output == ""
    output = tidings("trace", "order_id", "47", store=store).output
    assert "trimmed from the log" in output
    assert "dead letter after 2 attempts" in output


@pytest.mark.parametrize("key", [("order_id", "999"), ("customer_id", "42")])
def test_a_key_that_is_not_there(key: tuple[str, str], filled: Path, tidings: Tidings) -> None:
    output = tidings("trace", *key, store=filled, code=2).output
    assert output == f"Error: there is no event with {key[0]} {key[1]}; recent events have the keys order_id\n"


def test_more_than_asked_for_is_said(store: Path, tidings: Tidings) -> None:
    for _ in range(3):
        tidings("publish", "shop.X", "{}", "--key-name", "order_id", "--key", "60", store=store)
    result = tidings("trace", "order_id", "60", "--limit", "2", store=store)
    assert "order_id 60: 2 events in 2 stories" in result.output
    assert "--limit 20" in result.stderr
    assert said(tidings("trace", "order_id", "60", "--limit", "2", "--json", store=store))["complete"] is False
