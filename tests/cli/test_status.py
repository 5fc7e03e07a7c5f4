from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import sqlite3
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said


def test_it_tells_how_each_subscription_stands(filled: Path, tidings: Tidings) -> None:
    found = said(tidings("status", "--json", store=filled))
    assert found["head"] == 7
    charge, inventory = found["subscriptions"]
    assert (charge["name"], charge["behind"], charge["parked"], charge["waiting"], charge["dead"]) == ("charge_card", 0, 0, 0, 1)
    assert (inventory["parked"], inventory["waiting"], inventory["dead"]) == (1, 1, 0)
    assert charge["lanes_free"] == 64
    assert found["workers"] == []
    assert 0 < found["next_scheduled_seconds"] <= 3600


def test_events_and_seconds_behind(store: Path, tidings: Tidings) -> None:
    for order in (70, 71):
        tidings("publish", "shop.OrderPlaced", f'{{"order_id": {order}}}', "--key-name", "order_id", store=store)
    tidings("publish", "shop.Unread", "{}", store=store)
    charge, inventory = said(tidings("status", "--json", store=store))["subscriptions"]
    assert (charge["behind"], inventory["behind"]) == (2, 2)
    assert 0 <= charge["seconds_behind"] < 60


def test_a_count_beyond_what_is_looked_at_is_an_estimate(store: Path, tidings: Tidings) -> None:
    conn = sqlite3.connect(store)
    conn.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 80000)"
        " INSERT INTO tidings_log (lane, topic, type, version, event_id, time, source, data, correlation_id)"
        " SELECT i % 64, 'shop', iif(i % 2, 'shop.OrderPlaced', 'x.Y'), 1, 'e' || i, 1, 'shop', x'7b7d', 'e' FROM n"
    )
    conn.commit()
    conn.close()
    charge = said(tidings("status", "--json", store=store))["subscriptions"][0]
    assert charge["behind_exact"] is False
    assert 39_000 < charge["behind"] < 41_000
    assert "~" in tidings("status", store=store).output


def test_as_people_see_it(filled: Path, tidings: Tidings) -> None:
    output = tidings("status", store=filled).output
    assert "Subscription" in output
    assert "nobody runs it" in output
    assert "no worker runs; `tidings run module:app` starts one" in output


def test_workers_their_troubles_and_stuck_threads(store: Path, tidings: Tidings) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    stuck = {"inventory": [{"handler": "reserve", "position": 9, "seconds": 120.0}]}
    info = json.dumps({"running": 3, "stuck": stuck, "trouble": {"charge_card": "disk"}})
    conn = sqlite3.connect(store)
    row = "INSERT INTO tidings_workers VALUES (?, 'shop', 'box', 77, ?, ?, 0, '[]', ?)"
    conn.execute(row, ("w1", boot, 1e12, info))
    conn.execute(row, ("w2", boot, 0, "{}"))
    conn.execute("UPDATE tidings_lanes SET worker = 'w1' WHERE lane < 60")
    conn.execute("UPDATE tidings_lanes SET worker = 'w2' WHERE lane >= 60")
    conn.execute("UPDATE tidings_subscriptions SET held = 'charge_card failing: X', held_since = 1 WHERE name = 'charge_card'")
    conn.commit()
    conn.close()
    output = tidings("status", store=store).output
    for words in (
        "60/64",
        "held for",
        "charge_card failing: X",
        "trouble: disk",
        "a thread of reserve runs past its timeout, 2 min now, at position 9",
    ):
        assert words in output
    assert "gone: its lease ran out" in output
    found = said(tidings("status", "--json", store=store))
    assert [(row["worker"], row["alive"], row["lanes"]) for row in found["workers"]] == [("w1", True, 120), ("w2", False, 8)]
    for condition in ("held", "trouble", "stuck", "alone"):
        tidings("status", "--fail-if", condition, store=store, code=1)


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("dead=1", 1),
        ("dead>=1", 1),
        ("dead>1", 0),
        ("dead=2", 0),
        ("parked=1", 1),
        ("behind=1", 0),
        ("seconds=1", 0),
        ("paused", 0),
        ("alone", 1),
    ],
)
def test_fail_if(condition: str, code: int, filled: Path, tidings: Tidings) -> None:
    result = tidings("status", "--fail-if", condition, store=filled, code=code)
    assert (condition.partition("=")[0].rstrip(">") in result.stderr) == bool(code)


@pytest.mark.parametrize("condition", ["death=1", "behind", "behind=", "paused=1"])
def test_a_condition_that_is_none(condition: str, filled: Path, tidings: Tidings) -> None:
    assert "behind=1000" in tidings("status", "--fail-if", condition, store=filled, code=2).output


def test_a_store_without_subscriptions(tmp_path: Path, tidings: Tidings) -> None:
    tidings("store", "init", store=tmp_path / "new.db")
    assert "no subscriptions yet" in tidings("status", store=tmp_path / "new.db").output


@pytest.mark.parametrize("columns", [40, 60, 89, 90, 120])
def test_it_fits_the_terminal(columns: int, filled: Path) -> None:
    """Names and numbers stay whole."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "tidings", "status", "--store", f"sqlite:///{filled}"]
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        output = b""
        try:
            while part := os.read(master, 4096):
                output += part
        except OSError:  # the other end is closed
            os.close(master)
        assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).splitlines()
    assert max(map(len, lines)) <= columns
    assert any("charge_card" in line for line in lines)
    assert any("inventory" in line for line in lines)
    assert ("Subscription" in "".join(lines)) == (columns >= 90)
