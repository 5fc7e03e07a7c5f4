"""Death at any instruction, and tables that stay bounded: crashes, freezes, lanes that change hands, trimming, clocks that jump."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tests.running import committed, connection, settled, sqlite, until
from tests.storm.storm import Storm
from tidings import App, Context, Event, Retry
from tidings.clock import ManualClock
from tidings.envelope import lane_of
from tidings.store.port import Lane
from tidings.subscribe.feed import WINDOW
from tidings.subscribe.lanes import LaneState


class Placed(Event, key="order_id"):
    order_id: int
    seq: int = 0


class Paid(Event, key="order_id"):
    order_id: int


def shop(tmp_path: Path, **options: Any) -> App:
    return App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}", **options)


def publish(app: App, *events: Event) -> None:
    app.open()
    with connection(Path(sqlite(app).path)) as conn, committed(conn):
        for event in events:
            app.publish(event, tx=conn)


def log(app: App, name: str) -> list[Any]:
    return app.store.query(lambda unit: unit.select(limit=10_000, types=[f"shop.{name}"]))


async def crashed(app: App) -> None:
    """As SIGKILL would: what was not committed is gone, the lease has to run out."""
    worker, app.worker = app.worker, None
    assert worker is not None
    await worker.crash()


# -- real processes


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("nothing lost")
@pytest.mark.promise("order per key")
@pytest.mark.promise("effects once")
@pytest.mark.processes
@pytest.mark.slow
def test_a_short_storm(tmp_path: Path) -> None:
    """``make soak`` runs the long ones."""
    storm = Storm(tmp_path, seed=0, kills=8, freezes=2, seconds=60, restarts=4)
    found = storm.run()
    print(*storm.report(found), sep="\n")
    assert found.problems == []
    assert found.deposits > 50
    assert storm.under_load() >= 0.5


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("order per key")
@pytest.mark.promise("effects once")
@pytest.mark.promise("death at any instruction")
@pytest.mark.processes
@pytest.mark.slow
def test_a_short_storm_on_a_server(tmp_path: Path, postgres: Postgres) -> None:
    """Its server crashes, and its connections are cut."""
    storm = Storm(tmp_path, seed=0, kills=4, freezes=2, seconds=60, restarts=3, postgres=postgres.version, crashes=3, cuts=4)
    found = storm.run()
    print(*storm.report(found), sep="\n")
    assert found.problems == []
    assert found.deposits > 50
    assert len(storm.downs) == 3
    assert storm.cut


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("order per key")
@pytest.mark.promise("effects once")
@pytest.mark.processes
@pytest.mark.slow
def test_a_short_storm_behind_pgbouncer(tmp_path: Path, postgres: Postgres, pgbouncer: PgBouncer) -> None:
    """Each transaction on another backend, and a restart that the pooler hides from its clients."""
    storm = Storm(tmp_path, seed=1, kills=4, freezes=1, seconds=60, postgres=postgres.version, crashes=2, cuts=4, pooled=True)
    found = storm.run()
    print(*storm.report(found), sep="\n")
    assert found.problems == []
    assert found.deposits > 50


@pytest.mark.promise("independence")
@pytest.mark.processes
async def test_a_subscription_is_added_from_another_process_while_everything_runs(tmp_path: Path) -> None:
    """No producer and no other subscription notices; from the start of the log, and from now."""
    program = """
import asyncio, sys
from tidings import App, Context, Event
class Placed(Event, key="order_id", type="shop.Placed"):
    order_id: int
seventh = App("support", store=f"sqlite:///{sys.argv[1]}")
@seventh.subscribe(Placed, start=sys.argv[2], name="alert-" + sys.argv[2])
async def alert(event: Placed, ctx: Context) -> None:
    print(event.order_id, flush=True)
