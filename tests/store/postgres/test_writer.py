"""Connections that break: before a COMMIT the work is done again, during one the server is asked what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.store.postgres.proxy import Proxy
from tidings import PostgresStore
from tidings.store.postgres.unit import PostgresUnit
from tidings.testing.contracts.store import an_event


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    made = Proxy(urlsplit(postgres_url).port or 0)
    yield made
    made.close()


@pytest.fixture
def store(postgres_url: str, proxy: Proxy) -> Iterator[PostgresStore]:
    port = urlsplit(postgres_url).port
    store = PostgresStore(postgres_url.replace(f":{port}/", f":{proxy.port}/"))
    store.open()
    yield store
    store.close()


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_whose_answer_is_lost_happens_once(store: PostgresStore, proxy: Proxy, cut: str) -> None:
    for number in range(5):
        proxy.cut = cut
        (position,) = store.write(partial(PostgresUnit.append, envelopes=[an_event(number)])).result(20)
        assert position > 0
    assert proxy.cuts == 5
    rows, _ = store.read(0, 10**6)
    assert [row[7] for row in rows] == [an_event(number).event_id for number in range(5)]


@pytest.mark.promise("effects once")
def test_jobs_whose_connection_ends_are_run_again(store: PostgresStore, postgres_url: str) -> None:
    ended: list[int] = []

    def job(unit: PostgresUnit) -> list[int]:
        written = unit.append([an_event(1)])
        if not ended:
            ended.append(1)
            unit._conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return written

    store.write(job).result(20)
    with psycopg.connect(postgres_url) as conn:
        assert conn.execute("SELECT count(*) FROM tidings_log").fetchone() == (1,)


def test_one_jobs_error_leaves_the_connection_as_it_was(store: PostgresStore) -> None:
    def wrong(unit: PostgresUnit) -> None:
        unit._conn.execute("SELECT 1 / 0")

    failing = store.write(wrong)
    writing = store.write(lambda unit: unit.append([an_event(1)]))
    assert failing.exception(10) is not None
    assert len(writing.result(10)) == 1
