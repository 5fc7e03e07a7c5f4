"""The outside world: a payment gateway, a warehouse and a mail server, in one process of their own.

Each is slow, fails now and then (half of the time *after* it has done what was asked, so that the answer is lost and not the effect) and
says no at a given rate. Each is idempotent by key, as Stripe is: the same key gets the first answer again; the same key with another
request is an error. While there is a file ``refunds.closed`` beside the ledgers, refunds are out of order (as with any path). Luck is
drawn from the seed, the order and the how-manieth try, so two runs meet the same world.

    python -m apps.checkout.simulators --directory /tmp/world --seed 1

It prints one line of JSON, ``{"gateway": port, "warehouse": port, "mail": port}``, and runs until its stdin is closed or it is told to
stop.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.checkout.chance import chance
from apps.checkout.http1 import Request, Response, Server
from apps.checkout.ledger import Ledger
from apps.checkout.lifetime import say_ready, stop_when_told

NAMES = ("gateway", "warehouse", "mail")


@dataclass(frozen=True, slots=True)
class World:
    """How the outside behaves: ``latency`` in seconds (half to one and a half of it), the rest as parts of 1."""

    seed: int = 1
    latency: float = 0.003
    fail: float = 0.02
    decline: float = 0.04
    refuse: float = 0.01


class Simulator:
    """A service with a ledger. Subclasses say what a request does in ``act``, which may run only once for each key."""

    name = ""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self.world = world
        self.ledger = ledger
        self._tries: Counter[tuple[str, int]] = Counter()
        self._answers: dict[str, tuple[Any, Response]] = {}

    def act(self, key: str, kind: str, order_id: int, body: dict[str, Any]) -> Response:
        raise NotImplementedError

    async def handle(self, request: Request) -> Response:
        path = request.path.strip("/")
        body = request.body
        if not isinstance(body, dict) or not isinstance(body.get("order_id"), int) or not request.key:
            return Response(400, {"error": "wanted: a JSON object with order_id, and an Idempotency-Key"})
        order_id: int = body["order_id"]
        kind = f"{path}:{body['kind']}" if "kind" in body else path
        self._tries[kind, order_id] += 1
        nth = self._tries[kind, order_id]
        await asyncio.sleep(self._latency(kind, order_id, nth))
        luck = chance(self.world.seed, self.name, "fail", kind, order_id, nth)
        if luck < self.world.fail / 2 or self.ledger.path.with_name(f"{path}.closed").exists():
            self.ledger.failed(kind, order_id)
            return Response(503, {"error": "try again"})
        response = self._once(request.key, kind, order_id, body)
        if luck < self.world.fail:
            self.ledger.failed(kind, order_id)
            return Response(502, {"error": "the answer was lost"})
        return response

    def _once(self, key: str, kind: str, order_id: int, body: dict[str, Any]) -> Response:
        asked = (kind, body)
        known = self._answers.get(key)
        if known is not None:
            if known[0] != asked:
                return Response(400, {"error": "this key belongs to another request"})
            self.ledger.repeated(key)
            return known[1]
        response = self.act(key, kind, order_id, body)
        self._answers[key] = (asked, response)
        return response

    def _latency(self, kind: str, order_id: int, nth: int) -> float:
        return self.world.latency * (0.5 + chance(self.world.seed, self.name, "latency", kind, order_id, nth))


class Gateway(Simulator):
    """``POST /charges`` and ``POST /refunds`` with order_id and cents. 402 is a declined card."""

    name = "gateway"

    def act(self, key: str, kind: str, order_id: int, body: dict[str, Any]) -> Response:
        cents = int(body["cents"])
        if kind == "charges":
            if declines(self.world, order_id):
                return Response(402, {"status": "declined"})
            self.ledger.enter(key, "charge", order_id, cents)
            return Response(201, {"status": "charged"})
        if kind == "refunds":
            self.ledger.enter(key, "refund", order_id, -cents)
            return Response(201, {"status": "refunded"})
        return Response(404, {"error": f"no {kind} here"})


class Warehouse(Simulator):
    """``POST /parcels`` with order_id and quantity. 409 is a parcel that can't be sent."""

    name = "warehouse"

    def act(self, key: str, kind: str, order_id: int, body: dict[str, Any]) -> Response:
        if kind != "parcels":
            return Response(404, {"error": f"no {kind} here"})
        if refuses(self.world, order_id):
            return Response(409, {"status": "refused"})
        self.ledger.enter(key, "parcel", order_id, int(body["quantity"]))
        return Response(201, {"status": "sent"})


class MailServer(Simulator):
    """``POST /mails`` with order_id, customer_id and kind."""

    name = "mail"

    def act(self, key: str, kind: str, order_id: int, body: dict[str, Any]) -> Response:
        if not kind.startswith("mails:"):
            return Response(404, {"error": f"no {kind} here"})
        self.ledger.enter(key, str(body["kind"]), order_id, 0, str(body.get("customer_id", "")))
        return Response(202, {"status": "accepted"})


def declines(world: World, order_id: int) -> bool:
    """Whether the card for this order will be declined."""
    return chance(world.seed, "decline", order_id) < world.decline


def refuses(world: World, order_id: int) -> bool:
    """Whether the warehouse will refuse this order's parcel."""
    return chance(world.seed, "refuse", order_id) < world.refuse


def ledger_file(directory: Path, name: str) -> Path:
    return directory / f"{name}.ledger.db"


async def serve(directory: Path, world: World, stop: asyncio.Event, ready: Callable[[dict[str, int]], None]) -> None:
    """Run all three until ``stop`` is set; ``ready`` gets their ports."""
    kinds: tuple[type[Simulator], ...] = (Gateway, Warehouse, MailServer)
    ledgers = [Ledger(ledger_file(directory, kind.name)) for kind in kinds]
    servers = [Server(kind(world, ledger).handle) for kind, ledger in zip(kinds, ledgers, strict=True)]
    try:
        for server in servers:
            await server.start()
        ready({kind.name: server.port for kind, server in zip(kinds, servers, strict=True)})
        await stop.wait()
    finally:
        for server in servers:
            await server.stop()
        for ledger in ledgers:
            ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m apps.checkout.simulators", description="The shop's outside world.")
    usual = World()
    parser.add_argument("--directory", type=Path, required=True, help="where the ledgers go")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--latency", type=float, default=usual.latency, help="seconds")
    parser.add_argument("--fail", type=float, default=usual.fail, help="part of the requests that answer 5xx")
    parser.add_argument("--decline", type=float, default=usual.decline, help="part of the cards that are declined")
    parser.add_argument("--refuse", type=float, default=usual.refuse, help="part of the parcels that can't be sent")
    given = vars(parser.parse_args())
    directory: Path = given.pop("directory")

    async def run() -> None:
        stop = asyncio.Event()
        stop_when_told(stop)
        await serve(directory, World(**given), stop, say_ready)

    asyncio.run(run())


if __name__ == "__main__":
    main()
