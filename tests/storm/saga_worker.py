"""A worker of sagas: ``python -m tests.storm.saga_worker FOLDER LEASE SLOT``. Steps with and without a transaction, side by side too, an
event that it publishes for itself and waits for, a sleep, and an end that is refused for every fourth order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.storm import database
from tests.storm.phases import WRITTEN, Phases
from tidings import App, Context, Event, Refused, Retry, Saga
from tidings.app import serve
from tidings.errors import StoreError

SCHEMA = ("CREATE TABLE orders (order_id integer PRIMARY KEY)", "CREATE TABLE effects (order_id integer, name text)")
STEPS = ("reserve", "wrap", "ask", "send")
"""With a transaction; the last is never reached by an order that is refused."""
AGAIN = Retry(attempts=1000, first=0.02, most=0.2)


class Placed(Event, key="order_id"):
    order_id: int


class Answered(Event, key="order_id"):
    order_id: int


def refused(order_id: int) -> bool:
    return order_id % 4 == 1


def make(folder: Path, phases: Phases | None = None, *, lease: float = 1.5) -> App:
    db = database.of(folder)
    app = App("storm", store=db.url, transactions=db.transactions(), lease=lease)
    rng = random.Random()
    ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def outside(name: str) -> Any:
        def call(order_id: int, ctx: Context) -> None:
            if phases is not None:
                phases.enter("outside")
            try:
                time.sleep(rng.uniform(0.0, 0.1))
                if rng.random() < 0.05:
                    raise ConnectionError("no answer")
                os.write(ledger, f"{order_id} {name} {ctx.idempotency_key}\n".encode())
                if rng.random() < 0.05:
                    raise ConnectionError("no answer, though it was done")
            finally:
                if phases is not None:
                    phases.leave("outside")

        call.__name__ = name
        return call

    def inside(name: str) -> Any:
        def call(order_id: int, tx: Any, ctx: Context) -> None:
            if phases is not None:
                phases.enter("saga")
            tx.execute(db.sql("INSERT INTO effects VALUES (?, ?)"), (order_id, name))
            if phases is not None:
                phases.at("saga", WRITTEN)
            time.sleep(rng.uniform(0.0, 0.004))
            if name == "ask":
                ctx.publish(Answered(order_id=order_id))
            if phases is not None:
                phases.leave("saga")

        call.__name__ = name
        call.__annotations__ = {"order_id": int, "tx": db.sync, "ctx": Context}
        return call

    charge, refund = outside("charge"), outside("refund")
    does = {name: inside(name) for name in STEPS}
    undoes = {name: inside(f"un{name}") for name in STEPS}

    def refuse(order_id: int) -> None:
        raise Refused("not this one")

    @app.saga(Placed, waits=[Answered])
    async def checkout(order: Placed, saga: Saga) -> None:
        number = order.order_id
        await saga.step(charge, number, undo=refund, retry=AGAIN)
        await asyncio.gather(*(saga.step(does[name], number, undo=undoes[name], retry=AGAIN) for name in ("reserve", "wrap")))
        if number % 3 == 0:
            await saga.sleep(0.1)
        await saga.step(does["ask"], number, undo=undoes["ask"], retry=AGAIN)
        await saga.wait(Answered)
        if refused(number):
            await saga.step(refuse, number)
        await saga.step(does["send"], number, undo=undoes["send"], retry=AGAIN)

    return app


def main(folder: Path, lease: float, slot: int) -> None:
    logging.basicConfig(filename=folder / "workers.log", format="%(asctime)s %(process)d %(name)s %(message)s", level=logging.INFO)
    ready = folder / f"ready-{os.getpid()}"
    phases = Phases(folder / "phases", slot)
    phases.watch_commits()
    while True:
        try:
            asyncio.run(serve([make(folder, phases, lease=lease)], ready=ready.touch))
        except StoreError:
            if ready.exists():
                raise
            time.sleep(0.2)  # born while the server was down: whoever keeps processes would start it again
        else:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
