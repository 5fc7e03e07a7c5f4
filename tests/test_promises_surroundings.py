"""Hostile surroundings: a full disk, a read-only file, a locked one, rows and stores that a newer or another program wrote.

Each is a clear error that names the fix, and when the trouble is over nothing is lost, doubled or out of order.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from tests.running import committed, connection, settled, sqlite, until
from tidings import App, Event, Retry
from tidings.clock import ManualClock
from tidings.errors import ConfigurationError, StoreBusy, StoreFailed, StoreNewer
from tidings.store.sqlite import SQLiteStore


class Placed(Event, key="order_id"):
    order_id: int
    seq: int = 0
    text: str = ""


class Paid(Event, key="order_id"):
    order_id: int


def shop(tmp_path: Path, **options: Any) -> App:
    store = SQLiteStore(f"sqlite:///{tmp_path / 'shop.db'}", **options)
    return App("shop", store=store)


def publish(app: App, *events: Event) -> None:
    app.open()
    with connection(Path(sqlite(app).path)) as conn, committed(conn):
        for event in events:
            app.publish(event, tx=conn)


class Disk:
    """A disk for this process's connections to a store: full when told so."""

    def __init__(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._connections: list[sqlite3.Connection] = []
        self._full = False
        connect = store.connect

        def connecting(**options: Any) -> sqlite3.Connection:
            conn = connect(**options)
            self._connections.append(conn)
            self._limit(conn)
            return conn

        monkeypatch.setattr(store, "connect", connecting)

    def _limit(self, conn: sqlite3.Connection) -> None:
        pages = conn.execute("PRAGMA page_count").fetchone()[0] if self._full else 1_000_000
        conn.execute(f"PRAGMA max_page_count = {pages}")

    def full(self, full: bool) -> None:
        self._full = full
        for conn in self._connections:
            try:
                self._limit(conn)
            except sqlite3.ProgrammingError:  # closed
                continue


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("effects once")
@pytest.mark.parametrize("kind", ["async", "tx", "shared tx"])
async def test_a_full_disk_is_nobodys_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Handlers are not blamed (no attempt counts, nothing becomes a dead letter); when there is space again all goes on, once."""
    app, calls = shop(tmp_path), defaultdict[int, int](int)
    disk = Disk(sqlite(app), monkeypatch)
    big = "x" * 20_000
    sub = app.subscription("sub", retry=Retry(attempts=1), shared_tx=kind == "shared tx")
    app.open()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE written (order_id INTEGER, text TEXT)")
    if kind == "async":

        @sub.on(Placed)
        async def follow(event: Placed) -> Paid:
            calls[event.order_id] += 1
            return Paid(event.order_id)

    else:

        @sub.on(Placed)
        def write(event: Placed, tx: sqlite3.Connection) -> Paid:
            tx.execute("INSERT INTO written VALUES (?, ?)", (event.order_id, big))
            return Paid(event.order_id)

    async with app:
        assert app.worker is not None
        runner = app.worker.runners["sub"]
        disk.full(True)
        with pytest.raises(StoreFailed, match=r"no space left for .*free some") as failed:
            for number in range(100):
                app.publish(Placed(number, text=big), tx="own").result(5)
        assert failed.value.facts["path"] == str(tmp_path / "shop.db")
        already = app.store.query(lambda unit: len(unit.select(limit=1000, types=["shop.Placed"])))
        publish(app, *(Placed(1000 + number, text=big) for number in range(20)))  # this connection has its own idea of the disk
        disk.full(True)
        await until(lambda: runner.trouble is not None)
        assert "no space left" in str(runner.trouble) or "full" in str(runner.trouble)
        assert app.store.query(lambda unit: unit.parked()) == []
        disk.full(False)
        await until(lambda: len(app.store.query(lambda unit: unit.select(limit=1000, types=["shop.Paid"]))) == already + 20)
        await settled(app)
        assert app.store.query(lambda unit: unit.parked()) == []
        assert len(app.store.query(lambda unit: unit.select(limit=1000, types=["shop.Paid"]))) == already + 20
        with connection(tmp_path / "shop.db") as conn:
            assert conn.execute("SELECT count(*) FROM written").fetchone()[0] == (0 if kind == "async" else already + 20)
    assert set(calls.values()) <= {1}


@pytest.mark.promise("atomic publish")
def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    """Says what is missing; run as another user if this one may do everything."""
    app = shop(tmp_path)
    publish(app, Placed(1))
    app.close()
    folder = tmp_path / "shop.db"
    os.chmod(folder, 0o444)
    os.chmod(tmp_path, 0o555)
    program = f"""
import os, sys
from tidings import App, Event
from tidings.errors import StoreFailed
import tidings.store.sqlite.unit, encodings.idna
if os.getuid() == 0:  # who may do everything; what is imported was imported
    os.setgid(65534); os.setuid(65534)
class Placed(Event, key="order_id"):
    order_id: int
app = App("shop", store="sqlite:///{folder}")
try:
    app.publish(Placed(2), tx="own").result()
except StoreFailed as error:
    print(error)
"""
    try:
        for parent in tmp_path.parents:  # pytest's folders are this user's alone
            if parent.stat().st_uid == os.getuid() and parent != Path("/") and "pytest" in str(parent):
                os.chmod(parent, 0o755)
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    finally:
        os.chmod(tmp_path, 0o755)
        os.chmod(folder, 0o644)
    assert "give this user write access to the file and its folder" in ran.stdout, ran.stderr
    with connection(folder) as conn:
        assert conn.execute("SELECT count(*) FROM tidings_log").fetchone() == (1,)


@pytest.mark.promise("publishing never waits")
@pytest.mark.promise("nothing lost")
async def test_a_file_that_another_program_locks_for_longer_than_every_lease(tmp_path: Path) -> None:
    """Publishers are told who it is; workers say so in their state, begin nothing new behind their lease, and go on once it lets go."""
    app, calls = shop(tmp_path, busy=0.2), defaultdict[int, int](int)
    app._worker_options["lease"] = 0.6

    @app.subscribe(Placed)
    async def pay(event: Placed) -> Paid:
        calls[event.order_id] += 1
        return Paid(event.order_id)

    async with app:
        assert app.worker is not None
        publish(app, *(Placed(order) for order in range(50)))
        await settled(app)
        with connection(tmp_path / "shop.db") as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
                await app.publish(Placed(1), tx="own")
            assert time.monotonic() - began < 2
            await until(lambda: app.worker is not None and app.worker.trouble)
            await asyncio.sleep(1.0)
            other.execute("COMMIT")
        publish(app, *(Placed(order) for order in range(50, 100)))
        await until(lambda: len(calls) == 100)
        await settled(app)
        await until(lambda: app.worker is not None and app.worker.trouble is None)
        assert len(app.store.query(lambda unit: unit.select(limit=1000, types=["shop.Paid"]))) == 100
    assert set(calls.values()) == {1}


@pytest.mark.promise("nothing lost")
def test_a_store_of_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    app = shop(tmp_path)
    publish(app, Placed(1))
    app.close()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("UPDATE tidings_meta SET value = '9999' WHERE name = 'schema'")
    with pytest.raises(StoreNewer, match=r"schema 9999.*upgrade tidings"):
        shop(tmp_path).open()
    with connection(tmp_path / "shop.db") as conn:
        assert conn.execute("SELECT value FROM tidings_meta WHERE name = 'schema'").fetchone() == ("9999",)
        assert conn.execute("SELECT count(*) FROM tidings_log").fetchone() == (1,)


@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize(
    ("content", "words"), [(b"this is no database, but a text of some length\n" * 100, "no SQLite database"), (None, "can't be opened")]
)
def test_no_store_at_all(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is None:
        app = App("shop", store=f"sqlite:///{tmp_path}/missing/shop.db")
    else:
        (tmp_path / "shop.db").write_bytes(content)
        app = shop(tmp_path)
    with pytest.raises(StoreFailed, match=words):
        app.open()
    if content is not None:
        assert (tmp_path / "shop.db").read_bytes() == content
    with pytest.raises(ConfigurationError):
        App("shop", store="sqlite://shop.db")


@pytest.mark.promise("publishing never waits")
async def test_scheduled_events_and_a_clock_that_jumps(tmp_path: Path) -> None:
    """What is due at a time comes at that time as the wall clock tells it, once, whichever way the clock was set."""
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
    app, seen = App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}", clock=clock), list[int]()

    @app.subscribe(Placed)
    async def pay(event: Placed) -> None:
        seen.append(event.order_id)

    async with app:
        assert app.worker is not None
        with connection(tmp_path / "shop.db") as conn, committed(conn):
            app.publish(Placed(1), tx=conn, after=timedelta(minutes=30))
            app.publish(Placed(2), tx=conn, at=datetime(2030, 1, 1, 2, tzinfo=UTC))
        clock.jump(-3600)
        await app.worker.publish_due()
        assert app.store.query(lambda unit: unit.head()) == 0
        clock.jump(7200)
        await app.worker.publish_due()
        await until(lambda: seen == [1])
        clock.jump(-3600)
        clock.advance(7200)
        await app.worker.publish_due()
        await until(lambda: seen == [1, 2])
        await app.worker.publish_due()
        await settled(app)
        assert seen == [1, 2]


@pytest.mark.promise("death at any instruction")
async def test_a_handler_that_hangs_in_its_transaction_gives_the_file_back(tmp_path: Path) -> None:
    """After its time-out, whatever cursors it holds; and when it wakes up, it can write nothing any more."""
    app, wake, ended = shop(tmp_path), threading.Event(), list[str]()
    app.open()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE written (order_id INTEGER, who TEXT)")
        conn.executemany("INSERT INTO written VALUES (?, 'before')", [(number,) for number in range(100)])

    @app.subscribe(Placed, timeout=0.3, retry=Retry(attempts=1))
    def hang(event: Placed, tx: sqlite3.Connection) -> None:
        cursor = tx.execute("SELECT * FROM written")
        cursor.fetchone()  # a statement that isn't finished
        tx.execute("INSERT INTO written VALUES (?, 'hung')", (event.order_id,))
        wake.wait(10)
        for who in ("hung", "woken"):  # prepared already, and not
            try:
                tx.execute(f"INSERT INTO written VALUES (?, '{who}')", (event.order_id,))
            except sqlite3.Error as error:
                ended.append(type(error).__name__)

    async with app:
        publish(app, Placed(1))
        await until(lambda: app.store.query(lambda unit: unit.count_parked("hang")) == (0, 0, 1), 5)
        publish(app, Placed(2))  # the file is free
        await until(lambda: app.store.query(lambda unit: unit.count_parked("hang")) == (0, 0, 2), 5)
        wake.set()
        await until(lambda: len(ended) == 4)
    with connection(tmp_path / "shop.db") as conn, closing(conn.execute("SELECT DISTINCT who FROM written")) as rows:
        assert rows.fetchall() == [("before",)]


SOME_SECONDS = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 60000000) SELECT count(*) FROM c"


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("independence")
@pytest.mark.parametrize("way", ["plain", "with an open cursor", "session", "async"])
async def test_a_statement_that_runs_past_the_time_out_stops_nobody_else(tmp_path: Path, way: str) -> None:
    """sqlite3 waits for it with the interpreter's lock in its hands where a connection is closed or given another authorizer."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    app, woken, stop = App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}", transactions=engine), list[str](), threading.Event()
    app.open()
    with connection(tmp_path / "shop.db") as conn:
        conn.execute("CREATE TABLE written (order_id INTEGER)")
        conn.executemany("INSERT INTO written VALUES (?)", [(number,) for number in range(100)])

    def work(event: Placed, tx: Any) -> None:
        kept = None
        if way == "with an open cursor":
            kept = tx.execute("SELECT * FROM written")
            kept.fetchone()
        write = (
            ("INSERT INTO written VALUES (?)", (-event.order_id,))
            if way != "session"
            else (sqlalchemy.text("INSERT INTO written VALUES (-1)"),)
        )
        tx.execute(*write)
        try:
            tx.execute(SOME_SECONDS if way != "session" else sqlalchemy.text(SOME_SECONDS))
        except Exception as error:
            woken.append(type(error).__name__)
            tx.execute(*write)  # it is prepared, and SQLite asks nobody: it must be undone all the same

    if way == "session":

        @app.subscribe(Placed, timeout=0.3, retry=Retry(attempts=1))
        def hang(event: Placed, tx: Session) -> None:
            work(event, tx)
    elif way == "async":

        @app.subscribe(Placed, timeout=0.3, retry=Retry(attempts=1), name="hang")
        async def hang_async(event: Placed, tx: sqlite3.Connection) -> None:
            await asyncio.get_running_loop().run_in_executor(None, work, event, tx)
    else:

        @app.subscribe(Placed, timeout=0.3, retry=Retry(attempts=1), name="hang")
        def hang_too(event: Placed, tx: sqlite3.Connection) -> None:
            work(event, tx)

    def dead(number: int) -> bool:
        return app.store.query(lambda unit: unit.count_parked("hang")) == (0, 0, number)

    beats = [time.monotonic()]

    def beat() -> None:
        while not stop.is_set():
            beats.append(time.monotonic())
            time.sleep(0.01)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        async with app:
            for number in (1, 2):  # the file is free, and the subscription goes on
                publish(app, Placed(number))
                await until(partial(dead, number), 8)
            await until(lambda: len(woken) >= 2)
    finally:
        stop.set()
        beating.join()
        engine.dispose()
    assert max(later - sooner for sooner, later in itertools.pairwise(beats)) < 2
    with connection(tmp_path / "shop.db") as conn, closing(conn.execute("SELECT count(*) FROM written WHERE order_id < 0")) as rows:
        assert rows.fetchone() == (0,)


@pytest.mark.promise("death at any instruction")
async def test_a_handler_that_closes_its_connection_harms_only_itself(tmp_path: Path) -> None:
    app, seen = shop(tmp_path), list[int]()

    @app.subscribe(Placed, retry=Retry(attempts=1))
    def pay(event: Placed, tx: sqlite3.Connection) -> None:
        if event.order_id == 1:
            tx.close()
        else:
            seen.append(event.order_id)

    publish(app, Placed(1), Placed(2), Placed(3))
    async with app:
        await until(lambda: seen == [2, 3])
        await settled(app)
        (dead,) = app.store.query(lambda unit: unit.parked())
        assert str(dead.error).startswith("TransactionEnded: ")
