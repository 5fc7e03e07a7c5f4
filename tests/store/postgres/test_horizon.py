"""The lockers' horizon: its decision against a model of writers, and its readings against real servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tidings.errors import StoreError
from tidings.store.postgres import horizon as module
from tidings.store.postgres.horizon import BACKENDS, Horizon, Reading, lockers

TABLES = """
CREATE SEQUENCE tidings_log_position_seq AS bigint CACHE 1;
CREATE TABLE tidings_log (
    position bigint NOT NULL DEFAULT nextval('tidings_log_position_seq') PRIMARY KEY,
    key integer NOT NULL
) PARTITION BY RANGE (position);
ALTER SEQUENCE tidings_log_position_seq OWNED BY tidings_log.position;
CREATE TABLE tidings_log_1 PARTITION OF tidings_log FOR VALUES FROM (1) TO (1000);
CREATE TABLE tidings_log_2 PARTITION OF tidings_log FOR VALUES FROM (1000) TO (2000);
CREATE TABLE unrelated (n integer);
"""
INSERT = "INSERT INTO tidings_log (key) VALUES (1)"


# -- the decision


class Readings(RuleBasedStateMachine):
    """Writers, a server that restarts, and a reader behind a pooler whose two statements may be far apart.

    Nothing may be in flight at or below what is called safe, now or later; and once all have ended, everything is safe.
    """

    def __init__(self) -> None:
        super().__init__()
        self.horizon = Horizon()
        self.drawn = 0
        self.flushed = 0  # what the sequence goes back to if the server crashes, at the least
        self.writers: dict[str, list[int]] = {}  # who holds the lock, and the positions he has not committed yet
        self.idle: list[str] = []  # transactions that have not touched the log
        self.names = 0
        self.run = 0
        self.safe_in_run = 0
        self.half: tuple[str, int] | None = None

    @rule(rows=st.integers(0, 3))
    def begin(self, rows: int) -> None:
        """A transaction, which may have written something by the next step."""
        self.names += 1
        name = f"3/{self.names}"
        if rows:
            self.writers[name] = []
            self.write(name, rows)
        else:
            self.idle.append(name)

    def write(self, writer: str, rows: int) -> None:
        for _ in range(rows):
            self.drawn += 1
            assert self.drawn > self.safe_in_run, "drawn behind the reader's back"
            self.writers[writer].append(self.drawn)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def lock(self, data: st.DataObject) -> None:
        self.writers[self.idle.pop(data.draw(st.integers(0, len(self.idle) - 1)))] = []

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), rows=st.integers(1, 3))
    def draw(self, data: st.DataObject, rows: int) -> None:
        self.write(data.draw(st.sampled_from(sorted(self.writers))), rows)

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), how=st.sampled_from(["end", "end", "savepoint"]))
    def end(self, data: st.DataObject, how: str) -> None:
        writer = data.draw(st.sampled_from(sorted(self.writers)))
        positions = self.writers.pop(writer)
        self.flushed = max([self.flushed, *positions])
        if how == "savepoint":  # rolled back to before the lock; the transaction goes on, under its name
            self.idle.append(writer)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """Of the transactions only prepared ones come back, by another name; names begin anew; the sequence may go back."""
        prepared = data.draw(st.sets(st.sampled_from(sorted(self.writers))))
        kept = {f"-1/{self.run}{name}": self.writers[name] for name in prepared if self.writers[name]}
        lowest = max([self.flushed, *(position for positions in kept.values() for position in positions)])
        self.drawn = data.draw(st.integers(lowest, max(lowest, self.drawn)))
        self.writers, self.idle, self.names, self.half = kept, [], 0, None
        self.run += 1
        self.safe_in_run = 0

    backends = st.sampled_from([0, 0, 0, 0, 1])

    @rule(backend=backends)
    def first_statement(self, backend: int) -> None:
        self.half = (f"{backend} of run {self.run}", self.drawn)

    @rule(backend=backends)
    def second_statement(self, backend: int) -> None:
        """After a first one some steps ago, or one just now."""
        observer, last = self.half or (f"{backend} of run {self.run}", self.drawn)
        safe = self.horizon.take(Reading(observer, last, frozenset(self.writers)))
        self.half = None
        assert safe >= self.safe_in_run or safe == 0
        self.safe_in_run = max(self.safe_in_run, safe)
        assert all(position > safe for positions in self.writers.values() for position in positions), "still in flight"
        assert self.horizon.held_back == (safe < last)
        if not self.writers:
            assert safe == last

    @invariant()
    def bounded(self) -> None:
        assert len(self.horizon._since) <= 1000
        assert len(self.horizon._backends) <= BACKENDS


TestReadings = Readings.TestCase
TestReadings.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def reading(last: int, *who: str, backend: str = "a") -> Reading:
    return Reading(backend, last, frozenset(who))


def test_a_position_waits_for_those_who_could_have_drawn_below_it_and_for_nobody_else():
    horizon = Horizon()
    assert horizon.take(reading(0)) == 0
    assert horizon.take(reading(4)) == 4
    assert horizon.take(reading(9, "3/1")) == 4
    assert horizon.held_back
    assert horizon.take(reading(12, "3/1", "3/2")) == 4  # 3/2 began after 9 was read
    assert horizon.take(reading(15, "3/2")) == 9
    assert horizon.take(reading(15, "3/3")) == 15
    assert not horizon.held_back


def test_under_writers_without_a_gap_it_moves():
    horizon = Horizon()
    horizon.take(reading(0))
    safe = [horizon.take(reading(10 * n, f"3/{n}", f"3/{n + 1}")) for n in range(1, 50)]
    assert safe[2:] == [10 * n for n in range(1, 48)]


def test_what_it_remembers_is_bounded_by_those_who_hold_a_lock_now():
    horizon = Horizon()
    for n in range(10_000):
        horizon.take(reading(n, "hangs", f"3/{n}", backend=str(n % BACKENDS)))
    assert len(horizon._since) == 2
    for n in range(1000):
        horizon.take(reading(20_000, backend=f"another {n}"))
    assert len(horizon._backends) == BACKENDS


def test_a_backend_not_seen_before_may_belong_to_another_run():
    horizon = Horizon()
    horizon.take(reading(3))
    assert horizon.take(reading(9, "3/1")) == 3
    assert horizon.take(reading(9, "-1/700", backend="b")) == 0  # 3/1, prepared, under its name after a restart
    assert horizon.take(reading(9, "-1/700", backend="b")) == 0
    assert horizon.take(reading(11, backend="b")) == 11


def test_a_sequence_that_went_back():
    horizon = Horizon()
    horizon.take(reading(40))
    assert horizon.take(reading(33, "3/1")) == 0
    assert horizon.take(reading(34)) == 34


def test_reset_forgets():
    horizon = Horizon()
    horizon.take(reading(3))
    horizon.reset()
    assert (horizon.safe, horizon.held_back) == (0, False)
    assert horizon.take(reading(9, "3/1")) == 0


# -- the readings


@contextmanager
def connected(url: str, **options: object) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True, **options) as conn:  # type: ignore[arg-type]
        yield conn


@pytest.fixture
def log_url(postgres_url: str) -> str:
    with connected(postgres_url) as conn:
        conn.execute(TABLES)
    return postgres_url


both = pytest.mark.parametrize("postgres", [15, 18], indirect=True)


def open_and_insert(conn: psycopg.Connection, statement: str = INSERT) -> None:
    conn.execute("BEGIN")
    conn.execute(statement)


def copy_in(conn: psycopg.Connection) -> None:
    conn.execute("BEGIN")
    with conn.cursor().copy("COPY tidings_log (key) FROM STDIN") as copy:
        copy.write_row((1,))


WAYS: dict[str, Callable[[psycopg.Connection], None]] = {
    "into the log": open_and_insert,
    "into a partition": lambda conn: open_and_insert(conn, "INSERT INTO tidings_log_1 (key) VALUES (1)"),
    "by COPY": copy_in,
    "by MERGE": lambda conn: open_and_insert(
        conn, "MERGE INTO tidings_log l USING (SELECT 2 AS key) s ON l.key = s.key WHEN NOT MATCHED THEN INSERT (key) VALUES (s.key)"
    ),
    "in a savepoint": lambda conn: open_and_insert(conn, f"SAVEPOINT a; {INSERT}; RELEASE a"),
    "again after a rolled back savepoint": lambda conn: open_and_insert(conn, f"SAVEPOINT a; {INSERT}; ROLLBACK TO a; {INSERT}"),
    "into a partition that is new": lambda conn: open_and_insert(
        conn,
        "CREATE TABLE tidings_log_3 PARTITION OF tidings_log FOR VALUES FROM (2000) TO (3000) PARTITION BY RANGE (position);"
        "CREATE TABLE tidings_log_4 PARTITION OF tidings_log_3 FOR VALUES FROM (2000) TO (2500);"
        "SELECT setval('tidings_log_position_seq', 2000); COMMIT; BEGIN; INSERT INTO tidings_log_4 (key) VALUES (1)",
    ),
    "from a function": lambda conn: open_and_insert(conn, f"DO $$ BEGIN {INSERT}; END $$"),
}


@pytest.mark.promise("nothing lost")
@both
@pytest.mark.parametrize("way", WAYS)
def test_whoever_drew_a_position_holds_the_horizon_until_he_ends(log_url, way):
    with connected(log_url) as reader, connected(log_url) as writer, connected(log_url) as other:
        horizon = Horizon()
        assert horizon.observe(reader) == 0
        other.execute(INSERT)
        assert horizon.observe(reader) == 1
        WAYS[way](writer)
        other.execute(INSERT)
        assert horizon.observe(reader) == 1
        assert horizon.held_back
        writer.execute("COMMIT")
        assert horizon.observe(reader) > 2
        assert not horizon.held_back


@both
def test_who_does_not_write_to_this_log_holds_nothing(postgres, log_url):
    elsewhere = postgres.new_database()
    with connected(log_url) as reader, connected(log_url) as idle, connected(log_url) as looking, connected(elsewhere) as foreign:
        foreign.execute(TABLES)
        open_and_insert(foreign)
        open_and_insert(idle, "INSERT INTO unrelated VALUES (1)")
        open_and_insert(looking, "SELECT count(*) FROM tidings_log")
        reader.execute(INSERT)
        assert Horizon().observe(reader) == 1
    postgres.drop_database(elsewhere)


@pytest.mark.promise("nothing lost")
@both
def test_a_prepared_transaction_holds_it_over_a_restart(postgres, log_url):
    horizon = Horizon()
    with connected(log_url) as writer:
        writer.execute(INSERT)
        with connected(log_url) as reader:
            assert horizon.observe(reader) == 1
            open_and_insert(writer)
            assert horizon.observe(reader) == 1
            writer.execute("PREPARE TRANSACTION 'two'")
            writer.execute(INSERT)
            assert horizon.observe(reader) == 1
            with connected(log_url) as asking:
                (who,) = lockers(asking)
            assert (who.prepared, who.pid, who.user) == ("two", None, postgres.user)
            assert not who.transaction.startswith("-1/")
    postgres.restart("immediate")
    with connected(log_url) as reader:
        assert horizon.observe(reader) == 0  # noticed without being told
        (who,) = lockers(reader)
        assert who.transaction.startswith("-1/")
        assert who.prepared == "two"
        reader.execute("COMMIT PREPARED 'two'")
        assert horizon.observe(reader) >= 3


@pytest.mark.promise("nothing lost")
def test_a_restart_that_the_pooler_hides(postgres, log_url, pgbouncer):
    """The reader's connection to PgBouncer lives on, and never hears of the restart."""
    horizon = Horizon()
    with connected(pgbouncer.url(log_url), prepare_threshold=None) as reader, connected(log_url) as writer:
        writer.execute(INSERT)
        assert horizon.observe(reader) == 1
        open_and_insert(writer)
        writer.execute("PREPARE TRANSACTION 'two'")
        assert horizon.observe(reader) == 1
        postgres.restart("immediate")
        until = time.monotonic() + 20
        while True:
            try:
                assert horizon.observe(reader) == 0
                break
            except psycopg.errors.Error:  # PgBouncer has to find out first
                assert not reader.closed
                assert time.monotonic() < until
                time.sleep(0.05)
        reader.execute("COMMIT PREPARED 'two'")
        assert horizon.observe(reader) >= 2


