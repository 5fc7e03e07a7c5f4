"""Atomic publish, and publishing that never waits."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.running import committed, connection, settled, sqlite
from tidings import App, Event
from tidings.errors import StoreBusy, WrongStore
from tidings.store.sqlite import SQLiteStore


class Placed(Event, key="order_id"):
    order_id: int


def app_on(path: Path, **options: object) -> App:
    app = App("shop", store=f"sqlite:///{path}", **options)  # type: ignore[arg-type]
    app.open()
    return app


def orders(conn: sqlite3.Connection) -> list[int]:
    return [row[0] for row in conn.execute("SELECT data ->> 'order_id' FROM tidings_log ORDER BY position")]


@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize("seed", range(5))
def test_an_event_exists_if_and_only_if_the_callers_rows_do(tmp_path: Path, seed: int) -> None:
    """Commits, rollbacks, savepoints undone and kept, errors in between, several publishes in one: log and own table are the same."""
    rng = random.Random(seed)
    app = app_on(tmp_path / "shop.db")
    with connection(tmp_path / "shop.db") as conn, closing(app):
        conn.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        for number in range(100):
            conn.execute(rng.choice(("BEGIN", "BEGIN IMMEDIATE")))
            for step in range(rng.randint(1, 3)):
                order = number * 10 + step
                conn.execute("SAVEPOINT s")
                if rng.random() < 0.5:
                    app.publish(Placed(order), tx=conn)
                    conn.execute("INSERT INTO orders VALUES (?)", (order,))
                else:
                    conn.execute("INSERT INTO orders VALUES (?)", (order,))
                    app.publish(Placed(order), tx=conn)
                conn.execute(rng.choice(("RELEASE s", "RELEASE s", "ROLLBACK TO s")))
            conn.execute(rng.choice(("COMMIT", "COMMIT", "ROLLBACK")))
        assert orders(conn) == [row[0] for row in conn.execute("SELECT id FROM orders ORDER BY id")] != []


@pytest.mark.promise("atomic publish")
@pytest.mark.processes
def test_a_publisher_killed_before_its_commit_published_nothing(tmp_path: Path) -> None:
    program = """
import os, signal, sqlite3, sys
from tidings import App, Event
class Placed(Event, key="order_id"):
    order_id: int
app = App("shop", store=f"sqlite:///{sys.argv[1]}")
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
app.open()
conn.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
for order in (1, 2):
    conn.execute("BEGIN")
    conn.execute("INSERT INTO orders VALUES (?)", (order,))
    app.publish(Placed(order), tx=conn)
    if order == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    conn.execute("COMMIT")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "shop.db")], check=False)
    with connection(tmp_path / "shop.db") as conn:
        assert orders(conn) == [row[0] for row in conn.execute("SELECT id FROM orders")] == [1]


@pytest.mark.promise("atomic publish")
def test_another_stores_transaction_is_refused(tmp_path: Path) -> None:
    app, other = app_on(tmp_path / "shop.db"), app_on(tmp_path / "other.db")
    with connection(tmp_path / "other.db") as conn, closing(app), closing(other):
        with pytest.raises(WrongStore, match=r"other\.db"), committed(conn):
            app.publish(Placed(1), tx=conn)
        with pytest.raises(WrongStore), committed(conn):
            app.publish(Placed(1), tx=conn, after=timedelta(seconds=1))
        assert orders(conn) == []


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]


@pytest.mark.promise("order per key")
def test_a_session_writes_its_rows_before_the_event(tmp_path: Path) -> None:
    """Else the event would draw its position before the row lock, and two writers' events could swap."""
    app = app_on(tmp_path / "shop.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    Base.metadata.create_all(engine)
    with Session(engine, autoflush=False) as session, session.begin():
        session.add(Order(id=1, state="new"))
    statements: list[str] = []
    with Session(engine, autoflush=False) as session, session.begin():
        order = session.get_one(Order, 1)
        raw = session.connection().connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_trace_callback(statements.append)
        order.state = "placed"
        app.publish(Placed(1), tx=session)
        raw.set_trace_callback(None)
        assert session.execute(text("SELECT count(*) FROM tidings_log")).scalar() == 1
    written = [line for line in statements if line.startswith(("UPDATE orders", "INSERT INTO main.tidings_log"))]
    assert [line.split()[0] for line in written] == ["UPDATE", "INSERT"]
    engine.dispose()
    app.close()


@pytest.mark.promise("publishing never waits")
async def test_consumers_may_be_down_or_hang(tmp_path: Path) -> None:
    """Publishing is the same INSERT whether subscriptions are far behind, hang, fail, or have no worker; then they catch up."""
    app = app_on(tmp_path / "shop.db")
    hang, handled = threading.Event(), []

    @app.subscribe(Placed)
    def slow(event: Placed) -> None:
        hang.wait(10)
        handled.append(event.order_id)

    with connection(tmp_path / "shop.db") as conn:
        for number in range(1000):  # nobody has ever run
            with committed(conn):
                app.publish(Placed(number), tx=conn)
        async with app:
            began = time.monotonic()
            for number in range(1000, 1200):  # and now every handler hangs
                with committed(conn):
                    app.publish(Placed(number), tx=conn)
            assert time.monotonic() - began < 5
            assert handled == []
            hang.set()
            await settled(app)
            assert sorted(handled) == list(range(1200))


@pytest.mark.promise("publishing never waits")
def test_a_file_that_somebody_holds_is_an_error_that_names_him(tmp_path: Path) -> None:
    """SQLite has one writer. One that stands still inside its transaction holds the file; publishers are told who, after a stated time."""
    program = f"""
import sqlite3, sys
conn = sqlite3.connect({str(tmp_path / "shop.db")!r}, isolation_level=None)
conn.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""
    store = SQLiteStore(f"sqlite:///{tmp_path / 'shop.db'}", busy=0.3)
    app = App("shop", store=store)
    app.open()
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        began = time.monotonic()
        futures = [app.publish(Placed(number), tx="own") for number in range(20)]
        for future in futures:
            with pytest.raises(StoreBusy, match=str(holder.pid)) as busy:
                future.result(5)
            assert busy.value.facts["holder"] == holder.pid
        assert time.monotonic() - began < 2, "each of them waited for the time-out"
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
    assert app.publish(Placed(1), tx="own").result(5).position == 1
    app.close()


@pytest.mark.promise("atomic publish")
def test_one_failed_publish_takes_none_of_its_group_with_it(tmp_path: Path) -> None:
    """Group commit: neighbours share a transaction and not an error."""
    app = app_on(tmp_path / "shop.db")

    def impossible(unit: object) -> None:
        raise LookupError("mine alone")

    sqlite(app).turn.acquire()  # so that all of them gather
    good = [app.publish(Placed(number), tx="own") for number in range(5)]
    bad = app.store.write(impossible)
    good += [app.publish(Placed(number), tx="own") for number in range(5, 10)]
    sqlite(app).turn.release()
    with pytest.raises(LookupError):
        bad.result(5)
    assert [future.result(5).position for future in good] == list(range(1, 11))
    with connection(tmp_path / "shop.db") as conn:
        assert orders(conn) == list(range(10))
    app.close()
