"""Killed (SIGKILL, a real process) before and behind each durable write and each call outside: it ends as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises import ROOT


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("way", ["forward", "back", "claimed"])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_saga_killed_at_every_point_ends_as_one_that_was_not(
    tmp_path: Path, kind: str, way: str, request: pytest.FixtureRequest
) -> None:  # fmt: skip
    url = f"sqlite:///{tmp_path}/shop.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    command = [sys.executable, "-m", "tests.sagas.killing", url, str(tmp_path), way]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    print(*(f"{one['point']}: {one['state']}" for one in found), sep="\n")
    for one in found:
        order = found.index(one) + 1
        payment = f"payment-{order}"
        if way != "back":
            assert one["state"] == "completed", one
            assert one["effects"] == ["charge", f"ship {payment} 7"], one
            assert one["outside"] == ["reserve"], one
        else:
            assert one["state"] == "compensated", one
            assert one["effects"] == ["charge", f"refund {payment}"], one
            assert one["outside"] == ["reserve", "unreserve-7"], one
        assert one["events"] == 1, one
    killed = {one["point"] for one in found if one["killed"]}
    wanted = ["start 1", "record 1", "record 2", "record 3", "reserve 1", "release 1"]
    wanted += ["claim 1"] if way == "claimed" else []  # else the one who makes it has it in hand
    wanted += [] if way != "back" else ["turn 1", "unreserve-7 1", "record 4", "record 5"]
    assert {f"{side} {point}" for side in ("before", "behind") for point in wanted} <= killed
