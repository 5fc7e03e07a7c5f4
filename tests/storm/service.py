"""What runs in the storm: deposits into accounts, and subscriptions, each of which checks every event against its own table.

A deposit carries the account's sequence number, drawn in the publisher's transaction. So each subscription knows what it must see next
of each account, and whatever is lost, doubled or out of order is a row in ``violations`` or a wrong sum at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.storm.database import Database
from tests.storm.phases import EFFECT, HANDLER, WRITTEN, Phases
from tidings import App, Context, Event, Retry

F = TypeVar("F", bound=Callable[..., Any])

ACCOUNTS = 40
CHECKPOINT_AGE = 0.25
READERS = ("ledger", "shared", "flaky", "aio", "orm")
"""Subscriptions that keep a table of their own, ``seen_<name>``; ``follow`` has one for each kind of follow-up. ``orm`` runs in sessions,
and only where transactions run side by side."""
FOLLOW_UPS = ("booked", "counted")

SCHEMA = "\n".join(
    [
        "CREATE TABLE IF NOT EXISTS accounts (account INTEGER PRIMARY KEY, seq INTEGER NOT NULL, total INTEGER NOT NULL);",
        "CREATE TABLE IF NOT EXISTS deposits (account INTEGER, seq INTEGER, amount INTEGER, PRIMARY KEY (account, seq));",
        "CREATE TABLE IF NOT EXISTS violations"
        " (reader TEXT, account INTEGER, expected INTEGER, got INTEGER, worker INTEGER, at DOUBLE PRECISION);",
        *(
            f"CREATE TABLE IF NOT EXISTS seen_{name}"
            " (account INTEGER PRIMARY KEY, last INTEGER NOT NULL, total INTEGER NOT NULL, times INTEGER NOT NULL);"
            for name in (*READERS, *FOLLOW_UPS)
        ),
    ]
)


class Deposit(Event, key="account"):
    account: int
    seq: int
    amount: int


class Booked(Event, key="account"):
    account: int
    seq: int


class Counted(Event, key="account"):
    account: int
    seq: int


class Ping(Event, key=None):
    number: int


def make(db: Database, *, lease: float = 0.8) -> App:
    """The app without subscriptions, for who only publishes."""
    return App("storm", store=db.url, lease=lease, transactions=db.transactions())


def readers(db: Database) -> tuple[str, ...]:
    return READERS if db.sessions is not None else READERS[:-1]


def asks_for(tx: type | None) -> Callable[[F], F]:
    """Annotate a handler's ``tx``: which type it is depends on the database."""

    def annotated(fn: F) -> F:
        fn.__annotations__["tx"] = tx
        return fn

    return annotated


FIRST_WRITE = (
    "INSERT INTO seen_{name} VALUES (?, ?, ?, 0)"
    " ON CONFLICT (account) DO UPDATE SET last = excluded.last, total = seen_{name}.total + excluded.total"
)
SECOND_WRITE = "UPDATE seen_{name} SET times = times + 1 WHERE account = ?"
VIOLATION = "INSERT INTO violations VALUES (?, ?, ?, ?, ?, ?)"


