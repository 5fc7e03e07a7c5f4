"""A storm over PostgreSQL's log: many writers, a crash in the middle, and readers by the lockers' horizon beside the field's three cursors.

``python -m tests.storm.horizon --writers 100 --seconds 20 --seeds 3`` prints what each reader lost and reordered, and exits non-zero if the
horizon did, or if none of the others did (then the storm would prove nothing). ``test_horizon.py`` runs a short one.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field

import psycopg

from servers.folder import Missing
from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tidings.store.postgres.horizon import Horizon

KEYS = 25
PARTITION = 400
"""Positions in one: a few are filled in each storm."""

TABLES = f"""
CREATE SEQUENCE tidings_log_position_seq AS bigint CACHE 1;
CREATE TABLE tidings_log (
    position bigint NOT NULL DEFAULT nextval('tidings_log_position_seq') PRIMARY KEY,
    key      integer NOT NULL,
    version  integer NOT NULL,
    xid      xid8 NOT NULL DEFAULT pg_current_xact_id()
) PARTITION BY RANGE (position);
ALTER SEQUENCE tidings_log_position_seq OWNED BY tidings_log.position;
DO $$ BEGIN FOR i IN 0..49 LOOP
    EXECUTE format('CREATE TABLE tidings_log_%s PARTITION OF tidings_log FOR VALUES FROM (%s) TO (%s)',
                   i, i * {PARTITION}, (i + 1) * {PARTITION});
END LOOP; END $$;
CREATE TABLE tidings_log_rest PARTITION OF tidings_log DEFAULT;
CREATE TABLE aggregates (key integer PRIMARY KEY, version integer NOT NULL);
INSERT INTO aggregates SELECT key, 0 FROM generate_series(1, {KEYS}) key;
CREATE TABLE unrelated (writer integer, at timestamptz DEFAULT now());
"""

Connection = psycopg.Connection[tuple[object, ...]]
Row = tuple[int, int, int]
"""position, key, version. Versions of a key are given out under its row's lock, so they are the order that a reader owes."""


# -- the readers


class Reader:
    """One way to follow the log: ``read`` is what it read, in that order, ``during`` of it before the writers were stopped."""

    name = ""
    query = ""

    def __init__(self, url: str) -> None:
        self.url = url
        self.read: list[Row] = []
        self.during = 0
        self.problem: BaseException | None = None

    def poll(self, conn: Connection) -> list[Row]:
        """The next rows."""
        raise NotImplementedError

    def run(self, stop: threading.Event, ended: threading.Event, rng: random.Random) -> None:
        """Until everything has ended, and then to the end of the log."""
        try:
            conn = None
            while True:
                last_time = ended.is_set()
                if not stop.is_set():
                    self.during = len(self.read)
                try:
                    conn = conn or connect(self.url)
                    while rows := self.poll(conn):
                        self.read += rows
                except psycopg.OperationalError:
                    if conn is not None and conn.closed:
                        conn = None
                    if last_time:
                        raise
                    time.sleep(0.02)
                    continue
                if last_time:
                    conn.close()
                    return
                time.sleep(rng.uniform(0, 0.004))
        except BaseException as problem:
            self.problem = problem


class ByHorizon(Reader):
    name = "the lockers' horizon"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.horizon = Horizon()  # nobody tells it of new connections: it notices
        self.position = 0

    def poll(self, conn: Connection) -> list[Row]:
        safe = self.horizon.observe(conn)
        rows: list[Row] = conn.execute(  # type: ignore[assignment]
            "SELECT position, key, version FROM tidings_log WHERE position > %s AND position <= %s ORDER BY position", (self.position, safe)
        ).fetchall()
        self.position = max(self.position, safe)
        return rows


class ByHorizonBehindPgBouncer(ByHorizon):
    name = "the same, behind PgBouncer"


class ById(Reader):
    name = "id > last"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.position = 0

    def poll(self, conn: Connection) -> list[Row]:
        rows: list[Row] = conn.execute(  # type: ignore[assignment]
            "SELECT position, key, version FROM tidings_log WHERE position > %s ORDER BY position", (self.position,)
        ).fetchall()
        self.position = rows[-1][0] if rows else self.position
        return rows


