"""Sagas for ``benchmarks.sagas``: ``sagas_own.py STORE KIND [STEPS]``; STORE is a URL, KIND is plain, tx or once (at most once); five
steps unless said otherwise.

``alone N`` runs N, one after the other: milliseconds of each, from before the publish to the committed end. ``together N
SECONDS`` runs N at once, each task one after the other: how many a second. With ``called`` behind it they are begun by a call, without an
event. ``counts`` what the ledger and the table of instances say.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from typing import Any

import psycopg

from tidings import App, Event, Saga


class Begun(Event, key="number", type="bench.Begun"):
    number: int


async def add(number: int, step: int) -> int:
    return number + step


def asking(kind: type) -> Any:
    """A step that writes a row in its transaction."""
    mark = "?" if kind is sqlite3.Connection else "%s"

    def book(number: int, step: int, tx: Any) -> int:
        tx.execute(f"INSERT INTO booked VALUES ({mark}, {mark})", (number, step))
        return number + step

    book.__annotations__["tx"] = kind
    return book


class Ended(set[Any]):
    """The drivers in hand; tells whose turn is over."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, asyncio.Future[None]] = {}

    def discard(self, driver: Any) -> None:
        super().discard(driver)
        if (future := self.waiting.pop(driver.row.key, None)) is not None and not future.done():
            future.set_result(None)


async def main(store: str, kind: str, steps: int) -> None:
    app = App("bench", store)
    book = asking(sqlite3.Connection if store.startswith("sqlite") else psycopg.Connection)

    @app.saga(Begun)
    async def process(begun: Begun, saga: Saga) -> None:
        result = begun.number
        for step in range(steps):
            result = await saga.step(book if kind == "tx" else add, result, step, at_most_once=kind == "once")

    loop = asyncio.get_running_loop()
    number = 0
    if kind == "tx":
        mine = sqlite3.connect(store.removeprefix("sqlite:///")) if store.startswith("sqlite") else psycopg.connect(store)
        mine.execute("CREATE TABLE booked (number bigint, step integer)")
        mine.commit()
        mine.close()
    async with app:
        assert app.sagas is not None
        app.sagas.drivers = ended = Ended()

        async def one(called: bool) -> None:
            nonlocal number
            number += 1
            future = ended.waiting[str(number)] = loop.create_future()
            if called:
                await app.start_saga(process, Begun(number), tx="own")
            else:
                await app.publish(Begun(number), tx="own")
            await future

        print('"ready"', flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
            called = line[-1] == "called"
            if line[0] == "alone":
                times = []
                for _ in range(int(line[1])):
                    began = time.perf_counter()
                    await one(called)
                    times.append(1000 * (time.perf_counter() - began))
                    await asyncio.sleep(0.002)
                print(json.dumps(times), flush=True)
            elif line[0] == "together":

                async def many(until: float, called: bool = called) -> int:
                    done = 0
                    while time.perf_counter() < until:
                        await one(called)
                        done += 1
                    return done

                began = time.perf_counter()
                done = sum(await asyncio.gather(*(many(began + float(line[2])) for _ in range(int(line[1])))))
                print(json.dumps(done / (time.perf_counter() - began)), flush=True)
            elif line[0] == "counts":
                found = app.store.query(lambda unit: [len(unit.sagas().rows(None, [state], 10**9)) for state in ("completed", "parked")])
                print(json.dumps([number, *found]), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 5))
