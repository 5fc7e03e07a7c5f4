"""An event whose handler ends the process becomes a dead letter after its attempts, and what was only beside it doesn't."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.running import settled, until
from tests.storm.database import Database, database
from tidings import App, Context, Event, Retry
from tidings.clock import ManualClock
from tidings.store.port import Parked

LEASE = 5.0
ATTEMPTS = 3

PROGRAM = """
import asyncio, os, signal, sys
from tests.storm.database import database
from tests.storm.service import asks_for
from tidings import App, Context, Event, Retry
from typing import Any

db, way = database(sys.argv[1]), sys.argv[2]

class Placed(Event, key="key", type="shop.Placed"):
    key: int
    seq: int
    deadly: bool = False

app = App("shop", store=db.url, lease=1.0)
retry = Retry(attempts=3, first=0.05, factor=1, jitter=0)
insert = db.sql("INSERT INTO seen (name, key, seq, attempt) VALUES (?, ?, ?, ?)")

def note(name: str, event: Placed, attempt: int) -> None:
    conn = db.connect()
    conn.execute(insert, (name, event.key, event.seq, attempt))
    conn.close()

def die(event: Placed) -> None:
    if event.deadly:
        os._exit(7) if way in ("exits", "in a list") else os.kill(os.getpid(), signal.SIGKILL)

@app.subscribe(Placed, retry=retry)
async def beside(event: Placed, ctx: Context) -> None:
    await asyncio.sleep(0.01)
    note("beside", event, ctx.attempt)

if way == "in a transaction":
    @app.subscribe(Placed, retry=retry)
    @asks_for(db.sync)
    def deadly(event: Placed, tx: Any, ctx: Context) -> None:
        tx.execute(insert, ("deadly", event.key, event.seq, ctx.attempt))
        die(event)
elif way == "in a list":
    @app.subscribe(Placed, retry=retry, size=10, age=0.05)
    def deadly(events: list[Placed], ctx: Context) -> None:
        for event, its in zip(events, ctx.each):
            die(event)
            note("deadly", event, its.attempt)
elif way == "in a thread":
    @app.subscribe(Placed, retry=retry)
    def deadly(event: Placed, ctx: Context) -> None:
        die(event)
        note("deadly", event, ctx.attempt)
else:
    @app.subscribe(Placed, retry=retry)
    async def deadly(event: Placed, ctx: Context) -> None:
        await asyncio.sleep(0.005)
        die(event)
        note("deadly", event, ctx.attempt)

