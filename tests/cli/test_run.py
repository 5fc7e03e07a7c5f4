"""Real processes: signals, health and metrics."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SHOP

pytestmark = pytest.mark.processes


class Running:
    """``tidings run`` as a process, with what it printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_for(self, words: str) -> str:
        return wait(lambda: next((line for line in self.lines if words in line), None), words)

    def ended(self) -> int:
        code = self.process.wait(30)
        self._reader.join()
        return code


def wait(look: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := look()) is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "late.py").write_text(
        SHOP.replace('App("shop"', 'App("late"').replace("send_mail", "late_mail").replace("reserve", "late_reserve")
    )
    return tmp_path


@contextmanager
def running(folder: Path, *args: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "tidings", "run", *args]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        found = Running(process)
        try:
            found.wait_for("; Ctrl-C drains" if "--json" not in args else '"running"')
            yield found
        finally:
            process.kill()
            found.ended()


def publish(folder: Path, order: int) -> None:
    subprocess.run(
        [sys.executable, "-m", "tidings", "publish", "shop.OrderPlaced", json.dumps({"order_id": order}), "--app", "shop:app"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def mails(folder: Path) -> list[str]:
    file = folder / "mails"
    return file.read_text().splitlines() if file.exists() else []


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals, shop: Path) -> None:
    with running(shop, "shop:app") as found:
        assert any("shop: send_mail reads shop.OrderPlaced, in order per key, 16 at a time" in line for line in found.lines)
        publish(shop, 1)
        wait(lambda: mails(shop) or None, "the handler")
        os.kill(found.process.pid, number)
        assert found.ended() == 0
    assert mails(shop) == ["began 1", "sent 1"]
    output = "".join(found.lines)
    assert "draining: 1 handler still running" in output
    assert output.endswith("drained\n")
    conn = sqlite3.connect(shop / "shop.db")
    assert conn.execute("SELECT count(*) FROM tidings_workers").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM tidings_lanes WHERE open IS NOT NULL OR worker IS NOT NULL").fetchone() == (0,)
    conn.close()


def test_a_second_signal_stops_at_once_and_the_event_is_handled_again(shop: Path) -> None:
    with running(shop, "shop:app") as found:
        publish(shop, 100)  # would take a minute
        wait(lambda: mails(shop) or None, "the handler")
        found.process.terminate()
        found.wait_for("draining: 1 handler")
        found.process.terminate()
        assert found.ended() == 1
    assert mails(shop) == ["began 100"]
    with running(shop, "shop:app"):
        wait(lambda: mails(shop) == ["began 100", "began 100"] or None, "the second run")


def test_several_apps_in_one_process(shop: Path) -> None:
    with running(shop, "shop:app", "late:app", "--json") as found:
        started = [json.loads(line) for line in found.lines if '"subscription"' in line]
        assert [(line["app"], line["subscription"]) for line in started] == [
            ("shop", "send_mail"), ("shop", "reserve"), ("late", "late_mail"), ("late", "late_reserve"),
        ]  # fmt: skip


def test_a_name_of_another_app_is_refused(shop: Path) -> None:
    (shop / "thief.py").write_text(SHOP.replace('App("shop"', 'App("thief"'))
    command = [sys.executable, "-m", "tidings", "run", "shop:app", "thief:app"]
    done = subprocess.run(command, cwd=shop, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "belongs to the app 'shop'" in done.stderr
    assert "Traceback" not in done.stderr


def test_health_and_metrics(shop: Path) -> None:
    with running(shop, "shop:app", "--health-port", "0") as found:
        line = found.wait_for("health at")
        match = re.search(r"health at (http://127\.0\.0\.1:\d+)/health", line)
        assert match is not None
        url = match[1]
        status, body = get(f"{url}/health")
        report = json.loads(body)
        assert (status, report["status"], report["reasons"]) == (200, "ok", [])
        assert report["apps"][0]["subscriptions"]["send_mail"]["lanes"] == 64

        publish(shop, 2)
        wait(lambda: "sent 2" in mails(shop) or None, "the mail")

        def handled() -> str | None:
            text = get(f"{url}/metrics")[1].decode()
            wanted = [f'tidings_handled_total{{app="shop",subscription="{name}"}} 1.0' for name in ("send_mail", "reserve")]
            return text if all(line in text for line in wanted) else None

        text = wait(handled, "the counters")
        for name in ("failed_total", "dead_total", "published_total", "events_behind", "parked_keys", "in_flight", "lanes_held"):
            assert f'tidings_{name}{{app="shop",subscription="reserve"}}' in text
        assert 'tidings_lease_age_seconds{app="shop"}' in text
        assert "tidings_healthy 1.0" in text
        assert get(f"{url}/nothing")[0] == 404

        # The file's write lock in somebody else's hands for longer than the busy time-out: the lease can't be renewed.
        conn = sqlite3.connect(shop / "shop.db", isolation_level=None)
        conn.execute("BEGIN IMMEDIATE")

        def unhealthy() -> dict[str, Any] | None:
            status, body = get(f"{url}/health")
            return json.loads(body) if status == 503 else None

        report = wait(unhealthy, "503")
        assert report["status"] == "unhealthy"
        assert any("lease" in reason for reason in report["reasons"])
        conn.execute("ROLLBACK")
        conn.close()
        wait(lambda: get(f"{url}/health")[0] == 200 or None, "200 again")


def test_a_port_that_is_taken(shop: Path) -> None:
    with running(shop, "shop:app", "--health-port", "0") as found:
        port = found.wait_for("health at").partition("127.0.0.1:")[2].partition("/")[0]
        command = [sys.executable, "-m", "tidings", "run", "shop:app", "--health-port", port]
        done = subprocess.run(command, cwd=shop, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} can't be served on" in done.stderr
