"""A short storm over sagas; the long ones are ``python -m tests.storm.sagas``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm.sagas import SagaStorm


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
@pytest.mark.parametrize("postgres", [None, 0], ids=["sqlite", "postgres"])
def test_a_short_storm_over_sagas(tmp_path: Path, postgres: int | None) -> None:
    storm = SagaStorm(folder=tmp_path, seed=7, orders=120, rate=30, postgres=postgres, kills=2, freezes=1, restarts=1, crashes=1, cuts=1)
    assert storm.run() == []
    assert storm.ended == {"completed": 90, "compensated": 30}
