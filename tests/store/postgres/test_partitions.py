"""The log in parts: there is always room, what everyone has passed goes as a whole, and nobody waits for either."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from servers.postgres import Postgres
from tidings import PostgresStore
from tidings.store.postgres import partitions, schema
from tidings.store.postgres.connect import connect
from tidings.store.postgres.partitions import SMALLEST, Part, cut, width
from tidings.testing.contracts.store import an_event


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres_url)
    store.open()
    yield store
    store.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, store: PostgresStore) -> int:
    """Parts so small that many are filled; the log's first ones are cut anew."""
    monkeypatch.setattr(partitions, "SMALLEST", 20)
    monkeypatch.setattr(partitions, "PARTS", 10**6)
    with connect(store.url) as conn:
        for part in partitions.parts(conn):
            conn.execute(f"DROP TABLE {part.name}".encode())
        conn.execute("CREATE TABLE tidings_log_0 PARTITION OF tidings_log FOR VALUES FROM (MINVALUE) TO (20)")
        for since, end in cut(20, None, 20):
            bounds = f"FROM ({since}) TO ({end or 'MAXVALUE'})"
            conn.execute(f"CREATE TABLE tidings_log_{since} PARTITION OF tidings_log FOR VALUES {bounds}".encode())
    return 20


def append(store: PostgresStore, count: int) -> list[int]:
    return store.write(lambda unit: unit.append([an_event(number) for number in range(count)])).result(30)


def parts(store: PostgresStore) -> list[Part]:
    with connect(store.url) as conn:
        return partitions.parts(conn)


def drawn_up_to(store: PostgresStore, position: int) -> None:
    with connect(store.url) as conn:
        conn.execute("SELECT setval('tidings_log_position_seq', %s)", (position,))


@pytest.mark.parametrize("until", [None, 21 * SMALLEST, 2 * SMALLEST, 10**15])
def test_a_cut_range_is_covered_without_gaps(until: int | None) -> None:
    pieces = cut(SMALLEST, until, SMALLEST)
    assert pieces[0][0] == SMALLEST
    assert pieces[-1][1] == until
    assert [end for _, end in pieces[:-1]] == [since for since, _ in pieces[1:]]
    assert all(end is None or since < end for since, end in pieces)


def test_a_large_log_has_larger_parts_and_not_more() -> None:
    assert width(0) == SMALLEST
    for kept in (10**8, 10**9, 10**11):
        assert kept / width(kept) <= partitions.PARTS < 2.1 * kept / width(kept)


@pytest.mark.promise("publishing never waits")
@pytest.mark.promise("atomic publish")
@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
def test_there_is_room_for_weeks_without_a_worker(postgres: Postgres, store: PostgresStore) -> None:
    """Publishing at the end of each part and in the next one, up to the last position there can be."""
    seen = [position for part in parts(store) if part.until is not None for position in (part.until - 1, part.until)]
    assert len(seen) > 8
    got: list[int] = []
    for position in (*seen, 10**9, 10**12, 2**62):
        drawn_up_to(store, position - 1)
        got += append(store, 1)
    assert got == [*seen, 10**9, 10**12, 2**62]
    rows, complete = store.read(0, 2**62)
    assert [row[0] for row in rows] == sorted(got)
    assert complete == 2**62


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
def test_a_part_written_by_name_gets_its_positions_from_the_sequence(postgres: Postgres, store: PostgresStore) -> None:
    """Where the column is an identity, an insert straight into a partition has none on PostgreSQL 15."""
    drawn_up_to(store, 2 * SMALLEST)
    store.upkeep(0)
    for part in parts(store)[:4]:
        drawn_up_to(store, part.since if part.since is not None else 1)
        with connect(store.url) as conn:
            statement = store.statement().replace("tidings_log", part.name)
            row = conn.execute(statement.encode(), an_event(1)[1:]).fetchone()
        assert row == ((part.since or 1) + 1,)


