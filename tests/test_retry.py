from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ConfigurationError, Retry

policies = st.builds(
    Retry,
    attempts=st.integers(1, 50),
    first=st.floats(0, 100),
    factor=st.floats(1, 10),
    most=st.floats(0, 10_000),
    jitter=st.floats(0, 1),
)


@given(policies, st.integers(1, 10_000), st.integers())
def test_a_delay_is_within_its_bounds_or_there_is_none(retry: Retry, attempt: int, seed: int) -> None:
    delay = retry.delay(attempt, ValueError(), random.Random(seed))
    assert (delay is None) == (attempt >= retry.attempts)
    if delay is not None:
        plain = min(retry.first * retry.factor ** min(attempt - 1, 64), retry.most)
        assert plain * (1 - retry.jitter) - 1e-6 <= delay
        assert delay <= plain * (1 + retry.jitter) + 1e-6


@given(policies, st.integers(1, 48))
def test_without_jitter_delays_never_become_shorter(retry: Retry, attempt: int) -> None:
    plain = Retry(100, retry.first, retry.factor, retry.most, jitter=0)
    one, two = (plain.delay(number, ValueError(), random.Random(0)) for number in (attempt, attempt + 1))
    assert one is not None
    assert two is not None
    assert one <= two


def test_the_delays_as_documented() -> None:
    retry = Retry(attempts=5, first=1, factor=2, most=5, jitter=0)
    assert [retry.delay(attempt, ValueError(), random.Random()) for attempt in range(1, 6)] == [1, 2, 4, 5, None]


def test_jitter_spreads_what_failed_together() -> None:
    delays = {Retry(first=10, jitter=0.2).delay(1, ValueError(), random.Random(seed)) for seed in range(200)}
    assert len(delays) > 150
    assert min(delays) < 9 < 11 < max(delays)  # type: ignore[type-var,operator]


class Gone(ValueError):
    pass


@pytest.mark.parametrize(
    ("retry", "error", "again"),
    [
        (Retry(), ValueError(), True),
        (Retry(give_up_on=(ValueError,)), ValueError(), False),
        (Retry(give_up_on=(ValueError,)), Gone(), False),
        (Retry(give_up_on=(Gone,)), ValueError(), True),
        (Retry(only=(OSError,)), ValueError(), False),
        (Retry(only=(OSError,)), TimeoutError(), True),
        (Retry(only=(ValueError,), give_up_on=(Gone,)), Gone(), False),
        (Retry(attempts=1), ValueError(), False),
        (Retry(by_type=((Gone, Retry(attempts=1)),)), Gone(), False),
        (Retry(by_type=((Gone, Retry(attempts=1)),)), ValueError(), True),
        (Retry(attempts=1, by_type=((OSError, Retry(attempts=9)),)), OSError(), True),
        (Retry(), asyncio.CancelledError(), True),
        (Retry(only=(Exception,)), asyncio.CancelledError(), False),
    ],
)
def test_by_exception_type(retry: Retry, error: BaseException, again: bool) -> None:
    assert (retry.delay(1, error, random.Random(0)) is not None) == again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "Retry(attempts=0): the first attempt counts, so give a whole number from 1"),
        ({"first": -1}, "first and most are seconds (0 or more), factor is 1 or more"),
        ({"most": -1}, "first and most are seconds"),
        ({"factor": 0.5}, "factor is 1 or more"),
        ({"jitter": 1.1}, "Retry(jitter=1.1): give a part of the delay, 0 to 1"),
        ({"give_up_on": ValueError}, "Retry(give_up_on=…): give a tuple of exception types, for example (ValueError,)"),
        ({"only": (1,)}, "Retry(only=…): give a tuple of exception types"),
        ({"attempts": 2.5}, "Retry(attempts=2.5)"),
    ],
)
def test_what_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(**options)
    assert message in str(caught.value)
