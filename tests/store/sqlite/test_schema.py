from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tidings import App, Event, SQLiteStore, StoreError, StoreNewer, StoreNotInitialised
from tidings.store.sqlite import schema


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    conn = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    yield conn
    conn.close()


def tables(conn: sqlite3.Connection) -> set[str]:
    return {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE name LIKE 'tidings%'")}


def shape(conn: sqlite3.Connection) -> list[tuple[str, ...]]:
    return conn.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def view(conn: sqlite3.Connection) -> str:
    """The one view: its name is that of this log."""
    ((name,),) = conn.execute("SELECT name FROM sqlite_master WHERE type = 'view'")
    assert name == schema.name_of(conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()[0])
    return str(name)


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    assert [number for number, _, _ in schema.MIGRATIONS] == list(range(1, schema.NEWEST + 1))


def test_a_new_file_gets_all_of_them_once(conn: sqlite3.Connection) -> None:
    assert schema.version_of(conn) is None
    with pytest.raises(StoreNotInitialised, match=r"^x\.db has no Tidings tables; run `tidings store init --store sqlite:///x\.db`$"):
        schema.require(conn, "x.db")
    assert schema.migrate(conn, "x.db") == list(range(1, schema.NEWEST + 1))
    assert schema.version_of(conn) == schema.NEWEST
    schema.require(conn, "x.db")
    before = shape(conn)
    facts = dict(conn.execute("SELECT name, value FROM tidings_meta"))
    assert schema.migrate(conn, "x.db") == []
    assert shape(conn) == before
    assert dict(conn.execute("SELECT name, value FROM tidings_meta")) == facts
    assert uuid.UUID(facts["log_id"]).version == 4
    assert (facts["incarnation"], facts["retained"]) == ("1", "0")


@pytest.mark.parametrize("version", range(1, schema.NEWEST))
def test_every_older_version_is_brought_up_and_keeps_its_rows(
    conn: sqlite3.Connection, version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:version])
        older.setattr(schema, "NEWEST", version)
        schema.migrate(conn, "x.db")
    log_id = conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()
    conn.execute(
        "INSERT INTO tidings_log (lane, topic, type, version, event_id, time, source, data, correlation_id)"
        " VALUES (1, 'shop', 'shop.Placed', 1, 'id', 1, 'shop', '{}', 'id')"
    )
    with pytest.raises(StoreError, match="was made by an older Tidings"):
        schema.require(conn, "x.db")
    assert schema.migrate(conn, "x.db") == list(range(version + 1, schema.NEWEST + 1))
    assert conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone() == log_id
    assert conn.execute("SELECT count(*) FROM tidings_log").fetchone() == (1,)
    with sqlite3.connect(":memory:", isolation_level=None) as fresh:
        schema.migrate(fresh, "y.db")
        assert [name for name, _ in shape(fresh) if name != view(fresh)] == [name for name, _ in shape(conn) if name != view(conn)]
        assert view(fresh) != view(conn)
    fresh.close()


def test_a_migration_that_fails_changes_nothing(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*schema.MIGRATIONS, (99, "bad", "CREATE TABLE tidings_more (a);\nINSERT INTO nowhere VALUES (1);"))
    )
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(conn, "x.db")
    assert tables(conn) == set()
    assert not conn.in_transaction


def test_a_store_of_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    class Placed(Event, key="order"):
        order: int

    path = tmp_path / "shop.db"
    store = SQLiteStore(f"sqlite:///{path}")
    store.open()
    store.close()
    conn = sqlite3.connect(path)
    with conn:
        conn.execute("UPDATE tidings_meta SET value = '999' WHERE name = 'schema'")
    before = shape(conn)
    with pytest.raises(
        StoreNewer, match=r"was made by a newer Tidings \(schema 999, this one knows \d+\); upgrade tidings in this environment$"
    ) as caught:
        App("shop", store=f"sqlite:///{path}").publish(Placed(order=1), tx="own")
    assert (caught.value.found, caught.value.known) == (999, schema.NEWEST)  # type: ignore[attr-defined]
    with pytest.raises(StoreNewer):
        store.open_to_read()
    assert shape(conn) == before
    conn.close()


def test_processes_that_start_together_make_one_log(tmp_path: Path) -> None:
    stores = [SQLiteStore(f"sqlite:///{tmp_path}/shop.db") for _ in range(6)]
    barrier = threading.Barrier(len(stores))
    errors: list[BaseException] = []

    def start(store: SQLiteStore) -> None:
        barrier.wait()
        try:
            store.open()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({store.log_id for store in stores}) == 1
    for store in stores:
        store.close()


def test_the_printed_script_makes_the_same_tables(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, "x.db")
    other = sqlite3.connect(":memory:")
    other.executescript(schema.sql())
    assert [row for row in shape(conn) if not row[0].startswith("sqlite_") and row[0] != view(conn)] == [
        row for row in shape(other) if not row[0].startswith("sqlite_")
    ]
    other.close()


def test_the_printed_script_makes_a_store_that_can_be_used(tmp_path: Path) -> None:
    class Placed(Event, key="order"):
        order: int

    path = tmp_path / "by-hand.db"
    with closing(sqlite3.connect(path)) as by_hand:
        by_hand.executescript(schema.sql())
    with pytest.raises(StoreNotInitialised, match="tidings store init"):
        SQLiteStore(f"sqlite:///{path}").open_to_read()
    app, ids = App("shop", store=f"sqlite:///{path}"), set()
    for _ in range(2):
        app.open()
        ids.add(app.store.log_id)
        with closing(sqlite3.connect(path)) as conn, conn:
            app.publish(Placed(order=1), tx=conn)
        app.close()
    assert len(ids) == 1


def test_the_printed_script_from_a_version_on_brings_older_tables_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:-2])
        schema.migrate(conn, "x.db")
    conn.executescript(schema.sql(schema.NEWEST - 2))
    assert schema.version_of(conn) == schema.NEWEST
    other = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(other, "x.db")
    assert [row for row in shape(conn) if row[0] != view(conn)] == [row for row in shape(other) if row[0] != view(other)]


def test_the_log_has_no_index_that_every_publish_would_pay(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, "x.db")
    assert conn.execute("PRAGMA index_list(tidings_log)").fetchall() == []
