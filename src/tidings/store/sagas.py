"""What sagas ask of a store: who is at work on an instance, its journal, and what arrived for it.

An instance is leased: ``worker`` and ``epoch`` stand in its row, and the worker's own lease is the one that it has for its lanes. Whatever
is written for an instance is written only while it is held so (``Hold``): whoever wakes up late writes nothing. The proof is a lock that
those who write for the same instance share, so that its parallel steps don't wait for each other.

Both stores speak the same statements here; what differs is said in ``Dialect``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ..envelope import Envelope

CLOSED = ("completed", "compensated")
"""States in which nothing will happen any more."""

EVENT = (
    "position, lane, topic, type, version_, key_name, key, event_id, time, source, data, correlation_id, causation_id, traceparent, headers"
)
AGAIN = (
    "ON CONFLICT (saga, key, kind, branch, step, number) DO UPDATE SET seq = excluded.seq, state = excluded.state, "
    " result = excluded.result, error = excluded.error, attempts = excluded.attempts, ended = excluded.ended, due = excluded.due"
    " WHERE tidings_saga_journal.state = 'retrying'"
)
"""What a line of the journal does where one stands that is to be tried again."""
ROW = f"saga, version, app, state, since, started, due, worker, epoch, arrived, waits, error, {EVENT}"
ENTRY = "kind, branch, step, number, seq, state, result, error, attempts, started, ended, due, digest"


@lru_cache(maxsize=256)
def _marked(statement: str, mark: str) -> str:
    return statement.replace("?", mark)


class Dialect(NamedTuple):
    """What differs between stores. ``mark``: the placeholder. ``share``: locks the rows read, beside others who do; ``skip``: locks them
    alone, and leaves out those that somebody has. ``living``: the workers whose lease lasts, with ``now``, the arguments of it."""

    mark: str
    share: str
    skip: str
    living: str
    now: tuple[Any, ...]


class Hold(NamedTuple):
    """That ``worker`` holds an instance."""

    saga: str
    key: str
    worker: str
    epoch: int


@dataclass(slots=True)
class SagaRow:
    """An instance. Times are microseconds since 1970.

    ``state``: running, waiting, compensating, stuck, parked, completed or compensated, ``since`` when. ``due``: when it is to be looked at.
    ``arrived``: how many events came for it. ``waits``: JSON list of what it waits for. ``envelope``: the event that began it.
    """

    saga: str
    version: int
    app: str
    state: str
    since: int
    started: int
    due: int | None
    worker: str | None
    epoch: int
    arrived: int
    waits: str | None
    error: str | None
    envelope: Envelope

    @property
    def key(self) -> str:
        assert self.envelope.key is not None
        return self.envelope.key


@dataclass(slots=True)
class Entry:
    """One line of a journal: what became of a call (``kind``: step, undo, sleep, wait).

    ``seq``: its place in the order in which results were handed to the body; None while it is tried again. ``state``: done, refused, failed
    (attempts used up), late (nothing came in time), or retrying, then ``due`` says when. ``result``: JSON. ``digest``: of the arguments.
    """

    kind: str
    branch: str
    step: str
    number: int
    seq: int | None
    state: str
    result: str | None = None
    error: str | None = None
    attempts: int = 1
    started: int = 0
    ended: int = 0
    due: int | None = None
    digest: str | None = None


class Start(NamedTuple):
    """An instance to be made: due at once, or in the hands of ``worker`` from the first."""

    saga: str
    version: int
    app: str
    envelope: Envelope
    now: int
    worker: str | None = None


class Release(NamedTuple):
    """How an instance is let go of; see ``SagaUnit.release``."""

    hold: Hold
    state: str
    due: int | None
    waits: str | None
    error: str | None
    arrived: int | None
    now: int


@dataclass(slots=True)
class Arrival:
    """An event that came for an instance."""

    position: int
    type: str
    version: int
    time: int
    data: bytes


@dataclass(slots=True)
class Action:
    """What somebody did about an instance, and why."""

    time: int
    actor: str
    action: str
    reason: str


class SagaUnit:
    """The statements of sagas in one transaction (``Unit.sagas``)."""

    def __init__(self, conn: Any, dialect: Dialect) -> None:
        self._conn = conn
        self._dialect = dialect

    def _run(self, statement: str, *arguments: Any) -> Any:
        return self._conn.execute(_marked(statement, self._dialect.mark), arguments)

    # -- events come

    def start(self, saga: str, version: int, app: str, envelope: Envelope, now: int, worker: str | None = None) -> bool:
        """Make an instance, due at once, or in the hands of ``worker``; False if there is one of this key."""
        places = ", ".join("?" * 27)
        values = start_values(Start(saga, version, app, envelope, now, worker))
        return bool(
            self._run(f"INSERT INTO tidings_sagas ({ROW}) VALUES ({places}) ON CONFLICT (saga, key) DO NOTHING", *values).rowcount == 1
        )

    def start_all(self, starts: Sequence[Start]) -> list[bool]:
        """``start`` of each; no two are of one instance."""
        return [self.start(*one) for one in starts]

    def deliver(self, saga: str, envelope: Envelope, now: int) -> bool:
        """Keep an event for its instance, and make that one due if it waits; False if there is none, or it is closed."""
        due = "CASE WHEN worker IS NULL AND state = 'waiting' THEN CAST(? AS bigint) ELSE due END"
        found = self._run(
            f"UPDATE tidings_sagas SET arrived = arrived + 1, due = {due} WHERE saga = ? AND key = ? AND key_name = ?"
            f" AND state NOT IN {CLOSED}",
            now, saga, envelope.key, envelope.key_name,
        )  # fmt: skip
        if found.rowcount != 1:
            return False
        self._run(
            "INSERT INTO tidings_saga_events (saga, key, position, type, version, time, data) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (saga, key, position) DO NOTHING",
            saga, envelope.key, envelope.position, envelope.type, envelope.version, envelope.time, envelope.data,
        )  # fmt: skip
        return True

    # -- workers

    def look(self, known: Sequence[tuple[str, int]], now: int) -> tuple[bool, int | None]:
        """Whether ``claim`` would find anything, and when the next instance is due. One statement."""
        mine, names = among(known)
        row = self._run(
            f"SELECT (SELECT min(due) FROM tidings_sagas WHERE due IS NOT NULL AND worker IS NULL AND {mine}), (SELECT count(*) FROM"
            f" tidings_sagas WHERE worker IS NOT NULL AND worker NOT IN ({self._dialect.living}) AND {mine})",
            *names, *self._dialect.now, *names,
        ).fetchone()  # fmt: skip
        due = None if row[0] is None else int(row[0])
        return bool(row[1]) or (due is not None and due <= now), due

    def claim(self, known: Sequence[tuple[str, int]], worker: str, now: int, limit: int) -> list[SagaRow]:
        """Take instances that are due, and those whose worker's lease ran out, the longest due first."""
        mine, names = among(known)
        orphans = self._run(
            f"SELECT saga, key FROM tidings_sagas WHERE worker IS NOT NULL AND worker NOT IN ({self._dialect.living}) AND {mine}"
            f" LIMIT ? {self._dialect.skip}",
            *self._dialect.now, *names, limit,
        ).fetchall()  # fmt: skip
        due = self._run(
            f"SELECT saga, key FROM tidings_sagas WHERE due <= ? AND worker IS NULL AND {mine} ORDER BY due LIMIT ? {self._dialect.skip}",
            now, *names, max(0, limit - len(orphans)),
        ).fetchall()  # fmt: skip
        return self._take([(row[0], row[1]) for row in (*orphans, *due)], worker)

    def _take(self, found: Sequence[tuple[str, str]], worker: str) -> list[SagaRow]:
        taken: list[SagaRow] = []
        for saga, key in found:
            self._run("UPDATE tidings_sagas SET worker = ?, epoch = epoch + 1, due = NULL WHERE saga = ? AND key = ?", worker, saga, key)
            row = self.row(saga, key)
            assert row is not None
            taken.append(row)
        return taken

    def known(self, rows: Sequence[SagaRow]) -> list[tuple[list[Entry], list[Arrival]]]:
        """Journal and arrivals of each. In the transaction that took them nobody can write another line beside."""
        return [(self.journal(row.saga, row.key), self.arrivals(row.saga, row.key) if row.arrived else []) for row in rows]

    def held(self, worker: str) -> set[tuple[str, str, int]]:
        """Saga, key and epoch of what the worker holds."""
        rows = self._run("SELECT saga, key, epoch FROM tidings_sagas WHERE worker = ?", worker).fetchall()
        return {(row[0], row[1], row[2]) for row in rows}

    def record(self, hold: Hold, entry: Entry) -> bool:
        """Write a line of the journal, if the instance is still held; a line that was to be tried again is replaced. One statement."""
        still, marks = "", tuple[Any, ...]()
        if (mark := getattr(self._conn, "mark", None)) is not None:  # a handler's transaction, and it must still be that one
            still, marks = " AND current_setting('tidings.tx', true) = ?", (mark,)
        done = self._run(_record(still, self._dialect.share), hold.saga, hold.key, *entry_values(entry), *hold, *marks)
        return bool(done.rowcount == 1)

    def record_all(self, lines: Sequence[tuple[Hold, Entry]]) -> list[bool]:
        """``record`` of each: who lost his instance loses his own lines only. No two are of one call."""
        return [self.record(hold, entry) for hold, entry in lines]

    def turn(self, hold: Hold, state: str, error: str | None, now: int) -> bool:
        """Go over into another state, and keep the instance."""
        return bool(
            self._run(
                "UPDATE tidings_sagas SET state = ?, since = ?, error = ? WHERE saga = ? AND key = ? AND worker = ? AND epoch = ?",
                state, now, error, *hold,
            ).rowcount
            == 1
        )  # fmt: skip

    def release(
        self, hold: Hold, state: str, *, due: int | None, waits: str | None, error: str | None, arrived: int | None, now: int
    ) -> bool:  # fmt: skip
        """Let go of the instance until ``due``, or an event comes; at once if more than ``arrived`` events have come (None: never mind)."""
        done = self._run(
            "UPDATE tidings_sagas SET since = CASE WHEN state = ? THEN since ELSE CAST(? AS bigint) END, state = ?,"
            " due = CASE WHEN arrived <> CAST(? AS bigint) THEN CAST(? AS bigint) ELSE CAST(? AS bigint) END, waits = ?, error = ?,"
            " worker = NULL WHERE saga = ? AND key = ? AND worker = ? AND epoch = ?",
            state, now, state, arrived, now, due, waits, error, *hold,
        )  # fmt: skip
        if state in CLOSED and done.rowcount == 1:
            self._run("DELETE FROM tidings_saga_events WHERE saga = ? AND key = ?", hold.saga, hold.key)
        return bool(done.rowcount == 1)

    def release_all(self, releases: Sequence[Release]) -> list[bool]:
        """``release`` of each; no two are of one instance."""
        return [
            self.release(one.hold, one.state, due=one.due, waits=one.waits, error=one.error, arrived=one.arrived, now=one.now)
            for one in releases
        ]

    def free(self, hold: Hold, due: int) -> bool:
        """Let go of the instance as it is, until then."""
        return bool(
            self._run(
                "UPDATE tidings_sagas SET worker = NULL, due = ? WHERE saga = ? AND key = ? AND worker = ? AND epoch = ?", due, *hold
            ).rowcount
            == 1
        )

    def unpark(self, known: Sequence[tuple[str, int]], now: int) -> None:
        """A worker starts, perhaps with mended code: what is parked is tried once more."""
        mine, names = among(known)
        self._run(f"UPDATE tidings_sagas SET due = ? WHERE state = 'parked' AND worker IS NULL AND {mine}", now, *names)

    # -- what is known

    def row(self, saga: str, key: str) -> SagaRow | None:
        row = self._run(f"SELECT {ROW} FROM tidings_sagas WHERE saga = ? AND key = ?", saga, key).fetchone()
        return None if row is None else saga_row(row)

    def named(self, name: str, key: str) -> list[SagaRow]:
        """Instances of this key, ``name`` being the saga's, or its key's, without ``_id`` too."""
        rows = self._run(
            f"SELECT {ROW} FROM tidings_sagas WHERE key = ? AND (saga = ? OR key_name = ? OR key_name = ?)", key, name, name, name + "_id"
        )
        return [saga_row(row) for row in rows.fetchall()]

    def rows(self, saga: str | None, states: Sequence[str], limit: int) -> list[SagaRow]:
        """The oldest first."""
        where, values = ["1 = 1"], list[Any]()
        if saga is not None:
            where.append("saga = ?")
            values.append(saga)
        if states:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
        rows = self._run(f"SELECT {ROW} FROM tidings_sagas WHERE {' AND '.join(where)} ORDER BY started, saga, key LIMIT ?", *values, limit)
        return [saga_row(row) for row in rows.fetchall()]

    def alarms(self) -> list[tuple[str, str, int]]:
        """Saga, state and how many: those that wait for a person."""
        rows = self._run(
            "SELECT saga, state, count(*) FROM tidings_sagas WHERE state IN ('stuck', 'parked') GROUP BY saga, state ORDER BY 1, 2"
        )
        return [(row[0], row[1], int(row[2])) for row in rows.fetchall()]

    def journal(self, saga: str, key: str) -> list[Entry]:
        """In the order in which results were handed on; what is tried again stands behind."""
        rows = self._run(
            f"SELECT {ENTRY} FROM tidings_saga_journal WHERE saga = ? AND key = ? ORDER BY coalesce(seq, 9223372036854775807), started",
            saga, key,
        )  # fmt: skip
        return [Entry(*row) for row in rows.fetchall()]

    def arrivals(self, saga: str, key: str) -> list[Arrival]:
        rows = self._run(
            "SELECT position, type, version, time, data FROM tidings_saga_events WHERE saga = ? AND key = ? ORDER BY position", saga, key
        )
        return [Arrival(row[0], row[1], row[2], row[3], bytes(row[4])) for row in rows.fetchall()]

    def actions(self, saga: str, key: str) -> list[Action]:
        rows = self._run("SELECT time, actor, action, reason FROM tidings_saga_actions WHERE saga = ? AND key = ? ORDER BY time", saga, key)
        return [Action(*row) for row in rows.fetchall()]

    # -- operators

    def retry(self, saga: str, key: str, actor: str, reason: str, now: int) -> bool:
        """Make it due now, and what it tries again with it; False if somebody is at work on it, or it is closed."""
        done = self._run(
            f"UPDATE tidings_sagas SET due = ? WHERE saga = ? AND key = ? AND worker IS NULL AND state NOT IN {CLOSED}", now, saga, key
        )
        if done.rowcount != 1:
            return False
        self._run("UPDATE tidings_saga_journal SET due = ? WHERE saga = ? AND key = ? AND state = 'retrying'", now, saga, key)
        self._run(
            "INSERT INTO tidings_saga_actions (saga, key, time, actor, action, reason) VALUES (?, ?, ?, ?, 'retry', ?)",
            saga, key, now, actor, reason,
        )  # fmt: skip
        self._run("UPDATE tidings_meta SET value = CAST(CAST(value AS bigint) + 1 AS text) WHERE name = 'control'")
        return True


