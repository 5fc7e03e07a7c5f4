from __future__ import annotations

import time

import pytest

from tidings import ManualClock, SystemClock


def test_the_machines_clock() -> None:
    clock = SystemClock()
    assert abs(clock.time() - time.time()) < 60
    first = clock.monotonic()
    assert clock.monotonic() >= first


def test_a_manual_clock_stands_until_it_is_moved() -> None:
    clock = ManualClock(1_000.0)
    assert (clock.time(), clock.time()) == (1_000.0, 1_000.0)
    began = clock.monotonic()
    clock.advance(2.5)
    assert (clock.time(), clock.monotonic() - began) == (1_002.5, 2.5)


def test_the_wall_clock_jumps_either_way_and_the_other_does_not() -> None:
    clock = ManualClock()
    wall, monotonic = clock.time(), clock.monotonic()
    clock.jump(-3_600)
    clock.jump(60)
    assert (clock.time() - wall, clock.monotonic()) == (-3_540, monotonic)
    with pytest.raises(ValueError, match=r"a clock only goes forward; use jump\(\)"):
        clock.advance(-1)
