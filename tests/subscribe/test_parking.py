from __future__ import annotations

from typing import Any

import pytest

from tidings import Envelope, Event
from tidings.envelope import lane_of
from tidings.event import EventType
from tidings.store.port import Lane
from tidings.subscribe.context import Context
from tidings.subscribe.handler import Handler
from tidings.subscribe.lanes import LaneState
from tidings.subscribe.parking import ERROR_LIMIT, FOLLOWS, TRACEBACK_LIMIT, Failure, Health, describe, parked_row

NOW = 1_700_000_000_000_000


class Placed(Event, key="order"):
    order: int


def a_context(failure: Failure) -> Context:
    handler = Handler(lambda event: None, EventType(Placed, "shop"), where=None, name="x")
    number = lane_of("order", "1")
    row = (9, number, "shop", "shop.Placed", 1, "order", "1", "id", NOW, "shop", b"{}", "id", None, None, None)
    ctx = Context(row, "mail", handler, LaneState(Lane("mail", number, 0, (), "a", 1)), ("order", "1"))
    ctx.attempt = 3
    ctx.failure = failure
    return ctx


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_what_will_be_tried_again() -> None:
    row = parked_row(a_context(Failure(raised(ValueError("no\nmore")), 1.5)), NOW, holds=True)
    assert (row.subscription, row.state, row.holds, row.attempts) == ("mail", "retry", False, 3)
    assert (row.due, row.delay, row.since) == (NOW + 1_500_000, 1_500_000, NOW)
    assert row.error == "ValueError: no"
    assert row.traceback is not None
    assert "in raised" in row.traceback
    assert row.envelope == Envelope(*a_context(FOLLOWS).row)


@pytest.mark.parametrize("holds", [True, False])
def test_a_dead_letter(holds: bool) -> None:
    row = parked_row(a_context(Failure(raised(ValueError()), None)), NOW, holds)
    assert (row.state, row.holds, row.attempts, row.error) == ("dead", holds, 3, "ValueError")


def test_a_follower_was_not_tried() -> None:
    row = parked_row(a_context(FOLLOWS), NOW, holds=True)
    assert (row.state, row.holds, row.attempts, row.error, row.traceback) == ("waiting", False, 0, None, None)


def test_errors_are_bounded_and_one_line() -> None:
    row = parked_row(a_context(Failure(raised(ValueError("x" * 100_000 + "\n" + "y" * 100_000)), 1)), NOW, holds=False)
    assert row.error is not None
    assert row.traceback is not None
    assert len(row.error) <= ERROR_LIMIT
    assert len(row.traceback) <= TRACEBACK_LIMIT + 10
    assert describe(KeyError("order")) == "KeyError: 'order'"
    assert describe(ValueError("\n\n a\n b")) == "ValueError: a"


def health(most: float = 10) -> Health:
    return Health("charge", most)


def test_too_many_parked_keys_hold_reading_until_a_probe_succeeds_and_there_is_room() -> None:
    it = health(10)
    it.note(50, 1, ValueError("no"))
    assert it.review(9, False) is None
    assert it.review(10, False) == "charge failing: ValueError: no (10 keys parked)"
    assert it.review(9, True) is not None  # hardly any room
    assert it.review(7, False) is not None  # nothing has succeeded
    assert it.review(7, True) is None
    assert it.review(9, False) is None


def test_no_parked_keys_left_lifts_it() -> None:
    it = health()
    it.review(10, False)
    assert it.review(0, False) is None


def test_nearly_everything_failing_holds_reading() -> None:
    it = health(1e9)
    it.note(0, 99, ValueError("no"))
    assert it.reason is None  # too few to say
    it.note(0, 1, ValueError("no"))
    assert it.reason == "charge failing: ValueError: no"
    assert it.review(100, True) is None


def test_some_failing_does_not() -> None:
    it = health(1e9)
    for _ in range(1_000):
        it.note(2, 8, ValueError("no"))
    assert it.reason is None


def test_older_ends_count_less() -> None:
    """A day of success doesn't hide an hour of failures."""
    it = health(1e9)
    it.note(1_000_000, 0, None)
    failures = 0
    while it.reason is None:
        it.note(0, 10, ValueError("no"))
        failures += 10
    assert failures < 3_000


def test_an_error_whose_text_can_not_be_made() -> None:
    class Odd(Exception):
        def __str__(self) -> Any:
            raise ZeroDivisionError

    assert describe(Odd()) == "Odd: (its text can't be made)"


def test_a_text_that_a_store_would_refuse_is_told_in_other_letters() -> None:
    """A zero byte in it would otherwise have the row refused, and the handler called for ever."""
    row = parked_row(a_context(Failure(raised(ValueError("a\x00b\ud800c")), 1)), NOW, holds=False)
    assert row.error == "ValueError: a\\x00b\\ud800c"
    assert "\x00" not in (row.traceback or "")