seventh.run()
"""
    app, seen = shop(tmp_path), list[int]()

    @app.subscribe(Placed)
    async def pay(event: Placed) -> None:
        seen.append(event.order_id)

    publish(app, *(Placed(order) for order in range(300)))
    async with app:
        assert app.worker is not None
        await settled(app)
        epochs = {lane.lane: lane.epoch for lane in app.store.query(lambda unit: unit.lanes("pay"))}
        command = [sys.executable, "-c", program, str(tmp_path / "shop.db")]
        others = {
            start: subprocess.Popen([*command, start], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
            for start in ("start", "now")
        }
        try:
            await until(lambda: len(app.store.query(lambda unit: unit.subscriptions())) == 3)
            for order in range(300, 400):
                publish(app, Placed(order))
                await asyncio.sleep(0)
            await until(lambda: len(seen) == 400)

            def passed() -> bool:
                names = [row.name for row in app.store.query(lambda unit: unit.subscriptions())]
                return app.store.query(lambda unit: unit.head() == 400 and all(unit.behind(name).events == 0 for name in names))

            await until(passed)
        finally:
            for other in others.values():
                other.terminate()
        said = {start: [int(line) for line in other.communicate(timeout=10)[0].split()] for start, other in others.items()}
        assert {lane.lane: lane.epoch for lane in app.store.query(lambda unit: unit.lanes("pay"))} == epochs
    assert sorted(said["start"]) == list(range(400))
    assert sorted(said["now"]) == list(range(300, 400))
    assert sorted(seen) == list(range(400))


# -- frozen, fenced, lost and taken again


@pytest.mark.promise("death at any instruction")
async def test_a_frozen_worker_that_wakes_up_is_fenced(tmp_path: Path) -> None:
    """Its lanes went to another. What it had in hand ends without a trace in the store, and what it had in memory does not begin."""
    clock = ManualClock()
    calls, freeze = list[tuple[str, int]](), asyncio.Event()

    def worker(name: str) -> App:
        app = shop(tmp_path, clock=clock, lease=5)

        @app.subscribe(Placed, concurrency=1)
        async def pay(event: Placed) -> Paid:
            calls.append((name, event.seq))
            if name == "first" and event.seq == 1:
                await freeze.wait()
            return Paid(event.order_id)

        return app

    first, second = worker("first"), worker("second")
    publish(first, *(Placed(1, seq) for seq in range(1, 6)))
    async with first:
        await until(lambda: calls)
        clock.advance(6)  # the first stood still for longer than its lease, and hasn't noticed
        async with second:
            await settled(second)
            assert [seq for name, seq in calls if name == "second"] == [1, 2, 3, 4, 5]
            freeze.set()
            assert first.worker is not None
            await until(lambda: first.worker.runners["pay"].in_flight == 0)  # type: ignore[union-attr]
            await first.worker.balance()
            await settled(first, second)
            assert [seq for name, seq in calls if name == "first"] == [1]
            assert len(log(second, "Paid")) == 5


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
async def test_a_handlers_transaction_is_fenced_at_its_commit(tmp_path: Path) -> None:
    """The lane goes to another between the handler's writes and the checkpoint: nothing of it stays, and the other does it all."""
    app = shop(tmp_path)
    app.open()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE written (order_id INTEGER)")

    stolen, calls = False, 0

    @app.subscribe(Placed)
    def write(event: Placed, tx: sqlite3.Connection) -> Paid:
        nonlocal stolen, calls
        calls += 1
        tx.execute("INSERT INTO written VALUES (?)", (event.order_id,))
        if not stolen:
            stolen = True
            # what another worker's claim would do; here in this very transaction, since the file has one writer
            tx.execute("UPDATE tidings_lanes SET epoch = epoch + 1, worker = 'other'")
        return Paid(event.order_id)

    publish(app, Placed(1))
    async with app:
        assert app.worker is not None
        runner = app.worker.runners["write"]
        await until(lambda: stolen and (runner.feed.lanes.count(None) or log(app, "Paid")))
        with connection(tmp_path / "shop.db") as conn:
            assert conn.execute("SELECT count(*) FROM written").fetchone() == (len(log(app, "Paid")),)
        await app.worker.balance()
        await settled(app)
        with connection(tmp_path / "shop.db") as conn:
            assert conn.execute("SELECT count(*) FROM written").fetchone() == (1,)
        assert len(log(app, "Paid")) == 1
        assert calls == 2, "the first was committed though the lane was another's"


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
async def test_who_gets_a_lane_back_does_not_end_what_he_began_before(tmp_path: Path) -> None:
    """Frozen, its lanes taken over, the work done, the other gone, its lanes back: what it still has in hand from before is void."""
    clock, calls, gate = ManualClock(), list[str](), asyncio.Event()

    def worker(name: str) -> App:
        app = shop(tmp_path, clock=clock, lease=5)

        @app.subscribe(Placed)
        async def pay(event: Placed) -> Paid:
            calls.append(name)
            if name == "first":
                await gate.wait()
            return Paid(event.order_id)

        return app

    first, second = worker("first"), worker("second")
    publish(first, Placed(1))
    async with first:
        assert first.worker is not None
        await until(lambda: calls)
        clock.advance(6)
        async with second:
            await settled(second)
        await first.worker.balance()
        await until(lambda: len(first.worker.runners["pay"].held_lanes()) == 64)  # type: ignore[union-attr]
        gate.set()
        await settled(first)
        assert len(log(first, "Paid")) == 1
    assert calls == ["first", "second"]


