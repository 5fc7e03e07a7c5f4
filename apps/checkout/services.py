"""The checkout as services of their own, live: ``python -m apps.checkout.services [--orders path.csv]``.

A PostgreSQL with a database for each service, and a Kafka between them; every service is a process that knows its own database and the
broker, and nothing else. While orders stream in, services, a relay and the broker are killed, and a seventh service arrives that wants to
know what was before. At the end everything is added up, across all databases and the ledgers of the outside world.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from apps.checkout.books import read_books_of_services, snapshot, tables_of
from apps.checkout.data import BadOrders, stock_for
from apps.checkout.demo import summary
from apps.checkout.display import Display, show_reconciliation
from apps.checkout.playing import Plan, Play, Turn, carry_out, options, unsettled, verdict
from apps.checkout.prepare import CONSUMERS, app_path
from apps.checkout.processes import Running
from apps.checkout.reconcile import READS, reconcile
from apps.checkout.stage import Places, Stage
from apps.checkout.tables import run
from apps.checkout.watch import Snapshot, Watch
from servers.kafka import Kafka
from servers.postgres import Postgres

PARTITIONS = 4
TOPICS = ("shop", *CONSUMERS, "support")
ACCIDENTS = ((0.2, "payment"), (0.35, "relay"), (0.5, "broker"), (0.7, "inventory"), (0.8, "relay"))
"""Which part of the orders was taken when it is killed."""
SUPPORT_AT = 0.6


class Services(Play):
    """A database for each service and Kafka between them; ``run`` plays it to the end."""

    look_seconds = 1.0

    def __init__(self, plan: Plan, stage: Stage, display: Display, postgres: Postgres, kafka: Kafka) -> None:
        super().__init__(plan, stage, display)
        self.stores: dict[str, str] = {}
        self._postgres = postgres
        self._kafka = kafka
        self._running: dict[str, Running] = {}
        self._watches: dict[str, Watch] = {}
        self._late = False

    async def run(self) -> Snapshot:
        """Until everything has settled, or patience is over; what the stores said last."""
        for topic in TOPICS:
            self._kafka.new_topic(PARTITIONS, name=topic)
        self._prepare(("shop", *CONSUMERS))
        _, facts = self.stage.processes.start_ready("orders", "apps.checkout.order_service", env=self._env("shop"))
        self._start("relay", "shop")
        for service in CONSUMERS:
            self._start(service, service)
        self.display.tell(
            f"order service, its relay, and {len(CONSUMERS)} services: eight processes, {len(self.stores)} databases, one Kafka"
        )
        looking = asyncio.create_task(self.keep_looking())
        turns: dict[float, Turn] = {share: partial(self._kill, name) for share, name in ACCIDENTS}
        try:
            await self.stream(int(facts["port"]), looking, turns | {SUPPORT_AT: self._newcomer})
            self.display.tell("all orders placed; waiting until nothing is under way anywhere")
            return await self._settle(looking)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            for watch in self._watches.values():
                watch.close()

    # -- processes

    def _env(self, service: str) -> Mapping[str, str]:
        return {"CHECKOUT_STORE": self.stores[service]}

    def _prepare(self, services: Sequence[str]) -> None:
        for service in services:
            self.stores[service] = self._postgres.new_database()
            self._watches[service] = Watch(self.stores[service])
            self.stage.prepare((service,), stock_for(self.plan.orders), env=self._env(service))

    def _start(self, name: str, service: str) -> None:
        self._running[name] = self.stage.processes.start(name, "tidings", "run", app_path(service), env=self._env(service))

    async def _kill(self, name: str) -> None:
        if name == "broker":
            await asyncio.to_thread(self._kafka.kill)
            self.display.tell(f"killed the broker with SIGKILL, after {len(self.placed):,} orders")
            await asyncio.to_thread(self._kafka.start, 120.0)
            self.display.tell("started the broker again")
            return
        victim = self._running[name]
        await asyncio.to_thread(self.stage.processes.kill, victim)
        self.display.tell(f"killed {name} (pid {victim.pid}) with SIGKILL, after {len(self.placed):,} orders, and started it again")
        self._start(name, "shop" if name == "relay" else name)

    async def _newcomer(self) -> None:
        await asyncio.to_thread(self._prepare, ("support",))
        self._start("support", "support")
        self._late = True
        self.display.tell("added support: a seventh service, with a database of its own, that reads the topic from its first event")

    # -- the play

    def look(self) -> Snapshot:
        """All stores, one after another: only when nothing moves do they belong together."""
        found = [watch.look() for watch in list(self._watches.values())]
        return Snapshot(
            sum(one.events for one in found),
            sum(one.scheduled for one in found),
            found[0].states,
            tuple(reader for one in found for reader in one.readers),
            sum(one.alerts for one in found),
        )

    async def _settle(self, looking: asyncio.Task[None]) -> Snapshot:
        """The first look that finds nothing left to do in any store and nothing between them, and finds the same once more."""
        deadline = time.monotonic() + self.plan.patience
        before: tuple[int, int] | None = None
        while True:
            await asyncio.sleep(self.look_seconds / 2)
            if looking.done():
                looking.result()
            snapshot = await asyncio.to_thread(self.look)
            at_rest = self._late and snapshot.settled and await asyncio.to_thread(self._arrived)
            now = (snapshot.events, snapshot.orders)
            if (at_rest and now == before) or time.monotonic() > deadline:
                return snapshot
            before = now if at_rest else None

    def _arrived(self) -> bool:
        """Whether every log has of each topic that its service reads as many events as their publisher's log."""
        counts = {service: _counts(store) for service, store in self.stores.items()}
        return all(
            found.get(topic, 0) == counts[topic].get(topic, 0)
            for service, found in counts.items()
            for topic in {name.partition(".")[0] for name in READS[service]} & self.stores.keys()
        )


