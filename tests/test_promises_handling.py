"""Order, effects once, independence, parking, nothing vanishes: against handlers that fail, hang, lie and end what isn't theirs."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from tests.running import committed, connection, settled, sqlite, until
from tidings import App, Context, Event, Retry
from tidings.envelope import lane_of
from tidings.errors import UndecodableEvent

SOON = Retry(attempts=50, first=0.01, factor=1, jitter=0)


class Placed(Event, key="order_id"):
    order_id: int
    seq: int = 0


class Paid(Event, key="order_id"):
    order_id: int
    seq: int = 0


class Tick(Event, key=None):
    number: int


def shop(tmp_path: Path, **options: Any) -> App:
    return App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}", **options)


def publish(app: App, *events: Event) -> None:
    app.open()
    with connection(Path(sqlite(app).path)) as conn, committed(conn):
        for event in events:
            app.publish(event, tx=conn)


def neighbours(count: int) -> list[int]:
    """Orders that share one lane."""
    lane = lane_of("order_id", "1")
    return [order for order in range(1, 10_000) if lane_of("order_id", str(order)) == lane][:count]


class Seen:
    """What handlers saw: in memory, or with a transaction in a table, because what is undone was not seen."""

    def __init__(self, app: App) -> None:
        self._path = Path(sqlite(app).path)
        self._rows: list[tuple[int, int]] = []
        with connection(self._path) as conn:
            conn.execute("CREATE TABLE seen (number INTEGER PRIMARY KEY AUTOINCREMENT, order_id INTEGER, seq INTEGER)")

    def note(self, event: Any, tx: sqlite3.Connection | None = None) -> None:
        if tx is None:
            self._rows.append((event.order_id, event.seq))
        else:
            tx.execute("INSERT INTO seen (order_id, seq) VALUES (?, ?)", (event.order_id, event.seq))

    def rows(self) -> list[tuple[int, int]]:
        with connection(self._path) as conn:
            return self._rows + conn.execute("SELECT order_id, seq FROM seen ORDER BY number").fetchall()

    def keys(self) -> dict[int, list[int]]:
        keys = defaultdict[int, list[int]](list)
        for order, seq in self.rows():
            keys[order].append(seq)
        return dict(keys)

    def seqs(self, order: int) -> list[int]:
        return self.keys().get(order, [])


# -- order per key


@pytest.mark.promise("order per key")
@pytest.mark.parametrize("kind", ["async", "thread", "tx", "shared tx", "list"])
@pytest.mark.parametrize("workers", [1, 3])
async def test_each_key_in_its_order_whatever_fails(tmp_path: Path, kind: str, workers: int) -> None:
    """Two types, failures, several workers: whoever succeeds, each key's events succeed in the log's order."""
    rng, seen = random.Random(7), Seen(shop(tmp_path))

    def work(event: Any, tx: sqlite3.Connection | None = None) -> None:
        if rng.random() < 0.15:
            raise ConnectionError("hung up")
        seen.note(event, tx)

    apps = []
    for _ in range(workers):
        app = shop(tmp_path, lease=10)
        options: dict[str, Any] = {"retry": SOON, "concurrency": 8}
        if kind == "list":

            @app.subscribe(Placed, name="sub", size=7, age=0.01, **options)
            async def each(events: list[Placed]) -> None:
                if rng.random() < 0.15:
                    raise ConnectionError("hung up")
                for event in events:
                    seen.note(event)

        else:
            sub = app.subscription("sub", shared_tx=kind == "shared tx", **options)
            if kind == "async":

                @sub.on(Placed, Paid)
                async def slowly(event: Any) -> None:
                    await asyncio.sleep(rng.random() * 0.002)
                    work(event)

            elif kind == "thread":
                sub.on(Placed, Paid)(lambda event: work(event))
            else:

                @sub.on(Placed, Paid)
                def handle(event: Any, tx: sqlite3.Connection) -> None:
                    work(event, tx)

        apps.append(app)
    of = [Placed] if kind == "list" else [Placed, Paid]
    publish(apps[0], *(rng.choice(of)(number % 10, number // 10 + 1) for number in range(200)))
    for app in apps:
        await app.start()
    publish(apps[0], *(rng.choice(of)(number % 10, number // 10 + 1) for number in range(200, 400)))
    await until(lambda: len(seen.rows()) >= 400, 30)
    for app in apps:
        await app.stop()
    assert seen.keys() == {order: list(range(1, 41)) for order in range(10)}


@pytest.mark.promise("order per key")
@pytest.mark.parametrize("kind", ["async", "thread", "shared tx"])
async def test_the_whole_log_in_order_by_name(tmp_path: Path, kind: str) -> None:
    """order="log": nothing behind an event that waits for its retry, whoever's it is."""
    app = shop(tmp_path)
    seen = Seen(app)

    def work(event: Placed, ctx: Context, tx: sqlite3.Connection | None = None) -> None:
        if event.seq in {3, 4, 9} and ctx.attempt == 1:
            raise ConnectionError("hung up")
        seen.note(event, tx)

    sub = app.subscription("all", order="log", retry=SOON, shared_tx=kind == "shared tx")
    if kind == "async":

        @sub.on(Placed)
        async def slowly(event: Placed, ctx: Context) -> None:
            await asyncio.sleep(0.001)
            work(event, ctx)

    elif kind == "thread":

        @sub.on(Placed)
        def threaded(event: Placed, ctx: Context) -> None:
            work(event, ctx)

    else:

        @sub.on(Placed)
        def handle(event: Placed, ctx: Context, tx: sqlite3.Connection) -> None:
            work(event, ctx, tx)

    publish(app, *(Placed(seq % 5, seq) for seq in range(1, 41)))
    async with app:
        await until(lambda: len(seen.rows()) >= 40)
    assert [seq for _, seq in seen.rows()] == list(range(1, 41))