class ByIdBelowXmin(ById):
    name = "id > last, xid < xmin"

    def poll(self, conn: Connection) -> list[Row]:
        rows: list[Row] = conn.execute(  # type: ignore[assignment]
            "SELECT position, key, version FROM tidings_log"
            " WHERE position > %s AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY position",
            (self.position,),
        ).fetchall()
        self.position = rows[-1][0] if rows else self.position
        return rows


class ByXidAndId(Reader):
    name = "(xid, id) > last, xid < xmin"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.last: tuple[object, object] = ("0", 0)

    def poll(self, conn: Connection) -> list[Row]:
        rows = conn.execute(
            "SELECT position, key, version, xid::text FROM tidings_log"
            " WHERE (xid, position) > (%s::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY tidings_log.xid, position",
            self.last,
        ).fetchall()
        if rows:
            self.last = (rows[-1][3], rows[-1][0])
        return [row[:3] for row in rows]  # type: ignore[misc]


OURS = (ByHorizon, ByHorizonBehindPgBouncer)
THEIRS = (ById, ByIdBelowXmin, ByXidAndId)


@dataclass
class Verdict:
    """Of one reader. ``lost``: committed and never read. ``reordered``: read after a later version of its key. ``wrong``: anything else.

    ``during``: read while the storm was going on; a reader that only read afterwards would have lost nothing either.
    """

    rows: int = 0
    during: int = 0
    lost: int = 0
    reordered: int = 0
    wrong: int = 0

    def __add__(self, other: Verdict) -> Verdict:
        ours, theirs = astuple(self), astuple(other)
        return Verdict(*[one + another for one, another in zip(ours, theirs, strict=True)])


def judge(reader: Reader, truth: dict[int, Row]) -> Verdict:
    seen: Counter[int] = Counter()
    newest: dict[int, int] = {}
    reordered = wrong = 0
    for row in reader.read:
        position, key, version = row
        seen[position] += 1
        reordered += version < newest.get(key, 0)
        newest[key] = max(version, newest.get(key, 0))
        wrong += truth.get(position) != row or seen[position] > 1
    return Verdict(len(truth), reader.during, len(truth.keys() - seen.keys()), reordered, wrong)


# -- the writers


def connect(url: str) -> Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=10, prepare_threshold=None, options="-c lock_timeout=20s")


