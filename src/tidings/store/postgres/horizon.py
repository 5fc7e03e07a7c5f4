"""How far the log can be read without passing a row that is still to come: the lockers' horizon.

The order of a sequence is not the order of commits. Who reads up to the newest row that he can see passes those that were drawn earlier and
commit later, and never looks back. A ``Horizon`` says up to which position that cannot happen.

**A reading** is two statements, in this order:

1. *S*, the last position that was drawn from the log's sequence;
2. *L*, the transactions that hold RowExclusiveLock on the log or on one of its partitions.

**Who draws a position holds such a lock, from before he draws it until what became of it can be seen.** An INSERT, COPY or MERGE locks the
table that it names, the log or a partition, before it computes a default; COMMIT makes a transaction visible before it releases its locks;
a prepared transaction keeps them, over a restart too; ROLLBACK TO a savepoint releases one only together with the rows written under it.
The lock on that table is enough: those on its indexes, and on the partition that a row goes to, come later and say nothing more. pg_locks
misses no lock that is held while it is read: it looks at the fast path first and at the lock table second, and locks only move that way.

**So what is drawn up to S and not in L has ended, and S is safe once no transaction of L is left.** Or, the same thing turned round: a
transaction that holds a lock now, but did not in an earlier reading, has drawn what it still has after that reading's S. The horizon is
therefore the smallest, over everyone who holds a lock now, of the S of the last reading in which he held none; if nobody does, it is S
itself. That one number for each locker is all that has to be remembered, so memory is bounded by the server's own max_connections and
max_prepared_transactions, and the horizon never moves back. Who comes and goes between two readings is never seen, and need not be.

**Names are good for one run of the server.** After a restart the same name belongs to somebody else, and a prepared transaction has another
(``-1/xid``): a locker remembered from before would seem to have ended. A backend does not live through a restart, so a reading made by a
backend that was seen before belongs to the same run as everything since; a reading by one that was not throws all memory away. That holds
on every new connection, and behind a pooler, which can hide a restart. Then nothing is safe until everyone in the first reading has ended.

**What it waits for:** transactions that wrote to this log in this database, nothing else: no long query, no other table, no replica.

**What the writers owe:** positions come from the column's default and from nowhere else: never drawn before the INSERT. The sequence has
CACHE 1 (checked in every reading): a session that has drawn a supply holds no lock while it keeps it. A partition is empty when it is
attached, and that is committed before anybody writes to it by name. For order by key, a writer holds its aggregate, by row lock or version
check, before it publishes.

**What the readers owe:** rows are read in a snapshot taken after ``observe`` returned, so never in a transaction that was begun before.

**How not to read S:** ``SELECT last_value FROM`` it looks at its page without a lock on it. While nextval writes ahead in the WAL,
for some microseconds, the page holds a value up to 32 positions later: of a million readings against three writers, 57 to 91 had one that
nobody had drawn. pg_sequence_last_value() locks the page. To who has no right to the sequence it gives NULL, so that is asked too. (It
takes RowExclusiveLock on the sequence, as nextval does: so a lock on the sequence does not tell a writer from a reader.) The sequence and
the locks are read as they are at that instant, whatever the snapshot, so one transaction may hold both statements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import tuple_row

from ...errors import StoreError

LOG = "tidings_log"
SEQUENCE = "tidings_log_position_seq"

BACKENDS = 64
"""So many are remembered: more than a pooler's pool for one database. A reading by a forgotten one is as good as the first."""


def _lockers(table: str) -> str:
    return f"""
    SELECT virtualtransaction, pid
    FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (relation = {table} OR relation IN (SELECT relid FROM pg_partition_tree({table})))"""


def _drawn(sequence: str) -> str:
    return f"""CASE WHEN has_sequence_privilege({sequence}, 'USAGE, SELECT')
                THEN coalesce(pg_sequence_last_value({sequence}), 0) END"""


def _reading(table: str, sequence: str) -> tuple[str, str]:
    first = f"""
    SELECT pg_backend_pid() || ' since ' || coalesce(
               (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid())), pg_postmaster_start_time()),
           pg_is_in_recovery(),
           (SELECT seqcache = 1 AND seqincrement > 0 AND NOT seqcycle FROM pg_sequence WHERE seqrelid = {sequence}),
           {_drawn(sequence)}"""
    return first, _lockers(table)


_OURS = f"'{LOG}'::regclass"


def _who(table: str) -> str:
    return f"""
    SELECT l.virtualtransaction, l.pid, p.gid, coalesce(a.usename, p.owner), a.application_name, a.state, a.query,
           extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 AS seconds
    FROM (SELECT DISTINCT virtualtransaction, pid FROM ({_lockers(table)}) every) l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN (pg_locks x JOIN pg_prepared_xacts p ON p.transaction = x.transactionid)
           ON l.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
    ORDER BY seconds DESC NULLS LAST, l.virtualtransaction"""


class Reading(NamedTuple):
    """backend: which one took it, by a name that no other ever has. last: S, 0 if none was drawn yet. lockers: L, read after S."""

    backend: str
    last: int
    lockers: frozenset[str]


