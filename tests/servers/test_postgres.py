"""The servers that everything else is tested on: they start, die and come back, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from servers import debian
from servers import postgres as module
from servers.folder import Missing, within
from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres, Program
from tests.promises import ROOT

VERSIONS = [15, 18]


@pytest.mark.parametrize("postgres", VERSIONS, indirect=True)
def test_a_new_database_is_empty_and_durable(postgres, postgres_url):
    with psycopg.connect(postgres_url) as conn:
        assert conn.info.server_version // 10_000 == postgres.version
        assert conn.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchone() == (0,)
        for setting, value in {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "wal_level": "logical"}.items():
            assert conn.execute("SELECT current_setting(%s)", (setting,)).fetchone() == (value,)


@pytest.mark.parametrize("postgres", VERSIONS, indirect=True)
@pytest.mark.parametrize("way", ["fast", "immediate", "kill"])
def test_what_was_committed_or_prepared_survives(postgres, postgres_url, way):
    conn = psycopg.connect(postgres_url, autocommit=True)
    conn.execute("CREATE TABLE t (n int)")
    conn.execute("INSERT INTO t VALUES (1)")
    conn.execute("BEGIN")
    conn.execute("INSERT INTO t VALUES (2)")
    conn.execute("PREPARE TRANSACTION 'two'")
    conn.execute("BEGIN")
    conn.execute("INSERT INTO t VALUES (3)")
    if way == "kill":
        postgres.kill()
        assert within(postgres.data) == []
        postgres.start()
    else:
        postgres.restart(way)
    conn.close()
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        assert conn.execute("SELECT n FROM t").fetchall() == [(1,)]
        conn.execute("COMMIT PREPARED 'two'")
        assert conn.execute("SELECT n FROM t ORDER BY n").fetchall() == [(1,), (2,)]


def test_a_server_that_a_test_stopped_runs_for_the_next_one(postgres, postgres_url):
    postgres.stop("immediate")
    assert not postgres.running


def test_a_database_goes_with_what_is_prepared_and_connected(postgres):
    url = postgres.new_database()
    conn = psycopg.connect(url, autocommit=True)
    conn.execute("BEGIN")
    conn.execute("CREATE TABLE t ()")
    conn.execute("PREPARE TRANSACTION 'left'")
    postgres.drop_database(url)
    conn.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_a_version_that_is_not_here_is_missing():
    with pytest.raises(Missing, match=r"no PostgreSQL 9 is here, only .*18"):
        Postgres(9)


def test_nothing_is_left_when_the_owner_is_killed():
    program = "from servers.postgres import Postgres; s = Postgres(); print(s.data, flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with owner:
        assert owner.stdout is not None
        data = Path(owner.stdout.readline().strip())
        assert within(data)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    until = time.monotonic() + 20
    while (within(data) or data.parent.exists()) and time.monotonic() < until:
        time.sleep(0.01)
    assert within(data) == []
    assert not data.parent.exists()


def test_a_program_in_a_private_folder(tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("only root runs servers as somebody else")  # who is not root runs them as himself, and can reach what is his
    real = module.programs()[18]
    base = tmp_path / "private"
    for part in real.parts:
        shutil.copytree(real.base / part, base / part)
    base.chmod(0o700)
    hidden = Program(base / real.bin.relative_to(real.base), base, real.parts)
    monkeypatch.setattr(module, "programs", lambda: {18: hidden})
    with Postgres() as server, psycopg.connect(server.url()) as conn:
        assert conn.info.server_version // 10_000 == 18


def test_pgbouncer_hands_out_backends_by_transaction(postgres, postgres_url, pgbouncer):
    url = pgbouncer.url(postgres_url)
    with psycopg.connect(url, prepare_threshold=None) as one, psycopg.connect(url, prepare_threshold=None) as two:
        first = one.execute("SELECT pg_backend_pid()").fetchone()
        one.commit()
        assert two.execute("SELECT pg_backend_pid()").fetchone() == first
        assert one.execute("SELECT pg_backend_pid()").fetchone() != first


def test_without_apt_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "not Debian" in (debian.fetch(("pgbouncer",), tmp_path / "debian") or "")
    assert list(tmp_path.iterdir()) == []


def test_without_pgbouncer(postgres, monkeypatch):
    monkeypatch.setattr("servers.pgbouncer.program", lambda: None)
    with pytest.raises(Missing, match="PgBouncer"):
        PgBouncer(postgres)


def test_a_test_whose_server_is_missing_counts_as_untested(tmp_path):
    test = tmp_path / "test_it.py"
    test.write_text("""
import pytest

@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("postgres", [9], indirect=True)
def test_it(postgres_url):
    raise AssertionError
""")
    plugins = ("-p", "tests.promises", "-p", "tests.servers.fixtures")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), *plugins, str(test)],
        cwd=ROOT,
        env={**os.environ, "CI": "true"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "promises left untested: 1" in ran.stdout
    assert "nothing lost: no PostgreSQL 9 is here" in ran.stdout
    assert ran.returncode == 1
