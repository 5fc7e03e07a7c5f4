"""Fifty subscriptions on one log: deliveries a second against one subscription, and what publishing notices of them."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from tidings import App

from .byhand import OrderPlaced, connect, fill, order, store
from .empty_handler import forget
from .measure import Cost, Row, as_rate, compare, folder, now, thousands
from .program import Program

MANY = 50


def run(quick: bool) -> Iterator[Row]:
    count = 2_000 if quick else 5_000
    with folder() as path:
        file = path / "log.db"
        store(file).close()
        fill(file, count * 5)

        def many() -> Cost:
            return deliver(file, MANY, count, 4 * count)

        def one() -> Cost:
            cost = deliver(file, 1, count * 5, 0)
            return Cost(cost.wall * MANY / 5, cost.cpu * MANY / 5)

        comparison = compare(many, one, seconds=4.0 if quick else 12.0, most=5)
        ratio, spread = as_rate(comparison)
        yield Row(
            f"{MANY} subscriptions on one log, deliveries",
            f"{thousands(MANY * count / comparison.ours('wall'))} (one subscription {thousands(MANY * count / comparison.hand('wall'))})",
            "≥ 2×",
            ratio >= 2,
            ratio,
            spread,
            {"cpu_us": 1e6 * comparison.ours() / count / MANY},
        )
    yield publishing(quick)


def deliver(file: Path, subscriptions: int, count: int, start: int) -> Cost:
    app = App("bench", f"sqlite:///{file}")
    left = subscriptions
    done = asyncio.Event()
    names = [f"many{index}" for index in range(subscriptions)]
    for name in names:

        def make(name: str) -> None:
            seen = 0

            @app.subscribe(OrderPlaced, name=name, start=start)
            async def handle(event: OrderPlaced) -> None:
                nonlocal seen, left
                seen += 1
                if seen == count:
                    left -= 1
                    if not left:
                        done.set()

        make(name)

    async def main() -> Cost:
        began = now()
        async with app:
            await asyncio.wait_for(done.wait(), 120)
        return now() - began

    cost = asyncio.run(main())
    forget(file, *names)
    return cost


def publishing(quick: bool) -> Row:
    """One process publishes at a steady pace, another handles: the time of a transaction with 10 events, and the publisher's CPU."""
    walls: dict[int, list[float]] = {1: [], MANY: []}
    cpus: dict[int, list[float]] = {1: [], MANY: []}
    for number in (1, MANY, MANY, 1) if quick else (1, MANY, MANY, 1, 1, MANY):
        with folder() as path:
            file = path / "log.db"
            app = store(file)
            conn = connect(file)
            with Program("worker", file, "many", number) as worker:
                worker.ask("go")
                times: list[float] = []
                cpu = time.process_time()
                for turn in range(100 if quick else 250):
                    began = time.perf_counter()
                    conn.execute("BEGIN IMMEDIATE")
                    for index in range(10):
                        app.publish(order(turn * 10 + index), tx=conn)
                    conn.execute("COMMIT")
                    times.append(time.perf_counter() - began)
                    time.sleep(max(0.0, 0.01 - times[-1]))
                cpus[number].append(time.process_time() - cpu)
                walls[number].append(statistics.median(times))
            conn.close()
            app.close()
    many, one = statistics.median(walls[MANY]), statistics.median(walls[1])
    ratio = many / one
    return Row(
        f"publishing (1,000/s, in tens) while {MANY} subscriptions handle in another process",
        f"{many * 1e6:.0f} µs a transaction (with one subscription {one * 1e6:.0f})",
        "≤ 1.10×",
        ratio <= 1.1,
        ratio,
        (min(walls[MANY]) / max(walls[1]), max(walls[MANY]) / min(walls[1])),
        {"cpu_ratio": statistics.median(cpus[MANY]) / statistics.median(cpus[1])},
    )
