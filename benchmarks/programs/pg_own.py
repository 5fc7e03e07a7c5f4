"""Tidings as its peers on PostgreSQL are measured: publish one by one for some seconds, then handle what is in the log."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import psycopg

from benchmarks.byhand import OrderPlaced, order
from tidings import App


async def main(url: str, seconds: float, backlog: int) -> None:
    app = App("bench", url)
    handled = 0
    done = asyncio.Event()

    @app.subscribe(OrderPlaced, name="empty")
    async def handle(event: OrderPlaced) -> None:
        nonlocal handled
        handled += 1
        if handled == backlog + published:
            done.set()

    app.open()
    published = 0
    with psycopg.connect(url) as conn:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            app.publish(order(published), tx=conn)
            conn.commit()
            published += 1
    began = time.perf_counter()
    async with app:
        await done.wait()
        took = time.perf_counter() - began
    app.close()
    print(json.dumps({"publish": published / seconds, "handle": handled / took}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
