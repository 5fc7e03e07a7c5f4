"""The checkout as sagas, live: ``python -m apps.checkout.saga_demo [--orders path.csv]``.

The same orders, services and outside world as in ``demo.py``, but one saga for each order says what comes when. Workers are killed, cards
are declined, parcels are refused; and the bank pays nothing back until all orders are placed, so that the compensations that need it get
stuck. Then somebody does what an operator would, through the command line: looks, and has them tried again. At the end everything is added
up.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console

from apps.checkout.books import snapshot as whole
from apps.checkout.data import stock_for
from apps.checkout.demo import places_of, summary
from apps.checkout.display import Display, show_reconciliation
from apps.checkout.playing import Plan, Play, carry_out, options, unsettled, verdict
from apps.checkout.processes import ProcessFailed, Running
from apps.checkout.reconcile import reconcile_sagas
from apps.checkout.simulators import World
from apps.checkout.stage import Places, Stage
from apps.checkout.tables import run
from apps.checkout.watch import Snapshot, Watch

SERVICES = ("shop", "fraud", "payment", "inventory", "shipping", "email")
KILL_AT = (0.25, 0.5, 0.75)
BY_HAND_AT_ONCE = 4


class Orchestration(Play):
    """The shop as sagas; ``run`` plays it to the end."""

    def __init__(self, plan: Plan, stage: Stage, display: Display) -> None:
        super().__init__(plan, stage, display)
        self.shown = ""
        self.by_hand = 0
        self._workers: list[Running] = []
        self._started = 0
        self._watch = Watch(stage.places.store)

    def look(self) -> Snapshot:
        return self._watch.look()

    async def run(self) -> Snapshot:
        """Until every saga has come to its end, or patience is over; what the store said last."""
        self.stage.prepare(SERVICES, stock_for(self.plan.orders))
        port = self.stage.order_service()
        bank = self.stage.places.directory / "refunds.closed"
        bank.touch()
        for _ in range(self.plan.workers):
            self._start_worker()
        self.display.tell(f"order service, {self.plan.workers} workers that run the saga and the email service; the bank pays nothing back")
        looking = asyncio.create_task(self.keep_looking())
        try:
            await self.stream(port, looking, dict.fromkeys(KILL_AT, self._accident))
            self.display.tell("all orders placed; waiting until only what the bank holds up is left")
            await self._until(lambda now: set(now.open_sagas) <= {"stuck"} and len(self.placed) == sum(now.sagas.values()), looking)
            bank.unlink()
            self.display.tell("the bank answers again")
            await self._operate()
            return await self._until(lambda now: now.settled, looking)
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

    async def _until(self, there: Callable[[Snapshot], bool], looking: asyncio.Task[None]) -> Snapshot:
        """Wait for a look from now on that is as wanted, or until patience is over; the last one."""
        deadline, before = time.monotonic() + self.plan.patience, self.latest
        while True:
            now = self.latest
            if now is not None and ((now is not before and there(now)) or time.monotonic() > deadline):
                return now
            await asyncio.sleep(self.look_seconds / 2)
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
    unsettled(console, plan, last)
    return verdict(console, last, result, "No money without goods or refund, no stock lost, no saga in limbo.")


def main() -> int:
    parser = options(
        "apps.checkout.saga_demo", "The checkout as sagas, live.", count=1000, patience=300.0, workers="the saga and the email service"
    )
    parser.add_argument("--refuse", type=float, default=World().refuse, help="part of the parcels that can't be sent")
    parser.add_argument("--store", metavar="STORE", help="as in the demo: a new file, postgresql://user@host/database, or postgres")
    given = parser.parse_args()
    with ExitStack() as stack:
        return carry_out(
            "demo-saga", given, 40.0, lambda plan, console: play(plan, places_of(given.store, stack), console), refuse=given.refuse
        )


if __name__ == "__main__":
    sys.exit(main())
