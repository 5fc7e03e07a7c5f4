from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tidings import ConfigurationError, SQLiteStore, StoreBusy, StoreFailed
from tidings.store.sqlite.connect import connect, explain, is_busy, is_store_failure, path_of, write_lock_holder


@pytest.mark.parametrize(("url", "path"), [("sqlite:///shop.db", "shop.db"), ("sqlite:////var/shop.db", "/var/shop.db")])
def test_paths(url: str, path: str) -> None:
    assert path_of(url) == path


@pytest.mark.parametrize(
    "url", ["", "shop.db", "sqlite://shop.db", "sqlite:///", "postgresql:///shop", "sqlite:///:memory:", "sqlite:///a.db?mode=ro"]
)
def test_what_is_no_store(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SQLiteStore(url)
    assert str(caught.value).startswith(f"store={url!r}: ")
    assert "\n" not in str(caught.value)


def test_synchronous_is_full_or_normal() -> None:
    with pytest.raises(ConfigurationError, match='choose "FULL"'):
        SQLiteStore("sqlite:///shop.db", synchronous="OFF")


@pytest.mark.parametrize(("synchronous", "number"), [("FULL", 2), ("NORMAL", 1)])
def test_settings_of_a_connection(tmp_path: Path, synchronous: str, number: int) -> None:
    conn = connect(str(tmp_path / "a.db"), synchronous=synchronous, create=True)

    def ask(pragma: str) -> Any:
        return conn.execute(f"PRAGMA {pragma}").fetchone()[0]

    assert (ask("journal_mode"), ask("synchronous"), conn.isolation_level) == ("wal", number, None)
    assert 0 < ask("journal_size_limit") <= 64 * 1024 * 1024
    conn.close()


@pytest.mark.parametrize("name", ["a?b#c.db", "with blank.db", "ключ.db", "per%20cent.db"])
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    connect(str(tmp_path / name), synchronous="FULL", create=True).close()
    assert (tmp_path / name).exists()


def test_a_file_that_is_not_there_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="can't be opened"):
        connect(str(tmp_path / "absent.db"), synchronous="FULL")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match=r"can't be opened .*; check that the folder exists and this user may write there$"):
        SQLiteStore(f"sqlite:///{tmp_path}/nowhere/shop.db").open()


def test_a_folder_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match=r"is a folder; name a file in it, as in sqlite:///.*/shop.db$"):
        SQLiteStore(f"sqlite:///{tmp_path}").open()


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_text("order,total\n" * 200)
    with pytest.raises(StoreFailed, match=r"is no SQLite database; choose another file for the store$"):
        SQLiteStore(f"sqlite:///{tmp_path}/shop.db").open()


def test_a_locked_file_names_the_process_that_holds_it(tmp_path: Path) -> None:
    store = SQLiteStore(f"sqlite:///{tmp_path}/shop.db", busy=0.1)
    store.open()
    hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, store.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        if sys.platform == "linux":
            assert write_lock_holder(store.path) == (holder.pid, Path(f"/proc/{holder.pid}/comm").read_text().strip())
        with pytest.raises(StoreBusy, match=r"is locked: .* Let it commit, or end it; nothing was written here") as caught:
            store.write(lambda unit: unit.head()).result(10)
        assert caught.value.holder == (holder.pid if sys.platform == "linux" else None)  # type: ignore[attr-defined]
        holder.communicate()
    assert store.write(lambda unit: unit.head()).result(10) == 0
    assert write_lock_holder(store.path) is None
    store.close()


def test_asking_who_holds_the_lock_does_not_drop_ones_own(tmp_path: Path) -> None:
    """POSIX locks of a process go when it closes any descriptor of the file."""
    path = str(tmp_path / "a.db")
    one, two = (connect(path, synchronous="FULL", create=True, busy=0.05) for _ in range(2))
    one.execute("BEGIN IMMEDIATE")
    holder = write_lock_holder(path)
    assert holder is None or holder[0] == os.getpid()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        two.execute("BEGIN IMMEDIATE")
    one.rollback()
    one.close()
    two.close()


def test_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    conn = connect(str(tmp_path / "a.db"), synchronous="FULL", create=True)
    conn.execute("CREATE TABLE t (x)")
    conn.execute(f"PRAGMA max_page_count = {conn.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(sqlite3.OperationalError) as caught:
        conn.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert is_store_failure(caught.value)
    assert not is_busy(caught.value)
    error = explain(caught.value, "a.db")
    assert isinstance(error, StoreFailed)
    assert str(error) == "no space left for a.db (database or disk is full); free some, nothing was written and nothing is lost"
    conn.close()


def test_an_ordinary_error_is_not_the_stores() -> None:
    with sqlite3.connect(":memory:") as conn, pytest.raises(sqlite3.OperationalError) as caught:
        conn.execute("SELECT * FROM nowhere")
    conn.close()
    assert not is_busy(caught.value)
    assert not is_store_failure(caught.value)
    assert not is_busy(ValueError())
