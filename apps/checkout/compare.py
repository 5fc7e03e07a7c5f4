"""The same shop twice, ``python -m apps.checkout.compare``: event-driven, and as request-response.

Both get the same orders at the same pace, the same outside world with the same luck, six services in six processes, and the same
accident: one service is killed in the middle and comes back some seconds later. What is printed and drawn is measured in these two runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apps.checkout.books import Books, read_books
from apps.checkout.customers import Answer, place_all
from apps.checkout.data import BadOrders, Order, generate_orders, read_orders, stock_for
from apps.checkout.picture import draw
from apps.checkout.prepare import CONSUMERS
from apps.checkout.processes import ROOT, ProcessFailed, Running
from apps.checkout.reconcile import broken_orders
from apps.checkout.simulators import World
from apps.checkout.stage import Places, Stage
from apps.checkout.watch import Watch

SAMPLE_SECONDS = 0.25
DOWN_AT = 0.35  # of the time that placing takes
STYLES = ("request-response", "event-driven")


@dataclass(frozen=True, slots=True)
class Plan:
    orders: Sequence[Order]
    world: World
    rate: float
    down: str
    down_seconds: float
    patience: float


@dataclass(slots=True)
class Measured:
    """One run. Times are seconds since its first order was sent; ``unfinished`` is (time, orders neither through nor undone)."""

    style: str
    answers: list[Answer] = field(default_factory=list)
    began: float = 0.0
    down: tuple[float, float] = (0.0, 0.0)
    unfinished: list[tuple[float, int]] = field(default_factory=list)
    last_answer: float = 0.0
    consistent: float | None = None
    books: Books = field(default_factory=Books)

    @property
    def failed(self) -> int:
        """Orders that a customer wanted and was told can't be taken, or heard nothing of."""
        return sum(answer.status not in (200, 201, 409) for answer in self.answers)

    def response(self, part: float, *, during_outage: bool = False) -> float:
        """The response time in seconds that ``part`` of the answers stayed below."""
        start, end = self.down
        times = [a.seconds for a in self.answers if not during_outage or start <= a.sent - self.began <= end]
        return percentile(times, part)

    def until_sent(self, part: float) -> float:
        """From the customer's click to the parcel's leaving, by the warehouse's ledger."""
        sent = {answer.order_id: answer.sent for answer in self.answers}
        return percentile([entry.at - sent[entry.order_id] for entry in self.books.ledgers["warehouse"].entries], part)

    @property
    def parcels(self) -> int:
        return len(self.books.ledgers["warehouse"].entries)

    @property
    def lost_mails(self) -> int:
        """Mails about orders that were taken (or refused for a reason) which nobody will ever send."""
        told = {answer.order_id for answer in self.answers if answer.status in (200, 201, 409)}
        wanted = {(order.order_id, "placed") for order in self.books.orders if order.order_id in told}
        wanted |= {
            (order.order_id, order.state)
            for order in self.books.orders
            if order.order_id in told and order.state in ("shipped", "cancelled")
        }
        return len(wanted - {(entry.order_id, entry.kind) for entry in self.books.ledgers["mail"].entries})


def percentile(values: Sequence[float], part: float) -> float:
    """The value that ``part`` of them stay at or below; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


class Shop:
    """One way of running the shop: how its services start, and when it has come to rest."""

    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.plan = plan
        self.stage = stage
        self.running: dict[str, Running] = {}

    def open(self) -> int:
        """Start everything; the port that takes orders."""
        raise NotImplementedError

    def start(self, service: str) -> None:
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether all services are at work."""
        raise NotImplementedError

    def settled(self) -> bool:
        """Whether nothing will happen any more by itself."""
        raise NotImplementedError


class EventDriven(Shop):
    def open(self) -> int:
        port = self.stage.order_service()
        for service in CONSUMERS:
            self.start(service)
        self._watch = Watch(self.stage.places.store)
        return port

    def start(self, service: str) -> None:
        self.running[service] = self.stage.worker(service, (service,))

    def ready(self) -> bool:
        self.stage.processes.check()
        readers = self._watch.look().readers
        return {reader.app for reader in readers} >= set(CONSUMERS) and all(reader.workers for reader in readers)

    def settled(self) -> bool:
        return self._watch.look().settled


class RequestResponse(Shop):
    def open(self) -> int:
        self._ports: dict[str, int] = {}
        for service in CONSUMERS:
            self.start(service)
        services = f"--services={json.dumps(self._ports)}"
        _, facts = self.stage.processes.start_ready("shop", "apps.checkout.requests_shop", "shop", services)
        return int(facts["port"])

    def start(self, service: str) -> None:
        port = f"--port={self._ports.get(service, 0)}"  # it comes back where the shop knows it
        self.running[service], facts = self.stage.processes.start_ready(service, "apps.checkout.requests_shop", service, port)
        self._ports[service] = facts["port"]

    def ready(self) -> bool:
        return True  # each has said so

    def settled(self) -> bool:
        return True  # once the last order is answered nobody is left who would do anything


