"""DBOS: five plain steps for ``benchmarks.sagas``, asked as ``sagas_own.py`` is. ``peer_dbos_sagas.py URL``: of its system database."""

import asyncio
import json
import logging
import os
import sqlite3
import sys
import time

from dbos import DBOS


async def main(url: str) -> None:
    if url.startswith("sqlite"):
        conn = sqlite3.connect(url.removeprefix("sqlite:///"))
        conn.execute("PRAGMA journal_mode = WAL")
        conn.close()
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "CRITICAL", "enable_otlp": False})

    @DBOS.step()  # type: ignore[untyped-decorator]
    async def add(number: int, step: int) -> int:
        return number + step

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    async def process(number: int) -> int:
        for step in range(5):
            number = await add(number, step)
        return number

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
    asyncio.run(main(sys.argv[1]))
