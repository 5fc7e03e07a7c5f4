"""A forked child of a process that has a store open: it is told, and its parent goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sqlite3, sys, warnings
import psycopg
from tidings import App, Event, StoreError

warnings.simplefilter("ignore", DeprecationWarning)
url = sys.argv[1]
app = App("shop", store=url)


class Placed(Event, key="order"):
    order: int


def connect():
    return sqlite3.connect(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else psycopg.connect(url)


def ways():
    yield lambda: app.publish(Placed(order=2), tx="own").result()
    yield lambda: app.publish(Placed(order=3), tx=connect())
    yield lambda: app.publish(Placed(order=4), tx="own").result()
    yield lambda: app.scheduled()
    yield lambda: app.store.read(0, 10)
    yield lambda: app.store.open()


app.open()
app.publish(Placed(order=1), tx="own").result()
app.scheduled()
app.store.read(0, 10)
if os.fork() == 0:
    signal.alarm(20)
    for way in ways():
        try:
            way()
            print("done", flush=True)
        except StoreError as error:
            print(error, flush=True)
    sys.exit()
print(os.wait()[1], app.publish(Placed(order=5), tx="own").result().position, len(app.store.read(0, 10)[0]))
app.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_forked_process_is_told_that_it_can_not_use_an_open_store(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Its writer's thread is not there, so it would wait for ever; and SQLite's connections would do harm."""
    url = f"sqlite:///{tmp_path / 'shop.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    done = subprocess.run([sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, timeout=60)
    *told, last = done.stdout.splitlines()
    assert (last, done.stderr) == ("0 2 2", "")
    assert len(told) == 6
    assert all(re.search(r"forked from one that had .*open.*: open the app only behind the fork", line) for line in told), told