@dataclass
class Writer:
    """Touches something unrelated, then for each of one or two keys locks the aggregate and inserts its events."""

    url: str
    number: int
    rng: random.Random
    hangs: bool
    prepared: str | None = None  # a transaction that is to be ended, if it exists
    did: Counter[str] = field(default_factory=Counter)
    problem: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        conn = None
        try:
            while self.prepared or not stop.is_set():
                try:
                    conn = conn or connect(self.url)
                    if self.prepared:
                        self.end_prepared(conn)
                    else:
                        self.transaction(conn)
                except (psycopg.errors.CheckViolation, psycopg.errors.ConfigurationLimitExceeded):
                    conn.execute("ROLLBACK")  # type: ignore[union-attr]  # past the partition, or too many prepared ones
                    self.did["refused"] += 1
                except psycopg.OperationalError:
                    if conn is not None:
                        conn.close()  # the server's last word may have been heard and the end of the connection not yet
                        conn = None
                    self.did["disconnected"] += 1
                    time.sleep(self.rng.uniform(0, 0.1))
            if conn is not None:
                conn.close()
        except BaseException as problem:
            self.problem = problem

    def pause(self) -> None:
        time.sleep(self.rng.choice((0, 0, self.rng.uniform(0, 0.004), self.rng.uniform(0, 0.02))))

    def transaction(self, conn: Connection) -> None:
        rng = self.rng
        conn.execute("BEGIN")
        conn.execute("INSERT INTO unrelated (writer) VALUES (%s)", (self.number,))
        self.pause()
        for key in sorted(rng.sample(range(1, KEYS + 1), rng.choice((1, 1, 2)))):
            way = rng.choice((self.plainly, self.plainly, self.in_savepoints, self.by_copy, self.into_a_partition))
            way(conn, key)
            self.did[way.__name__] += 1
            self.pause()
        if self.hangs and rng.random() < 0.2:
            time.sleep(0.5)
            self.did["hung"] += 1
        if rng.random() < 0.05:
            conn.execute("ROLLBACK")
            self.did["rolled back"] += 1
        elif rng.random() < 0.12:
            self.prepared = f"{self.number}-{self.did['prepared']}"
            self.did["prepared"] += 1
            conn.execute(f"PREPARE TRANSACTION '{self.prepared}'")
            self.pause()
            self.end_prepared(conn)
        else:
            conn.execute("COMMIT")
            self.did["committed"] += 1

    def end_prepared(self, conn: Connection) -> None:
        """Perhaps after a restart, when nobody knows whether it was prepared, or ended, in time."""
        try:
            conn.execute(f"{self.rng.choice(('COMMIT', 'COMMIT', 'ROLLBACK'))} PREPARED '{self.prepared}'")
        except psycopg.errors.UndefinedObject:
            pass
        self.prepared = None

    def versions(self, conn: Connection, key: int, rows: int = 1) -> range:
        """The next versions of a key; from now on nobody else gets any, until this transaction ends."""
        row = conn.execute("UPDATE aggregates SET version = version + %s WHERE key = %s RETURNING version", (rows, key)).fetchone()
        assert row is not None
        assert isinstance(row[0], int)
        self.pause()
        return range(row[0] - rows + 1, row[0] + 1)

    def plainly(self, conn: Connection, key: int) -> None:
        for version in self.versions(conn, key):
            conn.execute("INSERT INTO tidings_log (key, version) VALUES (%s, %s)", (key, version))

    def in_savepoints(self, conn: Connection, key: int) -> None:
        conn.execute("SAVEPOINT a")
        self.plainly(conn, key)
        self.pause()
        conn.execute(self.rng.choice(("ROLLBACK TO a", "RELEASE a")))
        self.plainly(conn, key)

    def by_copy(self, conn: Connection, key: int) -> None:
        versions = self.versions(conn, key, 3)
        with conn.cursor().copy("COPY tidings_log (key, version) FROM STDIN") as copy:
            for version in versions:
                copy.write_row((key, version))

    def into_a_partition(self, conn: Connection, key: int) -> None:
        """By its name; which one is guessed, and a wrong guess is refused."""
        (version,) = self.versions(conn, key)
        row = conn.execute("SELECT last_value FROM tidings_log_position_seq").fetchone()
        assert row is not None
        assert isinstance(row[0], int)
        conn.execute(f"INSERT INTO tidings_log_{min(49, (row[0] + 1) // PARTITION)} (key, version) VALUES (%s, %s)", (key, version))


# -- the storm


