"""Killed (SIGKILL, a real process) before and behind each durable write and each call outside: it ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises import ROOT
from tests.sagas.killed import WANTED, WAYS, end_of
from tests.sagas.killing import FEW


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_saga_killed_at_every_point_ends_as_one_that_was_not(
    tmp_path: Path, kind: str, way: str, request: pytest.FixtureRequest
) -> None:  # fmt: skip
    """Some points, drawn anew each time and printed; each of them if TIDINGS_KILL_POINTS=all, as ``make soak`` says."""
    url = f"sqlite:///{tmp_path}/shop.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    seed = [] if os.environ.get("TIDINGS_KILL_POINTS") == "all" else [str(random.randrange(10**6))]
    print("seed", *seed)
    command = [sys.executable, "-m", "tests.sagas.killing", url, str(tmp_path), way, *seed]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    print(*(f"{one['point']}: {one['state']}" for one in found), sep="\n")
    for order, one in enumerate(found, 1):
        end = end_of(way, order)
        assert (one["state"], one["child"], one["effects"], one["outside"]) == (end.state, end.child, end.effects, end.outside), one
        assert end.calls in (None, one["calls"]), one
        assert one["events"] == (0 if way.startswith("again") else 1), one
    killed = {one["point"] for one in found if one["killed"]}
    if seed:
        assert len(killed) > FEW / 2, sorted(killed)
    else:
        assert {f"{side} {point}" for side in ("before", "behind") for point in WANTED[way]} <= killed, sorted(killed)
