"""The checkout as services of their own, live: ``python -m apps.checkout.services [--orders path.csv]``.

A PostgreSQL with a database for each service, and a Kafka between them; every service is a process that knows its own database and the
broker, and nothing else. While orders stream in, services, a relay and the broker are killed, and a seventh service arrives that wants to
know what was before. At the end everything is added up, across all databases and the ledgers of the outside world.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from apps.checkout.books import read_books_of_services, snapshot, tables_of
from apps.checkout.customers import Answer, place_all
from apps.checkout.data import BadOrders, Order, generate_orders, read_orders, stock_for
from apps.checkout.demo import STREAM_SECONDS, summary
from apps.checkout.display import Display, show_reconciliation
from apps.checkout.prepare import CONSUMERS, app_path
from apps.checkout.processes import ProcessFailed, Running
from apps.checkout.reconcile import READS, reconcile
from apps.checkout.simulators import World
from apps.checkout.stage import Places, Stage
from apps.checkout.tables import run
from apps.checkout.watch import Snapshot, Watch
from servers.folder import Missing
from servers.kafka import Kafka
from servers.postgres import Postgres
from tidings import TidingsError

LOOK_SECONDS = 1.0
PARTITIONS = 4
TOPICS = ("shop", *CONSUMERS, "support")
ACCIDENTS = ((0.2, "payment"), (0.35, "relay"), (0.5, "broker"), (0.7, "inventory"), (0.8, "relay"))
"""Which part of the orders was taken when it is killed."""
SUPPORT_AT = 0.6


@dataclass(frozen=True, slots=True)
class Plan:
    orders: Sequence[Order]
    world: World
    rate: float
    patience: float


class Services:
    """One run: servers are given, ``run`` plays it to the end."""

    def __init__(self, plan: Plan, stage: Stage, display: Display, postgres: Postgres, kafka: Kafka) -> None:
        self.plan = plan
        self.stage = stage
        self.display = display
        self.placed: list[int] = []
        self.stores: dict[str, str] = {}
        self._postgres = postgres
        self._kafka = kafka
        self._running: dict[str, Running] = {}
        self._watches: dict[str, Watch] = {}
        self._latest: Snapshot | None = None
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
        looking = asyncio.create_task(self._keep_looking())
        try:
            await self._stream(int(facts["port"]), looking)
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

    async def _stream(self, port: int, looking: asyncio.Task[None]) -> None:
        total = len(self.plan.orders)
        turns: dict[int, Callable[[], Coroutine[Any, Any, None]]] = {
            max(1, int(total * share)): partial(self._kill, name) for share, name in ACCIDENTS
        }
        turns[max(1, int(total * SUPPORT_AT))] = self._newcomer
        under_way: list[asyncio.Task[None]] = []

        def answered(answer: Answer) -> None:
            if answer.status in (200, 201):
                self.placed.append(answer.order_id)
            turn = turns.pop(len(self.placed), None)
            if turn is not None:
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

    async def _keep_looking(self) -> None:
        while True:
            self.stage.processes.check()
            self._latest = await asyncio.to_thread(self._look)
            self.display.show(self._latest, len(self.placed))
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> Snapshot:
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
            await asyncio.sleep(LOOK_SECONDS / 2)
            if looking.done():
                looking.result()
            snapshot = await asyncio.to_thread(self._look)
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
        if not last.settled:
            console.print(
                f"It did not settle within {plan.patience:g} s. Still to come: {last.pending()}", style="bold red", soft_wrap=True
            )
        good = last.settled and result.passed
        words = f"Every order is charged once and shipped, or fully undone, across {len(services.stores)} databases."
        console.print(words if good else "The reconciliation failed.", style="bold green" if good else "bold red", soft_wrap=True)
    return good


def main() -> int:
    usual = World()
    parser = argparse.ArgumentParser(prog="python -m apps.checkout.services", description="The checkout as services of their own, live.")
    parser.add_argument("--orders", type=Path, metavar="CSV", help="order_id,customer_id,ordered_on,quantity,total; generated if not given")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad rows of the CSV instead of refusing the file")
    parser.add_argument("--count", type=int, default=1000, help="how many orders to generate")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the generated orders and of the outside world's luck")
    parser.add_argument("--rate", type=float, help=f"orders a second; unless given, all of them within {STREAM_SECONDS:g} s")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds to wait for everything to settle")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the processes' output and the ledgers here")
    given = parser.parse_args()
    console, errors = Console(), Console(stderr=True)
    try:
        if given.rate is not None and given.rate <= 0:
            raise BadOrders("--rate must be above 0")
        orders: Sequence[Order] = generate_orders(given.count, given.seed)
        if given.orders is not None:
            orders, left_out = read_orders(given.orders, skip_bad=given.skip_bad)
            if left_out:
                console.print(f"left out {len(left_out)} rows of {given.orders}, line {left_out[0][0]}: {left_out[0][1]}", style="yellow")
        plan = Plan(orders, replace(usual, seed=given.seed), given.rate or max(40.0, len(orders) / STREAM_SECONDS), given.patience)
        with ExitStack() as stack:
            if given.keep is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidings-services-")))
            else:
                directory = given.keep.resolve()
                directory.mkdir(parents=True)
            return 0 if play(plan, console, directory) else 1
    except (BadOrders, ProcessFailed, Missing, TidingsError, OSError) as error:
        errors.print(f"services: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("services: stopped; its processes have ended", style="yellow")
        return 130


if __name__ == "__main__":
    sys.exit(main())
