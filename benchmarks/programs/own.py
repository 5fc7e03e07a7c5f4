"""Tidings as the peers are measured: publish durably for some seconds, one by one and from 64 tasks, then handle what is there."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from benchmarks.byhand import OrderPlaced, order
from tidings import App


async def main(folder: Path, seconds: float) -> None:
    app = App("bench", f"sqlite:///{folder / 'log.db'}")
    handled = 0
    done = asyncio.Event()

    @app.subscribe(OrderPlaced, name="empty")
    async def handle(event: OrderPlaced) -> None:
        nonlocal handled
        handled += 1
        if handled == published:
            done.set()

    published = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        app.publish(order(published), tx="own").result()
        published += 1
    alone = published / seconds

    async def task() -> None:
        nonlocal published
        while time.perf_counter() < until:
            published += 1
            await app.publish(order(published), tx="own")

    until = time.perf_counter() + seconds
    before = published
    await asyncio.gather(*(task() for _ in range(64)))
    together = (published - before) / seconds

    began = time.perf_counter()
    async with app:
        await done.wait()
        took = time.perf_counter() - began
    print(json.dumps({"publish": alone, "publish_64": together, "handle": handled / took}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