class Run:
    """Plays the plan on one shop and measures it."""

    def __init__(self, plan: Plan, shop: Shop, style: str) -> None:
        self.plan = plan
        self.shop = shop
        self.places = shop.stage.places
        self.measured = Measured(style)

    def play(self) -> Measured:
        plan, stage = self.plan, self.shop.stage
        stage.prepare(("shop", *CONSUMERS), stock_for(plan.orders))
        port = self.shop.open()
        while not self.shop.ready():
            time.sleep(0.1)
        asyncio.run(self._play(port))
        stage.processes.stop_all()
        self.measured.books = self._books()
        return self.measured

    async def _play(self, port: int) -> None:
        self.measured.began = time.time()
        sampling = asyncio.create_task(self._sample())
        accident = asyncio.create_task(self._accident())
        try:
            self.measured.answers = await place_all(self.plan.orders, f"127.0.0.1:{port}", rate=self.plan.rate, at_once=1000)
            self.measured.last_answer = self._now()
            await accident
            await self._come_to_rest()
        finally:
            for task in (sampling, accident):
                task.cancel()
            await asyncio.gather(sampling, accident, return_exceptions=True)

    async def _accident(self) -> None:
        await asyncio.sleep(len(self.plan.orders) / self.plan.rate * DOWN_AT)
        start = self._now()
        await asyncio.to_thread(self.shop.stage.processes.kill, self.shop.running[self.plan.down])
        await asyncio.sleep(self.plan.down_seconds)
        await asyncio.to_thread(self.shop.start, self.plan.down)
        self.measured.down = (start, self._now())

    async def _sample(self) -> None:
        while True:
            at = self._now()
            broken = await asyncio.to_thread(lambda: broken_orders(self._books()))
            self.measured.unfinished.append((at, len(broken)))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _come_to_rest(self) -> None:
        """Until nothing happens any more; ``consistent`` is set if by then every order is through or undone."""
        deadline = self._now() + self.plan.patience
        while True:
            settled = await asyncio.to_thread(self.shop.settled)
            at = self._now()
            broken = await asyncio.to_thread(lambda: broken_orders(self._books()))
            if settled and not broken:
                self.measured.consistent = at
            if settled or at > deadline:
                self.measured.unfinished.append((at, len(broken)))
                return
            await asyncio.sleep(0.05)

    def _books(self) -> Books:
        return read_books(self.places.store, self.places.directory, events=False)

    def _now(self) -> float:
        return time.time() - self.measured.began


def measure(plan: Plan, style: str, directory: Path) -> Measured:
    """One run in a directory of its own.

    Raises:
        ProcessFailed
    """
    directory.mkdir()
    stage = Stage.build(Places(directory, f"sqlite:///{directory}/shop.db"), plan.world)
    with stage.processes:
        shop = EventDriven(plan, stage) if style == "event-driven" else RequestResponse(plan, stage)
        return Run(plan, shop, style).play()


def show(console: Console, plan: Plan, both: Sequence[Measured]) -> None:
    table = Table(
        title=f"{len(plan.orders):,} orders at {plan.rate:g}/s; {plan.down} killed and away for {plan.down_seconds:g} s",
        title_justify="left",
    )
    table.add_column("")
    for measured in both:
        table.add_column(measured.style, justify="right")
    rows: list[tuple[str, list[str]]] = [
        ("response time, p50", [milliseconds(m.response(0.5)) for m in both]),
        ("response time, p99", [milliseconds(m.response(0.99)) for m in both]),
        (f"response time while {plan.down} is down, p50", [milliseconds(m.response(0.5, during_outage=True)) for m in both]),
        (f"response time while {plan.down} is down, p99", [milliseconds(m.response(0.99, during_outage=True)) for m in both]),
        ("orders that customers could not place", [f"{m.failed:,}" for m in both]),
        ("parcels sent", [f"{m.parcels:,}" for m in both]),
        ("order to parcel, p50", [milliseconds(m.until_sent(0.5)) for m in both]),
        ("order to parcel, p99", [milliseconds(m.until_sent(0.99)) for m in both]),
        ("mails never sent", [f"{m.lost_mails:,}" for m in both]),
        ("orders left half done", [f"{len(broken_orders(m.books)):,}" for m in both]),
        ("all consistent after the last answer", [consistency(m) for m in both]),
    ]
    for name, values in rows:
        table.add_row(name, *values)
    console.print(table)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def consistency(measured: Measured) -> str:
    if measured.consistent is None:
        return "never by itself"
    return f"{max(0.0, measured.consistent - measured.last_answer):.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m apps.checkout.compare", description="Event-driven against request-response.")
    parser.add_argument("--orders", type=Path, metavar="CSV", help="the first --count orders of this file; generated if not given")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=40.0, help="orders a second")
    parser.add_argument("--latency", type=float, default=0.02, help="of the outside world, in seconds")
    parser.add_argument("--down", choices=CONSUMERS, default="payment", help="the service that is killed")
    parser.add_argument("--down-seconds", type=float, default=4.0)
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for everything to settle")
    parser.add_argument("--svg", type=Path, default=ROOT / "docs" / "images" / "compare.svg", help="where the picture goes")
    given = parser.parse_args()
    console, errors = Console(), Console(stderr=True)
    try:
        if given.rate <= 0 or given.down_seconds < 0:
            raise BadOrders("--rate must be above 0, --down-seconds 0 or more")
        orders = read_orders(given.orders)[0][: given.count] if given.orders else generate_orders(given.count, given.seed)
        world = replace(World(), seed=given.seed, latency=given.latency)
        plan = Plan(orders, world, given.rate, given.down, given.down_seconds, given.patience)
        both = []
        with tempfile.TemporaryDirectory(prefix="tidings-compare-") as temporary:
            for style in STYLES:
                console.print(f"running the shop {style}, {len(orders) / given.rate:.0f} s and a little …", style="dim")
                both.append(measure(plan, style, Path(temporary) / style))
        show(console, plan, both)
        given.svg.parent.mkdir(parents=True, exist_ok=True)
        given.svg.write_text(draw(plan.down, both))
        console.print(f"drawn in {given.svg}", style="dim", soft_wrap=True)
        return 0
    except (BadOrders, ProcessFailed) as error:
        errors.print(f"compare: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("compare: stopped; its processes have ended", style="yellow")
        return 130


if __name__ == "__main__":
    sys.exit(main())