def test_readings_through_several_backends_of_a_pooler(postgres, log_url):
    with PgBouncer(postgres, pool=3) as bouncer, connected(log_url) as writer:
        url = bouncer.url(log_url)
        with (
            connected(url, prepare_threshold=None) as reader,
            connected(url, prepare_threshold=None) as one,
            connected(url, prepare_threshold=None) as two,
        ):
            horizon = Horizon()
            stop = threading.Event()

            def disturb(conn: psycopg.Connection) -> None:
                while not stop.is_set():
                    conn.execute("SELECT pg_sleep(0.001)")

            threads = [threading.Thread(target=disturb, args=(conn,)) for conn in (one, two)]
            for thread in threads:
                thread.start()
            try:
                until = time.monotonic() + 10
                while len(horizon._backends) < 2 and time.monotonic() < until:
                    horizon.observe(reader)
                writer.execute(INSERT)
                while horizon.observe(reader) < 1:
                    pass
                open_and_insert(writer)
                known = len(horizon._backends)
                seen = {horizon.observe(reader) for _ in range(50)}
                assert seen == {1} or len(horizon._backends) > known
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            writer.execute("COMMIT")
            assert horizon.observe(reader) == 2


@both
def test_it_tells_who_holds_it(log_url):
    with connected(log_url) as asking, connected(log_url, application_name="shop") as first, connected(log_url) as second:
        assert lockers(asking) == []
        open_and_insert(first)
        open_and_insert(second)
        oldest, younger = lockers(asking)
        assert (oldest.pid, oldest.application, oldest.state) == (first.info.backend_pid, "shop", "idle in transaction")
        assert oldest.query == INSERT
        assert younger.pid == second.info.backend_pid
        assert oldest.seconds is not None
        assert younger.seconds is not None
        assert 0 <= younger.seconds < oldest.seconds < 60