@pytest.mark.promise("nothing lost")
async def test_a_lane_lost_and_taken_again_while_handlers_run(tmp_path: Path) -> None:
    """Ends of the earlier hold and of the later one are in one checkpoint: the earlier are void, the later count in full."""
    app, ended = shop(tmp_path), list[int]()
    early, late, elsewhere = (asyncio.Event() for _ in range(3))
    old, new = [order for order in range(1000) if lane_of("order_id", str(order)) == 7][:2]
    other = next(order for order in range(1000) if lane_of("order_id", str(order)) == 8)
    gates = {old: early, new: late, other: elsewhere}

    @app.subscribe(Placed)
    async def pay(event: Placed) -> Paid:
        await gates[event.order_id].wait()
        ended.append(event.order_id)
        return Paid(event.order_id)

    publish(app, Placed(old))
    async with app:
        assert app.worker is not None
        runner = app.worker.runners["pay"]
        await until(lambda: runner.in_flight == 1)
        app.store.write(lambda unit: unit.rewind("pay", 0)).result(5)  # an operator takes every lane from everybody
        await app.worker.balance()
        publish(app, Placed(new), Placed(other))
        app.worker.poke()
        await until(lambda: runner.in_flight == 3)
        sqlite(app).turn.acquire()  # nothing is written from here ...
        for gate, count in ((elsewhere, 1), (early, 3), (late, 4)):
            gate.set()
            await until(lambda: len(ended) == count)  # noqa: B023
        sqlite(app).turn.release()  # ... to here: the first end is in one checkpoint, and all others in the next
        await settled(app)
        await app.worker.balance()
        await settled(app)
        # The old one was in hand when the lanes were taken, so it was handled again behind itself.
        assert sorted(ended) == sorted([old, old, new, other])
        assert sorted(int(row.key) for row in log(app, "Paid")) == sorted([old, new, other])
        assert runner.feed.lanes.count(None) == 0


