"""The whole shop set up in a directory: its store, the outside world, the order service and the workers, each a process.

The demonstration, the comparison and the end-to-end tests all start from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.checkout.books import Books, read_books
from apps.checkout.prepare import app_path
from apps.checkout.processes import Processes, Running
from apps.checkout.simulators import World


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run keeps what: the ledgers and logs in a directory of its own, the rest in a store (its URL)."""

    directory: Path
    store: str


class Stage:
    """Processes of one shop. ``processes`` ends them all; ``world`` is how its outside behaves."""

    def __init__(self, places: Places, processes: Processes) -> None:
        self.places = places
        self.processes = processes

    @classmethod
    def build(cls, places: Places, world: World, *, env: Mapping[str, str] | None = None) -> Stage:
        """Start the outside world, and learn its addresses.

        Raises:
            ProcessFailed
        """
        processes = Processes(places.directory, {"CHECKOUT_STORE": places.store, "CHECKOUT_SEED": str(world.seed), **(env or {})})
        options = [f"--{name}={getattr(world, name)}" for name in ("seed", "latency", "fail", "decline", "refuse")]
        try:
            _, ports = processes.start_ready("simulators", "apps.checkout.simulators", f"--directory={places.directory}", *options)
        except BaseException:
            processes.stop_all()
            raise
        processes.env.update({f"CHECKOUT_{name.upper()}": f"127.0.0.1:{port}" for name, port in ports.items()})
        return cls(places, processes)

    def prepare(self, services: Sequence[str], stock: Mapping[str, int], *, env: Mapping[str, str] | None = None) -> None:
        """Let services make their tables."""
        shelf = self.places.directory / "stock.json"
        shelf.write_text(json.dumps(stock))
        self.processes.run("prepare", "apps.checkout.prepare", *services, f"--stock={shelf}", env=env)

    def order_service(self) -> int:
        """Start it; its port."""
        _, facts = self.processes.start_ready("orders", "apps.checkout.order_service")
        return int(facts["port"])

    def worker(self, name: str, services: Sequence[str]) -> Running:
        """Start one process that runs the subscriptions of these services."""
        return self.processes.start(name, "tidings", "run", *map(app_path, services))

    def books(self) -> Books:
        """Everybody's rows as they are now."""
        return read_books(self.places.store, self.places.directory)


def order_body(order: Any) -> dict[str, Any]:
    """An order as ``POST /orders`` wants it."""
    return {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "ordered_on": order.ordered_on.isoformat(),
        "quantity": order.quantity,
        "total": str(order.total),
    }
