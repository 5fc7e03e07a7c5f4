from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said
from tests.promises import untested
from tidings import SQLiteStore
from tidings.store.postgres import schema as postgres_schema
from tidings.store.sqlite import schema


def test_init_twice(tmp_path: Path, tidings: Tidings) -> None:
    first = said(tidings("store", "init", "--json", store=tmp_path / "new.db"))
    assert first["schema"] == schema.NEWEST
    assert said(tidings("store", "init", "--json", store=tmp_path / "new.db")) == first


def test_sql_makes_the_same_tables(tmp_path: Path, tidings: Tidings) -> None:
    def tables(path: Path) -> set[tuple[str, str]]:
        conn = sqlite3.connect(path)
        found = set(conn.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type <> 'view'"))
        conn.close()
        return found

    conn = sqlite3.connect(tmp_path / "by-hand.db")
    conn.executescript(tidings("store", "sql").output)
    conn.close()
    tidings("store", "init", store=tmp_path / "made.db")
    assert tables(tmp_path / "by-hand.db") == tables(tmp_path / "made.db")


@pytest.mark.parametrize(("dialect", "newest"), [("sqlite", schema.NEWEST), ("postgresql", postgres_schema.NEWEST)])
def test_sql_of_later_versions_alone(dialect: str, newest: int, tidings: Tidings) -> None:
    output = tidings("store", "sql", dialect, "--from", str(newest - 1)).output
    assert output.startswith(f"-- {newest}: ")
    assert "CREATE TABLE tidings_log" not in output
    assert f"UPDATE tidings_meta SET value = '{newest}' WHERE name = 'schema';" in output
    (row,) = said(tidings("store", "sql", dialect, "--from", str(newest - 1), "--json"))
    assert row["number"] == newest
    assert "is the newest" in tidings("store", "sql", dialect, "--from", str(newest), code=2).stderr


def test_check(filled: Path, tidings: Tidings) -> None:
    assert "in order" in tidings("store", "check", "--full", store=filled).output
    found = said(tidings("store", "check", "--json", store=filled))
    assert (found["ok"], found["events"], found["head"], found["searched_plainly"]) == (True, 7, 7, 7)


def test_check_of_a_damaged_file(store: Path, tidings: Tidings) -> None:
    conn = sqlite3.connect(store)
    conn.execute("PRAGMA writable_schema = ON")
    conn.execute("UPDATE sqlite_master SET rootpage = 2 WHERE name = 'tidings_parked_key'")
    conn.commit()
    conn.close()
    result = tidings("store", "check", "--full", store=store, code=1)
    assert "damaged" in result.output
    assert "Restore a backup" in result.stderr


@pytest.mark.parametrize(("option", "deleted"), [("--upto 3", 3), ("--upto 99", 7), ("--older 1h", 0), ("--before 2999-01-01", 7)])
def test_trim(option: str, deleted: int, store: Path, tidings: Tidings) -> None:
    assert said(tidings("store", "trim", *option.split(), "--yes", "--json", store=store))["deleted"] == deleted


def test_trim_stops_where_a_subscription_has_not_been(store: Path, tidings: Tidings) -> None:
    tidings("subscription", "rewind", "inventory", "--to", "2", "--yes", store=store)
    result = tidings("store", "trim", "--upto", "7", "--yes", "--json", store=store)
    assert said(result)["deleted"] == 2
    assert "only read up to 2" in result.stderr


def test_trim_asks_and_wants_one_limit(store: Path, tidings: Tidings) -> None:
    tidings("store", "trim", "--upto", "3", store=store, code=1, input="n\n")
    assert said(tidings("store", "check", "--json", store=store))["events"] == 7
    assert "say how far" in tidings("store", "trim", store=store, code=2).output


def test_condense(store: Path, tidings: Tidings) -> None:
    conn = sqlite3.connect(store)
    conn.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        " INSERT INTO tidings_log (lane, topic, type, version, key_name, key, event_id, time, source, data, correlation_id)"
        " SELECT 1, 'a', 'a.B', 1, 'n', i % 9000, 'e' || i, 1, 'a', x'7b7d', 'e' || i FROM n"
    )
    conn.commit()
    conn.close()
    before = tidings("log", "--key", "n", "77", store=store).output
    assert said(tidings("store", "condense", "--json", store=store))["blocks"] == 2
    assert said(tidings("store", "check", "--json", store=store))["searched_plainly"] < 8192
    assert tidings("log", "--key", "n", "77", store=store).output == before
    assert before.count("\n") == 3


@pytest.mark.parametrize("number", [schema.NEWEST + 1, 0])
def test_another_schema(number: int, store: Path, tidings: Tidings) -> None:
    conn = sqlite3.connect(store)
    conn.execute("UPDATE tidings_meta SET value = ? WHERE name = 'schema'", (str(number),))
    conn.commit()
    conn.close()
    output = tidings("status", store=store, code=2).output
    assert ("upgrade tidings" if number else "tidings store init") in output
    assert output.count("\n") == 1


@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_reading_needs_no_right_to_write(open_elsewhere: bool, filled: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As another user, in a folder that isn't theirs; with workers running (a -wal file) and without."""
    if os.getuid() != 0:
        untested("independence", "becoming another user needs root")
    folder = Path("/tmp") / f"tidings-read-only-{os.getpid()}-{open_elsewhere}"
    folder.mkdir()
    try:
        path = Path(shutil.copy(filled, folder))
        folder.chmod(0o755)
        path.chmod(0o644)
        store = SQLiteStore(f"sqlite:///{path}")
        if open_elsewhere:
            store.open()
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").chmod(0o644)
        before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                other = SQLiteStore(f"sqlite:///{path}")
                other.open_to_read()
                code = 0 if other.query(lambda unit: unit.head()) == 7 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
        if open_elsewhere:
            store.close()
    finally:
        shutil.rmtree(folder)