@pytest.mark.promise("parking")
async def test_without_order_nobody_waits_for_anybody(tmp_path: Path) -> None:
    app, seen = shop(tmp_path), list[int]()

    @app.subscribe(Placed, order="none", retry=Retry(attempts=3, first=60))
    async def handle(event: Placed) -> None:
        if event.seq == 1:
            raise ConnectionError("hung up")
        seen.append(event.seq)

    publish(app, *(Placed(1, seq) for seq in range(1, 6)))
    async with app:
        await settled(app)
    assert sorted(seen) == [2, 3, 4, 5]


# -- effects once


@pytest.mark.promise("effects once")
async def test_a_checkpoint_that_cannot_be_written_takes_its_follow_ups_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store fails between the two, many times: in the end each follow-up is there once, and at no time without its checkpoint."""
    from tidings.store.sqlite.unit import SQLiteUnit

    app = shop(tmp_path)
    append = SQLiteUnit.append
    failures = [False] * 1000 + [True] * 3

    def failing(self: SQLiteUnit, envelopes: Any) -> list[int]:
        positions = append(self, envelopes)
        if positions and failures.pop():
            raise sqlite3.OperationalError("the disk hiccuped")
        return positions

    @app.subscribe(Placed)
    async def pay(event: Placed) -> Paid:
        return Paid(event.order_id)

    publish(app, *(Placed(order) for order in range(5)))
    monkeypatch.setattr(SQLiteUnit, "append", failing)
    async with app:

        def consistent() -> bool:
            def look(unit: Any) -> tuple[int, int]:
                ends = {lane.lane: lane for lane in unit.lanes("pay")}
                placed = unit.select(limit=100, types=["shop.Placed"])
                done = [one for one in placed if one.position <= ends[one.lane].position and one.position not in ends[one.lane].open]
                return len(unit.select(limit=100, types=["shop.Paid"])), len(done)

            paid, done = app.store.query(look)
            assert paid == done
            return paid == 5

        await until(consistent)
        await settled(app)
        assert consistent()


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("shared", [True, False])
async def test_a_failed_handler_leaves_nothing_and_its_neighbours_everything(tmp_path: Path, shared: bool) -> None:
    """Writes, then fails; its rows go, its neighbours' stay, and theirs are written once although they share a transaction."""
    app, calls = shop(tmp_path), defaultdict[int, int](int)
    app.open()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE written (order_id INTEGER, attempt INTEGER)")

    @app.subscribe(Placed, shared_tx=shared, retry=Retry(attempts=2, first=0.01, jitter=0))
    def write(event: Placed, tx: sqlite3.Connection, ctx: Context) -> Paid:
        calls[event.order_id] += 1
        tx.execute("INSERT INTO written VALUES (?, ?)", (event.order_id, ctx.attempt))
        if event.order_id % 7 == 3 and ctx.attempt == 1:
            raise ConnectionError("hung up")
        return Paid(event.order_id)

    publish(app, *(Placed(order) for order in range(200)))
    async with app:
        await settled(app)
        await until(lambda: app.store.query(lambda unit: not unit.parked()))
        with connection(tmp_path / "shop.db") as conn:
            rows = conn.execute("SELECT * FROM written ORDER BY 1").fetchall()
            paid = conn.execute("SELECT data ->> 'order_id' FROM tidings_log WHERE type = 'shop.Paid' ORDER BY 1").fetchall()
    assert rows == [(order, 2 if order % 7 == 3 else 1) for order in range(200)]
    assert [row[0] for row in paid] == list(range(200))


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("end", ["commit", "with", "COMMIT", "executescript", "rollback"])
async def test_a_handler_that_ends_the_transaction_counts_for_nothing(tmp_path: Path, end: str) -> None:
    app = shop(tmp_path)
    app.open()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE written (order_id INTEGER)")

    @app.subscribe(Placed, retry=Retry(attempts=1))
    def write(event: Placed, tx: sqlite3.Connection) -> Paid:
        tx.execute("INSERT INTO written VALUES (?)", (event.order_id,))
        if event.order_id == 1:
            if end == "with":
                with tx:
                    pass
            elif end == "executescript":
                tx.executescript("SELECT 1;")
            elif end == "COMMIT":
                tx.execute("COMMIT")
            else:
                getattr(tx, end)()
        return Paid(event.order_id)

    publish(app, Placed(1), Placed(2))
    async with app:
        await settled(app)
        (dead,) = app.store.query(lambda unit: unit.parked(states=("dead",)))
        assert dead.error is not None
        assert dead.error.startswith("TransactionEnded: ")
        with connection(tmp_path / "shop.db") as conn:
            assert conn.execute("SELECT * FROM written").fetchall() == [(2,)]
            assert conn.execute("SELECT count(*) FROM tidings_log WHERE type = 'shop.Paid'").fetchone() == (1,)