@both
def test_a_role_without_the_right_is_told_so(postgres, log_url):
    with connected(log_url) as conn:
        conn.execute("DROP ROLE IF EXISTS weak; CREATE ROLE weak LOGIN; GRANT SELECT ON tidings_log TO weak")
        try:
            with connected(log_url.replace(f"{postgres.user}@", "weak@")) as weak:
                with pytest.raises(StoreError, match="GRANT USAGE, SELECT ON SEQUENCE tidings_log_position_seq"):
                    Horizon().observe(weak)
                conn.execute("GRANT SELECT ON SEQUENCE tidings_log_position_seq TO weak")
                open_and_insert(conn)
                assert Horizon().observe(weak) == 0
                (who,) = lockers(weak)
                assert (who.pid, who.seconds) == (conn.info.backend_pid, None)
                conn.execute("ROLLBACK")
                assert Horizon().observe(weak) == 1
        finally:
            conn.execute("DROP OWNED BY weak; DROP ROLE weak")


@both
@pytest.mark.parametrize("change", ["CACHE 10", "CYCLE", "INCREMENT -1"])
def test_a_sequence_that_was_altered_is_refused(log_url, change):
    with connected(log_url) as conn:
        if change.startswith("INCREMENT"):
            change += " NO MINVALUE"
        conn.execute(f"ALTER SEQUENCE tidings_log_position_seq {change}")
        with pytest.raises(StoreError, match="was altered"):
            Horizon().observe(conn)


