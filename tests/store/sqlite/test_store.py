"""What the contract of stores doesn't say: connections by thread, settings, errors in plain words."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidings import App, Event, SQLiteStore, StoreBusy, StoreNotInitialised
from tidings.store.port import Store
from tidings.store.sqlite.store import GLANCE_ROWS


class Placed(Event, key="order"):
    order: int


class Noted(Event, key="order"):
    order: int
    text: str


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(f"sqlite:///{tmp_path}/shop.db", busy=0.2)
    store.open()
    yield store
    store.close()


def test_each_thread_reads_on_its_own_connection(store: SQLiteStore) -> None:
    barrier = threading.Barrier(4)

    def ask(_: int) -> int:
        barrier.wait(10)
        assert store.reader() is store.reader()
        assert store.handling_connection() is not store.reader()
        return id(store.reader())

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(ask, range(4)))) == 4


def test_a_query_sees_one_snapshot_and_changes_nothing(store: SQLiteStore) -> None:
    app = App("shop", store=store)

    def job(unit: object) -> tuple[int, int]:
        before = unit.head()  # type: ignore[attr-defined]
        app.publish(Placed(order=1), tx="own").result(5)
        return before, unit.head()  # type: ignore[attr-defined]

    assert store.query(job) == (0, 0)
    assert store.query(lambda unit: unit.head()) == 1
    app.close()


def test_a_transaction_that_cannot_begin_says_who_holds_the_file(store: SQLiteStore) -> None:
    conn = sqlite3.connect(store.path, isolation_level=None)
    conn.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match="is locked"), store.transaction():
        pass
    conn.execute("ROLLBACK")
    with store.transaction() as raw:  # the turn was given back
        assert raw.in_transaction
    conn.close()


def test_a_connection_that_a_handler_closed_is_replaced(store: SQLiteStore) -> None:
    store.handling_connection().close()
    with store.transaction() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_commits_are_announced(store: SQLiteStore) -> None:
    told: list[int] = []

    def tell() -> None:
        told.append(1)

    store.on_commit(tell)
    store.write(lambda unit: unit.head()).result(5)
    with store.transaction():
        pass
    assert len(told) == 2
    store.off_commit(tell)
    store.off_commit(tell)
    store.write(lambda unit: unit.head()).result(5)
    assert len(told) == 2


def test_reading_only_makes_nothing(tmp_path: Path) -> None:
    store = SQLiteStore(f"sqlite:///{tmp_path}/shop.db")
    with pytest.raises(StoreNotInitialised, match=r"there is no .*shop\.db; `tidings store init --store sqlite:///.*` makes it"):
        store.open_to_read()
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(store.path).close()
    Path(store.path).touch()
    with pytest.raises(StoreNotInitialised, match="has no Tidings tables"):
        store.open_to_read()


def test_what_is_busy_or_full_is_seen_through_other_libraries_errors(store: SQLiteStore) -> None:
    conn = sqlite3.connect(store.path, isolation_level=None, timeout=0)
    with store.transaction(), pytest.raises(sqlite3.OperationalError) as caught:
        conn.execute("BEGIN IMMEDIATE")
    conn.close()

    class Wrapped(Exception):
        orig: BaseException | None = None

    wrapped = Wrapped()
    wrapped.orig = caught.value
    chained = Wrapped()
    chained.__cause__ = caught.value
    assert store.is_busy(caught.value)
    assert store.is_busy(wrapped)
    assert store.is_busy(chained)
    assert store.is_busy(StoreBusy(""))
    assert not store.is_busy(Wrapped())
    assert not store.is_busy(ValueError())


def test_a_glance_is_a_short_read_that_never_waits(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.open()
    store = app.store
    with store.transaction() as tx:
        for order in range(GLANCE_ROWS + 10):
            app.publish(Placed(order=order), tx=tx)
    rows, upto = store.read(0, 1000)
    assert (len(rows), upto) == (GLANCE_ROWS + 10, GLANCE_ROWS + 10)
    assert store.durable() == upto
    assert store.glance(0, 1000) == (rows[:GLANCE_ROWS], GLANCE_ROWS)
    assert store.glance(GLANCE_ROWS, 1000) == (rows[GLANCE_ROWS:], upto)
    assert store.glance(3, 5) == (rows[3:5], 5)
    assert store.glance(upto, 1000) == ([], upto)
    with store.stepping():
        assert store.glance(0, 1000) is None
    assert store.glance(0, 1) == (rows[:1], 1)
    app.close()


def test_a_glance_at_large_events_stops_early(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.open()
    with app.store.transaction() as tx:
        for order in range(100):
            app.publish(Noted(order=order, text="x" * 50_000), tx=tx)
    found = app.store.glance(0, 100)
    assert found is not None
    assert 0 < len(found[0]) < 100
    assert found[1] == found[0][-1][0]
    app.close()


def lasts(store: Store, position: int) -> bool:
    rows, upto = store.read(position - 1, position)
    return store.lasts(upto, rows[-1] if rows else None)


@pytest.mark.promise("effects once")
def test_what_the_writer_has_synced_is_known_to_last(tmp_path: Path) -> None:
    """Everything up to its commit, whoever wrote it, and nothing that came since: a commit that changes nothing syncs nothing."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.open()
    store = app.store
    careless = sqlite3.connect(f"{tmp_path}/shop.db", isolation_level=None)
    careless.execute("PRAGMA synchronous = NORMAL")

    def publish_carelessly(order: int) -> None:
        careless.execute("BEGIN IMMEDIATE")
        app.publish(Placed(order=order), tx=careless)
        careless.execute("COMMIT")

    publish_carelessly(1)
    assert not lasts(store, 1)
    app.publish(Placed(order=2), tx="own").result(5)
    assert lasts(store, 1)
    assert lasts(store, 2)
    publish_carelessly(3)
    assert store.write(lambda unit: unit.head()).result(5) == 3
    assert lasts(store, 2)
    assert not lasts(store, 3)
    careless.close()
    app.close()


