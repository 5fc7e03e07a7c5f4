"""Sagas that sleep, are taken over and read again; what each step asks the server for; beside DBOS where it has the same."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg

from servers.postgres import Postgres
from tidings import App, Event, Saga

from .measure import Row, folder
from .postgres.byhand import SETTINGS
from .program import HERE, PEERS, Program

YEAR = 31_536_000
LEASE = 2.0
ENTRIES = 1_000
STEPS = (5, 25)
IDLE_SECONDS = 30


class Slept(Event, key="number", type="bench.Slept"):
    number: int


class Counted(Event, key="number", type="bench.Counted"):
    number: int


class Go(Event, key="number", type="bench.Go"):
    number: int


def run(quick: bool) -> Iterator[Row]:
    with ExitStack() as stack:
        place = stack.enter_context(folder())
        server = stack.enter_context(Postgres(settings={**SETTINGS, "log_statement": "all"}))
        yield from per_step(server)
        yield idle(server)
        for words, url in (("SQLite", f"sqlite:///{place / 'rest.db'}"), ("PostgreSQL", server.new_database())):
            yield resumed(words, url)
            yield taken_over(words, url, place)
        many = 100_000 if quick else 1_000_000
        server = stack.enter_context(Postgres(settings=SETTINGS))
        for words, url in (("SQLite", f"sqlite:///{place / 'sleep.db'}"), ("PostgreSQL", server.new_database())):
            yield asyncio.run(woken(words, url, many, 300 if quick else 1_000))


def connect(url: str) -> Any:
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    return psycopg.connect(url, autocommit=True)


# -- asleep


async def woken(words: str, url: str, many: int, soon: int) -> Row:
    """``soon`` of ``many`` sleeping instances are due within ten seconds, evenly."""
    late: list[float] = []
    due: dict[str, float] = {}
    all_of_them = asyncio.Event()
    app = App("rest", url)

    async def note(key: str) -> None:
        if key in due:
            late.append(1000 * (time.time() - due[key]))
        if len(late) == soon:
            all_of_them.set()

    @app.saga(Slept)
    async def sleeper(slept: Slept, saga: Saga) -> None:
        await saga.sleep(YEAR)
        await saga.step(note, saga.key)

    async with app:
        await app.publish(Slept(0), tx="own")
        while not app.store.query(lambda unit: unit.sagas().rows("sleeper", ["waiting"], 1)):  # noqa: ASYNC110 (it is the store that knows)
            await asyncio.sleep(0.05)
    sleep_many(url, many)
    due.update(wake_soon(url, soon))
    async with app, asyncio.timeout(60):
        await all_of_them.wait()
    late.sort()
    p50, p99 = late[len(late) // 2], late[int(len(late) * 0.99)]
    return Row(
        f"{words}: {soon:,} of {many:,} sleeping sagas wake within ten seconds",
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms late",
        "p99 < 100 ms",
        p99 < 100,
    )


def sleep_many(url: str, many: int) -> None:
    """Copies of the one that is there."""
    with closing(connect(url)) as conn:
        cursor = conn.execute("SELECT * FROM tidings_sagas")
        names = [column[0] for column in cursor.description]
        given = ", ".join("'n' || n" if name == "key" else name for name in names)
        series = (
            "generate_series(1, %s) AS g (n)"
            if not url.startswith("sqlite")
            else "(WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < ?) SELECT n FROM g)"
        )
        conn.execute(f"INSERT INTO tidings_sagas ({', '.join(names)}) SELECT {given} FROM tidings_sagas, {series} WHERE key = '0'", (many,))
        conn.execute("ANALYZE")


def wake_soon(url: str, soon: int) -> dict[str, float]:
    """When each of them is due, in seconds since 1970: a year after it began."""
    begin = time.time() + 2
    due = {f"n{7 * number}": begin + 10 * number / soon for number in range(1, soon + 1)}
    mark = "?" if url.startswith("sqlite") else "%s"
    with closing(connect(url)) as conn:
        conn.execute("BEGIN")
        for key, at in due.items():
            moment = int(at * 1e6)
            values = (moment, moment - YEAR * 1_000_000, key)
            conn.execute(f"UPDATE tidings_sagas SET due = {mark}, started = {mark} WHERE saga = 'sleeper' AND key = {mark}", values)
        conn.execute("COMMIT")
    return due


# -- read again


def resumed(words: str, url: str) -> Row:
    """From the event that it waits for to its next step: with a thousand lines in the journal, and with one."""
    times = {entries: [asyncio.run(_resume(url, entries, turn)) for turn in range(3)] for entries in (1, ENTRIES)}
    took = min(times[ENTRIES]) - min(times[1])
    return Row(
        f"{words}: a saga with {ENTRIES:,} lines in its journal is read and goes on",
        f"{took:.0f} ms more than with one line; one read",
        "one read, < 20 ms",
        took < 20,
    )


async def _resume(url: str, entries: int, turn: int) -> float:
    app = App("rest", url)
    went = asyncio.Event()
    key = entries * 10 + turn

    async def nothing() -> None: ...
    async def goes() -> None:
        went.set()

    @app.saga(Counted, waits=[Go])
    async def counter(counted: Counted, saga: Saga) -> None:
        for _ in range(entries):
            await saga.step(nothing)
        await saga.wait(Go)
        await saga.step(goes)

    def waiting() -> bool:
        row = app.store.query(lambda unit: unit.sagas().row("counter", str(key)))
        return row is not None and row.state == "waiting" and row.worker is None

    async with app, asyncio.timeout(120):
        await app.publish(Counted(key), tx="own")
        while not waiting():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await app.publish(Go(key), tx="own")
        began = time.perf_counter()
        await went.wait()
        return 1000 * (time.perf_counter() - began)


# -- taken over

PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from tidings import App, Saga
from tidings.app import serve
from benchmarks.sagas_at_rest import Slept, LEASE

app = App("over", sys.argv[1], lease=LEASE)
first = Path(sys.argv[2])

async def work() -> None:
    try:
        first.touch(exist_ok=False)
    except FileExistsError:
        Path(sys.argv[3]).write_text(str(time.monotonic()))
        return
    await asyncio.sleep(600)

@app.saga(Slept, name="over")
async def over(slept: Slept, saga: Saga) -> None:
    await saga.step(work)

asyncio.run(serve([app], ready=lambda: print("ready", flush=True)))
"""