def subscribe(app: App, db: Database, phases: Phases, calls: Path, seed: int) -> None:
    """All subscriptions."""
    rng = random.Random(seed)
    patient = Retry(attempts=10_000, first=0.02, factor=1.5, most=0.3)
    outside = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    first, second, violation = db.sql(FIRST_WRITE), db.sql(SECOND_WRITE), db.sql(VIOLATION)
    last = db.sql("SELECT last FROM seen_{name} WHERE account = ?")

    def record(execute: Callable[..., Any], place: str, name: str, event: Any, amount: int) -> None:
        """One event into a reader's table: its sequence must be the next."""
        row = execute(last.format(name=name), (event.account,)).fetchone()
        expected = (row[0] if row else 0) + 1
        if event.seq != expected:
            execute(violation, (name, event.account, expected, event.seq, os.getpid(), time.time()))
        execute(first.format(name=name), (event.account, event.seq, amount))
        phases.at(place, WRITTEN)
        time.sleep(random.random() * 0.002)
        execute(second.format(name=name), (event.account,))

    @app.subscribe(Deposit)
    @asks_for(db.sync)
    def ledger(event: Deposit, tx: Any) -> Booked:
        phases.at("ledger", HANDLER)
        record(tx.execute, "ledger", "ledger", event, event.amount)
        phases.at("ledger", EFFECT)
        return Booked(event.account, event.seq)

    @app.subscribe(Deposit, shared_tx=True)
    @asks_for(db.sync)
    def shared(event: Deposit, tx: Any) -> list[Counted]:
        phases.at("shared", HANDLER)
        record(tx.execute, "shared", "shared", event, event.amount)
        phases.at("shared", EFFECT)
        return [Counted(event.account, event.seq)]

    @app.subscribe(Deposit, name="outside", checkpoint_age=CHECKPOINT_AGE)
    async def call_outside(event: Deposit, ctx: Context) -> None:
        phases.enter("outside")
        try:
            tell(outside, "begin", event, ctx)
            await asyncio.sleep(rng.random() * 0.03)
            tell(outside, "end", event, ctx)
        finally:
            phases.leave("outside")

    @app.subscribe(Deposit, shared_tx=True, retry=patient)
    @asks_for(db.sync)
    def flaky(event: Deposit, tx: Any) -> None:
        phases.at("flaky", HANDLER)
        record(tx.execute, "flaky", "flaky", event, event.amount)
        if rng.random() < 0.1:
            raise ConnectionError("the other side hung up")
        phases.at("flaky", EFFECT)

    @app.subscribe(Deposit, retry=patient)
    @asks_for(db.asynchronous)
    async def aio(event: Deposit, tx: Any) -> None:
        phases.at("aio", HANDLER)
        row = await (await tx.execute(last.format(name="aio"), (event.account,))).fetchone()
        expected = (row[0] if row else 0) + 1
        if event.seq != expected:
            await tx.execute(violation, ("aio", event.account, expected, event.seq, os.getpid(), time.time()))
        await tx.execute(first.format(name="aio"), (event.account, event.seq, event.amount))
        phases.at("aio", WRITTEN)
        await asyncio.sleep(rng.random() * 0.002)
        await tx.execute(second.format(name="aio"), (event.account,))
        if rng.random() < 0.03:
            phases.at("aio", HANDLER)
            raise ConnectionError("the other side hung up")
        phases.at("aio", EFFECT)

    if db.sessions is not None:

        @app.subscribe(Deposit, retry=patient)
        @asks_for(db.sessions)
        def orm(event: Deposit, tx: Any) -> None:
            phases.at("orm", HANDLER)
            record(tx.connection().exec_driver_sql, "orm", "orm", event, event.amount)
            if rng.random() < 0.03:
                raise ConnectionError("the other side hung up")
            phases.at("orm", EFFECT)

    follow = app.subscription("follow", shared_tx=True)

    @follow.on(Booked)
    @asks_for(db.sync)
    def booked(event: Booked, tx: Any) -> None:
        phases.at("follow", HANDLER)
        record(tx.execute, "follow", "booked", event, 1)
        phases.at("follow", EFFECT)

    @follow.on(Counted)
    @asks_for(db.sync)
    def counted(event: Counted, tx: Any) -> None:
        phases.at("follow", HANDLER)
        record(tx.execute, "follow", "counted", event, 1)
        phases.at("follow", EFFECT)


def tell(file: int, what: str, event: Deposit, ctx: Context) -> None:
    """One line, in one append: the outside world's memory of a call."""
    os.write(file, f"{what} {os.getpid()} {event.account} {event.seq} {ctx.idempotency_key} {time.monotonic():.6f}\n".encode())
