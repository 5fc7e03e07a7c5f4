"""The shop as services: what is added up across their databases, and the whole demonstration, small."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from apps.checkout.books import Books, Logged
from apps.checkout.reconcile import reconcile
from servers.kafka import Kafka
from tests.promises import ROOT

PLACED, APPROVED, CANCELLED = "shop.OrderPlaced", "fraud.OrderApproved", "shop.OrderCancelled"


def books(shop: list[tuple[str, int]], fraud: list[tuple[str, int]]) -> Books:
    """Of two services; each log by type and order."""

    def log(events: list[tuple[str, int]]) -> list[Logged]:
        return [Logged(position, kind, order_id, False) for position, (kind, order_id) in enumerate(events, 1)]

    made = Books(logs={"shop": log(shop), "fraud": log(fraud)}, ledgers={name: _empty() for name in ("gateway", "warehouse", "mail")})
    made.log = [event for service, events in made.logs.items() for event in events if event.type.startswith(f"{service}.")]
    return made


def _empty() -> Any:
    from apps.checkout.ledger import Account

    return Account([], 0, 0)


def problems(found: Books, name: str) -> tuple[str, ...]:
    return next(check.problems for check in reconcile(found, [1]).checks if check.name.startswith(name))


CROSSED = "every event crossed"
STORY = "the log tells"


def test_all_in_place() -> None:
    found = books([(PLACED, 1), (APPROVED, 1)], [(PLACED, 1), (APPROVED, 1)])
    assert problems(found, CROSSED) == ()
    assert problems(found, STORY) == ()


def test_what_is_lost_doubled_or_out_of_order_between_them() -> None:
    lost = books([(PLACED, 1), (PLACED, 2)], [(PLACED, 1)])
    assert problems(lost, CROSSED) == ("order 2: shop.OrderPlaced is missing in fraud",)
    twice = books([(PLACED, 1)], [(PLACED, 1), (PLACED, 1)])
    assert problems(twice, CROSSED) == ("order 1: shop.OrderPlaced came 1 times too often in fraud",)
    turned = books([(PLACED, 1), (CANCELLED, 1)], [(CANCELLED, 1), (PLACED, 1)])
    assert problems(turned, CROSSED) == ("fraud has events of shop in another order than shop",)
    other_keys = books([(PLACED, 1), (PLACED, 2), (CANCELLED, 1)], [(PLACED, 2), (PLACED, 1), (CANCELLED, 1)])
    assert problems(other_keys, CROSSED) == ()


def test_a_service_publishes_behind_what_led_to_it() -> None:
    early = books([(PLACED, 1)], [(APPROVED, 1), (PLACED, 1)])
    assert problems(early, STORY) == ("fraud: order 1: fraud.OrderApproved without shop.OrderPlaced before it",)
    # Others hear of the two from two topics, in whatever order.
    assert problems(books([(APPROVED, 1), (PLACED, 1)], [(PLACED, 1), (APPROVED, 1)]), STORY) == ()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("nothing lost")
@pytest.mark.promise("independence")
def test_the_demonstration_ends_with_everything_in_place(kafka: Kafka, postgres_url: str) -> None:
    """Services, a relay and the broker killed, a service added late; it starts servers of its own."""
    assert kafka.running
    assert postgres_url
    command = [sys.executable, "-m", "apps.checkout.services", "--count", "120", "--seed", "3", "--patience", "150"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for happened in ("killed payment", "killed relay", "killed the broker", "added support", "across 8 databases"):
        assert happened in done.stdout