def taken_over(words: str, url: str, place: Path) -> Row:
    """Two processes; the one in whose hands the step is, is killed."""
    took = []
    for turn in range(2):
        first, again = place / f"first-{words}-{turn}", place / f"again-{words}-{turn}"
        command = [sys.executable, "-c", PROGRAM, url, str(first), str(again)]
        with ExitStack() as stack:
            workers = [subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
            for worker in workers:
                stack.callback(worker.wait)
                stack.callback(worker.kill)
                assert worker.stdout is not None
                worker.stdout.readline()
            app = App("over", url)
            app.open()
            app.publish(Slept(1_000 + turn), tx="own").result(10)
            while not first.exists():
                time.sleep(0.01)
            time.sleep(0.5)
            (holder,) = _holders(app)
            began = time.monotonic()
            os.kill(holder, signal.SIGKILL)
            until = began + 60
            while not (again.exists() and again.read_text()) and time.monotonic() < until:
                time.sleep(0.01)
            took.append(float(again.read_text()) - began)
            app.close()
    return Row(
        f"{words}: taken over after a SIGKILL (lease {LEASE:.0f} s)",
        ", ".join(f"{seconds:.1f} s" for seconds in took) + "; DBOS: the same executor's restart, or a service that is not free",
        "≤ lease + 1 s",
        max(took) <= LEASE + 1,
    )


def _holders(app: App) -> set[int]:
    rows = app.store.query(lambda unit: unit.sagas().rows("over", [], 100))
    return {int(row.worker.split("-")[1]) for row in rows if row.worker is not None}


# -- what the server is asked


def per_step(server: Postgres) -> Iterator[Row]:
    """Round trips and commits: those of sagas of 25 steps less those of 5, by the server's own log."""
    goals = {
        "plain": "one statement, its own commit",
        "tx": "one statement beside the user's own and BEGIN, COMMIT",
        "once": "one commit more than plain",
    }
    meant = {"plain": (1, 1), "tx": (4, 1), "once": (2, 2)}
    for kind, goal in goals.items():
        asked, committed = _counted(server, kind, peer=False)
        facts = ""
        if PEERS.is_dir() and kind != "once":
            facts = "; DBOS {:.1f} and {:.1f}".format(*_counted(server, kind, peer=True))
        met = asked <= meant[kind][0] + 0.2 and committed <= meant[kind][1] + 0.2
        yield Row(f"PostgreSQL: what a step asks ({kind})", f"{asked:.1f} round trips, {committed:.1f} commits{facts}", goal, met)


def _counted(server: Postgres, kind: str, *, peer: bool) -> tuple[float, float]:
    found = []
    for steps in STEPS:
        url = server.new_database()
        given = (url, kind, str(steps))
        with Program("peer_dbos_sagas" if peer else "sagas_own", *given, peer=peer) as program:
            log = len(server.log())
            program.ready()
            program.ask("alone 22")
            said = re.findall(r"LOG:  (?:statement|execute [^:]*): ", server.log()[log:])
        time.sleep(0.5)  # a connection that lasts tells late what it has committed, one that ends at once
        found.append((len(said), _commits(url)))
    steps = 22 * (STEPS[1] - STEPS[0])
    return (found[1][0] - found[0][0]) / steps, (found[1][1] - found[0][1]) / steps


def _commits(url: str) -> int:
    with closing(psycopg.connect(url, autocommit=True)) as conn:
        row = conn.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").fetchone()
        assert row is not None
        return int(row[0])


def idle(server: Postgres) -> Row:
    """Transactions a second with nothing to do."""
    rates = {}
    for name, program in {"own": "sagas_own", "dbos": "peer_dbos_sagas"}.items():
        if name == "dbos" and not PEERS.is_dir():
            continue
        url = server.new_database()
        with Program(program, url, "plain", peer=name == "dbos") as running:
            running.ready()
            running.ask("alone 2")
            time.sleep(5)
            log = len(server.log())
            time.sleep(IDLE_SECONDS)
            rates[name] = len(re.findall(r"LOG:  (?:statement|execute [^:]*): ", server.log()[log:])) / IDLE_SECONDS
    return Row(
        "PostgreSQL: an idle worker with sagas",
        f"{rates['own']:.2f} statements/s" + (f"; DBOS {rates['dbos']:.1f}" if "dbos" in rates else ""),
        "< 1/s",
        rates["own"] < 1,
    )
