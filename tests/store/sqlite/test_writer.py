from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tidings import StoreError
from tidings.store.sqlite.writer import FileWriter, WriteTurn
from tidings.store.writer import GROUP


class Unit:
    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn

    def add(self, number: int) -> int:
        return self.conn.execute("INSERT INTO t VALUES (?)", (number,)).lastrowid or 0


def add(number: int, unit: Unit) -> int:
    return unit.add(number)


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The writer's; it closes it."""
    conn = sqlite3.connect(tmp_path / "a.db", isolation_level=None, check_same_thread=False)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE t (x UNIQUE)")
    yield conn
    conn.close()


@pytest.fixture
def commits(conn: sqlite3.Connection) -> list[str]:
    seen: list[str] = []
    conn.set_trace_callback(lambda statement: seen.append(statement) if statement == "COMMIT" else None)
    return seen


@pytest.fixture
def writer(conn: sqlite3.Connection, commits: list[str]) -> Iterator[FileWriter]:
    writer = FileWriter(conn, "a.db", WriteTurn(), Unit, lambda: None, syncs=False)
    yield writer
    writer.close()


def test_what_waits_is_committed_together(writer: FileWriter, commits: list[str]) -> None:
    gate = threading.Event()
    futures = [writer.submit(lambda unit: gate.wait(10))]
    time.sleep(0.05)  # the first is on its way; all others come in while it runs
    futures += [writer.submit(partial(add, number)) for number in range(GROUP + 500)]
    gate.set()
    for future in futures:
        future.result(10)
    assert len(commits) == 3  # the first; at most GROUP; the rest


def test_a_job_that_fails_in_a_group_fails_alone(writer: FileWriter, commits: list[str]) -> None:
    gate = threading.Event()
    writer.submit(lambda unit: gate.wait(10))
    time.sleep(0.05)
    futures = [writer.submit(partial(add, number)) for number in (1, 2, 1, 3)]
    gate.set()
    assert [type(future.exception(10)).__name__ for future in futures] == ["NoneType", "NoneType", "StoreFailed", "NoneType"]


def test_a_cancelled_job_is_left_out(writer: FileWriter) -> None:
    gate = threading.Event()
    writer.submit(lambda unit: gate.wait(10))
    time.sleep(0.05)
    cancelled, kept = (writer.submit(partial(add, number)) for number in (1, 2))
    assert cancelled.cancel()
    gate.set()
    assert kept.result(10) == 1  # the first row of the table


def test_a_callback_that_fails_does_not_end_the_thread(writer: FileWriter, caplog: pytest.LogCaptureFixture) -> None:
    def fail(result: Any) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        assert writer.submit(lambda unit: unit.add(1), fail).result(10) == 1
        assert writer.submit(lambda unit: unit.add(2)).result(10) == 2
    assert "after a commit" in caplog.text


def test_a_closed_writer_takes_nothing(conn: sqlite3.Connection) -> None:
    writer = FileWriter(conn, "a.db", WriteTurn(), Unit, lambda: None, syncs=False)
    future = writer.submit(lambda unit: unit.add(1))
    writer.close()
    assert future.result(0) == 1
    with pytest.raises(StoreError, match="the store is closed"):
        writer.submit(lambda unit: unit.add(2))


def test_the_turn_goes_to_whoever_asked_first() -> None:
    turn = WriteTurn()
    turn.acquire()
    order: list[int] = []

    def note(number: int) -> None:
        order.append(number)
        turn.release()

    for number in range(5):
        turn.request(partial(note, number))
    turn.request(partial(note, 99), first=True)
    assert order == []
    turn.release()
    assert order == [99, 0, 1, 2, 3, 4]
    with turn:  # free again
        pass


def test_one_at_a_time() -> None:
    turn = WriteTurn()
    inside = most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turn:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)
