"""A worker in a process of its own: ``worker.py STORE KIND [NUMBER]``; STORE is a SQLite file or a URL.

KIND: ``latency`` notes when each event came; ``many`` has NUMBER subscriptions with empty handlers; ``slow`` and ``slow-shared`` hold
their transaction for 5 ms an event; ``drain`` handles everything behind position NUMBER.
Its first line starts it. Then it answers ``cpu`` with its CPU seconds, ``times`` with [order, monotonic ns], ``handled`` with a number,
``until N`` with the seconds until N were handled, ``memory`` with KiB: now, and at most.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time

from benchmarks.byhand import OrderPlaced
from tidings import App


def main(store: str, kind: str, number: int = 1) -> None:
    app = App("bench", store if "://" in store else f"sqlite:///{store}")
    times: list[tuple[int, int]] = []
    handled = [0] * max(1, number if kind == "many" else 1)

    if kind == "latency":

        @app.subscribe(OrderPlaced, name="latency", start="now")
        async def note(event: OrderPlaced) -> None:
            times.append((event.order_id, time.monotonic_ns()))
    elif kind == "many":
        for index in range(number):

            @app.subscribe(OrderPlaced, name=f"many{index}", start="now")
            async def count(event: OrderPlaced, index: int = index) -> None:
                handled[index] += 1
    elif kind in {"slow", "slow-shared"}:

        @app.subscribe(OrderPlaced, name="slow", shared_tx=kind == "slow-shared")
        def hold(event: OrderPlaced, tx: sqlite3.Connection) -> None:
            tx.execute("INSERT OR REPLACE INTO held VALUES (?)", (event.order_id,))
            time.sleep(0.005)
            handled[0] += 1
    else:

        @app.subscribe(OrderPlaced, name="drain", start=number)
        async def drain(event: OrderPlaced) -> None:
            handled[0] += 1

    asyncio.run(answer(app, times, handled))


async def answer(app: App, times: list[tuple[int, int]], handled: list[int]) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    began = time.perf_counter()
    async with app:
        print('"ready"', flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            reply: object
            if line == "cpu":
                reply = time.process_time()
            elif line == "times":
                reply = times
            elif line.startswith("until"):
                wanted = int(line.split()[1])
                while sum(handled) < wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
                reply = time.perf_counter() - began
            elif line == "memory":
                # Not getrusage: its peak begins with that of the process that started this one.
                with open("/proc/self/status") as file:  # noqa: ASYNC230
                    fields = dict(line.split(":", 1) for line in file)
                reply = [int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")]
            else:
                reply = sum(handled)
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
