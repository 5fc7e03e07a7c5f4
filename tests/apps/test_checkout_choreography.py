"""Whatever order the services get to their events in, every order ends carried through or undone.

No worker here: the handlers are called by hand, in an order that a seed chooses, over several orders at once. An order's events come to
each subscription in the order of the log, as promised; everything else is up to chance. Now and then a handler "crashes": its rows are
rolled back and it runs again, and what it did outside stays done.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import sqlite3
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.checkout import analytics, data, emails, fraud, inventory, orders, payment, seen, shipping, support, tables
from apps.checkout.books import Books, Logged, read_books
from apps.checkout.data import generate_orders, stock_for
from apps.checkout.http1 import Request, Response
from apps.checkout.ledger import Ledger
from apps.checkout.reconcile import reconcile
from apps.checkout.simulators import Gateway, MailServer, Simulator, Warehouse, World, ledger_file

SERVICES = (orders, fraud, payment, inventory, shipping, emails, analytics, support)
ORDERS = 14


class Direct:
    """Stands in for the HTTP client: the simulator is asked directly."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    async def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Response:
        return await self.simulator.handle(Request(method, path, key, body))


class Shop:
    """The services' handlers, a list for a log, and the outside world."""

    def __init__(self, directory: Path, store: str, seed: int, *, crashes: float) -> None:
        self.directory = directory
        self.store = store
        self.rng = random.Random(seed)
        self.crashes = crashes
        self.log: list[Logged] = []
        self.loop = asyncio.Runner()
        world = World(seed=seed, latency=0.0, fail=0.0, decline=0.25, refuse=0.15)
        self.simulators = [kind(world, Ledger(ledger_file(directory, kind.name))) for kind in (Gateway, Warehouse, MailServer)]
        clients: tuple[Any, ...] = (payment.Gateway("nowhere:1"), shipping.Warehouse("nowhere:1"), emails.MailServer("nowhere:1"))
        for client, simulator in zip(clients, self.simulators, strict=True):
            client._http = Direct(simulator)
        self.given = {type(client): client for client in clients}
        self.readers = [(module.app, name, reader) for module in SERVICES for name, reader in module.app.subscriptions.items()]
        self.queues: dict[tuple[str, int], deque[tuple[int, str, bytes]]] = defaultdict(deque)
        self.later: list[tuple[str, bytes, int]] = []
        self.conn = tables.connect(store)
        if isinstance(self.conn, sqlite3.Connection):
            self.conn.execute("PRAGMA synchronous = OFF")

    def append(self, kind: str, data: bytes, order_id: int, vip: bool) -> None:
        position = len(self.log) + 1
        self.log.append(Logged(position, kind, order_id, vip))
        for _, name, reader in self.readers:
            if kind in reader.handlers:
                self.queues[name, order_id].append((position, kind, data))

    def published(self, app: Any, event: Any, *, later: bool = False) -> None:
        event_type = app.type_of(type(event))
        data = event_type.to_bytes(event)
        if later:
            self.later.append((event_type.name, data, event.order_id))
        else:
            self.append(event_type.name, data, event.order_id, bool(getattr(event, "vip", False)))

    def place(self, order: Any) -> None:
        events: list[Any] = []
        with transaction(self.conn), pytest.MonkeyPatch.context() as patch:
            patch.setattr(orders, "app", SimpleNamespace(publish=lambda event, tx: events.append(event)))
            orders.place(order, self.conn)
        self.published(orders.app, events[0])

    def step(self) -> bool:
        """Let some subscription handle the next event of some order; False when nothing is left."""
        ready = [place for place, queue in self.queues.items() if queue]
        if self.later and (not ready or self.rng.random() < 0.1):
            kind, data, order_id = self.later.pop(self.rng.randrange(len(self.later)))
            self.append(kind, data, order_id, False)
            return True
        if not ready:
            return False
        name, order_id = self.rng.choice(ready)
        app, reader = next((app, reader) for app, known, reader in self.readers if known == name)
        position, kind, data = self.queues[name, order_id][0]
        handler = reader.handlers[kind]
        event = handler.event_type.decode(data)
        if handler.where is None or handler.where(event):
            while True:
                with transaction(self.conn, undo=self.rng.random() < self.crashes) as undone:
                    outputs, delayed = self.call(handler, event, name, position)
                if not undone:
                    break
            for output in outputs:
                self.published(app, output)
            for output in delayed:
                self.published(app, output, later=True)
        self.queues[name, order_id].popleft()
        return True

    def call(self, handler: Any, event: Any, name: str, position: int) -> tuple[list[Any], list[Any]]:
        delayed: list[Any] = []
        key = str(event.order_id)
        ctx = SimpleNamespace(key=key, position=position, idempotency_key=f"{name}:{position}", publish=lambda e, after: delayed.append(e))
        arguments: dict[str, Any] = {}
        for parameter in list(inspect.signature(handler.fn).parameters)[1:]:
            if parameter in ("ctx", "tx"):
                arguments[parameter] = ctx if parameter == "ctx" else self.conn
            else:
                arguments[parameter] = self.given[handler.needs[parameter]]
        result = handler.fn([event] if handler.takes_list else event, **arguments)
        if inspect.isawaitable(result):
            result = self.loop.run(_awaited(result))
        return ([] if result is None else [result]), delayed

    def books(self) -> Books:
        self.conn.close()
        self.loop.close()
        for simulator in self.simulators:
            simulator.ledger.close()
        books = read_books(self.store, self.directory)
        books.log = self.log
        return books


