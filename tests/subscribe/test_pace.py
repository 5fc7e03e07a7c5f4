from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ManualClock
from tidings.subscribe.pace import Pace


@pytest.mark.parametrize("rate", [0.5, 1, 10, 1000])
def test_over_time_it_is_the_rate(rate: float) -> None:
    clock = ManualClock()
    pace = Pace(rate, clock.monotonic)
    began = clock.monotonic()
    for _ in range(500):
        clock.advance(pace.wait())
    assert 498 / rate <= clock.monotonic() - began <= 501 / rate


@given(st.floats(0.5, 10_000), st.lists(st.floats(0, 100), max_size=50))
def test_never_more_than_the_rate_and_a_burst(rate: float, pauses: list[float]) -> None:
    """However long it rested before."""
    clock = ManualClock()
    pace = Pace(rate, clock.monotonic)
    times = []
    for pause in pauses:
        clock.advance(pause)
        clock.advance(pace.wait())
        times.append(clock.monotonic())
    burst = max(0.1 * rate, 1) + 1
    for first in range(len(times)):
        for last in range(first + 1, len(times)):
            assert last - first <= (times[last] - times[first]) * rate + burst + 1e-3


def test_who_holds_no_lanes_waits() -> None:
    clock = ManualClock()
    pace = Pace(10, clock.monotonic)
    pace.rate = 0
    assert pace.wait() > 0
