"""A reader for what leaves the machine, in one round trip: it passes nothing that is still to come, and nothing that isn't on disk."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How far was written, for each sync that a cursor asks for."""
    asked: list[str] = []

    def counted(conn: psycopg.Connection[object], upto: str, *, seconds: float) -> None:
        asked.append(upto)
        flush(conn, upto, seconds=seconds)

    monkeypatch.setattr("tidings.store.postgres.cursor.flush", counted)
    return asked


@pytest.fixture
def cursor(store: PostgresStore) -> Iterator[PostgresCursor]:
    found = PostgresCursor(store.url, "shop")
    yield found
    found.close()


@pytest.mark.promise("nothing lost", "order per key")
def test_whatever_writers_do_each_event_is_given_once_and_in_order(store: PostgresStore, cursor: PostgresCursor) -> None:
    """Writers take their time between drawing a position and committing, some roll back, and it reads batches of any size."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    app, until = App("shop", store=store), time.monotonic() + 3.0

    def write(number: int) -> None:
        rng = random.Random(seed + number)
        with psycopg.connect(store.url) as conn:
            conn.execute(f"SET synchronous_commit = {rng.choice(['on', 'off'])}")
            conn.commit()
            while time.monotonic() < until:
                for _ in range(rng.randint(1, 3)):
                    app.publish(Placed(rng.randint(1, 1000)), tx=conn)
                    time.sleep(rng.choice([0, 0, rng.random() / 50]))
                conn.rollback() if rng.random() < 0.1 else conn.commit()
                time.sleep(rng.random() / 30)  # so that now and then nobody holds the horizon, and rows are asked for with it

    rng = random.Random(seed)
    mine = sorted(rng.sample(ALL, 40))
    found: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, number) for number in range(1, 5)]
        after = 0
        while True:
            over = all(one.done() for one in writing)
            rows, upto = cursor.read(mine, after, rng.randint(1, 30))
            assert all(after < row[0] <= upto for row in rows)
            found += [row[0] for row in rows]
            if over and upto == after and not cursor.unsynced:
                break
            after = upto
        for one in writing:
            one.result()
    with psycopg.connect(store.url) as conn:
        there = conn.execute("SELECT position FROM tidings_log WHERE lane = ANY (%s) ORDER BY position", (mine,)).fetchall()
    assert len(there) > 50
    assert found == [position for (position,) in there]


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
    store: PostgresStore, cursor: PostgresCursor, flushes: list[str]
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
    assert flushes


@pytest.mark.promise("nothing lost")
def test_others_rows_that_are_not_on_disk_are_passed_a_moment_later(
    store: PostgresStore, cursor: PostgresCursor, flushes: list[str]
) -> None:
    """Who has nothing to send does not sync the disk for it at once, and does not wait for ever."""
    app = App("shop", store=store)
    mine = [lane for lane in ALL if lane != lane_of("order_id", "1")]
    seen = 0
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        for number in range(1, 40):
            with conn.transaction():
                app.publish(Placed(1), tx=conn)
            asked = len(flushes)
            rows, upto = cursor.read(mine, number - 1, 10)
            assert (rows, len(flushes)) == ([], asked)
            if cursor.unsynced:
                seen += 1
                assert upto == number - 1
                assert cursor.read(mine, upto, 10) == ([], number)
                assert not cursor.unsynced
            else:  # the server's own writer was quicker
                assert upto == number
    assert seen > 0
    assert flushes


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
