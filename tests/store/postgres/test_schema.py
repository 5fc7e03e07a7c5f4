from __future__ import annotations

import threading

import psycopg
import pytest

from servers.postgres import Postgres
from tidings import PostgresStore, StoreNewer
from tidings.store.postgres import schema
from tidings.store.postgres.connect import connect


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as conn:
        return {row[0] for row in conn.execute("SELECT relname FROM pg_class WHERE relname LIKE 'tidings%'")}


def test_migrating_twice_changes_nothing(postgres_url: str) -> None:
    with connect(postgres_url) as conn:
        assert schema.version_of(conn) is None
        assert schema.migrate(conn, postgres_url) == [number for number, _, _ in schema.MIGRATIONS]
        assert schema.migrate(conn, postgres_url) == []
        assert schema.version_of(conn) == schema.NEWEST


def test_processes_that_start_together_migrate_once(postgres_url: str) -> None:
    stores = [PostgresStore(postgres_url) for _ in range(6)]
    errors: list[BaseException] = []

    def open_(store: PostgresStore) -> None:
        try:
            store.open()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({store.log_id for store in stores}) == 1
    for store in stores:
        store.close()


def test_tables_of_a_newer_tidings_are_left_alone(postgres_url: str) -> None:
    with connect(postgres_url) as conn:
        schema.migrate(conn, postgres_url)
        conn.execute("UPDATE tidings_meta SET value = '99' WHERE name = 'schema'")
        with pytest.raises(StoreNewer, match="upgrade tidings"):
            schema.migrate(conn, postgres_url)
        with pytest.raises(StoreNewer):
            schema.require(conn, postgres_url)


def test_the_printed_script_makes_the_same_store(postgres: Postgres, postgres_url: str) -> None:
    other = postgres.new_database()
    try:
        with psycopg.connect(other) as conn:
            conn.execute(schema.sql().encode())
        PostgresStore(postgres_url).open()
        assert tables(other) == tables(postgres_url)
        store = PostgresStore(other)
        store.open()
        assert store.log_id
        store.close()
    finally:
        postgres.drop_database(other)


def test_the_printed_script_from_a_version_on_brings_older_tables_up_to_date(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        with monkeypatch.context() as older:
            older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:-2])
            schema.migrate(conn, postgres_url)
        conn.execute(schema.sql(schema.NEWEST - 2).encode())
        schema.require(conn, postgres_url)
    other = postgres.new_database()
    try:
        PostgresStore(other).open()
        assert tables(other) == tables(postgres_url)
    finally:
        postgres.drop_database(other)


def test_two_services_share_a_database_in_schemas_of_their_own(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as conn:
        conn.execute("CREATE SCHEMA shop; CREATE SCHEMA mail")
    stores = [PostgresStore(f"{postgres_url}?options=-csearch_path%3D{name}") for name in ("shop", "mail")]
    for store in stores:
        store.open()
    assert stores[0].log_id != stores[1].log_id
    from tidings.testing.contracts.store import an_event

    stores[0].write(lambda unit: unit.append([an_event(1)])).result()
    assert len(stores[0].read(0, 10)[0]) == 1
    assert stores[1].read(0, 10)[0] == []
    for store in stores:
        store.close()
