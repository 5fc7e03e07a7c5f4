"""A saga in real processes, killed at every point in turn, and finished by another process.

``python -m tests.sagas.killing URL FOLDER WAY [SEED]`` prints one JSON line for each point: where it was, and what the database and the
world outside hold when the saga (of this way, see ``killed.py``) has ended. A point lies before and behind each durable write of a saga,
and each call outside. With a seed: only as many as ``FEW`` says.

Each process is forked from this one, which has no thread and no loop of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.sagas.killed import Placed, shop
from tidings import App
from tidings.sagas import runner
from tidings.store.postgres.sagas import ServerSagas
from tidings.store.sagas import CLOSED, SagaUnit

WRITES = ("start", "claim", "record", "turn", "release", "adopt", "ask_undo", "restart", "turn_back", "act")
FEW = 8
"""Points, where they are chosen by a seed."""


class Killer:
    """Kills the process at a point: a name, and how often it was passed. Says which points were passed before."""

    def __init__(self, at: str | None) -> None:
        self.at = at
        self.passed: Counter[str] = Counter()
        self.wrote: list[str] = []

    def point(self, name: str) -> None:
        self.passed[name] += 1
        label = f"{name} {self.passed[name]}"
        os.write(1, f"{label}\n".encode())
        if label == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def behind(self) -> None:
        """A commit is done."""
        while self.wrote:
            self.point(f"behind {self.wrote.pop()}")

    def watch(self, app: App) -> None:
        def wrapped(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def call(unit: Any, *args: Any, **kwargs: Any) -> Any:
                self.point(f"before {name}")
                self.wrote.append(name)
                return method(unit, *args, **kwargs)

            return call

        for name in WRITES:
            setattr(SagaUnit, name, wrapped(name, getattr(SagaUnit, name)))
        together = ServerSagas.write_all

        def write_all(unit: Any, starts: Any, lines: Any, releases: Any) -> Any:
            ends = wrapped("release", together) if releases else together  # what is written alone has a point of its own
            return ends(unit, starts, lines, releases)

        setattr(ServerSagas, "write_all", write_all)  # noqa: B010
        store: Any = app.store
        write, plainly, begin = store.write, store.write_plainly, app._transactions.begin

        def killing_write(job: Any, after: Any = None) -> Any:
            def behind(result: Any) -> None:
                if after is not None:
                    after(result)
                self.behind()

            return write(job, behind)

        def killing_plainly(job: Any) -> Any:
            future = plainly(job)
            future.add_done_callback(lambda _: self.behind())  # the first of them: nobody has heard of it
            return future

        @contextmanager
        def killing_begin(kind: str) -> Iterator[Any]:
            with begin(kind) as transaction:
                yield transaction
            self.behind()

        store.write, store.write_plainly = killing_write, killing_plainly
        app._transactions.begin = killing_begin  # type: ignore[method-assign]


def prepare(url: str) -> None:
    with closing(connect(url)) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS effects (id integer, what text)")


def connect(url: str) -> Any:
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    return psycopg.connect(url, autocommit=True)


def rows(url: str, order: int) -> list[str]:
    with closing(connect(url)) as conn:
        return sorted(row[0] for row in conn.execute(f"SELECT what FROM effects WHERE id = {order}").fetchall())


async def work(app: App, order: int, way: str) -> None:
    async with app:
        if way == "called":
            await app.start_saga("checkout", Placed(order_id=order), tx="own")
        async with asyncio.timeout(30):
            while True:
                row = app.store.query(lambda unit: unit.sagas().row("checkout", str(order)))
                if row is not None and row.state in CLOSED:
                    return
                await asyncio.sleep(0.01)


async def publish(app: App, order: int) -> None:
    app.open()
    await app.publish(Placed(order_id=order), tx="own")
    app.close()


def in_child(job: Callable[[], None]) -> tuple[int, str]:
    """Its exit status, and what it wrote."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        try:
            job()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        return os.waitstatus_to_exitcode(status), file.read().strip()


def main() -> None:
    url, folder, way = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if way == "claimed":
        runner.START_SHARE = 0.0
    in_child(lambda: prepare(url))
    points: list[str | None] = [None]
    for order, at in enumerate(points, 1):  # the first one, which goes through, tells the others
        if way != "called":
            assert in_child(lambda: asyncio.run(publish(shop(url, folder, way, _nothing), order)))[0] == 0  # noqa: B023

        def killed() -> None:
            killer = Killer(at)  # noqa: B023
            app = shop(url, folder, way, killer.point)
            killer.watch(app)
            asyncio.run(work(app, order, way))  # noqa: B023

        code, passed = in_child(killed)
        if at is None:
            found = passed.splitlines()
            points += found if len(sys.argv) < 5 else random.Random(sys.argv[4]).sample(found, min(FEW, len(found)))
        if code != 0:
            assert code == -signal.SIGKILL, (code, passed)
            assert in_child(lambda: asyncio.run(work(shop(url, folder, way, _nothing), order, way)))[0] == 0, at  # noqa: B023
        print(json.dumps({"point": at, "killed": code != 0, **outcome(url, folder, way, order)}), flush=True)


def outcome(url: str, folder: Path, way: str, order: int) -> dict[str, Any]:
    app = shop(url, folder, way, _nothing)
    app.store.open_to_read()
    row, child = app.store.query(lambda unit: [unit.sagas().row(saga, str(order)) for saga in ("checkout", "parcel")])
    events = app.store.query(lambda unit: unit.select(limit=1000, types=["shop.Charged"], key=("order_id", str(order))))
    app.store.close()
    file = folder / f"{order}.txt"
    calls = file.read_text().splitlines() if file.exists() else []
    return {
        "state": row.state if row else None, "child": child.state if child else None, "effects": rows(url, order), "events": len(events),
        "outside": [call.split()[0] for call in sorted(set(calls))], "calls": len(calls),
    }  # fmt: skip


def _nothing(name: str) -> None: ...


if __name__ == "__main__":
    main()