async def _awaited(result: Any) -> Any:
    return await result


@contextmanager
def transaction(conn: tables.Tx, *, undo: bool = False) -> Iterator[bool]:
    conn.execute("BEGIN")
    try:
        yield undo
    except BaseException:
        conn.execute("ROLLBACK")
        raise
    conn.execute("ROLLBACK" if undo else "COMMIT")


@pytest.mark.parametrize("crashes", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(12))
def test_every_order_ends_whoever_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, crashes: float) -> None:
    play(f"sqlite:///{tmp_path}/shop.db", tmp_path, monkeypatch, seed, crashes)


@pytest.mark.parametrize("seed", range(3))
def test_on_a_server_too(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """The same SQL."""
    monkeypatch.setattr(seen, "NUMBERED", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY")
    play(postgres_url, tmp_path, monkeypatch, seed, 0.2)


def play(store: str, directory: Path, monkeypatch: pytest.MonkeyPatch, seed: int, crashes: float) -> None:
    monkeypatch.setattr(tables, "STORE_URL", store)
    monkeypatch.setattr(fraud, "FRAUD_RATE", 0.15)
    monkeypatch.setattr(fraud, "SEED", seed)
    monkeypatch.setattr(orders, "VIP_ORDERS", 1)
    monkeypatch.setattr(data, "ARTICLES", 2)  # so few that they run out for some
    wanted = generate_orders(ORDERS, seed)
    for module in SERVICES:
        if module is not inventory:
            module.prepare()
    inventory.prepare(stock_for(wanted, 0.8))
    shop = Shop(directory, store, seed, crashes=crashes)
    for order in wanted:
        shop.place(order)
        for _ in range(shop.rng.randrange(8)):
            shop.step()
    while shop.step():
        pass
    result = reconcile(shop.books(), [order.order_id for order in wanted])
    assert [problem for check in result.checks for problem in check.problems] == []


def test_the_seeds_reach_every_way_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would prove little if its orders never met trouble."""
    reasons: set[str | None] = set()
    states: set[str] = set()
    for seed in range(12):
        directory = tmp_path / str(seed)
        directory.mkdir()
        store = f"sqlite:///{directory}/shop.db"
        play(store, directory, monkeypatch, seed, 0.0)
        books = read_books(store, directory)
        reasons |= {order.reason for order in books.orders}
        states |= {state for _, state in books.payments.values()}
    assert reasons == {None, "rejected as fraud", "card declined", "out of stock", "parcel refused"}
    assert states == {"charged", "declined", "refunded", "void"}
