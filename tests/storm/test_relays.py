"""A short storm over relays; the long ones are ``python -m tests.storm.relays``."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers.kafka import Kafka
from tests.storm.relays import RelayStorm


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.promise("death at any instruction")
@pytest.mark.parametrize("postgres", [None, 0], ids=["sqlite", "postgres"])
def test_a_short_storm_over_relays(tmp_path: Path, kafka: Kafka, postgres: int | None) -> None:
    storm = RelayStorm(
        folder=tmp_path, seed=11, kafka=kafka, postgres=postgres, kills=2, freezes=1, restarts=1, slots=1, outages=1, crashes=1, cuts=1
    )
    assert storm.run() == []
    assert storm.events > 20
