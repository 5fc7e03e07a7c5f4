"""The same work at the end of a short log and of a long one, and the memory of a process that drains a million events."""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .byhand import COLUMNS, connect, fill, order, store
from .empty_handler import forget
from .measure import Comparison, Cost, Row, as_rate, compare, folder, now, thousands
from .program import Program, compiled

SHORT = 100_000


def run(quick: bool) -> Iterator[Row]:
    long, drained = (500_000, 200_000) if quick else (5_000_000, 1_000_000)
    with folder() as path:
        short_file, long_file = path / "short.db", path / "long.db"
        for file in (short_file, long_file):
            store(file).close()
        fill(short_file, SHORT)
        fill(long_file, SHORT)
        _grow(long_file, long)
        words = f"{long // 1_000_000} million" if long >= 1_000_000 else f"{long // 1000} thousand"
        count = 20_000 if quick else 50_000
        comparison = compare(
            lambda: handle(long_file, count),
            lambda: handle(short_file, count),
            seconds=3.0 if quick else 10.0,
        )
        yield _row(f"empty handler at {words} rows, against 100 thousand", comparison, count)
        comparison = compare(lambda: publish(long_file), lambda: publish(short_file), seconds=2.0 if quick else 5.0)
        yield _row(f"publish and commit (tens) at {words} rows, against 100 thousand", comparison, 2_000)
        yield memory(long_file, drained)
        yield from search(long_file, words)


def _row(path: str, comparison: Comparison, count: int) -> Row:
    ratio, spread = as_rate(comparison)
    rates = [thousands(count / comparison.ours("wall")), thousands(count / comparison.hand("wall"))]
    return Row(path, f"{rates[0]} (short log {rates[1]})", "≥ 90 %", ratio >= 0.9, ratio, spread, {"cpu_ratio": comparison.ratio()})


def _grow(file: Path, rows: int) -> None:
    """Copies of the first rows until there are enough."""
    conn = connect(file, "OFF")
    have = conn.execute("SELECT max(position) FROM tidings_log").fetchone()[0]
    while have < rows:
        part = min(have, rows - have, 500_000)
        conn.execute(f"INSERT INTO tidings_log ({COLUMNS}) SELECT {COLUMNS} FROM tidings_log WHERE position <= ?", (part,))
        have += part
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()


def _head(file: Path) -> int:
    conn = sqlite3.connect(file)
    head: int = conn.execute("SELECT max(position) FROM tidings_log").fetchone()[0]
    conn.close()
    return head


def handle(file: Path, count: int) -> Cost:
    from .many_subscriptions import deliver

    return deliver(file, 1, count, _head(file) - count)


def publish(file: Path) -> Cost:
    app = store(file)
    conn = connect(file)
    began = now()
    for turn in range(200):
        conn.execute("BEGIN IMMEDIATE")
        for index in range(10):
            app.publish(order(turn * 10 + index), tx=conn)
        conn.execute("COMMIT")
    cost = now() - began
    conn.close()
    app.close()
    return cost


def memory(file: Path, count: int) -> Row:
    with Program("worker", file, "drain", _head(file) - count) as worker:
        worker.ask("go")
        worker.ask(f"until {count // 5}")
        early = worker.ask("memory")[0] / 1024
        seconds = worker.ask(f"until {count}")
        _, most = worker.ask("memory")
    forget(file, "drain")
    most /= 1024
    return Row(
        f"memory of a process that drains {count:,} events",
        f"{most:.0f} MB at most, {early:.0f} MB after a fifth; {thousands(count / seconds)}",
        "< 100 MB, flat",
        most < 100 and most < early * 1.3 + 5,
        facts={"most_mb": most, "after_a_fifth_mb": early, "rate": count / seconds},
    )


def search(file: Path, words: str) -> Iterator[Row]:
    """The command line's questions at this size, first as a worker leaves the log, then as it would be without one. The long log has each
    key many times over."""
    app = store(file)
    began = time.perf_counter()
    while (block := app.store.query(lambda unit: unit.next_block())) is not None:
        app.store.write(partial(_add_block, block=block)).result(60)
    seconds = time.perf_counter() - began
    app.close()
    yield Row(
        f"condensing {words} rows for searches, as workers do beside their work", f"{seconds:.1f} s in all", facts={"seconds": seconds}
    )
    for goal in ("< 1 s", ""):
        for arguments in (("trace", "order_id", "42"), ("log", "--key", "order_id", "42")):
            name = f"tidings {' '.join(arguments)}, {words} rows{'' if goal else ', no worker ever ran'}"
            command = (sys.executable, "-m", "tidings", *arguments, "--store", f"sqlite:///{file}", "--json")
            try:
                seconds = statistics.median([_seconds(command, file.parent / "compiled") for _ in range(4)][1:])
            except subprocess.CalledProcessError as error:
                yield Row(name, f"broke: {error.stderr.strip().splitlines()[-1:]}", goal, met=False)
            else:
                yield Row(name, f"{seconds:.2f} s", goal, seconds < 1 if goal else None, facts={"seconds": seconds})
        conn = connect(file)
        conn.execute("DELETE FROM tidings_blocks")
        conn.close()


def _add_block(unit: Any, block: Any) -> None:
    unit.add_block(block)


def _seconds(command: tuple[str, ...], cache: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, text=True, check=True, env=compiled(cache))
    return time.perf_counter() - began
