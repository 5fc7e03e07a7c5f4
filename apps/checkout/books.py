"""Everybody's rows, read once: the services' tables, what each service saw, the log, and the ledgers of the outside world."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from apps.checkout.ledger import Account, read_ledger
from apps.checkout.simulators import NAMES, ledger_file
from apps.checkout.tables import Tx, connect, run

SERVICES = ("shop", "fraud", "payment", "inventory", "shipping", "email", "analytics", "support")


class Placed(NamedTuple):
    """A row of the shop's orders."""

    order_id: int
    customer_id: int
    ordered_on: str
    sku: str
    quantity: int
    cents: int
    vip: bool
    state: str
    reason: str | None


class Logged(NamedTuple):
    """An event of an order, as the log has it."""

    position: int
    type: str
    order_id: int
    vip: bool


class Reservation(NamedTuple):
    order_id: int
    sku: str
    quantity: int
    state: str


@dataclass(slots=True)
class Books:
    """Rows as plain values, so that a test can spoil them one at a time."""

    orders: list[Placed] = field(default_factory=list)
    payments: dict[int, tuple[int, str]] = field(default_factory=dict)  # order: cents, state
    frauds: dict[int, bool] = field(default_factory=dict)  # order: approved
    reservations: list[Reservation] = field(default_factory=list)
    stock: dict[str, tuple[int, int]] = field(default_factory=dict)  # article: delivered, on hand
    parcels: dict[int, str] = field(default_factory=dict)  # order: state
    mails_owed: list[tuple[int, str]] = field(default_factory=list)
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: orders, cents
    days: dict[str, tuple[int, int]] = field(default_factory=dict)
    alerts: list[tuple[int, str]] | None = None  # None: support wasn't there
    log: list[Logged] = field(default_factory=list)
    logs: dict[str, list[Logged]] = field(default_factory=dict)  # service: its own log, where each has one
    seen: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # service: (order, position) in the order in which it saw them
    ledgers: dict[str, Account] = field(default_factory=dict)


@contextmanager
def snapshot(store: str) -> Iterator[Tx]:
    """A connection that sees everything as it was at one moment: rows that are still being written must not make the books disagree.

    Raises:
        FileNotFoundError: no such store.
    """
    if store.startswith("sqlite:") and not Path(store.removeprefix("sqlite:///")).exists():
        raise FileNotFoundError(f"no store at {store}")
    conn = connect(store)
    try:
        run(conn, "BEGIN" if isinstance(conn, sqlite3.Connection) else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield conn
    finally:
        conn.close()


def tables_of(conn: Tx) -> set[str]:
    """The names of all tables."""
    where = "sqlite_master WHERE type = 'table'" if isinstance(conn, sqlite3.Connection) else "(SELECT relname FROM pg_class) t (name)"
    return {name for (name,) in run(conn, f"SELECT name FROM {where}")}


def read_books(store: str, ledgers: Path, *, events: bool = True) -> Books:
    """Read everything from the store at this URL and the ledgers' directory; tables that aren't there read as empty.

    ``events=False`` leaves out the log and what the services saw, which is most of it.

    Raises:
        FileNotFoundError: no such store, or a ledger is missing.
    """
    with snapshot(store) as conn:
        return _read(conn, {name: read_ledger(ledger_file(ledgers, name)) for name in NAMES}, events)


def read_books_of_services(stores: Mapping[str, str], ledgers: Path, *, events: bool = True) -> Books:
    """The same of services that have a store each. ``log`` has each event as its publisher's log has it.

    Raises:
        FileNotFoundError
    """
    accounts = {name: read_ledger(ledger_file(ledgers, name)) for name in NAMES}
    books = Books(ledgers=accounts)
    for service, store in stores.items():
        with snapshot(store) as conn:
            own = _read(conn, accounts, events)
        for name in ("orders", "payments", "frauds", "reservations", "stock", "parcels", "mails_owed", "totals", "days", "alerts"):
            if rows := getattr(own, name):
                setattr(books, name, rows)
            elif name == "alerts" and service == "support":
                books.alerts = own.alerts
        books.seen |= own.seen
        books.logs[service] = own.log
        books.log += [event for event in own.log if event.type.startswith(f"{service}.")]
    return books


def _read(conn: Tx, ledgers: dict[str, Account], events: bool) -> Books:
    tables = tables_of(conn)

    def rows(table: str, columns: str, tail: str = "") -> list[Any]:
        wanted = table in tables and (events or not table.endswith(("_seen", "_log")))
        return run(conn, f"SELECT {columns} FROM {table} {tail}").fetchall() if wanted else []

    of_orders = "WHERE key_name = 'order_id' ORDER BY position"
    return Books(
        orders=[
            Placed._make((*row[:6], bool(row[6]), *row[7:]))
            for row in rows("shop_orders", "order_id, customer_id, ordered_on, sku, quantity, cents, vip, state, reason")
        ],
        payments={order: (cents, state) for order, cents, state in rows("payment_orders", "order_id, cents, state")},
        frauds={order: bool(approved) for order, approved in rows("fraud_checks", "order_id, approved")},
        reservations=[Reservation(*row) for row in rows("inventory_reservations", "order_id, sku, quantity, state")],
        stock={sku: (delivered, on_hand) for sku, delivered, on_hand in rows("inventory_stock", "sku, delivered, on_hand")},
        parcels=dict(rows("shipping_orders", "order_id, state")),
        mails_owed=rows("email_owed", "order_id, kind"),
        totals={name: (orders, cents) for name, orders, cents in rows("analytics_totals", "name, orders, cents")},
        days={day: (orders, cents) for day, orders, cents in rows("analytics_days", "day, orders, cents")},
        alerts=rows("support_alerts", "order_id, what") if "support_alerts" in tables else None,
        log=[
            Logged(position, kind, int(key), bool(json.loads(data).get("vip")))
            for position, kind, key, data in rows("tidings_log", "position, type, key, data", of_orders)
        ],
        seen={
            service: rows(f"{service}_seen", "order_id, position", "ORDER BY number") for service in SERVICES if f"{service}_seen" in tables
        },
        ledgers=ledgers,
    )
