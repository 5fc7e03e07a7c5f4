"""DBOS: workflows for ``benchmarks.sagas``, asked as ``sagas_own.py`` is. ``peer_dbos_sagas.py URL KIND [STEPS]``: of its system database;
steps of the kind ``tx`` write a row in a transaction of its data source, on the same database, in workflows that are threads."""

import asyncio
import json
import logging
import os
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dbos import DBOS


def transactional(url: str, steps: int) -> Any:
    import sqlalchemy
    from dbos import SQLAlchemyDatasource

    source = SQLAlchemyDatasource.create(url, engine_kwargs={"pool_size": 64})
    with source.engine.begin() as conn:
        conn.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS booked_dbos (number bigint, step integer)"))
    book = sqlalchemy.text("INSERT INTO booked_dbos VALUES (:number, :step)")
    level: Any = {} if url.startswith("sqlite") else {"isolation_level": "READ COMMITTED"}

    @source.transaction(**level)  # type: ignore[untyped-decorator]
    def add(number: int, step: int) -> int:
        source.sql_session().execute(book, {"number": number, "step": step})
        return number + step

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    def process(number: int) -> int:
        for step in range(steps):
            number = add(number, step)
        return number

    threads = ThreadPoolExecutor(64)

    async def run(number: int) -> int:
        return int(await asyncio.get_running_loop().run_in_executor(threads, process, number))

    return run


async def main(url: str, kind: str, steps: int) -> None:
    if url.startswith("sqlite"):
        conn = sqlite3.connect(url.removeprefix("sqlite:///"))
        conn.execute("PRAGMA journal_mode = WAL")
        conn.close()
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "CRITICAL", "enable_otlp": False})

    process: Any = transactional(url, steps) if kind == "tx" else None

    @DBOS.step()  # type: ignore[untyped-decorator]
    async def add(number: int, step: int) -> int:
        return number + step

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    async def plain(number: int) -> int:
        for step in range(steps):
            number = await add(number, step)
        return number

    process = process or plain
    DBOS.launch()
    loop = asyncio.get_running_loop()
    print('"ready"', flush=True)
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        if line[0] == "alone":
            times = []
            for number in range(int(line[1])):
                began = time.perf_counter()
                await process(number)
                times.append(1000 * (time.perf_counter() - began))
            print(json.dumps(times), flush=True)
        else:
            until, done = time.perf_counter() + float(line[2]), 0

            async def many(until: float) -> int:
                done = 0
                while time.perf_counter() < until:
                    await process(done)
                    done += 1
                return done

            began = time.perf_counter()
            done = sum(await asyncio.gather(*(many(until) for _ in range(int(line[1])))))
            print(json.dumps(done / (time.perf_counter() - began)), flush=True)
    os._exit(0)  # its threads are no daemons


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 5))
