"""Five steps as somebody would write them without a library: a row for the process, one for each step's result, an end; each durable before
what comes next. Asked as ``sagas_own.py`` is: alone each statement is its own commit (of the kind ``tx``, each with a row of the
application's), together a thread commits what has gathered."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import threading
import time
from contextlib import closing
from queue import SimpleQueue
from typing import Any

import psycopg

TABLES = (
    "CREATE TABLE byhand (number bigint PRIMARY KEY, state text NOT NULL)",
    "CREATE TABLE byhand_steps (number bigint, step integer, result text NOT NULL, PRIMARY KEY (number, step))",
    "CREATE TABLE booked (number bigint, step integer)",
)
START = "INSERT INTO byhand VALUES (?, 'running')"
STEP = "INSERT INTO byhand_steps VALUES (?, ?, ?)"
BOOK = "INSERT INTO booked VALUES (?, ?)"
END = "UPDATE byhand SET state = 'completed' WHERE number = ?"
Work = tuple[str, tuple[Any, ...], "asyncio.Future[None]"]


def connect(url: str) -> Any:
    if url.startswith("sqlite"):
        conn = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        return conn
    return psycopg.connect(url, autocommit=True)


async def add(number: int, step: int) -> int:
    return number + step


class Grouped:
    def __init__(self, conn: Any, statements: tuple[str, ...]) -> None:
        self.conn, self.statements = conn, statements
        self.queue: SimpleQueue[Work | None] = SimpleQueue()
        self.loop = asyncio.get_running_loop()
        threading.Thread(target=self.run, daemon=True).start()

    def write(self, statement: str, values: tuple[Any, ...]) -> asyncio.Future[None]:
        future = self.loop.create_future()
        self.queue.put((statement, values, future))
        return future

    def run(self) -> None:
        while (first := self.queue.get()) is not None:
            group = [first]
            while not self.queue.empty() and (one := self.queue.get()) is not None:
                group.append(one)
            self.conn.execute("BEGIN")
            with closing(self.conn.cursor()) as cursor:
                for statement in self.statements:
                    if rows := [values for text, values, _ in group if text == statement]:
                        cursor.executemany(statement, rows)
            self.conn.execute("COMMIT")
            self.loop.call_soon_threadsafe(settle, group)


def settle(group: list[Work]) -> None:
    for _, _, future in group:
        future.set_result(None)


async def main(url: str, kind: str) -> None:
    conn = connect(url)
    for statement in TABLES:
        conn.execute(statement)
    start, step, end, book = (text if url.startswith("sqlite") else text.replace("?", "%s") for text in (START, STEP, END, BOOK))
    grouped = Grouped(connect(url), (start, step, end))
    number = 0
    print('"ready"', flush=True)
    loop = asyncio.get_running_loop()
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        if line[0] == "alone":
            times = []
            for _ in range(int(line[1])):
                number += 1
                began = time.perf_counter()
                conn.execute(start, (number,))
                result = number
                for place in range(5):
                    if kind == "tx":
                        conn.execute("BEGIN")
                        conn.execute(book, (result, place))
                    result = await add(result, place)
                    conn.execute(step, (number, place, str(result)))
                    if kind == "tx":
                        conn.execute("COMMIT")
                conn.execute(end, (number,))
                times.append(1000 * (time.perf_counter() - began))
            print(json.dumps(times), flush=True)
            continue

        async def many(until: float) -> int:
            nonlocal number
            done = 0
            while time.perf_counter() < until:
                number += 1
                mine = result = number
                await grouped.write(start, (mine,))
                for place in range(5):
                    result = await add(result, place)
                    await grouped.write(step, (mine, place, str(result)))
                await grouped.write(end, (mine,))
                done += 1
            return done

        began = time.perf_counter()
        done = sum(await asyncio.gather(*(many(began + float(line[2])) for _ in range(int(line[1])))))
        print(json.dumps(done / (time.perf_counter() - began)), flush=True)
    grouped.queue.put(None)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