@dataclass
class Storm:
    """
    Args:
        seed: decides what the writers do; when the threads get their turns it cannot decide.
        seconds: of writing, with an immediate restart in the middle, while transactions are prepared.
    """

    server: Postgres
    seed: int
    writers: int = 12
    seconds: float = 2.0
    did: Counter[str] = field(default_factory=Counter)

    def run(self) -> dict[type[Reader], Verdict]:
        url = self.server.new_database()
        with ExitStack() as after:
            after.callback(self.server.drop_database, url)
            with connect(url) as conn:
                conn.execute(TABLES)
            readers: list[Reader] = [kind(url) for kind in (ByHorizon, *THEIRS)]
            try:
                bouncer = after.enter_context(PgBouncer(self.server, pool=3))
                readers.append(ByHorizonBehindPgBouncer(bouncer.url(url)))
            except Missing:
                pass
            self.rage(url, readers)
            with connect(url) as conn:
                rows: list[Row] = conn.execute("SELECT position, key, version FROM tidings_log").fetchall()  # type: ignore[assignment]
            return {type(reader): judge(reader, {row[0]: row for row in rows}) for reader in readers}

    def rage(self, url: str, readers: list[Reader]) -> None:
        stop, ended = threading.Event(), threading.Event()
        writers = [Writer(url, n, random.Random(f"{self.seed} {n}"), hangs=n == 0) for n in range(self.writers)]
        writing = [threading.Thread(target=writer.run, args=(stop,)) for writer in writers]
        reading = [
            threading.Thread(target=reader.run, args=(stop, ended, random.Random(f"{self.seed} {reader.name}"))) for reader in readers
        ]
        for thread in (*reading, *writing):
            thread.start()
        try:
            time.sleep(self.seconds / 2)
            self.prepare(url)
            self.server.restart("immediate")
            time.sleep(self.seconds / 4)
            self.end_prepared(url)  # with many others before and after them
            time.sleep(self.seconds / 4)
        finally:
            stop.set()
            for thread in writing:
                thread.join()
            self.server.start()
            self.end_prepared(url)
            ended.set()
            for thread in reading:
                thread.join()
        for problem in (*[writer.problem for writer in writers], *[reader.problem for reader in readers]):
            if problem is not None:
                raise problem
        for writer in writers:
            self.did += writer.did

    def prepare(self, url: str) -> None:
        """Two transactions of our own that surely outlive the restart. Their keys are nobody else's."""
        with connect(url) as conn:
            for version in (1, 2):
                conn.execute("BEGIN")
                conn.execute("INSERT INTO tidings_log (key, version) VALUES (%s, %s)", (-version, version))
                conn.execute(f"PREPARE TRANSACTION 'ours {version}'")

    def end_prepared(self, url: str) -> None:
        with connect(url) as conn:
            names = conn.execute("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'ours%' AND database = current_database()").fetchall()
            for (name,) in names:
                conn.execute(f"COMMIT PREPARED '{name}'")
                self.did["prepared ones of ours committed after the restart"] += 1

    def report(self, verdicts: dict[type[Reader], Verdict]) -> list[str]:
        told = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in sorted(self.did.items()))
        head = f"seed {self.seed}, PostgreSQL {self.server.version}, {self.writers} writers, {self.seconds:g} s: {told}"
        return [head, *table(verdicts)]


def table(verdicts: dict[type[Reader], Verdict]) -> list[str]:
    lines = []
    for kind, one in verdicts.items():
        during, lost = one.during / max(1, one.rows), one.lost / max(1, one.rows)
        lines.append(
            f"  {kind.name:<30} {one.rows:>7} events, {during:>4.0%} read while it raged, {one.lost:>6} lost ({lost:>5.1%}),"
            f" {one.reordered:>6} out of order" + (f", {one.wrong} WRONG" if one.wrong else "")
        )
    return lines


def total(all_of_them: list[dict[type[Reader], Verdict]]) -> dict[type[Reader], Verdict]:
    """The sums over several storms, for each kind of reader."""
    found: dict[type[Reader], Verdict] = {}
    for verdicts in all_of_them:
        for kind, one in verdicts.items():
            found[kind] = found.get(kind, Verdict()) + one
    return found


def problems(sums: dict[type[Reader], Verdict]) -> list[str]:
    """What the horizon broke, and who of the others came through unharmed although the storm should have hit him."""
    found = [
        f"{kind.name}: {one}" for kind, one in sums.items() if issubclass(kind, OURS) and (one.lost, one.reordered, one.wrong) != (0, 0, 0)
    ]
    found += [f"{kind.name} stood still" for kind, one in sums.items() if issubclass(kind, OURS) and one.during < one.rows / 4]
    found += [f"the storm did not bite: {kind.name}" for kind in THEIRS if not sums[kind].lost + sums[kind].reordered]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 (default 3)")
    parser.add_argument("--seed", type=int, action="append", help="this one only; may be given several times")
    parser.add_argument("--writers", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=6.0, help="of writing, for each seed (default 6)")
    parser.add_argument("--version", type=int, help="of PostgreSQL; the newest that is here unless given")
    given = parser.parse_args()
    found = []
    with Postgres(given.version) as server:
        for seed in given.seed or range(1, given.seeds + 1):
            storm = Storm(server, seed, given.writers, given.seconds)
            found.append(storm.run())
            print(*storm.report(found[-1]), sep="\n", flush=True)
    sums = total(found)
    print("all seeds:", *table(sums), sep="\n")
    for problem in problems(sums):
        print(f"FAILED: {problem}")
    return 1 if problems(sums) else 0


if __name__ == "__main__":
    sys.exit(main())
