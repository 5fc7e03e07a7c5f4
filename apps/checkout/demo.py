"""The checkout, live: ``python -m apps.checkout.demo [--orders path.csv]``.

Streams orders through the shop, kills a worker in the middle, adds a service that nobody had planned for, waits until everything has
come to rest, and then adds it all up: from the services' tables and from the ledgers of the outside world, which they never see.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from apps.checkout.books import Books
from apps.checkout.data import BadOrders, stock_for
from apps.checkout.display import Display, show_reconciliation
from apps.checkout.playing import Plan, Play, carry_out, options, unsettled, verdict
from apps.checkout.prepare import CONSUMERS
from apps.checkout.processes import Running
from apps.checkout.reconcile import reconcile
from apps.checkout.simulators import World
from apps.checkout.stage import Places, Stage
from apps.checkout.watch import Snapshot, Watch
from servers.postgres import Postgres
from tidings import StoreNotInitialised
from tidings.store import store_at

KILL_AT = 0.4  # of the orders
SUPPORT_AT = 0.6


class Demonstration(Play):
    """The shop on one store; ``run`` plays it to the end."""

    def __init__(self, plan: Plan, stage: Stage, display: Display) -> None:
        super().__init__(plan, stage, display)
        self._watch = Watch(stage.places.store)
        self._workers: list[Running] = []
        self._started = 0

    def look(self) -> Snapshot:
        return self._watch.look()

    async def run(self) -> Snapshot:
        """Until everything has settled, or patience is over; what the store said last."""
        self.stage.prepare(("shop", *CONSUMERS), stock_for(self.plan.orders))
        port = self.stage.order_service()
        for _ in range(self.plan.workers):
            self._start_worker()
        self.display.tell(f"order service (pid {self._pid('orders')}), {self.plan.workers} workers that share six services, one store")
        looking = asyncio.create_task(self.keep_looking())
        try:
            await self.stream(port, looking, {KILL_AT: self._accident, SUPPORT_AT: self._newcomer})
            self.display.tell("all orders placed; waiting until nothing is under way, parked or scheduled")
            return await self._settle(looking)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self._watch.close()

    async def _accident(self) -> None:
        victim = self._workers.pop(0)
        await asyncio.to_thread(self.stage.processes.kill, victim)
        self.display.tell(f"killed {victim.name} (pid {victim.pid}) with SIGKILL, after {len(self.placed):,} orders")
        replacement = self._start_worker()
        self.display.tell(f"started {replacement.name} (pid {replacement.pid}) in its place")

    async def _newcomer(self) -> None:
        await asyncio.to_thread(self.stage.prepare, ("support",), {})
        running = self.stage.worker("support", ("support",))
        self.display.tell(f"added support (pid {running.pid}): a seventh service, for VIPs only, from the start of the log")

    def _start_worker(self) -> Running:
        self._started += 1
        running = self.stage.worker(f"worker-{self._started}", CONSUMERS)
        self._workers.append(running)
        return running

    async def _settle(self, looking: asyncio.Task[None]) -> Snapshot:
        """The first snapshot, taken after the last order, that has nothing left to do; or the last one when patience is over."""
        deadline = time.monotonic() + self.plan.patience
        before = self.latest
        while True:
            await asyncio.sleep(self.look_seconds / 2)
            if looking.done():
                looking.result()
            snapshot = self.latest
            if snapshot is None or snapshot is before:
                continue
            present = {reader.name for reader in snapshot.readers}
            if (snapshot.settled and "support" in present) or time.monotonic() > deadline:
                return snapshot

    def _pid(self, name: str) -> int:
        return self.stage.processes.named(name).pid


def summary(console: Console, books: Books, snapshot: Snapshot, seconds: float) -> None:
    """What came of it, in a few lines."""
    states = Counter(order.state for order in books.orders)
    reasons = Counter(order.reason for order in books.orders if order.reason)
    gateway = books.ledgers["gateway"].entries
    net = sum(entry.amount for entry in gateway)
    refunds = sum(entry.kind == "refund" for entry in gateway)
    repeats = sum(account.repeats for account in books.ledgers.values())
    outages = sum(account.outages for account in books.ledgers.values())
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    lines = (
        f"{len(books.orders):,} orders in {seconds:.1f} s, {snapshot.events:,} events.",
        f"{states['shipped']:,} shipped, {states['cancelled']:,} cancelled ({why}). {net / 100:,.2f} charged net, {refunds:,} refunds.",
        f"The outside failed {outages:,} times, and {repeats:,} times was asked again for what it had already done: by its"
        " idempotency key it gave the first answer and did nothing.",
    )
    console.print("", *lines, "", sep="\n", highlight=False, soft_wrap=True)


def interesting_order(books: Books) -> int:
    """The order whose trace tells most: one that was paid and had to be undone, if there is one."""
    refunded = [entry.order_id for entry in books.ledgers["gateway"].entries if entry.kind == "refund"]
    return refunded[0] if refunded else books.orders[0].order_id


def play(plan: Plan, places: Places, console: Console) -> bool:
    """The whole demonstration; whether everything came out right.

    Raises:
        ProcessFailed: one of the processes did not live as it should.
    """
    stage = Stage.build(places, plan.world)
    with stage.processes:
        with Display(console, len(plan.orders)) as display:
            demonstration = Demonstration(plan, stage, display)
            snapshot = asyncio.run(demonstration.run())
            seconds = display.seconds
        stage.processes.stop_all()
        books = stage.books()
        result = reconcile(books, demonstration.placed)
        summary(console, books, snapshot, seconds)
        show_reconciliation(console, result)
        unsettled(console, plan, snapshot)
        console.print()
        show_trace(console, stage, interesting_order(books))
    words = "Every order is charged once and shipped, or fully undone. Nothing lost, doubled or out of order."
    return verdict(console, snapshot, result, words)


def show_trace(console: Console, stage: Stage, order_id: int) -> None:
    console.print(f"$ tidings trace order_id {order_id} --store {stage.places.store}", style="bold", highlight=False, soft_wrap=True)
    text = stage.processes.run("trace", "tidings", "trace", "order_id", str(order_id), "--store", stage.places.store)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> int:
    usual = World()
    parser = options("apps.checkout.demo", "The checkout application, live.", count=1500, patience=120.0, workers="the six services")
    parser.add_argument("--fail", type=float, default=usual.fail, help="part of the outside requests that fail")
    parser.add_argument("--decline", type=float, default=usual.decline, help="part of the cards that are declined")
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="a new file, kept with the ledgers beside it; or postgresql://user@host/database, kept; or postgres: a server of its own",
    )
    given = parser.parse_args()
    with ExitStack() as stack:
        return carry_out(
            "demo",
            given,
            60.0,
            lambda plan, console: play(plan, places_of(given.store, stack), console),
            fail=given.fail,
            decline=given.decline,
        )


def places_of(store: str | None, stack: ExitStack) -> Places:
    """Where this run keeps what; ``stack`` takes away what isn't kept."""
    if (store is not None and "://" in store.replace("sqlite://", "")) or store == "postgres":
        if store == "postgres":
            store = stack.enter_context(Postgres()).new_database()
        _refuse_used(store)
        return Places(_temporary(stack), store)
    if store is None:
        directory = _temporary(stack)
        return Places(directory, f"sqlite:///{directory}/checkout.db")
    file = Path(store.removeprefix("sqlite:///"))
    if file.exists():
        raise BadOrders(f"--store {file} is there already: name a new file, so that old orders don't mix with new ones")
    file = file.resolve()
    directory = file.with_name(file.name + ".ledgers")
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise BadOrders(f"--store {file}: {directory} can't be made: {error.strerror}") from error
    return Places(directory, f"sqlite:///{file}")


def _temporary(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidings-checkout-")))


def _refuse_used(store: str) -> None:
    """Raise BadOrders unless a database on a server can be had for this run alone."""
    at = store_at(store)
    try:
        at.open_to_read()
        at.close()
    except StoreNotInitialised:
        return
    raise BadOrders(f"--store {at.label} holds a log already: name an empty database, so that old orders don't mix with new ones")


if __name__ == "__main__":
    sys.exit(main())
