from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings
from tidings import Envelope


def positions(output: str) -> list[int]:
    return [int(line.split()[0]) for line in output.splitlines()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", [1, 2, 3, 4, 5, 6, 7]),
        ("--limit 2", [6, 7]),
        ("--after 2 --limit 2", [3, 4]),
        ("--type shop.OrderPlaced", [1, 2, 3, 4]),
        ("--type shop.OrderPlaced --type shop.PaymentSucceeded --limit 5", [3, 4, 5, 6, 7]),
        ("--key order_id 47", [4]),
        ("--key customer_id 47", []),
        ("--since 1h", [1, 2, 3, 4, 5, 6, 7]),
        ("--until 1h", []),
        ("--until 2000-01-01", []),
        ("--since 2000-01-01T00:00:00Z --limit 1", [7]),
    ],
)
def test_what_is_shown(options: str, expected: list[int], filled: Path, tidings: Tidings) -> None:
    assert positions(tidings("log", *options.split(), store=filled).stdout) == expected


def test_lines_tell_type_key_and_data(filled: Path, tidings: Tidings) -> None:
    assert tidings("log", "--key", "order_id", "47", store=filled).output.endswith('shop.OrderPlaced  order_id=47  {"order_id":47}\n')


def test_json_is_cloudevents(filled: Path, tidings: Tidings) -> None:
    lines = tidings("log", "--json", store=filled).stdout.splitlines()
    assert len(lines) == 7
    first = json.loads(lines[0])
    assert first["specversion"] == "1.0"
    assert Envelope.from_cloudevent(first).key == "42"


def test_a_time_that_is_none(filled: Path, tidings: Tidings) -> None:
    assert "10m" in tidings("log", "--since", "yesterday", store=filled, code=2).output


def test_that_nothing_fits_is_said_beside_the_output(filled: Path, tidings: Tidings) -> None:
    result = tidings("log", "--type", "shp.OrderPlaced", "--json", store=filled)
    assert (result.stdout, result.stderr) == ("", "no event fits that; `tidings log` alone shows the newest\n")


def test_follow_goes_on_until_interrupted(store: Path, tidings: Tidings) -> None:
    command = [sys.executable, "-u", "-m", "tidings", "log", "--follow", "--limit", "1", "--store", f"sqlite:///{store}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(30, process.kill)
        guard.start()
        assert process.stdout is not None
        assert positions(process.stdout.readline()) == [7]
        for order in (1, 2):
            tidings("publish", "shop.OrderPlaced", f'{{"order_id": {order}}}', "--key-name", "order_id", store=store)
        assert positions(process.stdout.readline() + process.stdout.readline()) == [8, 9]
        process.send_signal(2)
        assert process.wait() == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        guard.cancel()