@pytest.mark.promise("nothing lost")
async def test_two_looks_at_the_store_at_once_leave_no_lane_without_a_reader(tmp_path: Path) -> None:
    """Each judges by a snapshot; the later one's claims must not look like somebody else's to the earlier one."""
    app, seen, names = shop(tmp_path), list[int](), ("pay", "ship", "tell")

    async def handle(event: Placed) -> None:
        seen.append(event.order_id)

    for name in names:
        app.subscribe(Placed, name=name)(handle)
    async with app:
        worker = app.worker
        assert worker is not None
        for goal in range(100, 400, 100):
            for name in names:
                app.store.write(lambda unit, name=name: unit.rewind(name, unit.head())).result(5)  # type: ignore[misc]
            await asyncio.gather(*(worker._look_at_control(force=True) for _ in range(8)))
            assert [len(runner.held_lanes()) for runner in worker.runners.values()] == [64, 64, 64]
            assert {lane.epoch for lane in app.store.query(lambda unit: unit.lanes())} == {1 + goal // 50}, "taken more than once"
            publish(app, *(Placed(order) for order in range(100)))
            await until(lambda: len(seen) == 3 * goal, 3)  # noqa: B023


@pytest.mark.promise("death at any instruction")
async def test_lanes_that_are_ours_and_not_in_memory_are_found(tmp_path: Path) -> None:
    app, seen = shop(tmp_path), list[int]()

    @app.subscribe(Placed)
    async def pay(event: Placed) -> None:
        seen.append(event.order_id)

    async with app:
        assert app.worker is not None
        runner = app.worker.runners["pay"]
        for lane in runner.held_lanes():
            runner.drop(lane)
        publish(app, Placed(1))
        await app.worker.balance()
        await until(lambda: seen == [1], 3)


@pytest.mark.promise("death at any instruction")
async def test_a_lease_does_not_depend_on_the_wall_clock(tmp_path: Path) -> None:
    """The wall clock goes an hour forward, then two back: nobody is declared dead, retries and follow-ups come in their time."""
    clock = ManualClock()
    app, other, seen = shop(tmp_path, clock=clock, lease=5), shop(tmp_path, clock=clock, lease=5), list[int]()
    fail = True

    @app.subscribe(Placed, retry=Retry(attempts=10, first=2, factor=1, jitter=0))
    async def pay(event: Placed) -> None:
        if fail:
            raise ConnectionError("hung up")
        seen.append(event.order_id)

    @other.subscribe(Paid)
    async def ship(event: Paid) -> None: ...

    publish(app, Placed(1))
    async with app, other:
        assert app.worker is not None
        await settled(app)
        held = app.store.query(lambda unit: [(lane.lane, lane.epoch, lane.worker) for lane in unit.lanes()])
        for jump in (3600, -7200):
            clock.jump(jump)
            await app.worker.balance()
            assert all(row.alive for row in app.store.query(lambda unit: unit.workers()))
            assert app.store.query(lambda unit: [(lane.lane, lane.epoch, lane.worker) for lane in unit.lanes()]) == held
        fail = False
        await crashed(app)  # the one who takes over reads due times written before the jump
        clock.advance(5.1)
        await app.start()
        assert seen == []
        clock.advance(2.1)
        await settled(app)
        assert seen == [1], "the retry waits for an hour because of the jump"


@pytest.mark.promise("nothing lost")
async def test_a_rewind_keeps_what_is_in_hand(tmp_path: Path) -> None:
    """What lies below the new position, was begun by somebody and has not ended is handled all the same."""
    app, calls, gate = shop(tmp_path, lease=1), defaultdict[int, int](int), asyncio.Event()
    same = [order for order in range(1000) if lane_of("order_id", str(order)) == lane_of("order_id", "0")][:4]

    @app.subscribe(Placed, checkpoint_age=0.01)
    async def pay(event: Placed) -> None:
        calls[event.order_id] += 1
        if event.order_id == same[0]:
            await gate.wait()

    publish(app, *(Placed(order) for order in same))
    async with app:
        lane = lane_of("order_id", "0")
        await until(lambda: app.store.query(lambda unit: unit.lanes("pay")[lane].position) == 4)
        assert app.store.query(lambda unit: unit.lanes("pay")[lane].open) == (1,)
        app.store.write(lambda unit: unit.rewind("pay", 2)).result(5)
        assert app.worker is not None
        await app.worker.balance()
        gate.set()
        await until(lambda: sum(calls.values()) == 7)
        await settled(app)
        assert calls == dict(zip(same, (2, 1, 2, 2), strict=True))


# -- redelivery


@pytest.mark.promise("bounded")
async def test_a_slow_key_does_not_make_a_crash_repeat_the_quick_ones(tmp_path: Path) -> None:
    app, calls = shop(tmp_path, lease=0.3), defaultdict[int, int](int)

    @app.subscribe(Placed, checkpoint_age=0.05)
    async def pay(event: Placed) -> None:
        calls[event.order_id] += 1
        if event.order_id < 3 and calls[event.order_id] == 1:
            await asyncio.sleep(60)

    publish(app, *(Placed(order) for order in range(500)))
    await app.start()
    await until(lambda: len(calls) == 500)
    await asyncio.sleep(0.3)  # longer than checkpoint_age
    await crashed(app)
    async with app:
        await until(lambda: calls[0] == calls[1] == calls[2] == 2)
        await settled(app)
    assert {order: count for order, count in calls.items() if count > 1} == {0: 2, 1: 2, 2: 2}


@pytest.mark.promise("bounded")
async def test_what_ended_while_a_flush_was_on_its_way_is_written_in_time_too(tmp_path: Path) -> None:
    """A flush takes long; what ends meanwhile, with something slow in flight and nothing after it, still gets its checkpoint."""
    app, calls, gate = shop(tmp_path, lease=0.5), defaultdict[int, int](int), asyncio.Event()

    @app.subscribe(Placed, checkpoint_age=0.05)
    async def pay(event: Placed) -> None:
        calls[event.order_id] += 1
        if event.order_id == 99 and calls[99] == 1:
            await asyncio.sleep(60)
        if event.order_id == 2:
            await gate.wait()

    publish(app, Placed(99), Placed(1), Placed(2))
    await app.start()
    await until(lambda: len(calls) == 3)
    sqlite(app).turn.acquire()
    await asyncio.sleep(0.1)  # the flush for 1 waits for its turn
    gate.set()
    await asyncio.sleep(0.1)  # 2 has ended, and its timer has come and gone
    sqlite(app).turn.release()
    await asyncio.sleep(0.3)
    await crashed(app)
    async with app:
        await until(lambda: calls[99] == 2)
    assert dict(calls) == {99: 2, 1: 1, 2: 1}


@pytest.mark.promise("effects once")
async def test_a_sweep_behind_a_flush_does_not_take_its_checkpoint_back(tmp_path: Path) -> None:
    """Both are in one group. The sweep knows nothing of the ends in the flush, whose follow-ups are out."""
    app, calls = shop(tmp_path), list[int]()

    @app.subscribe(Placed)
    async def pay(event: Placed) -> Paid:
        calls.append(event.order_id)
        return Paid(event.order_id)

    publish(app, Placed(0))
    async with app:
        await settled(app)
        assert app.worker is not None
        runner = app.worker.runners["pay"]
        sqlite(app).turn.acquire()
        publish(app, Placed(1))
        app.worker.poke()
        await until(lambda: len(calls) == 2 and runner.checkpointing.writes)
        runner.sweep()
        sqlite(app).turn.release()
        await settled(app)
        lane = app.store.query(lambda unit: unit.lanes("pay")[lane_of("order_id", "1")])
        placed = log(app, "Placed")[-1].position
        assert lane.position >= placed
        assert placed not in lane.open
        await crashed(app)
    assert len(log_of(tmp_path, "Paid")) == 2


def log_of(tmp_path: Path, name: str) -> list[Any]:
    with connection(tmp_path / "shop.db") as conn:
        return conn.execute("SELECT position FROM tidings_log WHERE type = ?", (f"shop.{name}",)).fetchall()


@pytest.mark.promise("nothing lost")
def test_a_checkpoint_names_what_is_open_below_it() -> None:
    lane = LaneState(Lane("pay", 0, 10, (7,), "me", 1))
    assert lane.first == 6
    lane.open |= {11, 12, 13, 14}
    assert lane.checkpoint({12, 14}, 20) == (0, 1, 14, "[7, 11, 13]")
    lane.committed({12, 14})
    assert lane.checkpoint({7}, 20) == (0, 1, 14, "[11, 13]")
    lane.committed({7, 11, 13})
    assert lane.checkpoint((), 20) == (0, 1, 20, None)


# -- bounded


@pytest.mark.promise("bounded")
async def test_old_events_go_once_everyone_has_passed_and_not_before(tmp_path: Path) -> None:
    """Retention respects a subscription that is behind, its open positions, and one that is added or rewound while trimming goes on."""
    clock = ManualClock()
    app, gate = shop(tmp_path, clock=clock, retention=timedelta(hours=1)), asyncio.Event()

    @app.subscribe(Placed, checkpoint_age=0.01)
    async def pay(event: Placed) -> None:
        if event.order_id == 50:
            await gate.wait()

    publish(app, *(Placed(order) for order in range(300)))
    clock.advance(7200)
    publish(app, Placed(300))
    async with app:
        worker = app.worker
        assert worker is not None
        await until(lambda: worker.runners["pay"].feed.cursor == 301)
        await until(lambda: worker.runners["pay"].checkpointing.outstanding() == 0)
        worker.runners["pay"].sweep()
        await until(lambda: app.store.query(lambda unit: unit.trimmable()) == 50)
        assert min(lane.position for lane in app.store.query(lambda unit: unit.lanes())) > 51, "its lane has gone on"
        await worker._trim_chunk(300)
        assert log(app, "Placed")[0].position == 51, "order 50 is open, what is before it is not"
        assert app.store.query(lambda unit: unit.retained()) == 50
        gate.set()
        await settled(app)
        worker.runners["pay"].sweep()
        await until(lambda: app.store.query(lambda unit: unit.trimmable()) == 301)
        looked = app.store.query(lambda unit: unit.trimmable())
        app.store.write(lambda unit: unit.register("late", "shop", ["shop.Placed"], "key", unit.retained(), 0)).result(5)
        await worker._trim_chunk(looked)
        assert log(app, "Placed")[0].position == 51, "added after the look, before the delete"
        app.store.write(lambda unit: unit.remove("late")).result(5)
        await worker._trim_chunk(300)
        assert [row.position for row in log(app, "Placed")] == [301]
        assert app.store.query(lambda unit: unit.retained()) == 300


@pytest.mark.promise("bounded")
async def test_positions_are_never_given_out_again_after_a_trim(tmp_path: Path) -> None:
    app = shop(tmp_path)
    publish(app, *(Placed(order) for order in range(10)))
    with closing(app):
        assert app.store.write(lambda unit: unit.trim(100, 1000)).result(5) == 10
        assert (await app.publish(Placed(1), tx="own")).position == 11


@pytest.mark.promise("bounded")
async def test_the_wal_stays_small_under_load(tmp_path: Path) -> None:
    app, seen = shop(tmp_path), 0

    @app.subscribe(Placed, shared_tx=True)
    def pay(event: Placed, tx: sqlite3.Connection) -> None:
        nonlocal seen
        seen += 1

    async with app:
        largest = 0
        for round_ in range(40):
            publish(app, *(Placed(order) for order in range(500)))
            largest = max(largest, (tmp_path / "shop.db-wal").stat().st_size)
            await until(lambda goal=500 * (round_ + 1): seen >= goal)  # type: ignore[misc]
        assert largest < 40 * 1024 * 1024


@pytest.mark.promise("bounded")
async def test_what_is_read_ahead_is_bounded(tmp_path: Path) -> None:
    """One key, one slow handler, a long log: neither the events that wait in memory nor their bytes grow with the log."""
    app, gate = shop(tmp_path), asyncio.Event()

    @app.subscribe(Placed)
    async def pay(event: Placed) -> None:
        await gate.wait()

    publish(app, *(Placed(1, seq) for seq in range(3 * WINDOW)))
    async with app:
        assert app.worker is not None
        feed = app.worker.runners["pay"].feed
        await until(lambda: feed.waiting() >= WINDOW)
        await asyncio.sleep(0.1)
        assert feed.waiting() <= WINDOW + 2 * 1024
        gate.set()
        await settled(app)


@pytest.mark.promise("bounded")
async def test_lanes_are_not_held_back_by_a_type_that_nobody_handles_any_more(tmp_path: Path) -> None:
    """Its event was in hand when the worker died; the next version of the program has no handler for it. Retention must go on."""
    app = shop(tmp_path, lease=0.3)

    @app.subscribe(Placed, Paid, name="sub", checkpoint_age=0.01)
    async def old(event: Any) -> None:
        if isinstance(event, Paid):
            await asyncio.sleep(60)

    publish(app, Paid(1), *(Placed(order) for order in range(2, 302)))
    await app.start()
    lane = lane_of("order_id", "1")
    await until(lambda: app.store.query(lambda unit: unit.lanes("sub")[lane].open) == (1,))
    await crashed(app)
    new = shop(tmp_path, lease=0.5)

    @new.subscribe(Placed, name="sub")
    async def handle(event: Placed) -> None: ...

    async with new:
        assert new.worker is not None
        await until(lambda: len(new.worker.runners["sub"].held_lanes()) == 64)  # type: ignore[union-attr]
        await settled(new)
        new.worker.runners["sub"].sweep()
        await until(lambda: new.store.query(lambda unit: unit.trimmable()) == 301, 5)


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("kind", ["sqlite3", "aiosqlite"])
async def test_more_async_transactions_than_threads(tmp_path: Path, kind: str) -> None:
    """They wait for each other's turn; waiting must not take the threads that the one at work needs."""
    import aiosqlite

    app, seen = shop(tmp_path), list[int]()
    wanted: Any = sqlite3.Connection if kind == "sqlite3" else aiosqlite.Connection

    async def pay(event: Placed, tx: Any, ctx: Context) -> None:
        await asyncio.sleep(0.001)
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.001)
        seen.append(event.order_id)

    pay.__annotations__["tx"] = wanted
    pay.__annotations__ = {**pay.__annotations__, "event": Placed, "ctx": Context}
    app.subscribe(Placed, concurrency=64)(pay)
    publish(app, *(Placed(order) for order in range(100)))
    async with app:
        await until(lambda: len(seen) == 100)
    assert sorted(seen) == list(range(100))
