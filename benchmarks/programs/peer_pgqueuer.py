"""pgqueuer on asyncpg: enqueue jobs one by one for some seconds, fill up in batches, then one worker works them off in batches."""

import asyncio
import json
import logging
import sys
import time

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

BATCH = 500


async def main(url: str, seconds: float, backlog: int) -> None:
    async with asyncpg.create_pool(url, min_size=2, max_size=10) as pool:
        driver = AsyncpgPoolDriver(pool)
        queries = Queries(driver)
        await queries.install()
        worker = PgQueuer(driver)
        handled = 0

        @worker.entrypoint("orders")  # type: ignore[untyped-decorator]
        async def handle(job: Job) -> None:
            nonlocal handled
            json.loads(job.payload or b"")
            handled += 1

        payload = b'{"order_id": 1, "customer": "ada", "total": "12.50"}'
        published = 0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await queries.enqueue("orders", payload)
            published += 1
        for _ in range(0, backlog, 500):
            await queries.enqueue(["orders"] * 500, [payload] * 500, [0] * 500)
        began = time.perf_counter()
        running = asyncio.create_task(worker.run(batch_size=BATCH))
        while handled < published + backlog and not running.done() and time.perf_counter() - began < 4 * seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if running.done():
            running.result()
        rate = handled / (time.perf_counter() - began)
        print(json.dumps({"publish": published / seconds, "handle": rate}), flush=True)
        worker.shutdown.set()
        await asyncio.wait([running], timeout=10)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
