from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidings import SQLiteStore
from tidings.store.sqlite import waker as module
from tidings.store.sqlite.waker import Waker


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(f"sqlite:///{tmp_path}/shop.db")
    store.open()
    yield store
    store.close()


def commit(path: str) -> None:
    conn = sqlite3.connect(path)
    with conn:
        conn.execute("UPDATE tidings_meta SET value = value + 1 WHERE name = 'control'")
    conn.close()


def open_files() -> list[str]:
    """Descriptors of inotify and timerfd that this process holds."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return []
    return sorted(target for one in folder.iterdir() if os.path.lexists(one) and re.search("inotify|timerfd", target := os.readlink(one)))


class Woken:
    def __init__(self) -> None:
        self.times = 0
        self.event = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self.event.set()

    async def soon(self, seconds: float = 5.0) -> None:
        await asyncio.wait_for(self.event.wait(), seconds)
        self.event.clear()


@pytest.fixture(params=["inotify", "polling"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "polling":
        monkeypatch.setattr(module, "inotify", lambda path: None)
    elif sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    return str(request.param)


async def test_another_ones_commit_wakes(store: SQLiteStore, how: str) -> None:
    woken = Woken()
    waker = Waker(store.path, store.connect(), woken)
    for _ in range(3):
        waker.arm()
        commit(store.path)
        await woken.soon()
    assert woken.times == 3  # once each: it disarms itself
    commit(store.path)
    await asyncio.sleep(0.05)
    assert woken.times == 3
    waker.close()


async def test_a_commit_between_reading_and_arming_is_not_missed(store: SQLiteStore, how: str) -> None:
    woken = Woken()
    waker = Waker(store.path, store.connect(), woken)
    commit(store.path)
    waker.arm()
    assert woken.times == 1
    waker.close()


async def test_another_process_wakes(store: SQLiteStore, how: str) -> None:
    woken = Woken()
    waker = Waker(store.path, store.connect(), woken)
    waker.arm()
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('UPDATE tidings_meta SET value = value + 1'); c.commit()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, store.path)
    assert await process.wait() == 0
    await woken.soon()
    waker.close()


async def test_what_is_rolled_back_wakes_nobody(store: SQLiteStore, how: str) -> None:
    woken = Woken()
    waker = Waker(store.path, store.connect(), woken)
    waker.arm()
    conn = sqlite3.connect(store.path)
    conn.execute("UPDATE tidings_meta SET value = value")
    conn.rollback()
    conn.close()
    await asyncio.sleep(0.1)
    assert woken.times == 0
    waker.close()


async def test_after_a_hint_it_polls_quickly(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "inotify", lambda path: None)
    woken = Woken()
    waker = Waker(store.path, store.connect(), woken, poll=30.0)
    waker.arm()
    waker.hint()
    commit(store.path)
    began = time.monotonic()
    await woken.soon()
    assert time.monotonic() - began < 5
    waker.close()


async def test_two_may_close_it(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a thread, for the worker that drains, and one on the loop, for who told it to hurry."""
    waker, close, closed = Waker(store.path, store.connect(), lambda: None), os.close, list[int]()

    def slowly(descriptor: int) -> None:
        closed.append(descriptor)
        if len(closed) == 1:
            waker.close()
        close(descriptor)

    monkeypatch.setattr("tidings.store.sqlite.waker.os.close", slowly)
    waker.close()
    assert len(set(closed)) == len(closed)


async def test_closing_gives_everything_back(store: SQLiteStore, how: str) -> None:
    before = open_files()
    conn = store.connect()
    waker = Waker(store.path, conn, lambda: None)
    waker.arm()
    waker.close()
    with pytest.raises(sqlite3.ProgrammingError):
        conn.execute("SELECT 1")
    assert open_files() == before
