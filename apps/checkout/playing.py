"""What the demonstrations have in common: orders that come in at their pace while things happen, the options, and the last word."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from apps.checkout.customers import Answer, place_all
from apps.checkout.data import BadOrders, Order, generate_orders, read_orders
from apps.checkout.display import Display
from apps.checkout.processes import ProcessFailed
from apps.checkout.reconcile import Reconciliation
from apps.checkout.simulators import World
from apps.checkout.stage import Stage
from apps.checkout.watch import Snapshot
from servers.folder import Missing
from tidings import TidingsError

STREAM_SECONDS = 18.0
"""How long placing takes unless a rate is given."""

Turn = Callable[[], Coroutine[Any, Any, None]]
"""Something that happens while orders come in."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``rate``: orders a second. ``workers``: processes. ``patience``: seconds to wait for everything to settle."""

    orders: Sequence[Order]
    world: World
    rate: float
    workers: int
    patience: float


class Play:
    """One run of a demonstration: ``stage`` is built, ``placed`` are the orders that the order service took."""

    look_seconds = 0.4

    def __init__(self, plan: Plan, stage: Stage, display: Display) -> None:
        self.plan = plan
        self.stage = stage
        self.display = display
        self.placed: list[int] = []
        self.latest: Snapshot | None = None

    def look(self) -> Snapshot:
        """How things stand now; called in a thread."""
        raise NotImplementedError

    async def keep_looking(self) -> None:
        """Show how things stand, for ever. Raises ProcessFailed: a process has ended that should live."""
        while True:
            self.stage.processes.check()
            self.latest = await asyncio.to_thread(self.look)
            self.display.show(self.latest, len(self.placed))
            await asyncio.sleep(self.look_seconds)

    async def stream(self, port: int, looking: asyncio.Task[None], turns: Mapping[float, Turn]) -> None:
        """Place all orders; each turn comes when that part of them was taken. Raises ProcessFailed: some were not taken."""
        total = len(self.plan.orders)
        waiting = {max(1, int(total * share)): turn for share, turn in turns.items()}
        under_way: list[asyncio.Task[None]] = []

        def answered(answer: Answer) -> None:
            if answer.status in (200, 201):
                self.placed.append(answer.order_id)
            if (turn := waiting.pop(len(self.placed), None)) is not None:
                under_way.append(asyncio.create_task(turn()))

        placing = asyncio.create_task(place_all(self.plan.orders, f"127.0.0.1:{port}", rate=self.plan.rate, answered=answered))
        try:
            await asyncio.wait({placing, looking}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()  # raises what it found
            answers = await placing
        finally:
            placing.cancel()
        await asyncio.gather(*under_way)
        refused = [answer for answer in answers if answer.status not in (200, 201)]
        if refused:
            raise ProcessFailed(f"the order service did not take {len(refused)} orders, order {refused[0].order_id} first")


def options(module: str, description: str, *, count: int, patience: float, workers: str | None = None) -> argparse.ArgumentParser:
    """Those that every demonstration has. ``workers``: what these processes run, if their number can be chosen."""
    usual = World()
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--orders", type=Path, metavar="CSV", help="order_id,customer_id,ordered_on,quantity,total; generated if not given")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad rows of the CSV instead of refusing the file")
    parser.add_argument("--count", type=int, default=count, help="how many orders to generate")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the generated orders and of the outside world's luck")
    parser.add_argument("--rate", type=float, help=f"orders a second; unless given, all of them within {STREAM_SECONDS:g} s")
    if workers is not None:
        parser.add_argument("--workers", type=int, default=2, help=f"processes that run {workers}")
    parser.add_argument("--patience", type=float, default=patience, help="seconds to wait for everything to settle")
    return parser


def carry_out(name: str, given: argparse.Namespace, slowest: float, play: Callable[[Plan, Console], bool], **world: Any) -> int:
    """Read the orders and play; the exit status. Every error of the outside is told in a line.

    Args:
        slowest: orders a second that are placed at least, unless a rate was given. world: how it differs from the usual one.
    """
    console, errors = Console(), Console(stderr=True)
    try:
        workers = getattr(given, "workers", 1)
        if workers < 1 or (given.rate is not None and given.rate <= 0):
            raise BadOrders("--workers and --rate must be above 0")
        orders = _orders_of(given, console)
        outside = replace(World(), seed=given.seed, **world)
        plan = Plan(orders, outside, given.rate or max(slowest, len(orders) / STREAM_SECONDS), workers, given.patience)
        return 0 if play(plan, console) else 1
    except (BadOrders, ProcessFailed, Missing, TidingsError, OSError) as error:
        errors.print(f"{name}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print(f"{name}: stopped; its processes have ended", style="yellow")
        return 130


def _orders_of(given: argparse.Namespace, console: Console) -> list[Order]:
    if given.orders is None:
        return generate_orders(given.count, given.seed)
    orders, left_out = read_orders(given.orders, skip_bad=given.skip_bad)
    for line, what in left_out[:10]:
        console.print(f"left out {given.orders}, line {line}: {what}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(left_out) > 10:
        console.print(f"left out {len(left_out) - 10} more rows", style="yellow")
    return orders


def unsettled(console: Console, plan: Plan, last: Snapshot) -> None:
    """Say so if patience was over first."""
    if not last.settled:
        console.print(f"It did not settle within {plan.patience:g} s. Still to come: {last.pending()}", style="bold red", soft_wrap=True)


def verdict(console: Console, last: Snapshot, result: Reconciliation, words: str) -> bool:
    """The last line: ``words`` if everything is as they say."""
    good = last.settled and result.passed
    console.print(words if good else "The reconciliation failed.", style="bold green" if good else "bold red", soft_wrap=True)
    return good