app.run()
"""


class Placed(Event, key="key", type="shop.Placed"):
    key: int
    seq: int
    deadly: bool = False


def begin(db: Database) -> App:
    """An app that only publishes, and the table in which handlers say what they have seen."""
    app = App("shop", store=db.url)
    app.open()
    with closing(db.connect()) as conn:
        conn.execute("CREATE TABLE seen (name TEXT, key INTEGER, seq INTEGER, attempt INTEGER)")
    return app


def publish(app: App, db: Database, events: list[Placed]) -> None:
    with closing(db.connect()) as conn:
        conn.execute(db.begin[0])
        for event in events:
            app.publish(event, tx=conn)
        conn.execute("COMMIT")


def seen(db: Database, name: str) -> list[tuple[int, int, int]]:
    with closing(db.connect()) as conn:
        return [tuple(row) for row in conn.execute(db.sql("SELECT key, seq, attempt FROM seen WHERE name = ?"), (name,)).fetchall()]


def dead(app: App) -> list[Parked]:
    return app.store.query(lambda unit: unit.parked(None, ["dead"]))


def until_nobody_dies(app: App, db: Database, way: str, expected: int, errors: Path) -> int:
    """Start a worker whenever the last one has died, until everything is handled; how many died."""
    deaths, end = 0, time.monotonic() + 120
    with errors.open("wb") as log:
        while time.monotonic() < end:
            worker = subprocess.Popen([sys.executable, "-c", PROGRAM, db.url, way], stdout=log, stderr=log)
            try:
                while worker.poll() is None and time.monotonic() < end:
                    ends = {(key, seq) for key, seq, _ in seen(db, "deadly")}
                    if dead(app) and len(ends) == expected and len({(k, s) for k, s, _ in seen(db, "beside")}) == expected + 1:
                        return deaths
                    time.sleep(0.05)
                deaths += 1
            finally:
                worker.kill()
                worker.wait()
    raise AssertionError(f"{deaths} deaths, and no end: {errors.read_text()[-2000:]}")


@pytest.mark.promise("parking")
@pytest.mark.promise("death at any instruction")
@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("sqlite", "exits"),
        ("sqlite", "in a transaction"),
        ("sqlite", "in a list"),
        ("sqlite", "in a thread"),
        ("postgres", "in a transaction"),
    ],
)
def test_an_event_that_kills_its_worker_becomes_a_dead_letter(tmp_path: Path, kind: str, way: str, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    db = database(url)
    app = begin(db)
    try:
        events = [Placed(key, seq) for seq in range(4) for key in range(8)]
        events[13] = Placed(5, 1, deadly=True)
        publish(app, db, events)
        deaths = until_nobody_dies(app, db, way, len(events) - 1, tmp_path / "errors")
        [letter] = dead(app)
        assert letter.subscription == "deadly"
        assert letter.envelope.key == "5"
        assert letter.attempts == ATTEMPTS
        assert letter.error is not None
        assert letter.error.startswith("WorkerDied: ")
        # Two deaths find out which it was; a list takes the first of them for a list whose other events may be at fault as well.
        assert ATTEMPTS <= deaths <= ATTEMPTS + 2
        attempts = app.store.query(lambda unit: unit.attempts(range(1, len(events) + 1)))
        assert {one.position for one in attempts} == {letter.envelope.position}  # nobody else lost one
        for key in range(8):
            order = [seq for its, seq, _ in dict.fromkeys((k, s, 0) for k, s, _ in seen(db, "deadly")) if its == key]
            assert order == ([0, 2, 3] if key == 5 else [0, 1, 2, 3])
    finally:
        app.close()


class World:
    """One app after the other on one store, each of which crashes while its handlers hang."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = ManualClock()
        self.path = path
        self.options = options
        self.inside: list[tuple[int, int]] = []
        self.ended: list[tuple[int, int]] = []
        self.hang = True
        self.app = self.make()

    def make(self) -> App:
        app = App("shop", store=f"sqlite:///{self.path}", clock=self.clock, lease=LEASE)
        inside = self.inside = []

        @app.subscribe(Placed, retry=Retry(attempts=ATTEMPTS, first=1, factor=1, jitter=0), **self.options)
        async def slow(event: Placed, ctx: Context) -> None:
            inside.append((event.key, ctx.attempt))
            while self.hang:
                await asyncio.sleep(0.005)
            self.ended.append((event.key, ctx.attempt))

        return app

    async def crash(self) -> None:
        assert self.app.worker is not None
        worker, self.app.worker = self.app.worker, None
        await worker.crash()
        self.app.close()
        self.clock.advance(LEASE + 1)
        self.app = self.make()
        await self.app.start()

    def goes_on(self) -> bool:
        """Whether a handler has an event; time passes until then."""
        if not self.inside and self.app.worker is not None:
            self.clock.advance(0.1)
            self.app.worker.poke()
        return bool(self.inside)


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("nothing lost")
async def test_innocent_events_are_suspected_and_lose_an_attempt_only_for_a_death_while_they_are_alone(tmp_path: Path) -> None:
    world = World(tmp_path / "shop.db")
    world.app.open()
    for key in range(5):
        await world.app.publish(Placed(key, 0), tx="own")
    await world.app.start()
    await until(lambda: len(world.inside) == 5)  # side by side
    await world.crash()
    await until(lambda: len(world.inside) == 5)  # once more, and noted
    await world.crash()
    await until(lambda: world.inside)  # suspects: one at a time
    await asyncio.sleep(0.3)
    assert world.inside == [(0, 1)]
    await world.crash()  # a third time, and now it is said to be its doing
    await until(lambda: world.inside)
    assert world.inside[0] == (1, 1)
    attempts = world.app.store.query(lambda unit: unit.attempts(range(1, 6)))
    assert [(one.position, one.attempt, one.outcome) for one in attempts] == [(1, 1, "retry")]
    world.hang = False
    world.clock.advance(2)
    await settled(world.app)
    assert sorted(world.ended) == [(0, 2), (1, 1), (2, 1), (3, 1), (4, 1)]
    await world.app.stop()


