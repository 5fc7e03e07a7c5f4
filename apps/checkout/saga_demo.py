"""The checkout as sagas, live: ``python -m apps.checkout.saga_demo [--orders path.csv]``.

The same orders, services and outside world as in ``demo.py``, but one saga for each order says what comes when. Workers are killed, cards
are declined, parcels are refused; and the bank pays nothing back until all orders are placed, so that the compensations that need it get
stuck. Then somebody does what an operator would, through the command line: looks, and has them tried again. At the end everything is added
up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from apps.checkout.books import snapshot as whole
from apps.checkout.customers import Answer, place_all
from apps.checkout.data import BadOrders, stock_for
from apps.checkout.demo import LOOK_SECONDS, STREAM_SECONDS, Plan, orders_of, places_of, summary
from apps.checkout.display import Display, show_reconciliation
from apps.checkout.processes import ProcessFailed, Running
from apps.checkout.reconcile import reconcile_sagas
from apps.checkout.simulators import World
from apps.checkout.stage import Places, Stage
from apps.checkout.tables import run
from apps.checkout.watch import Snapshot, Watch
from servers.folder import Missing
from tidings import TidingsError

SERVICES = ("shop", "fraud", "payment", "inventory", "shipping", "email")
KILL_AT = (0.25, 0.5, 0.75)
BY_HAND_AT_ONCE = 4


class Orchestration:
    """One run: ``stage`` is built, ``run`` plays it to the end."""

    def __init__(self, plan: Plan, stage: Stage, display: Display) -> None:
        self.plan = plan
        self.stage = stage
        self.display = display
        self.placed: list[int] = []
        self.shown = ""
        self.by_hand = 0
        self._workers: list[Running] = []
        self._started = 0
        self._watch = Watch(stage.places.store)
        self._latest = Snapshot(0, 0, {}, (), 0)

    async def run(self) -> Snapshot:
        """Until every saga has come to its end, or patience is over; what the store said last."""
        self.stage.prepare(SERVICES, stock_for(self.plan.orders))
        port = self.stage.order_service()
        bank = self.stage.places.directory / "refunds.closed"
        bank.touch()
        for _ in range(self.plan.workers):
            self._start_worker()
        self.display.tell(f"order service, {self.plan.workers} workers that run the saga and the email service; the bank pays nothing back")
        looking = asyncio.create_task(self._keep_looking())
        try:
            await self._stream(port, looking)
            self.display.tell("all orders placed; waiting until only what the bank holds up is left")
            await self._until(lambda now: set(now.open_sagas) <= {"stuck"} and len(self.placed) == sum(now.sagas.values()), looking)
            bank.unlink()
            self.display.tell("the bank answers again")
            await self._operate()
            await self._until(lambda now: now.settled, looking)
            return self._latest
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self._watch.close()

    async def _operate(self) -> None:
        """What a person does about stuck sagas: look, and have some of them tried again, until there are none."""
        stuck = await self._stuck()
        if not stuck:
            self.display.tell("no compensation got stuck")
            return
        self.shown = await self._tidings("saga", "show", "order", stuck[0])
        self.display.tell(f"{len(stuck)} sagas are stuck; an operator looks at order {stuck[0]}, and has them tried again")
        while stuck:
            await asyncio.gather(*(self._retry(key) for key in stuck[:BY_HAND_AT_ONCE]))
            stuck = await self._stuck()
        self.display.tell(f"{self.by_hand} compensations tried again by hand, the others by themselves")

    async def _stuck(self) -> list[str]:
        found = await self._tidings("saga", "list", "checkout", "--state", "stuck", "--limit", "100000", "--json")
        return [row["key"] for row in json.loads(found)]

    async def _retry(self, key: str) -> None:
        why = ("--reason", "the bank answers again", "--actor", "operator")
        self.by_hand += bool(await self._tidings("saga", "retry", "checkout", key, *why))

    async def _tidings(self, *arguments: str) -> str:
        given = (*arguments, "--store", self.stage.places.store)
        try:
            return await asyncio.to_thread(self.stage.processes.run, "operator", "tidings", *given)
        except ProcessFailed as error:
            if "is being worked on" in str(error) or "nothing is left" in str(error):  # it was tried again by itself in this moment
                return ""
            raise

    async def _stream(self, port: int, looking: asyncio.Task[None]) -> None:
        total = len(self.plan.orders)
        turns: dict[int, Callable[[], Coroutine[Any, Any, None]]] = {max(1, int(total * share)): self._accident for share in KILL_AT}
        under_way: list[asyncio.Task[None]] = []

        def answered(answer: Answer) -> None:
            if answer.status in (200, 201):
                self.placed.append(answer.order_id)
            if (turn := turns.pop(len(self.placed), None)) is not None:
                under_way.append(asyncio.create_task(turn()))

        placing = asyncio.create_task(place_all(self.plan.orders, f"127.0.0.1:{port}", rate=self.plan.rate, answered=answered))
        try:
            await asyncio.wait({placing, looking}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
            answers = await placing
        finally:
            placing.cancel()
        await asyncio.gather(*under_way)
        refused = [answer for answer in answers if answer.status not in (200, 201)]
        if refused:
            raise ProcessFailed(f"the order service did not take {len(refused)} orders, order {refused[0].order_id} first")

    async def _accident(self) -> None:
        victim = self._workers.pop(0)
        await asyncio.to_thread(self.stage.processes.kill, victim)
        fresh = self._start_worker()
        self.display.tell(f"killed {victim.name} with SIGKILL, after {len(self.placed):,} orders, and started {fresh.name}")

    def _start_worker(self) -> Running:
        self._started += 1
        apps = ("apps.checkout.orchestrated:app", "apps.checkout.emails:app")
        running = self.stage.processes.start(f"worker-{self._started}", "tidings", "run", *apps)
        self._workers.append(running)
        return running

    async def _keep_looking(self) -> None:
        while True:
            self.stage.processes.check()
            self._latest = await asyncio.to_thread(self._watch.look)
            self.display.show(self._latest, len(self.placed))
            await asyncio.sleep(LOOK_SECONDS)

    async def _until(self, there: Callable[[Snapshot], bool], looking: asyncio.Task[None]) -> None:
        """Wait for a look from now on that is as wanted, or until patience is over."""
        deadline, before = time.monotonic() + self.plan.patience, self._latest
        while (self._latest is before or not there(self._latest)) and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS / 2)
            if looking.done():
                looking.result()


def play(plan: Plan, places: Places, console: Console) -> bool:
    """The whole demonstration; whether everything came out right.

    Raises:
        ProcessFailed: one of the processes did not live as it should.
    """
    stage = Stage.build(places, plan.world)
    with stage.processes:
        with Display(console, len(plan.orders)) as display:
            orchestration = Orchestration(plan, stage, display)
            last = asyncio.run(orchestration.run())
            seconds = display.seconds
        stage.processes.stop_all()
    books = stage.books()
    with whole(places.store) as conn:
        sagas = {int(key): state for key, state in run(conn, "SELECT key, state FROM tidings_sagas")}
    result = reconcile_sagas(books, orchestration.placed, sagas)
    if orchestration.shown:
        console.print("\n$ tidings saga show order … (while the bank was closed)", style="bold", highlight=False)
        console.print(orchestration.shown, markup=False, highlight=False, soft_wrap=True)
    summary(console, books, last, seconds)
    console.print(f"{orchestration.by_hand} stuck compensations were tried again by hand.", highlight=False)
    show_reconciliation(console, result)
    if not last.settled:
        console.print(f"It did not settle within {plan.patience:g} s. Still to come: {last.pending()}", style="bold red", soft_wrap=True)
    good = last.settled and result.passed
    words = "No money without goods or refund, no stock lost, no saga in limbo." if good else "The reconciliation failed."
    console.print(words, style="bold green" if good else "bold red", soft_wrap=True)
    return good


def main() -> int:
    usual = World()
    parser = argparse.ArgumentParser(prog="python -m apps.checkout.saga_demo", description="The checkout as sagas, live.")
    parser.add_argument("--orders", type=Path, metavar="CSV", help="order_id,customer_id,ordered_on,quantity,total; generated if not given")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad rows of the CSV instead of refusing the file")
    parser.add_argument("--count", type=int, default=1000, help="how many orders to generate")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the generated orders and of the outside world's luck")
    parser.add_argument("--rate", type=float, help=f"orders a second; unless given, all of them within {STREAM_SECONDS:g} s")
    parser.add_argument("--workers", type=int, default=2, help="processes that run the saga and the email service")
    parser.add_argument("--refuse", type=float, default=usual.refuse, help="part of the parcels that can't be sent")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to wait for everything to settle")
    parser.add_argument("--store", metavar="STORE", help="as in the demo: a new file, postgresql://user@host/database, or postgres")
    given = parser.parse_args()
    console, errors = Console(), Console(stderr=True)
    try:
        if given.workers < 1 or (given.rate is not None and given.rate <= 0):
            raise BadOrders("--workers and --rate must be above 0")
        orders = orders_of(given, console)
        world = replace(usual, seed=given.seed, refuse=given.refuse)
        plan = Plan(orders, world, given.rate or max(40.0, len(orders) / STREAM_SECONDS), given.workers, given.patience)
        with ExitStack() as stack:
            return 0 if play(plan, places_of(given.store, stack), console) else 1
    except (BadOrders, ProcessFailed, Missing, TidingsError) as error:
        errors.print(f"demo-saga: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("demo-saga: stopped; its processes have ended", style="yellow")
        return 130


if __name__ == "__main__":
    sys.exit(main())
