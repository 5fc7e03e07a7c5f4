"""What runs in the storm: deposits into accounts, and six subscriptions, each of which checks every event against its own table.

A deposit carries the account's sequence number, drawn in the publisher's transaction. So each subscription knows what it must see next
of each account, and whatever is lost, doubled or out of order is a row in ``violations`` or a wrong sum at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import aiosqlite

from tests.storm.phases import EFFECT, HANDLER, WRITTEN, Phases
from tidings import App, Context, Event, Retry

ACCOUNTS = 40
CHECKPOINT_AGE = 0.25
READERS = ("ledger", "shared", "flaky", "aio")
"""Subscriptions that keep a table of their own, ``seen_<name>``; ``follow`` has one for each kind of follow-up."""
FOLLOW_UPS = ("booked", "counted")

SCHEMA = "\n".join(
    [
        "CREATE TABLE IF NOT EXISTS accounts (account INTEGER PRIMARY KEY, seq INTEGER NOT NULL, total INTEGER NOT NULL);",
        "CREATE TABLE IF NOT EXISTS deposits (account INTEGER, seq INTEGER, amount INTEGER, PRIMARY KEY (account, seq));",
        "CREATE TABLE IF NOT EXISTS violations (reader TEXT, account INTEGER, expected INTEGER, got INTEGER, worker INTEGER, at REAL);",
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


def make(store: Path, *, lease: float = 0.8) -> App:
    """The app without subscriptions, for who only publishes."""
    return App("storm", store=f"sqlite:///{store}", lease=lease, transactions=lambda: aiosqlite.connect(store, timeout=15))


FIRST_WRITE = (
    "INSERT INTO seen_{name} VALUES (?, ?, ?, 0) ON CONFLICT (account) DO UPDATE SET last = excluded.last, total = total + excluded.total"
)
SECOND_WRITE = "UPDATE seen_{name} SET times = times + 1 WHERE account = ?"
VIOLATION = "INSERT INTO violations VALUES (?, ?, ?, ?, ?, ?)"


def record(tx: sqlite3.Connection, phases: Phases, place: str, name: str, event: Any, amount: int) -> None:
    """One event into a reader's table: its sequence must be the next."""
    row = tx.execute(f"SELECT last FROM seen_{name} WHERE account = ?", (event.account,)).fetchone()
    expected = (row[0] if row else 0) + 1
    if event.seq != expected:
        tx.execute(VIOLATION, (name, event.account, expected, event.seq, os.getpid(), time.time()))
    tx.execute(FIRST_WRITE.format(name=name), (event.account, event.seq, amount))
    phases.at(place, WRITTEN)
    time.sleep(random.random() * 0.002)
    tx.execute(SECOND_WRITE.format(name=name), (event.account,))


def subscribe(app: App, phases: Phases, calls: Path, seed: int) -> None:
    """All six subscriptions."""
    rng = random.Random(seed)
    patient = Retry(attempts=10_000, first=0.02, factor=1.5, most=0.3)
    outside = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @app.subscribe(Deposit)
    def ledger(event: Deposit, tx: sqlite3.Connection) -> Booked:
        phases.at("ledger", HANDLER)
        record(tx, phases, "ledger", "ledger", event, event.amount)
        phases.at("ledger", EFFECT)
        return Booked(event.account, event.seq)

    @app.subscribe(Deposit, shared_tx=True)
    def shared(event: Deposit, tx: sqlite3.Connection) -> list[Counted]:
        phases.at("shared", HANDLER)
        record(tx, phases, "shared", "shared", event, event.amount)
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
    def flaky(event: Deposit, tx: sqlite3.Connection) -> None:
        phases.at("flaky", HANDLER)
        record(tx, phases, "flaky", "flaky", event, event.amount)
        if rng.random() < 0.1:
            raise ConnectionError("the other side hung up")
        phases.at("flaky", EFFECT)

    @app.subscribe(Deposit, retry=patient)
    async def aio(event: Deposit, tx: aiosqlite.Connection) -> None:
        phases.at("aio", HANDLER)
        async with tx.execute("SELECT last FROM seen_aio WHERE account = ?", (event.account,)) as cursor:
            row = await cursor.fetchone()
        expected = (row[0] if row else 0) + 1
        if event.seq != expected:
            await tx.execute(VIOLATION, ("aio", event.account, expected, event.seq, os.getpid(), time.time()))
        await tx.execute(FIRST_WRITE.format(name="aio"), (event.account, event.seq, event.amount))
        phases.at("aio", WRITTEN)
        await asyncio.sleep(rng.random() * 0.002)
        await tx.execute(SECOND_WRITE.format(name="aio"), (event.account,))
        if rng.random() < 0.03:
            phases.at("aio", HANDLER)
            raise ConnectionError("the other side hung up")
        phases.at("aio", EFFECT)

    follow = app.subscription("follow", shared_tx=True)

    @follow.on(Booked)
    def booked(event: Booked, tx: sqlite3.Connection) -> None:
        phases.at("follow", HANDLER)
        record(tx, phases, "follow", "booked", event, 1)
        phases.at("follow", EFFECT)

    @follow.on(Counted)
    def counted(event: Counted, tx: sqlite3.Connection) -> None:
        phases.at("follow", HANDLER)
        record(tx, phases, "follow", "counted", event, 1)
        phases.at("follow", EFFECT)


def tell(file: int, what: str, event: Deposit, ctx: Context) -> None:
    """One line, in one append: the outside world's memory of a call."""
    os.write(file, f"{what} {os.getpid()} {event.account} {event.seq} {ctx.idempotency_key} {time.monotonic():.6f}\n".encode())
