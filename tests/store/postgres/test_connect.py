from __future__ import annotations

import psycopg
import pytest

from servers.folder import free_port
from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tidings import ConfigurationError, PostgresStore, StoreFailed, StoreNotInitialised
from tidings.store.postgres.connect import connect, explain, is_busy, is_lost, is_pooled, sqlstate_of
from tidings.testing.contracts.store import an_event


@pytest.mark.parametrize("url", ["postgresql://", "mysql://localhost/shop", "postgresql://localhost", "shop.db", "postgresql:///"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://user@host:5432/database"):
        PostgresStore(url)


def test_a_password_is_shown_nowhere() -> None:
    store = PostgresStore(f"postgresql://ada:geheim@127.0.0.1:{free_port()}/shop")
    assert "geheim" not in store.label
    with pytest.raises(StoreFailed) as caught:
        store.open()
    assert "geheim" not in str(caught.value)
    assert "see that it runs and listens there" in str(caught.value)


def test_what_to_do_about_a_database_that_is_not_there(postgres_url: str) -> None:
    with pytest.raises(StoreFailed, match="create it with `createdb`"):
        PostgresStore(postgres_url + "_gone").open()


def test_a_missing_right_is_named(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.open()
    store.close()
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS nobody_much")
        conn.execute("CREATE ROLE nobody_much LOGIN")
    poor = PostgresStore(postgres_url.replace("tidings@", "nobody_much@"))
    try:
        with pytest.raises(StoreFailed, match="lacks a right"):
            poor.open()
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as conn:
            conn.execute("DROP ROLE nobody_much")


def test_tables_that_are_not_there(postgres_url: str) -> None:
    with pytest.raises(StoreNotInitialised, match=r"tidings store init --store postgresql://"):
        PostgresStore(postgres_url).open_to_read()


def test_kinds_of_errors(postgres_url: str) -> None:
    with connect(postgres_url) as conn:
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("SELECT 1 / 0")
        assert sqlstate_of(caught.value) == "22012"
        assert not is_busy(caught.value)
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        assert is_busy(caught.value)
        assert not is_lost(caught.value)
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("SELECT * FROM tidings_log")
        assert isinstance(explain(caught.value, postgres_url), StoreNotInitialised)
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert is_lost(caught.value)
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("SELECT 1")
        assert is_lost(caught.value)


def test_a_server_that_is_down(postgres: Postgres, postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.open()
    try:
        postgres.stop("immediate")
        with pytest.raises(StoreFailed, match="see that it runs"):
            store.query(lambda unit: unit.head())
        with pytest.raises(StoreFailed):
            store.read(0, 10)
        postgres.start()
        store.write(lambda unit: unit.set_paused("nobody", True)).result(10)
        assert store.query(lambda unit: unit.head()) == 0
        assert store.read(0, 10) == ([], 0)
    finally:
        postgres.start()
        store.close()


def test_a_pooler_is_noticed(postgres_url: str, pgbouncer: PgBouncer) -> None:
    """Nobody has to say so: what needs a session is left out."""
    with connect(postgres_url) as direct, connect(pgbouncer.url(postgres_url)) as pooled:
        assert not is_pooled(direct)
        assert direct.prepare_threshold == 5
        assert is_pooled(pooled)
        assert pooled.prepare_threshold is None


@pytest.mark.promise("nothing lost")
def test_statements_are_not_prepared_where_another_backend_may_come_next(postgres_url: str, pgbouncer: PgBouncer) -> None:
    store = PostgresStore(pgbouncer.url(postgres_url))
    store.open()
    try:
        for number in range(12):  # a driver prepares at the sixth
            with connect(pgbouncer.url(postgres_url)) as other:
                other.execute("BEGIN")
                other.execute("SELECT 1")  # holds a backend, so that the store gets another one
                assert store.write(lambda unit: unit.append([an_event(1)])).result(10) == [number + 1]
                assert store.query(lambda unit: unit.retained()) == 0
                assert len(store.read(0, 100)[0]) == number + 1
                other.execute("COMMIT")
    finally:
        store.close()