@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
def test_the_next_part_is_cut_to_size_when_the_one_before_it_is_reached(postgres: Postgres, store: PostgresStore) -> None:
    before = parts(store)
    store.upkeep(0)
    assert parts(store) == before
    drawn_up_to(store, 17 * SMALLEST + 5)  # in one that was left wide, since no worker ran
    store.upkeep(0)
    after = parts(store)
    here = next(place for place, part in enumerate(after) if part.until is None or part.until > 17 * SMALLEST + 5)
    ahead = after[here + 1]
    assert (ahead.since, ahead.until) == (257 * SMALLEST, 258 * SMALLEST)
    assert after[-1].until is None
    assert [part.until for part in after[:-1]] == [part.since for part in after[1:]]
    store.upkeep(0)
    assert parts(store) == after


@pytest.mark.promise("bounded")
@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
def test_parts_go_when_everyone_has_passed_and_not_before(postgres: Postgres, store: PostgresStore, small: int) -> None:
    def lanes(position: int, opened: int | None = None) -> None:
        with connect(store.url) as conn:
            conn.execute("UPDATE tidings_lanes SET position = %s", (position,))
            conn.execute("UPDATE tidings_lanes SET open = %s WHERE lane = 7", ([opened] if opened else [],))

    store.write(lambda unit: unit.register("mail", "shop", ["shop.Placed"], "key", 0, 0)).result(5)
    positions: list[int] = []
    for _ in range(7):
        positions += append(store, 10)
        store.upkeep(0)
    assert len(parts(store)) > 4
    lanes(59, opened=25)
    assert store.upkeep(59) == 1, "what is below 20 has gone, and 25 is open in the part behind it"
    assert store.query(lambda unit: unit.retained()) == 19
    assert [row[0] for row in store.read(0, 70)[0]] == positions[19:]
    lanes(59)
    assert store.upkeep(45) == 1, "retention is over for what is up to 45, and that is not all of the third part"
    assert store.write(lambda unit: unit.trim(45, 100)).result(5) == 0, "it will go as a whole"
    assert store.upkeep(10**9) == 1, "no further than everyone has passed"
    assert store.query(lambda unit: unit.retained()) == 59
    assert [row[0] for row in store.read(0, 70)[0]] == positions[59:]
    lanes(70)
    assert store.upkeep(70) == 0, "it is written now"
    assert store.write(lambda unit: unit.trim(65, 100)).result(5) == 6, "so there rows are deleted"
    assert append(store, 1) == [71]


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("publishing never waits")
@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
def test_parts_come_and_go_under_writers_and_a_reader(
    postgres: Postgres, store: PostgresStore, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut and dropped while four write, one of them in transactions that stay open for longer than anybody may wait
    for the lock. Nothing is lost or out of order, nobody's publish fails, and none waits for long."""
    monkeypatch.setattr(partitions, "SMALLEST", 100)
    stop, errors, waits = threading.Event(), list[BaseException](), list[float]()
    published: list[list[int]] = [[] for _ in range(4)]

    def write(number: int) -> None:
        try:
            with connect(store.url) as conn:
                while not stop.is_set():
                    began = time.monotonic()
                    with conn.transaction():
                        rows = [conn.execute(store.statement().encode(), an_event(1)[1:]).fetchone() for _ in range(1 + number)]
                        waits.append(time.monotonic() - began)
                        if number == 3:
                            stop.wait(0.12)
                    stop.wait(0.03)
                    published[number] += [row[0] for row in rows if row is not None]
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    dropped, cuts, until = 0, len(parts(store)), time.monotonic() + 30
    while (dropped < 5) and time.monotonic() < until:
        rows, _ = store.read(seen[-1] if seen else 0, 2**62)
        seen += [row[0] for row in rows]
        dropped += store.upkeep(seen[-1] if seen else 0)
    stop.set()
    for writer in writers:
        writer.join()
    rows, _ = store.read(seen[-1], 2**62)
    seen += [row[0] for row in rows]
    assert errors == []
    assert seen == sorted(position for positions in published for position in positions)
    assert dropped >= 5
    assert len(parts(store)) + dropped > cuts + 3
    assert max(waits) < 2.0


@pytest.mark.promise("publishing never waits")
def test_who_holds_the_log_is_not_waited_for(store: PostgresStore, small: int) -> None:
    append(store, 30)
    store.upkeep(0)
    with connect(store.url) as holder, connect(store.url) as other:
        holder.execute("BEGIN")
        holder.execute(store.statement().encode(), an_event(1)[1:])
        began = time.monotonic()
        asking = threading.Thread(target=lambda: store.upkeep(25))
        asking.start()
        slowest = 0.0
        while asking.is_alive():
            before = time.monotonic()
            other.execute(store.statement().encode(), an_event(1)[1:])
            slowest = max(slowest, time.monotonic() - before)
        asking.join()
        assert time.monotonic() - began > 3 * partitions.PAUSE_SECONDS, "it came back several times"
        assert slowest < 1.0
        assert parts(store)[0].until == 20, "and left it"
        holder.execute("COMMIT")
    assert store.upkeep(25) == 1


def test_a_role_that_owns_nothing_deletes_row_by_row(store: PostgresStore, small: int) -> None:
    append(store, 70)
    with connect(store.url) as conn:
        conn.execute("DROP ROLE IF EXISTS clerk")
        conn.execute("CREATE ROLE clerk LOGIN")
        conn.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO clerk")
        conn.execute("GRANT USAGE, SELECT ON SEQUENCE tidings_log_position_seq TO clerk")
    poor = PostgresStore(store.url.replace("tidings@", "clerk@"))
    poor.open()
    try:
        assert poor.upkeep(60) == 0
        assert poor.write(lambda unit: unit.trim(60, 1000)).result(5) == 60
        assert append(poor, 1) == [71]
    finally:
        poor.close()
        with connect(store.url) as conn:
            conn.execute("DROP OWNED BY clerk")
            conn.execute("DROP ROLE clerk")


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
def test_a_log_in_one_piece_becomes_the_first_part_as_it_is(postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not written anew, with its indexes, while a publisher whose statement is prepared goes on."""
    files = "SELECT relname, relfilenode FROM pg_class WHERE relname LIKE 'tidings_log%%' AND relfilenode <> 0 AND relkind <> 'S'"
    with connect(postgres_url) as conn, connect(postgres_url) as publisher:
        with monkeypatch.context() as old:
            older = tuple(one for one in schema.MIGRATIONS if one[0] < 3)
            old.setattr(schema, "MIGRATIONS", older)
            old.setattr(schema, "NEWEST", older[-1][0])
            schema.migrate(conn, postgres_url)
        statement = PostgresStore(postgres_url).statement().encode()
        for _ in range(20):
            publisher.execute(statement, an_event(1)[1:], prepare=True)
        before = dict(conn.execute(files).fetchall())
        assert schema.migrate(conn, postgres_url) == [*range(3, schema.NEWEST + 1)]
        after = {name.replace("tidings_log_0", "tidings_log"): file for name, file in conn.execute(files).fetchall() if "_log_0" in name}
        assert after == before
        row: Any = publisher.execute(statement, an_event(1)[1:], prepare=True).fetchone()
        assert row == (21,)
        store = PostgresStore(postgres_url)
        store.open()
        assert [row[0] for row in store.read(0, 100)[0]] == list(range(1, 22))
        found = store.query(lambda unit: unit.select(key=("order", "1"), limit=50))
        assert [envelope.position for envelope in found] == list(range(1, 22))
        store.close()
        # What is dropped takes nothing with it that the log needs.
        conn.execute("SELECT setval('tidings_log_position_seq', %s)", (SMALLEST + 1,))
        conn.execute("DROP TABLE tidings_log_0")
        assert publisher.execute(statement, an_event(1)[1:]).fetchone() == (SMALLEST + 2,)


def test_every_part_has_the_index_for_searching(store: PostgresStore) -> None:
    drawn_up_to(store, 2 * SMALLEST)
    store.upkeep(0)
    with psycopg.connect(store.url) as conn:
        indexes = conn.execute(
            "SELECT i.indrelid::regclass::text, c.reloptions FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'brin' AND c.relkind = 'i'"
        ).fetchall()
    assert {name for name, _ in indexes} == {part.name for part in parts(store)}
    assert all(options == ["pages_per_range=32", "autosummarize=on"] for _, options in indexes)
