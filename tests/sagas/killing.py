"""A three-step order saga in real processes, killed at every point in turn, and finished by another process.

``python -m tests.sagas.killing URL FOLDER forward|back|claimed`` prints one JSON line for each point: where it was, and what the database
and the world outside hold when the saga has ended. A point lies before and behind each durable write of a saga, and each call outside.

Each process is forked from this one, which has no thread and no loop of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.sagas.asking import asks_for_tx
from tidings import App, Context, Event, Refused, Saga
from tidings.sagas import runner
from tidings.store.postgres.sagas import ServerSagas
from tidings.store.sagas import SagaUnit

WRITES = ("start", "claim", "record", "turn", "release")


class Placed(Event, key="order_id"):
    order_id: int


class Charged(Event, key="order_id"):
    order_id: int


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
        setattr(ServerSagas, "release_all", wrapped("release", ServerSagas.release_all))  # noqa: B010
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


def shop(url: str, folder: Path, fails: bool, killer: Killer) -> App:
    app = App("shop", store=url, lease=0.3)
    on_file = url.startswith("sqlite")
    mark = "?" if on_file else "%s"

    def put(tx: Any, order: Placed, what: str) -> None:
        tx.execute(f"INSERT INTO effects VALUES ({mark}, {mark})", (order.order_id, what))

    def outside(order: Placed, ctx: Context, what: str) -> None:
        killer.point(f"before {what}")
        with (folder / f"{order.order_id}.txt").open("a") as file:
            file.write(f"{what} {ctx.idempotency_key}\n")
        killer.point(f"behind {what}")

    @asks_for_tx(url)
    def charge(order: Placed, tx: Any, ctx: Context) -> str:
        put(tx, order, "charge")
        ctx.publish(Charged(order_id=order.order_id))
        return f"payment-{order.order_id}"

    @asks_for_tx(url)
    def refund(order: Placed, tx: Any, result: object) -> None:
        put(tx, order, f"refund {result}")

    async def reserve(order: Placed, ctx: Context) -> int:
        outside(order, ctx, "reserve")
        return 7

    def unreserve(order: Placed, ctx: Context, result: object) -> None:
        outside(order, ctx, f"unreserve-{result}")

    @asks_for_tx(url)
    def ship(order: Placed, payment: str, box: int, tx: Any) -> None:
        put(tx, order, f"ship {payment} {box}")
        if fails:
            raise Refused("nobody lives there")

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        payment = await saga.step(charge, order, undo=refund)
        box = await saga.step(reserve, order, undo=unreserve)
        await saga.step(ship, order, payment, box)

    return app


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


async def work(app: App, order: int) -> None:
    async with app:
        async with asyncio.timeout(30):
            while True:
                row = app.store.query(lambda unit: unit.sagas().row("checkout", str(order)))
                if row is not None and row.state in ("completed", "compensated"):
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
    url, folder, fails = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "back"
    if sys.argv[3] == "claimed":
        runner.AT_START = 0
    in_child(lambda: prepare(url))
    points: list[str | None] = [None]
    for order, at in enumerate(points, 1):  # the first one, which goes through, tells the others
        assert in_child(lambda: asyncio.run(publish(shop(url, folder, fails, Killer(None)), order)))[0] == 0  # noqa: B023

        def killed() -> None:
            killer = Killer(at)  # noqa: B023
            app = shop(url, folder, fails, killer)
            killer.watch(app)
            asyncio.run(work(app, order))  # noqa: B023

        code, passed = in_child(killed)
        if at is None:
            points += passed.splitlines()
        if code != 0:
            assert code == -signal.SIGKILL, (code, passed)
            assert in_child(lambda: asyncio.run(work(shop(url, folder, fails, Killer(None)), order)))[0] == 0  # noqa: B023
        app = shop(url, folder, fails, Killer(None))
        app.store.open_to_read()
        row = app.store.query(lambda unit: unit.sagas().row("checkout", str(order)))  # noqa: B023
        events = app.store.query(lambda unit: unit.select(limit=1000, types=["shop.Charged"], key=("order_id", str(order))))  # noqa: B023
        app.store.close()
        file = folder / f"{order}.txt"
        calls = sorted(set(file.read_text().splitlines())) if file.exists() else []
        found = {
            "point": at, "killed": code != 0, "state": row.state if row else None, "effects": rows(url, order), "events": len(events),
            "outside": [call.split()[0] for call in calls],
        }  # fmt: skip
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