@lru_cache(maxsize=8)
def _record(still: str, share: str) -> str:
    """The line, if the instance is still held; where one stands that is tried again, it takes its place."""
    numbers = {"number", "seq", "attempts", "started", "ended", "due"}
    places = [f"CAST(? AS {'bigint' if name in numbers else 'text'})" for name in f"saga, key, {ENTRY}".split(", ")]
    return (
        f"INSERT INTO tidings_saga_journal (saga, key, {ENTRY}) SELECT {', '.join(places)} FROM tidings_sagas"
        f" WHERE saga = ? AND key = ? AND worker = ? AND epoch = ?{still} {share} {AGAIN}"
    )


def entry_values(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.kind, entry.branch, entry.step, entry.number, entry.seq, entry.state, entry.result, entry.error, entry.attempts,
        entry.started, entry.ended, entry.due, entry.digest,
    )  # fmt: skip


def start_values(start: Start) -> tuple[Any, ...]:
    """An instance's row before anything was done for it, in the order of ``ROW``."""
    saga, version, app, envelope, now, worker = start
    held = (None, worker, 1) if worker is not None else (now, None, 0)
    return (saga, version, app, "running", now, now, *held, 0, None, None, *envelope)


def saga_row(row: Sequence[Any]) -> SagaRow:
    event: Any = (*row[12:22], bytes(row[22]), *row[23:])
    facts: Any = (*row[:12], Envelope(*event))
    return SagaRow(*facts)


def among(known: Sequence[tuple[str, int]]) -> tuple[str, tuple[Any, ...]]:
    """A condition that it is one of these sagas, in this version."""
    return "(" + " OR ".join(["saga = ? AND version = ?"] * len(known)) + ")", tuple(value for pair in known for value in pair)
