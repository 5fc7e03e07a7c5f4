"""faststream-outbox on asyncpg: publish one by one for some seconds, fill up in batches, then one subscriber works them off."""

import asyncio
import json
import logging
import sys
import time

from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

WORKERS = 16
BATCH = 500


async def main(url: str, seconds: float, backlog: int) -> None:
    metadata = MetaData()
    table = make_outbox_table(metadata, table_name="outbox")
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"), pool_size=20)
    async with engine.begin() as conn:
        await conn.run_sync(metadata.create_all)
    broker = OutboxBroker(engine, outbox_table=table, logger=None)
    handled = 0

    @broker.subscriber("orders", max_workers=WORKERS, fetch_batch_size=BATCH, min_fetch_interval=0.001)  # type: ignore[untyped-decorator]
    async def handle(order: dict[str, object]) -> None:
        nonlocal handled
        handled += 1

    order = {"order_id": 1, "customer": "ada", "total": "12.50"}
    published = 0
    await broker.connect()
    until = time.perf_counter() + seconds
    async with engine.connect() as conn:
        while time.perf_counter() < until:
            async with conn.begin():
                await broker.publish(order, queue="orders", session=conn)
            published += 1
        for _ in range(0, backlog, 500):
            async with conn.begin():
                await broker.publish_batch(*[order] * 500, queue="orders", session=conn)
    began = time.perf_counter()
    await broker.start()
    while handled < published + backlog and time.perf_counter() - began < 4 * seconds:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    rate = handled / (time.perf_counter() - began)
    print(json.dumps({"publish": published / seconds, "handle": rate}), flush=True)
    await broker.stop()
    await engine.dispose()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