def test_only_outside_of_a_transaction(log_url):
    with psycopg.connect(log_url) as conn, pytest.raises(ValueError, match="outside of any transaction"):
        Horizon().observe(conn)
    with connected(log_url) as conn:
        conn.execute("BEGIN")
        with pytest.raises(ValueError, match="outside of any transaction"):
            Horizon().observe(conn)


@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
def test_a_standby_is_refused(postgres):
    with Postgres(postgres.version) as server:
        url = server.new_database()
        with connected(url) as conn:
            conn.execute(TABLES)
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        with connected(url) as conn, pytest.raises(StoreError, match="standby"):
            Horizon().observe(conn)


@both
def test_a_log_that_is_not_partitioned(postgres_url):
    with connected(postgres_url) as reader, connected(postgres_url) as writer:
        reader.execute("""
            CREATE SEQUENCE tidings_log_position_seq;
            CREATE TABLE tidings_log (position bigint PRIMARY KEY DEFAULT nextval('tidings_log_position_seq'), key integer)""")
        horizon = Horizon()
        assert horizon.observe(reader) == 0
        open_and_insert(writer)
        assert horizon.observe(reader) == 0
        assert horizon.held_back
        writer.execute("COMMIT")
        assert horizon.observe(reader) == 1


@pytest.mark.promise("nothing lost")
@both
def test_what_is_read_of_the_sequence_has_been_drawn(log_url):
    """A plain SELECT of last_value sees positions that nobody has drawn, while nextval writes ahead in the WAL."""
    with connected(log_url) as conn, connected(log_url) as one, connected(log_url) as two:
        conn.execute(f"""
            CREATE FUNCTION ahead(seconds float) RETURNS integer LANGUAGE plpgsql AS $$
            DECLARE s bigint; found integer := 0; until timestamptz := clock_timestamp() + make_interval(secs => seconds);
            BEGIN
                WHILE clock_timestamp() < until LOOP
                    s := {module._drawn(f"'{module.SEQUENCE}'::regclass")};
                    IF nextval('{module.SEQUENCE}') <= s THEN found := found + 1; END IF;
                END LOOP;
                RETURN found;
            END $$""")
        busy = f"""
            DO $$ DECLARE until timestamptz := clock_timestamp() + interval '3 s';
            BEGIN WHILE clock_timestamp() < until LOOP
                PERFORM count(nextval('{module.SEQUENCE}')) FROM generate_series(1, 2000);
            END LOOP; END $$"""
        hammers = [threading.Thread(target=conn.execute, args=(busy,)) for conn in (one, two)]
        for hammer in hammers:
            hammer.start()
        row = conn.execute("SELECT ahead(2.5)").fetchone()
        for hammer in hammers:
            hammer.join()
        assert row == (0,)