@pytest.mark.promise("independence")
async def test_who_is_slow_and_suspected_does_not_hold_up_the_others_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.subscribe.caution.ALONE_SECONDS", 0.05)
    world = World(tmp_path / "shop.db")
    world.app.open()
    for key in range(4):
        await world.app.publish(Placed(key, 0), tx="own")
    await world.app.start()
    await until(lambda: len(world.inside) == 4)
    await world.crash()
    await until(lambda: len(world.inside) == 4)
    await world.crash()
    await until(lambda: len(world.inside) == 4)  # one after the other, and yet none has ended
    await world.crash()  # none was alone at the end
    assert world.app.store.query(lambda unit: unit.attempts(range(1, 5))) == []
    world.hang = False
    await settled(world.app)
    assert sorted(world.ended) == [(key, 1) for key in range(4)]
    await world.app.stop()


@pytest.mark.promise("order per key")
@pytest.mark.parametrize("order", ["key", "log", "none"])
async def test_order_is_kept_where_a_worker_died(tmp_path: Path, order: Any) -> None:
    world = World(tmp_path / "shop.db", order=order)
    world.app.open()
    for number in range(300):
        await world.app.publish(Placed(number % 7, number), tx="own")
    await world.app.start()
    await until(lambda: world.inside)
    for _ in range(3):
        await world.crash()
        await until(world.goes_on)
    world.hang = False
    world.clock.advance(2)
    await settled(world.app)
    world.clock.advance(2)
    await settled(world.app)
    assert len(world.ended) == 300
    if order == "log":
        assert [key for key, _ in world.ended] == [number % 7 for number in range(300)]
    await world.app.stop()


@pytest.mark.promise("bounded")
async def test_caution_ends_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.subscribe.caution.SECONDS", 0.05)
    monkeypatch.setattr("tidings.subscribe.caution.POLL_SECONDS", 0.01)
    world = World(tmp_path / "shop.db")
    world.hang = False
    world.app.open()
    await world.app.publish(Placed(1, 0), tx="own")
    await world.app.start()
    await world.crash()
    assert world.app.worker is not None
    runner = world.app.worker.runners["slow"]
    await until(lambda: runner.caution._task is None)
    lanes = world.app.store.query(lambda unit: unit.lanes("slow"))
    assert [lane.begun for lane in lanes] == [None] * 64
    assert all(lane.suspects is None for lane in runner.held_lanes())
    await world.app.publish(Placed(1, 1), tx="own")
    await settled(world.app)
    assert len(world.ended) == 2
    await world.app.stop()


async def test_lanes_that_are_passed_on_keep_what_is_still_to_be_found_out(tmp_path: Path) -> None:
    world = World(tmp_path / "shop.db")
    world.app.open()
    await world.app.publish(Placed(0, 0), tx="own")
    await world.app.start()
    await until(lambda: world.inside)
    await world.crash()
    await until(lambda: world.inside)
    await world.crash()  # it was alone: its attempt failed
    await until(lambda: world.app.store.query(lambda unit: unit.attempts([1])))
    await world.app.stop()
    world.app = world.make()
    await world.app.start()
    world.hang = False
    world.clock.advance(2)
    await settled(world.app)
    assert world.ended == [(0, 2)]
    await world.app.stop()
