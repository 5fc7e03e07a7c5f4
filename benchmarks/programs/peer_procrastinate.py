"""procrastinate: defer jobs one by one for some seconds, fill up in batches, then one worker with concurrent jobs works them off."""

import asyncio
import json
import logging
import sys
import time

from procrastinate import App, PsycopgConnector

CONCURRENCY = 50


async def main(url: str, seconds: float, backlog: int) -> None:
    app = App(connector=PsycopgConnector(conninfo=url, max_size=20))
    handled = 0

    @app.task()  # type: ignore[untyped-decorator]
    async def handle(order_id: int, customer: str, total: str) -> None:
        nonlocal handled
        handled += 1

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        published = 0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await handle.defer_async(order_id=published, customer="ada", total="12.50")
            published += 1
        for start in range(0, backlog, 500):
            await handle.batch_defer_async(*({"order_id": start + n, "customer": "ada", "total": "12.50"} for n in range(500)))
        began = time.perf_counter()
        worker = asyncio.create_task(app.run_worker_async(concurrency=CONCURRENCY, wait=False, delete_jobs="successful"))
        while not worker.done() and time.perf_counter() - began < 4 * seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        rate = handled / (time.perf_counter() - began)
        print(json.dumps({"publish": published / seconds, "handle": rate}), flush=True)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