@pytest.mark.promise("effects once")
async def test_what_was_read_is_durable_before_an_effect_leaves_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher may use synchronous=NORMAL, whose last commits a power cut undoes: whoever acts on them outside makes them last."""
    app, heard = shop(tmp_path, synchronous="NORMAL"), list[str]()
    durable = app.store.durable

    def durably() -> int:
        heard.append("durable")
        return durable()

    monkeypatch.setattr(app.store, "durable", durably)

    @app.subscribe(Placed)
    async def charge(event: Placed) -> None:
        heard.append("charged")

    async with app:
        await settled(app)
        with connection(Path(sqlite(app).path)) as conn:
            conn.execute("PRAGMA synchronous = NORMAL")
            for order in range(3):
                heard.clear()
                with committed(conn):
                    app.publish(Placed(order), tx=conn)
                await until(lambda: "charged" in heard)
                assert heard[0] == "durable"


@pytest.mark.promise("effects once")
async def test_the_idempotency_key_never_changes(tmp_path: Path) -> None:
    """Between attempts, and when another worker takes over in the middle."""
    app, keys = shop(tmp_path, lease=0.3), list[str]()
    crashed = asyncio.Event()

    @app.subscribe(Placed, retry=Retry(attempts=5, first=0.01))
    async def charge(event: Placed, ctx: Context) -> None:
        keys.append(ctx.idempotency_key)
        if len(keys) < 3:
            raise ConnectionError("hung up")
        if len(keys) == 3:
            crashed.set()
            await asyncio.sleep(60)

    publish(app, Placed(1))
    await app.start()
    await crashed.wait()
    assert app.worker is not None
    await app.worker.crash()
    app.worker = None
    async with app:
        await until(lambda: len(keys) == 4)
        await settled(app)
    assert len(set(keys)) == 1


# -- independence


@pytest.mark.promise("independence")
async def test_one_that_hangs_fails_or_is_held_delays_no_other(tmp_path: Path) -> None:
    app, seen = shop(tmp_path), list[int]()
    never = asyncio.Event()

    @app.subscribe(Placed, retry=Retry(attempts=3, first=60), max_parked=5)
    async def failing(event: Placed) -> None:
        raise ConnectionError("hung up")

    @app.subscribe(Placed, concurrency=2)
    async def hanging(event: Placed) -> None:
        await never.wait()

    @app.subscribe(Placed)
    async def fine(event: Placed) -> None:
        seen.append(event.order_id)

    publish(app, *(Placed(order) for order in range(500)))
    async with app:
        await until(lambda: len(seen) == 500, 5)
        publish(app, *(Placed(order) for order in range(500, 600)))
        await until(lambda: len(seen) == 600, 5)
        assert seen == list(range(600))
        await until(lambda: app.store.query(lambda unit: {row.name: row.held for row in unit.subscriptions()})["failing"])
        held = {row.name: row.held for row in app.store.query(lambda unit: unit.subscriptions())}
        assert held["fine"] is held["hanging"] is None
        assert "ConnectionError: hung up" in str(held["failing"])
        never.set()


@pytest.mark.promise("bounded")
async def test_a_subscription_that_always_fails_stops_reading_and_goes_on_by_itself(tmp_path: Path) -> None:
    app, down, seen = shop(tmp_path), True, set[int]()

    @app.subscribe(Placed, retry=Retry(attempts=1000, first=0.05, factor=1), max_parked=20, concurrency=4)
    async def charge(event: Placed) -> None:
        if down:
            raise ConnectionError("gateway down")
        seen.add(event.order_id)

    publish(app, *(Placed(order) for order in range(500)))
    async with app:
        await until(lambda: any(row.held for row in app.store.query(lambda unit: unit.subscriptions())))
        assert sum(app.store.query(lambda unit: unit.count_parked("charge"))) <= 20 + 4
        down = False
        await until(lambda: len(seen) == 500)
        await until(lambda: not any(row.held for row in app.store.query(lambda unit: unit.subscriptions())))


# -- parking


@pytest.mark.promise("parking")
@pytest.mark.parametrize("kind", ["async", "tx", "shared tx"])
async def test_a_poison_event_parks_its_key_and_not_its_lane(tmp_path: Path, kind: str) -> None:
    """Its key stops, with everything behind it in order; the other keys of the same lane go on; after the retry the order is kept."""
    poisoned, *others = neighbours(6)
    app, healed = shop(tmp_path), False
    seen = Seen(app)

    def work(event: Placed, tx: sqlite3.Connection | None = None) -> None:
        if event.order_id == poisoned and event.seq == 2 and not healed:
            raise ConnectionError("hung up")
        seen.note(event, tx)

    sub = app.subscription("sub", retry=Retry(attempts=1000, first=0.05, factor=1), shared_tx=kind == "shared tx")
    if kind == "async":

        @sub.on(Placed)
        async def slowly(event: Placed) -> None:
            await asyncio.sleep(0.001)
            work(event)

    else:

        @sub.on(Placed)
        def handle(event: Placed, tx: sqlite3.Connection) -> None:
            work(event, tx)

    publish(app, *(Placed(order, seq) for seq in range(1, 11) for order in (poisoned, *others)))
    async with app:
        await until(lambda: all(seen.seqs(order) == list(range(1, 11)) for order in others))
        await until(lambda: app.store.query(lambda unit: unit.count_parked("sub")) == (1, 8, 0))
        assert seen.seqs(poisoned) == [1]
        healed = True
        await until(lambda: len(seen.seqs(poisoned)) == 10)
        assert seen.seqs(poisoned) == list(range(1, 11))
        publish(app, Placed(poisoned, 11))
        await until(lambda: seen.seqs(poisoned)[-1] == 11)
        await until(lambda: not app.store.query(lambda unit: unit.parked()))


@pytest.mark.promise("parking")
@pytest.mark.parametrize("then", ["retry", "drop"])
@pytest.mark.parametrize("where", ["stays", "moves"])
async def test_a_held_key_waits_for_someone_through_every_change_of_hands(tmp_path: Path, then: str, where: str) -> None:
    """on_dead="hold": not even when lanes come to its worker, or go to another one, is anything behind the dead letter handled."""
    seen, healed = list[int](), False
    # The first keeps the lower half: an order whose lane stays where it was all the time, or one whose lane goes to the other and back.
    order = next(order for order in range(100) if (lane_of("order_id", str(order)) >= 32) == (where == "moves"))

    def worker() -> App:
        app = shop(tmp_path, lease=1)

        @app.subscribe(Placed, on_dead="hold", retry=Retry(attempts=1))
        async def handle(event: Placed) -> None:
            if event.seq == 2 and not healed:
                raise ConnectionError("hung up")
            if event.order_id == order:
                seen.append(event.seq)

        return app

    first, second = worker(), worker()
    publish(first, *(Placed(order, seq) for seq in range(1, 4)))
    async with first:
        await settled(first)
        async with second:
            assert first.worker is not None
            assert second.worker is not None
            await until(lambda: len(second.worker.runners["handle"].held_lanes()) == 32)  # type: ignore[union-attr]
            here = first.worker.runners["handle"].feed.lanes
            assert (here[lane_of("order_id", str(order))] is None) == (where == "moves")
            publish(first, Placed(order, 4))
            await settled(first, second)
        await first.worker.balance()  # the second's lanes come to the first, which has had the held key all the time
        await until(lambda: len(first.worker.runners["handle"].held_lanes()) == 64)  # type: ignore[union-attr]
        publish(first, Placed(order, 5))
        await settled(first)
        assert seen == [1]
        (dead,) = first.store.query(lambda unit: unit.parked(states=("dead",)))
        healed = True
        now = int(first.clock.time() * 1e6)
        act = first.store.write(lambda unit: getattr(unit, f"{then}_dead")("handle", dead.envelope.position, now))
        assert act.result(5)
        await until(lambda: seen[-1] == 5)
    assert seen == ([1, 2, 3, 4, 5] if then == "retry" else [1, 3, 4, 5])


@pytest.mark.promise("parking")
async def test_going_on_behind_a_dead_letter_is_the_rule(tmp_path: Path) -> None:
    app, seen = shop(tmp_path), list[int]()

    @app.subscribe(Placed, retry=Retry(attempts=2, first=0.01))
    async def handle(event: Placed) -> None:
        if event.seq == 2:
            raise ConnectionError("hung up")
        seen.append(event.seq)

    publish(app, *(Placed(1, seq) for seq in range(1, 5)))
    async with app:
        await until(lambda: seen == [1, 3, 4])


@pytest.mark.promise("order per key")
async def test_what_an_operator_does_while_events_fail_frees_no_key(tmp_path: Path) -> None:
    """Every command makes workers look at the parked rows again; what they then know must not be older than what was settled since."""
    app, rng, seen = shop(tmp_path), random.Random(3), defaultdict[int, list[int]](list)

    @app.subscribe(Placed, retry=SOON)
    async def handle(event: Placed) -> None:
        await asyncio.sleep(0)
        if rng.random() < 0.3:
            raise ConnectionError("hung up")
        seen[event.order_id].append(event.seq)

    publish(app, *(Placed(number % 20, number // 20 + 1) for number in range(600)))
    async with app:
        assert app.worker is not None
        while sum(map(len, seen.values())) < 600:
            app.worker.runners["handle"].look_again()
            await asyncio.sleep(0.01)
    assert dict(seen) == {order: list(range(1, 31)) for order in range(20)}


@pytest.mark.promise("independence")
@pytest.mark.parametrize("kind", ["async", "thread", "tx", "shared tx", "list"])
async def test_where_chooses_and_the_rest_counts_as_handled(tmp_path: Path, kind: str) -> None:
    app, seen = shop(tmp_path), list[int]()

    def vip(event: Placed) -> bool:
        return event.order_id % 10 == 0

    sub = app.subscription("alert", shared_tx=kind == "shared tx", age=0.01)
    if kind == "async":

        @sub.on(Placed, where=vip)
        async def slowly(event: Placed) -> None:
            seen.append(event.order_id)

    elif kind == "list":

        @sub.on(Placed, where=vip)
        async def each(events: list[Placed]) -> None:
            seen.extend(event.order_id for event in events)

    elif kind == "thread":
        sub.on(Placed, where=vip)(lambda event: seen.append(event.order_id))
    else:

        @sub.on(Placed, where=vip)
        def handle(event: Placed, tx: sqlite3.Connection) -> None:
            seen.append(event.order_id)

    publish(app, *(Placed(order) for order in range(100)))
    async with app:
        await until(lambda: len(seen) >= 10)
        await settled(app)
        await until(lambda: app.store.query(lambda unit: unit.behind("alert")).events == 0)
    assert sorted(seen) == list(range(0, 100, 10))


# -- nothing vanishes


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


ERRORS = [ValueError("caf\udce9"), ValueError("a\0b"), Unprintable(), ValueError("x" * 100_000)]


@pytest.mark.promise("nothing vanishes")
@pytest.mark.parametrize("error", ERRORS, ids=["surrogate", "nul", "unprintable", "long"])
@pytest.mark.parametrize("kind", ["async", "shared tx"])
async def test_whatever_a_handler_raises_is_kept_and_stops_nobody(tmp_path: Path, error: Exception, kind: str) -> None:
    app = shop(tmp_path)
    seen = Seen(app)

    def work(event: Placed, tx: sqlite3.Connection | None = None) -> None:
        if event.order_id == 1:
            raise error
        seen.note(event, tx)

    sub = app.subscription("sub", retry=Retry(attempts=2, first=0.01), shared_tx=kind == "shared tx", concurrency=1)
    if kind == "async":

        @sub.on(Placed)
        async def slowly(event: Placed) -> None:
            work(event)

    else:

        @sub.on(Placed)
        def handle(event: Placed, tx: sqlite3.Connection) -> None:
            work(event, tx)

    publish(app, Placed(0), Placed(1), Placed(2))
    async with app:
        await until(lambda: app.store.query(lambda unit: unit.count_parked("sub")) == (0, 0, 1))
        (dead,) = app.store.query(lambda unit: unit.parked())
        assert dead.attempts == 2
        assert dead.error is not None
        assert dead.error.startswith(type(error).__name__)
        assert dead.traceback is not None
        assert "in work" in dead.traceback
        assert dead.envelope.data == b'{"order_id":1,"seq":0}'
        publish(app, Placed(3))
        await until(lambda: [order for order, _ in seen.rows()] == [0, 2, 3])


@pytest.mark.promise("nothing vanishes")
async def test_an_undecodable_row_is_a_dead_letter_and_an_unknown_type_is_not_ours(tmp_path: Path) -> None:
    app, seen = shop(tmp_path), list[int]()

    @app.subscribe(Placed, retry=Retry(attempts=5, first=60))
    async def handle(event: Placed) -> None:
        seen.append(event.order_id)

    publish(app, Placed(1), Placed(2), Placed(3))
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("UPDATE tidings_log SET data = ? WHERE position = 1", (b"\xff not json",))
        conn.execute('UPDATE tidings_log SET data = \'{"order_id": "two"}\' WHERE position = 2')
        conn.execute("UPDATE tidings_log SET type = 'nobody.Knows' WHERE position = 3")
    publish(app, Placed(4))
    async with app:
        await settled(app)
        dead = app.store.query(lambda unit: unit.parked())
        assert [(row.state, row.envelope.position, row.attempts) for row in dead] == [("dead", 1, 1), ("dead", 2, 1)]
        assert all(row.error is not None and row.error.startswith(UndecodableEvent.__name__) for row in dead)
        assert seen == [4]
        with connection(tmp_path / "shop.db") as conn:  # mended by hand, and replayed by name
            conn.execute("UPDATE tidings_parked SET data = '{\"order_id\": 2}' WHERE position = 2")
        assert app.store.write(lambda unit: unit.retry_dead("handle", 2, 0)).result(5)
        await until(lambda: seen == [4, 2])


@pytest.mark.promise("nothing vanishes")
def test_a_dead_letter_outlives_its_row_in_the_log(tmp_path: Path) -> None:
    app = shop(tmp_path)

    @app.subscribe(Placed, retry=Retry(attempts=1))
    async def handle(event: Placed) -> None:
        raise ConnectionError("hung up")

    async def run() -> None:
        publish(app, Placed(1))
        async with app:
            await settled(app)

    asyncio.run(run())
    app.open()
    with closing(app):
        assert app.store.write(lambda unit: unit.trim(10, 10)).result(5) == 1
        (dead,) = app.store.query(lambda unit: unit.parked())
        assert dead.envelope.data == b'{"order_id":1,"seq":0}'


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("kind", ["alone", "beside an async one", "list", "async list"])
async def test_a_handler_given_up_in_its_transaction_leaves_nothing_when_it_ends(tmp_path: Path, kind: str) -> None:
    """Its time is over, it is parked, and then its thread goes on and comes to its end: nothing of that run may be committed."""
    app, goes_on = shop(tmp_path), threading.Event()
    app.open()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE written (order_id INTEGER, attempt INTEGER)")
    retry = Retry(attempts=3, first=0.05, factor=1, jitter=0)
    sub = app.subscription("sub", timeout=0.3, retry=retry, size=2, age=0)
    attempts = list[int]()

    def work(order: int, attempt: int, tx: sqlite3.Connection) -> None:
        attempts.append(attempt)
        tx.execute("INSERT INTO written VALUES (?, ?)", (order, attempt))
        if attempt == 1:
            goes_on.wait(1.0)

    if kind == "list":

        @sub.on(Placed)
        def each(events: list[Placed], tx: sqlite3.Connection, ctx: Context) -> None:
            work(events[0].order_id, ctx.attempt, tx)

    elif kind == "async list":

        @sub.on(Placed)
        async def each_async(events: list[Placed], tx: aiosqlite.Connection, ctx: Context) -> None:
            await tx.execute("INSERT INTO written VALUES (?, ?)", (events[0].order_id, ctx.attempt))
            if ctx.attempt == 1:
                await asyncio.sleep(1.0)

    else:

        @sub.on(Placed)
        def handle(event: Placed, tx: sqlite3.Connection, ctx: Context) -> None:
            work(event.order_id, ctx.attempt, tx)

        if kind == "beside an async one":

            @sub.on(Paid)
            async def other(event: Paid) -> None: ...

    publish(app, Placed(1))
    async with app:
        await until(lambda: app.store.query(lambda unit: unit.attempts([1])))
        goes_on.set()
        await until(lambda: app.store.query(lambda unit: not unit.parked()))
        await asyncio.sleep(0.2)
        await settled(app)
        with connection(tmp_path / "shop.db") as conn:
            assert conn.execute("SELECT * FROM written").fetchall() == [(1, 2)]
