"""Async handlers that wait: time for all, against the least that their concurrency and their longest key allow."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from tidings import App

from .byhand import OrderPlaced, fill, store
from .empty_handler import forget
from .measure import Row, folder

KEYS = 1000
CONCURRENCY = 100


def run(quick: bool) -> Iterator[Row]:
    count = 2_000 if quick else 6_000
    with folder() as path:
        file = path / "log.db"
        store(file).close()
        fill(file, count, keys=KEYS)
        yield _row("slow async handler, 50 ms, 1,000 keys, 100 at once", file, count, lambda _: 0.05)
        yield _row("async handler of 5 ms, one event in 1,000 takes 500 ms", file, count, lambda n: 0.5 if n % 1007 == 50 else 0.005)


def _row(path: str, file: Path, count: int, seconds_of: Callable[[int], float]) -> Row:
    work = [seconds_of(number) for number in range(count)]
    ideal = least(work)
    app = App("bench", f"sqlite:///{file}")
    ends: list[float] = []
    done = asyncio.Event()

    @app.subscribe(OrderPlaced, name="slow", concurrency=CONCURRENCY)
    async def wait(event: OrderPlaced) -> None:
        number = event.order_id + KEYS * turns[event.order_id]
        turns[event.order_id] += 1
        await asyncio.sleep(work[number])
        ends.append(time.perf_counter())
        if len(ends) == count:
            done.set()

    turns: Counter[int] = Counter()

    async def main() -> float:
        began = time.perf_counter()
        async with app:
            await asyncio.wait_for(done.wait(), 60)
        return time.perf_counter() - began

    seconds = asyncio.run(main())
    forget(file, "slow")
    # Behind the last quick one, a slow one may be alone.
    quick = ends[: count - count // 1000 - 5]
    longest = max(later - earlier for earlier, later in pairwise(quick))
    share = ideal / seconds
    return Row(
        path,
        f"{seconds:.2f} s (ideal {ideal:.2f}); longest pause between two ends {longest * 1000:.0f} ms",
        "≥ 80 % of the ideal",
        share >= 0.8,
        share,
        facts={"seconds": seconds, "ideal": ideal, "longest_pause": longest},
    )


def least(work: list[float]) -> float:
    """Seconds for all when nothing costs time but the work: ``CONCURRENCY`` at once, one of a key, in the order of the log."""
    ready = deque(number for number in range(min(KEYS, len(work))))
    running: list[tuple[float, int]] = []
    clock = 0.0
    while ready or running:
        while ready and len(running) < CONCURRENCY:
            number = ready.popleft()
            heapq.heappush(running, (clock + work[number], number))
        clock, number = heapq.heappop(running)
        if number + KEYS < len(work):  # the next of its key
            ready.append(number + KEYS)
    return clock
