"""A model of what each handler must have seen, against the real thing, under whatever hypothesis thinks of.

The model is two lists for each subscription and key: what was published to it, and what its handler has seen. The world may publish, roll
back, let handlers fail for a while, let time pass, crash the worker, freeze it until its lease is over, rewind, pause, and act on dead
letters. At every quiet moment each key's events were seen in the log's order, each once since the last rewind, and none is missing but
those that wait behind a failure that the model knows of.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from servers.postgres import Postgres
from tests.running import settled
from tests.storm.database import Database, connected, database
from tests.storm.service import asks_for
from tidings import App, Context, Event, Retry
from tidings.clock import ManualClock
from tidings.store.skips import skips_in

LEASE = 5.0
ATTEMPTS = 3
KEYS = st.integers(0, 3)
NAMES = ("quick", "strict", "row", "neighbours")
"""Handlers without a transaction that go on behind dead letters, or hold their key; with one each; with one shared."""


class Changed(Event, key="key"):
    key: int
    seq: int


class Seen(Event, key="key"):
    """The follow-up that ``quick`` publishes."""

    key: int
    seq: int


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.loop = asyncio.new_event_loop()
        # The model. position -> (key, seq); seen in memory by those without a transaction.
        self.published: dict[int, tuple[int, int]] = {}
        self.seqs: defaultdict[int, int] = defaultdict(int)
        self.failing: dict[str, set[tuple[int, int]]] = {name: set() for name in NAMES}
        self.dropped: dict[str, set[int]] = {name: set() for name in NAMES}
        self.skipped: dict[str, set[int]] = {name: set() for name in NAMES}
        self.paused: set[str] = set()
        self.seen: dict[str, list[tuple[int, int]]] = {name: [] for name in NAMES}
        self.crashes = 0
        self.rewound = False

    def new_database(self) -> str:
        """The URL of a store of this example's own."""
        self.folder = Path(tempfile.mkdtemp(prefix="tidings-machine-"))
        return f"sqlite:///{self.folder / 'shop.db'}"

    def drop_database(self) -> None:
        shutil.rmtree(self.folder)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    # -- the real thing

    def make(self) -> App:
        app = App("shop", store=self.db.url, clock=self.clock, lease=LEASE)
        retry = Retry(attempts=ATTEMPTS, first=10, factor=1, jitter=0)

        def fails(name: str, event: Changed) -> None:
            if (event.key, event.seq) in self.failing[name]:
                raise ConnectionError("hung up")

        @app.subscribe(Changed, retry=retry)
        async def quick(event: Changed, ctx: Context) -> Seen:
            await asyncio.sleep(0)
            fails("quick", event)
            self.seen["quick"].append((ctx.position, ctx.attempt))
            return Seen(event.key, event.seq)

        @app.subscribe(Changed, retry=retry, on_dead="hold", concurrency=3)
        async def strict(event: Changed, ctx: Context) -> None:
            fails("strict", event)
            self.seen["strict"].append((ctx.position, ctx.attempt))

        insert = self.db.sql("INSERT INTO seen (name, position, attempt) VALUES (?, ?, ?)")

        @app.subscribe(Changed, retry=retry)
        @asks_for(self.db.sync)
        def row(event: Changed, tx: Any, ctx: Context) -> None:
            tx.execute(insert, ("row", ctx.position, ctx.attempt))
            fails("row", event)

        @app.subscribe(Changed, retry=retry, shared_tx=True, on_dead="hold")
        @asks_for(self.db.sync)
        def neighbours(event: Changed, tx: Any, ctx: Context) -> None:
            tx.execute(insert, ("neighbours", ctx.position, ctx.attempt))
            fails("neighbours", event)

        return app

    @initialize()
    def begin(self) -> None:
        self.db: Database = database(self.new_database())
        self.app = self.make()
        self.app.open()
        with connected(self.db) as conn:
            number = "INTEGER PRIMARY KEY" if self.db.url.startswith("sqlite:") else "bigserial"
            conn.execute(f"CREATE TABLE seen (number {number}, name TEXT, position INTEGER, attempt INTEGER)")
        self.run(self.app.start())
        self.run(settled(self.app))

    def teardown(self) -> None:
        if hasattr(self, "app"):
            if self.app.worker is not None:
                self.run(self.app.stop())
            else:
                self.app.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        if hasattr(self, "db"):
            self.drop_database()

    def write(self, job: Any) -> Any:
        result = self.app.store.write(job).result(5)
        if self.app.worker is not None:
            self.run(self.app.worker.balance())
        return result

    # -- rules

    @rule(keys=st.lists(KEYS, min_size=1, max_size=12), settle=st.booleans())
    def publish(self, keys: list[int], settle: bool) -> None:
        with connected(self.db) as conn:
            conn.execute(self.db.begin[0])
            for key in keys:
                self.seqs[key] += 1
                receipt = self.app.publish(Changed(key, self.seqs[key]), tx=conn)
                assert receipt.position is not None
                self.published[receipt.position] = (key, self.seqs[key])
            conn.execute("COMMIT")
        if settle:
            self.settle()

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3))
    def roll_back(self, keys: list[int]) -> None:
        with connected(self.db) as conn:
            conn.execute(self.db.begin[0])
            for key in keys:
                self.app.publish(Changed(key, 10_000), tx=conn)
            conn.execute("ROLLBACK")

    @rule(name=st.sampled_from(NAMES), key=KEYS, ahead=st.integers(0, 3))
    def begin_to_fail(self, name: str, key: int, ahead: int) -> None:
        """An event that was published, or will be."""
        self.failing[name].add((key, max(1, self.seqs[key] - 1 + ahead)))

    @rule(name=st.sampled_from(NAMES))
    def heal(self, name: str) -> None:
        self.failing[name].clear()

    @rule(seconds=st.sampled_from([1.0, 10.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()

    @rule(seconds=st.sampled_from([-3600.0, 3600.0]))
    def wall_clock_jumps(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @precondition(lambda self: self.app.worker is not None and self.crashes < 4)
    @rule(settle=st.booleans(), freeze=st.booleans())
    def crash(self, settle: bool, freeze: bool) -> None:
        """The worker dies wherever it is, or stands still until its lease is over and then goes on beside its successor."""
        self.crashes += 1
        if settle:
            self.settle()
        else:
            self.loop.run_until_complete(asyncio.sleep(0))
        if freeze:
            self.clock.advance(LEASE + 1)
            other = self.make()
            self.run(other.start())
            self.run(other.worker.balance())  # type: ignore[union-attr]
            old, self.app = self.app, other
            self.run(settled(other))
            self.run(old.stop())
            self.run(other.worker.balance())  # type: ignore[union-attr]
        else:
            worker, self.app.worker = self.app.worker, None
            assert worker is not None
            self.run(worker.crash())
            self.clock.advance(LEASE + 1)
            self.run(self.app.start())
        self.settle()

    @rule(name=st.sampled_from(NAMES), paused=st.booleans())
    def pause(self, name: str, paused: bool) -> None:
        (self.paused.add if paused else self.paused.discard)(name)
        self.write(lambda unit: unit.set_paused(name, paused))

    @rule(name=st.sampled_from(NAMES), part=st.floats(0, 1))
    def rewind(self, name: str, part: float) -> None:
        """Everything behind a position again: the model forgets that it was seen."""
        self.settle()
        head = max(self.published, default=0)
        position = int(head * part)
        skipped = self.skipped_by_rewind(name, position)
        self.app.store.write(lambda unit: unit.rewind(name, position)).result(5)
        self.rewound = True
        self.forget(name, position)  # before the worker hears of it: its loop stands still meanwhile
        self.dropped[name] = {one for one in self.dropped[name] if one <= position} | skipped
        self.skipped[name] = {one for one in self.skipped[name] if one <= position} | skipped

    def skipped_by_rewind(self, name: str, position: int) -> set[int]:
        """A lane that stands below (of one that is paused) is moved forwards: what it had still to hand out up to there will not be."""
        stands = {lane.lane: lane.position for lane in self.app.store.query(lambda unit: unit.lanes(name))}
        rows = self.app.store.query(lambda unit: unit.select(limit=10_000, types=["shop.Changed"]))
        known = {one for one, _ in self.all_seen()[name]} | {row.envelope.position for row in self.parked() if row.subscription == name}
        return {row.position for row in rows if stands[row.lane] < row.position <= position} - known

    def forget(self, name: str, position: int) -> None:
        self.seen[name] = [one for one in self.seen[name] if one[0] <= position]
        with connected(self.db) as conn:
            conn.execute(self.db.sql("DELETE FROM seen WHERE name = ? AND position > ?"), (name, position))

    @rule(drop=st.booleans())
    def act_on_dead_letters(self, drop: bool) -> None:
        now = int(self.clock.time() * 1e6)
        for row in self.parked():
            if row.state != "dead":
                continue
            name, position = row.subscription, row.envelope.position
            if drop:
                assert self.write(lambda unit, name=name, position=position: unit.drop_dead(name, position, now))
                self.dropped[name].add(position)
            else:
                self.failing[name].discard(self.published[position])
                assert self.write(lambda unit, name=name, position=position: unit.retry_dead(name, position, now))
        self.settle()

    # -- what must hold

    def settle(self) -> None:
        if self.app.worker is not None:
            self.run(self.app.worker.balance())
            self.run(settled(self.app))

    def parked(self) -> list[Any]:
        return self.app.store.query(lambda unit: unit.parked(limit=10_000))

    def all_seen(self) -> dict[str, list[tuple[int, int]]]:
        with connected(self.db) as conn:
            rows = conn.execute("SELECT name, position, attempt FROM seen ORDER BY number").fetchall()
        return {name: self.seen[name] + [(p, a) for n, p, a in rows if n == name] for name in NAMES}

    @invariant()
    def log_is_what_was_committed(self) -> None:
        if not hasattr(self, "app"):
            return
        rows = self.app.store.query(lambda unit: unit.select(limit=10_000, types=["shop.Changed"]))
        assert [row.position for row in rows] == sorted(self.published)

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        if not hasattr(self, "app"):
            return
        self.settle()
        parked: dict[str, dict[int, str]] = {name: {} for name in NAMES}
        for one in self.parked():
            parked[one.subscription][one.envelope.position] = one.state
        for name, seen in self.all_seen().items():
            exactly_once = name in ("row", "neighbours")
            holds = name in ("strict", "neighbours")
            stopping = ("retry", "waiting", "dead") if holds else ("retry", "waiting")
            first: dict[int, int] = {}
            for place, (position, _) in enumerate(seen):
                first.setdefault(position, place)
            if exactly_once or not self.crashes:
                assert len(first) == len(seen), f"{name} saw one twice: {seen}"
            accounted = first.keys() | parked[name].keys() | self.dropped[name]
            if name not in self.paused:
                assert accounted == self.published.keys(), f"{name}: neither seen nor parked: {self.published.keys() - accounted}"
            noted = self.noted_as_skipped(name)
            assert self.skipped[name] <= noted, f"{name}: skipped, and taken for handled: {self.skipped[name] - noted}"
            assert noted <= self.skipped[name] | first.keys(), f"{name}: nobody skipped {noted - self.skipped[name] - first.keys()}"
            # Seen behind their successors, rightly: dead letters that the key did not wait for, and that were then tried again.
            late = {position for position, attempt in seen if attempt > ATTEMPTS}
            for key in range(4):
                positions = [position for position, (its, _) in sorted(self.published.items()) if its == key]
                live = [position for position in positions if position in first and position not in late]
                assert sorted(live, key=first.__getitem__) == live, f"{name}: key {key} out of order: {seen}"
                waits = [position for position in positions if parked[name].get(position) in stopping]
                if waits:
                    behind = [position for position in positions if position > waits[0] and position in first]
                    assert not self.newly(name, behind, waits[0]), f"{name}: key {key} passed {waits[0]}: {behind}"

    def noted_as_skipped(self, name: str) -> set[int]:
        """By the store. What was handled and not written yet when it was rewound is among it."""
        skips = skips_in(self.app.store.query(lambda unit: unit.facts()), name)
        rows = self.app.store.query(lambda unit: unit.select(limit=10_000, types=["shop.Changed"]))
        return {row.position for row in rows if any(skip.has(row.lane, row.position, row.type) for skip in skips)}

    def newly(self, name: str, behind: list[int], head: int) -> list[int]:
        """Of those seen behind a waiting head, the ones that its waiting should have stopped: not if it was dead and is tried again."""
        state = self.app.store.query(lambda unit: unit.parked_row(name, head))
        return [] if state is not None and state.attempts >= ATTEMPTS and name in ("quick", "row") else behind

    @invariant()
    def follow_ups_are_as_many(self) -> None:
        """Each event that ``quick`` ended has one, however often its handler was called; a rewind makes one more."""
        if not hasattr(self, "app"):
            return
        rows = self.app.store.query(lambda unit: unit.select(limit=10_000, types=["shop.Seen"]))
        causes = [row.causation_id for row in rows]
        if not self.rewound:
            assert len(set(causes)) == len(causes)


@pytest.mark.promise("nothing lost")
def test_a_rewind_forwards_of_a_paused_subscription_skips_and_nothing_else_does() -> None:
    world = World()
    try:
        world.begin()
        world.pause("row", True)
        world.publish([0, 1, 2], settle=True)
        world.rewind("row", 0.7)  # to position 2
        world.pause("row", False)
        world.everything_is_as_the_model_says()
        assert world.dropped["row"] == {1, 2}
        assert [position for position, _ in world.all_seen()["row"]] == [3]
        world.rewind("row", 0.0)
        world.everything_is_as_the_model_says()
        assert [position for position, _ in world.all_seen()["row"]] == [1, 2, 3]
    finally:
        world.teardown()


class ServersWorld(World):
    """The same on PostgreSQL, where handlers' transactions run side by side."""

    server: Postgres

    def new_database(self) -> str:
        return self.server.new_database()

    def drop_database(self) -> None:
        self.server.drop_database(self.db.url)


@pytest.fixture
def worlds_server(postgres: Postgres) -> None:
    ServersWorld.server = postgres


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("order per key")
@pytest.mark.promise("parking")
class TestWorld(World.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(
        max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("order per key")
@pytest.mark.promise("parking")
@pytest.mark.usefixtures("worlds_server")
class TestServersWorld(ServersWorld.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(TestWorld.settings, max_examples=6)
