"""Intakes in a short storm; ``python -m tests.storm.intakes --seconds 60`` is a longer one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.folder import Missing
from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.promises import untested
from tests.storm.intakes import SETTINGS, Storm

SECONDS = 10.0


@pytest.fixture
def own_kafka() -> Iterator[Kafka]:
    """One in which members that stand still are missed early."""
    try:
        server = Kafka(settings=SETTINGS)
    except Missing as why:
        untested("death at any instruction", str(why))
    with server:
        yield server


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_each_event_comes_in_once_and_in_order(own_kafka: Kafka, store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """TIDINGS_SEED=n repeats a seed; when processes get their turns it cannot decide."""
    seed = int(os.environ.get("TIDINGS_SEED") or random.SystemRandom().randrange(10**6))
    postgres: Postgres | None = request.getfixturevalue("postgres") if store == "postgres" else None
    url = request.getfixturevalue("postgres_url") if store == "postgres" else f"sqlite:///{tmp_path}/log.db"
    storm = Storm(own_kafka, url, seed, SECONDS, postgres)
    problems = storm.run()
    print(*storm.report(), sep="\n")
    assert problems == [], f"seed {seed}"
    assert storm.sent > 1000
    assert storm.happened["killed"] + storm.happened["frozen"] > 3