@pytest.mark.promise("effects once")
async def test_what_a_user_of_this_process_will_sync_is_known_while_somebody_waits_for_it(tmp_path: Path) -> None:
    """By the event's id: what was rolled back gives its position to the next one, who may be careless."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.open()
    store = app.store
    careful, careless = (sqlite3.connect(f"{tmp_path}/shop.db", isolation_level=None) for _ in range(2))
    careful.execute("PRAGMA synchronous = FULL")
    careless.execute("PRAGMA synchronous = NORMAL")

    def publish(order: int, conn: sqlite3.Connection, end: str) -> None:
        conn.execute("BEGIN IMMEDIATE")
        app.publish(Placed(order=order), tx=conn)
        conn.execute(end)

    publish(1, careful, "COMMIT")
    assert not lasts(store, 1)  # nobody waited, so nobody looked
    waker = store.watch(lambda: None)
    waker.arm()
    publish(2, careful, "COMMIT")
    assert lasts(store, 2)
    publish(3, careful, "ROLLBACK")
    publish(3, careless, "COMMIT")
    assert not lasts(store, 3)
    publish(4, careless, "COMMIT")
    assert not lasts(store, 4)
    publish(5, careful, "COMMIT")
    assert lasts(store, 5)
    with pytest.raises(sqlite3.OperationalError, match="may not be changed inside a transaction"):
        careful.execute("BEGIN").execute("PRAGMA synchronous = NORMAL")
    waker.close()
    careful.close()
    careless.close()
    app.close()


def test_a_writer_that_does_not_sync_knows_of_nothing_that_lasts(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", synchronous="NORMAL")
    app.open()
    app.publish(Placed(order=1), tx="own").result(5)
    assert not lasts(app.store, 1)
    app.close()


CLOSES = """
import sys, threading
from tidings import SQLiteStore

store = SQLiteStore("sqlite:///" + sys.argv[1])
for _ in range(150):
    store.open()
    begun, over = threading.Event(), threading.Event()

    def job(unit):
        begun.set()
        for _ in range(300):
            unit.head(), unit.workers(), unit.subscriptions(), unit.facts()
        over.set()

    thread = threading.Thread(target=store.query, args=(job,))
    thread.start()
    begun.wait()
    store.close()
    assert over.is_set()
    thread.join()
print("ok")
"""


def test_closing_waits_for_who_reads(tmp_path: Path) -> None:
    """Closed under a thread that steps through it, a connection of SQLite's brings the process down."""
    done = subprocess.run([sys.executable, "-c", CLOSES, str(tmp_path / "shop.db")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
