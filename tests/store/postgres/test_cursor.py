"""A reader for what leaves the machine, in one round trip: it passes nothing that is still to come, and nothing that isn't on disk."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tidings import App, Event
from tidings.envelope import LANES, lane_of
from tidings.errors import LogWentBack, StoreError
from tidings.store.postgres.cursor import PostgresCursor
from tidings.store.postgres.durable import WRITTEN, flush
from tidings.store.postgres.store import PostgresStore

ALL = range(LANES)


class Placed(Event, key="order_id"):
    order_id: int


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    found = PostgresStore(postgres_url)
    found.open()
    yield found
    found.close()


class Counted:
    """``flush``, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, conn: psycopg.Connection[object], upto: str | None = None, *, seconds: float = 0.0) -> None:
        assert upto is not None
        self.asked += 1
        flush(conn, upto, seconds=seconds)


@pytest.fixture
def flushes() -> Counted:
    return Counted()


@pytest.fixture
def cursor(store: PostgresStore, flushes: Counted) -> Iterator[PostgresCursor]:
    found = PostgresCursor(store.url, "shop", flushes)
    yield found
    found.close()


@pytest.mark.promise("nothing lost")
def test_what_comes_from_beyond_the_horizon_is_thrown_away(store: PostgresStore, cursor: PostgresCursor) -> None:
    """The rows are asked for before it is known how far they may be read."""
    app = App("shop", store=store)
    assert cursor.read(ALL, 0, 10) == ([], 0)
    with psycopg.connect(store.url) as slow, psycopg.connect(store.url) as quick:
        app.publish(Placed(1), tx=slow)
        app.publish(Placed(2), tx=quick)
        quick.commit()
        for _ in range(3):
            assert cursor.read(ALL, 0, 10) == ([], 0)
            assert cursor.held_back
        slow.commit()
        rows, upto = cursor.read(ALL, 0, 10)
        assert ([row[0] for row in rows], upto, cursor.held_back) == ([1, 2], 2, False)


@pytest.mark.promise("nothing lost")
def test_one_that_commits_between_the_reading_and_the_rows_waits_for_the_next(store: PostgresStore, cursor: PostgresCursor) -> None:
    """Rows below the horizon and above it in one answer, and a batch that is cut by its number of rows as well."""
    app = App("shop", store=store)
    with psycopg.connect(store.url, autocommit=True) as conn:
        for number in range(1, 6):
            app.publish(Placed(number), tx="own").result(10)
        with psycopg.connect(store.url) as slow:
            app.publish(Placed(6), tx=slow)
            with conn.transaction():
                app.publish(Placed(7), tx=conn)
            rows, upto = cursor.read(ALL, 0, 3)  # the first reading of all: he may have drawn anything
            assert (rows, upto) == ([], 0)
            slow.commit()
        with psycopg.connect(store.url) as slow:
            rows, upto = cursor.read(ALL, 0, 3)
            assert ([row[0] for row in rows], upto) == ([1, 2, 3], 3)
            app.publish(Placed(8), tx=slow)
            with conn.transaction():
                app.publish(Placed(9), tx=conn)
            rows, upto = cursor.read(ALL, 3, 10)
            assert ([row[0] for row in rows], upto) == ([4, 5, 6, 7], 7)
            slow.commit()
        assert [row[0] for row in cursor.read(ALL, 7, 10)[0]] == [8, 9]


@pytest.mark.promise("nothing lost")
def test_rows_of_a_commit_that_was_not_synced_are_synced_before_they_are_given(
    store: PostgresStore, cursor: PostgresCursor, flushes: Counted
) -> None:
    app = App("shop", store=store)
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        for number in range(1, 20):
            with conn.transaction():
                app.publish(Placed(number), tx=conn)
            (written, _) = conn.execute(WRITTEN).fetchall()[0]
            rows, upto = cursor.read(ALL, number - 1, 10)
            assert (len(rows), upto) == (1, number)
            assert conn.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", (written,)).fetchall() == [(True,)]
    assert flushes.asked > 0


@pytest.mark.promise("nothing lost")
def test_others_rows_that_are_not_on_disk_are_passed_a_moment_later(store: PostgresStore, cursor: PostgresCursor, flushes: Counted) -> None:
    """Who has nothing to send does not sync the disk for it at once, and does not wait for ever."""
    app = App("shop", store=store)
    mine = [lane for lane in ALL if lane != lane_of("order_id", "1")]
    seen = 0
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        for number in range(1, 40):
            with conn.transaction():
                app.publish(Placed(1), tx=conn)
            asked = flushes.asked
            rows, upto = cursor.read(mine, number - 1, 10)
            assert (rows, flushes.asked) == ([], asked)
            if cursor.unsynced:
                seen += 1
                assert upto == number - 1
                assert cursor.read(mine, upto, 10) == ([], number)
                assert not cursor.unsynced
            else:  # the server's own writer was quicker
                assert upto == number
    assert seen > 0
    assert flushes.asked > 0


@pytest.mark.promise("nothing lost")
def test_what_is_wrong_is_said_as_before(store: PostgresStore, cursor: PostgresCursor) -> None:
    app = App("shop", store=store)
    app.publish(Placed(1), tx="own").result(10)
    rows, _ = cursor.read(ALL, 0, 10)
    with pytest.raises(LogWentBack, match="is there no more"):
        cursor.read(ALL, 1, 10, (1, "another"))
    with pytest.raises(LogWentBack, match="the log ends at 1"):
        cursor.read(ALL, 2, 10)
    assert cursor.read(ALL, 1, 10, (1, rows[0][7])) == ([], 1)
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("ALTER TABLE tidings_log RENAME TO elsewhere")
        with pytest.raises(StoreError):
            cursor.read(ALL, 1, 10)
        conn.execute("ALTER TABLE elsewhere RENAME TO tidings_log")
    app.publish(Placed(2), tx="own").result(10)
    assert [row[0] for row in cursor.read(ALL, 1, 10)[0]] == [2]
