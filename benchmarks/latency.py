"""From the call of publish, through the commit, to the handler, on an idle store; and what being idle costs."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from tidings import App

from .byhand import OrderPlaced, connect, order, store
from .measure import Row, folder, percentile
from .program import Program


def run(quick: bool) -> Iterator[Row]:
    count = 100 if quick else 400
    with folder() as path:
        sync = percentile([_sync(path / "sync") for _ in range(count)], 0.5)
        yield Row("what one sync to this disk takes, for comparison", f"p50 {sync:.2f} ms", facts={"p50_ms": sync})
        yield from _rows("same process", 0.5, *asyncio.run(same_process(path / "log.db", count)))
    with folder() as path:
        yield from _rows('same process, tx="own"', 0.5, *asyncio.run(same_process(path / "log.db", count, own=True)))
    with folder() as path:
        whole, behind, idle = other_process(path / "log.db", count, 3.0 if quick else 8.0)
        yield from _rows("other process", 1.0, whole, behind)
        yield Row("idle worker", f"{idle:.2%} of a core".replace("%", " %"), "< 1 %", idle < 0.01, facts={"share": idle})


def _rows(where: str, goal: float, whole: list[float], behind: list[float]) -> Iterator[Row]:
    p50, p99 = percentile(whole, 0.5), percentile(whole, 0.99)
    path, goal_words = f"call of publish to handler, idle, {where}", f"p50 ≤ {goal:g} ms"
    yield Row(path, f"p50 {p50:.2f} ms, p99 {p99:.2f} ms", goal_words, p50 <= goal, facts={"p50_ms": p50, "p99_ms": p99})
    # The commit is the disk's; what comes behind it is all that a reader of the log can be quick or slow at.
    p50, p99 = percentile(behind, 0.5), percentile(behind, 0.99)
    yield Row("   of these, behind the commit", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms", facts={"p50_ms": p50, "p99_ms": p99})


def _sync(file: Path) -> float:
    """Milliseconds for as much as one small commit writes."""
    with file.open("ab") as out:
        out.write(bytes(4096))
        out.flush()
        began = time.perf_counter()
        os.fdatasync(out.fileno())
        return (time.perf_counter() - began) * 1e3


async def same_process(file: Path, count: int, *, own: bool = False) -> tuple[list[float], list[float]]:
    app = App("bench", f"sqlite:///{file}")
    came: list[float] = []
    arrived = asyncio.Event()

    @app.subscribe(OrderPlaced, name="latency", start="now")
    async def note(event: OrderPlaced) -> None:
        came.append(time.perf_counter())
        arrived.set()

    whole, behind = [], []
    async with app:
        conn = connect(file)
        for number in range(count):
            arrived.clear()
            await asyncio.sleep(0.004 + 0.012 * random.random())
            began = time.perf_counter()
            if own:  # committed by the writer's thread, which knows that it has synced
                await app.publish(order(number), tx="own")
            else:
                conn.execute("BEGIN IMMEDIATE")
                app.publish(order(number), tx=conn)
                conn.execute("COMMIT")
            committed = time.perf_counter()
            await asyncio.wait_for(arrived.wait(), 10)
            whole.append((came[-1] - began) * 1e3)
            behind.append((came[-1] - committed) * 1e3)
        conn.close()
    return whole, behind


def other_process(file: Path, count: int, seconds: float) -> tuple[list[float], list[float], float]:
    app = store(file)
    conn = connect(file)
    began: dict[int, int] = {}
    committed: dict[int, int] = {}
    with Program("worker", file, "latency") as worker:
        worker.ask("go")
        time.sleep(0.5)
        for number in range(count):
            time.sleep(0.004 + 0.012 * random.random())
            began[number] = time.monotonic_ns()
            conn.execute("BEGIN IMMEDIATE")
            app.publish(order(number), tx=conn)
            conn.execute("COMMIT")
            committed[number] = time.monotonic_ns()
        time.sleep(1.0)
        times = worker.ask("times")
        cpu = worker.ask("cpu")
        time.sleep(seconds)
        idle = (worker.ask("cpu") - cpu) / seconds
    conn.close()
    app.close()
    if len(times) != count:
        raise AssertionError(f"{len(times)} of {count} events came")
    return [(at - began[number]) / 1e6 for number, at in times], [(at - committed[number]) / 1e6 for number, at in times], idle