def _counts(store: str) -> dict[str, int]:
    """Events in a log by who published them."""
    with snapshot(store) as conn:
        return dict(run(conn, "SELECT source, count(*) FROM tidings_log GROUP BY source")) if "tidings_log" in tables_of(conn) else {}


def play(plan: Plan, console: Console, directory: Path) -> bool:
    """The whole demonstration; whether everything came out right.

    Raises:
        ProcessFailed: one of the processes did not live as it should. Missing: a server can't be had here.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres())
        kafka = stack.enter_context(Kafka())
        stage = Stage.build(Places(directory, postgres.url()), plan.world, env={"CHECKOUT_BROKER": kafka.url})
        stack.enter_context(stage.processes)
        console.print(f"set up in {time.monotonic() - began:.1f} s: PostgreSQL {postgres.version} and Kafka, on loopback", highlight=False)
        with Display(console, len(plan.orders)) as display:
            services = Services(plan, stage, display, postgres, kafka)
            last = asyncio.run(services.run())
            seconds = display.seconds
        stage.processes.stop_all()
        books = read_books_of_services(services.stores, directory)
        result = reconcile(books, services.placed)
        summary(console, books, last, seconds)
        show_reconciliation(console, result)
        unsettled(console, plan, last)
    words = f"Every order is charged once and shipped, or fully undone, across {len(services.stores)} databases."
    return verdict(console, last, result, words)


def main() -> int:
    parser = options("apps.checkout.services", "The checkout as services of their own, live.", count=1000, patience=90.0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the processes' output and the ledgers here")
    given = parser.parse_args()
    with ExitStack() as stack:
        return carry_out("services", given, 40.0, lambda plan, console: play(plan, console, _folder(given.keep, stack)))


def _folder(kept: Path | None, stack: ExitStack) -> Path:
    if kept is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidings-services-")))
    try:
        kept.resolve().mkdir(parents=True)
    except OSError as error:
        raise BadOrders(f"--keep {kept} can't be made: {error.strerror}") from error
    return kept.resolve()


if __name__ == "__main__":
    sys.exit(main())
