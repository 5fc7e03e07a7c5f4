from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tidings import Clock, PostgresStore, SQLiteStore
from tidings.store.port import Store
from tidings.testing.contracts.store import StoreContract


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
class TestSQLiteStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _synchronous(self, synchronous: str) -> None:
        self.synchronous = synchronous

    def make_store(self, folder: Path, clock: Clock) -> Store:
        return SQLiteStore(f"sqlite:///{folder}/log.db", clock=clock, synchronous=self.synchronous)


@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _databases(self, postgres: Postgres) -> Iterator[None]:
        self.postgres = postgres
        self.urls: dict[Path, str] = {}
        yield
        for url in self.urls.values():
            postgres.drop_database(url)

    def make_store(self, folder: Path, clock: Clock) -> Store:
        if folder not in self.urls:
            self.urls[folder] = self.postgres.new_database()
        return PostgresStore(self.urls[folder], clock=clock)


class TestPostgresStoreBehindPgBouncer(TestPostgresStore):
    @pytest.fixture(autouse=True)
    def _pooler(self, pgbouncer: PgBouncer) -> None:
        self.pgbouncer = pgbouncer

    def make_store(self, folder: Path, clock: Clock) -> Store:
        if folder not in self.urls:
            self.urls[folder] = self.postgres.new_database()
        return PostgresStore(self.pgbouncer.url(self.urls[folder]), clock=clock)