class Locker(NamedTuple):
    """A transaction that holds the horizon. What the asking role may not see is None.

    ``prepared``: its name if it is a prepared transaction, which has no process. ``seconds``: since it began, or was prepared.
    """

    transaction: str
    pid: int | None
    prepared: str | None
    user: str | None
    application: str | None
    state: str | None
    query: str | None
    seconds: float | None

    def words(self) -> str:
        """Which one it is, for people."""
        if self.prepared is not None:
            return f"the prepared transaction {self.prepared!r} of {self.user}: COMMIT PREPARED or ROLLBACK PREPARED ends it"
        if self.seconds is None:
            return f"a transaction of process {self.pid} of {self.user or 'the server'}; to see its age, this role needs pg_read_all_stats"
        what = " ".join((self.query or "").split())
        what = what if len(what) <= 60 else what[:59] + "\u2026"
        name = f" ({self.application})" if self.application else ""
        return f"process {self.pid} of {self.user}{name}, {self.state}: {what}"


class Horizon:
    """One reader's knowledge. Not for several threads at once: readings must be taken in the order in which they are made.

    Args:
        table, sequence: their oids, to read somebody else's table behind the same horizon; Tidings' own log unless given. Of theirs not
        every
            promise of a writer can be asked, so there an altered sequence is no error.

    Attributes:
        statements: the two of a reading, for who sends them himself, in this order, and gives ``hear`` what they brought.
        safe: every position up to this one has been committed, and can be seen from now on, or will never be used. 0 if nothing is known.
        held_back: whether a position beyond it has been drawn.
    """

    def __init__(self, table: int | None = None, sequence: int | None = None) -> None:
        self._strict = table is None
        names = (_OURS, f"'{SEQUENCE}'::regclass") if table is None else (f"{table}::regclass", f"{sequence}::regclass")
        self.statements = _reading(*names)
        self._backends: deque[str] = deque(maxlen=BACKENDS)
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, as a reading through a new connection does by itself."""
        self.safe = 0
        self.held_back = False
        self._last = 0
        self._since: dict[str, int] = {}  # for everyone who holds a lock: S of the last reading in which he held none

    def observe(self, conn: psycopg.Connection[Any]) -> int:
        """Take a reading, in one round trip; the position up to which the log can be read in snapshots taken from now on.

        ``conn`` is in autocommit mode and outside of any transaction, direct or behind a pooler.

        Raises:
            StoreError: the server is a standby, the role may not read the sequence, or the sequence was altered.
            psycopg.Error: nothing has changed; try again, through another connection if this one is lost.
        """
        if not conn.autocommit or conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            raise ValueError("the horizon is observed outside of any transaction, so that rows are read in a later snapshot")
        with conn.cursor(row_factory=tuple_row) as cursor:
            # Without parameters they travel as one simple query, and the server runs them in turn.
            cursor.execute(";".join(self.statements), prepare=False)
            first = cursor.fetchall()[0]
            cursor.nextset()
            return self.hear(first, cursor.fetchall())

    def hear(self, first: tuple[Any, ...], lockers: Sequence[tuple[Any, ...]]) -> int:
        """Learn from what the two statements brought; otherwise as ``observe``."""
        backend, standby, steady, last = first
        if standby:
            raise StoreError(
                "this server is a standby (in recovery), where locks of writers can't be seen; read the log from the primary server"
            )
        if last is None:
            raise StoreError(f"the role may not read the log's sequence; GRANT USAGE, SELECT ON SEQUENCE {SEQUENCE} TO it")
        if self._strict and not steady:
            raise StoreError(
                f"the sequence {SEQUENCE} was altered, and rows could be skipped; ALTER SEQUENCE {SEQUENCE} INCREMENT 1 CACHE 1 NO CYCLE,"
                " then let every session that wrote to the log reconnect"
            )
        return self.take(Reading(backend, last, frozenset([name for name, _ in lockers])))

    @property
    def drawn(self) -> int:
        """The last position that had been drawn when the last reading was taken, whether its row is there or not."""
        return self._last

    def take(self, reading: Reading) -> int:
        """Learn from a reading; the new ``safe``. A sequence that went back (setval, TRUNCATE) is as good as a restart."""
        if reading.backend not in self._backends:
            self._backends.append(reading.backend)
            self.reset()
        elif reading.last < self._last:
            self.reset()
        self._since = {locker: self._since.get(locker, self._last) for locker in reading.lockers}
        self._last = reading.last
        self.safe = min(self._since.values(), default=reading.last)
        self.held_back = self.safe < reading.last
        return self.safe


def lockers(conn: psycopg.Connection[Any], table: int | None = None) -> list[Locker]:
    """Who holds the horizon now, oldest first: what `status` shows, and what an alarm names. table: of somebody else, its oid."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return [Locker(*row) for row in cursor.execute(_who(_OURS if table is None else f"{table:d}::oid"), prepare=False)]
