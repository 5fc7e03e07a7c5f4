"""What is read is on disk before anybody acts on it; and what this process has synced itself is not synced again."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tidings import App, Event
from tidings.store.postgres.durable import flush
from tidings.store.postgres.store import PostgresStore


class Placed(Event, key="order_id"):
    order_id: int


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    found = PostgresStore(postgres_url)
    found.open()
    yield found
    found.close()


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A mark for each sync that a reader asks for."""
    asked: list[int] = []

    def counted(conn: psycopg.Connection[object]) -> None:
        asked.append(1)
        flush(conn)

    monkeypatch.setattr("tidings.store.postgres.store.flush", counted)
    return asked


@pytest.mark.promise("nothing lost")
def test_what_this_process_has_synced_is_not_synced_again(store: PostgresStore, flushes: list[int]) -> None:
    app = App("shop", store=store)
    upto = 0
    for number in range(3):
        app.publish(Placed(number), tx="own").result(10)
        rows, upto = store.read(upto, 1000)
        assert (len(rows), upto) == (1, number + 1)
    assert flushes == []


@pytest.mark.promise("nothing lost")
def test_somebody_elses_rows_are(store: PostgresStore, flushes: list[int]) -> None:
    """Alone, and among our own: whether his commit was synced nobody knows."""
    app = App("shop", store=store)
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        app.publish(Placed(1), tx="own").result(10)
        with conn.transaction():
            app.publish(Placed(2), tx=conn)
        app.publish(Placed(3), tx="own").result(10)
        _, upto = store.read(0, 1000)
        assert (upto, len(flushes)) == (3, 1)
        with conn.transaction():
            app.publish(Placed(4), tx=conn)
        _, upto = store.read(upto, 1000)
        assert (upto, len(flushes)) == (4, 2)


@pytest.mark.promise("nothing lost")
def test_our_own_are_if_this_database_syncs_no_commits(postgres_url: str, flushes: list[int]) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{conn.info.dbname}" SET synchronous_commit = off')
    store = PostgresStore(postgres_url)
    store.open()
    try:
        App("shop", store=store).publish(Placed(1), tx="own").result(10)
        assert store.read(0, 1000)[1] == 1
        assert flushes == [1]
    finally:
        store.close()


@pytest.mark.promise("nothing lost")
def test_where_the_past_is_not_known_to_be_synced_our_own_are_too(store: PostgresStore, flushes: list[int]) -> None:
    """A reader that begins behind somebody else's rows must not take those for synced."""
    app = App("shop", store=store)
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        with conn.transaction():
            app.publish(Placed(1), tx=conn)
    app.publish(Placed(2), tx="own").result(10)
    assert store.read(1, 1000)[1] == 2
    assert flushes == [1]
