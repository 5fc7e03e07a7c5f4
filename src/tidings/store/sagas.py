"""What sagas ask of a store: who is at work on an instance, its journal, and what arrived for it.

An instance is leased: ``worker`` and ``epoch`` stand in its row, and the worker's own lease is the one that it has for its lanes. Whatever
is written for an instance is written only while it is held so (``Hold``): whoever wakes up late writes nothing. The proof is a lock that
those who write for the same instance share, so that its parallel steps don't wait for each other.

Both stores speak the same statements here; what differs is said in ``Dialect``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from ..envelope import Envelope

CLOSED = ("completed", "compensated", "cancelled", "gone")
"""States in which nothing will happen any more; ``gone``: only that it was is known, so that nothing begins it again."""

EVENT = (
    "position, lane, topic, type, version_, key_name, key, event_id, time, source, data, correlation_id, causation_id, traceparent, headers"
)
AGAIN = (
    "ON CONFLICT (saga, key, kind, branch, step, number) DO UPDATE SET seq = excluded.seq, state = excluded.state,"
    " result = excluded.result, error = excluded.error, attempts = excluded.attempts, ended = excluded.ended, due = excluded.due"
    " WHERE tidings_saga_journal.state IN ('retrying', 'begun')"
)
"""What a line of the journal does where one stands that is to be tried again."""
ROW = (
    f"saga, version, app, state, since, started, due, worker, epoch, arrived, waits, error, {EVENT}, result, parent_saga, parent_key, undo"
)
READ = f"{ROW}, back, pause"
"""``ROW`` is what is written at the start; who reads wants to know what operators have ordered too."""
ENTRY = "kind, branch, step, number, seq, state, result, error, attempts, started, ended, due, digest"

START = f"INSERT INTO tidings_sagas ({ROW}) VALUES ({', '.join('?' * 31)}) ON CONFLICT (saga, key) DO NOTHING"
"""An instance, unless there is one of this key, or was: ``start_values`` makes the values."""

_PAUSED = f"s.pause IS NOT NULL AND r.state NOT IN {CLOSED}"
RELEASED = f"""since = CASE WHEN ({_PAUSED}) OR s.state <> r.state THEN r.now ELSE s.since END,
    state = CASE WHEN {_PAUSED} THEN 'paused' WHEN r.state = 'compensated' AND s.back = 'cancel' THEN 'cancelled' ELSE r.state END,
    due = CASE WHEN {_PAUSED} THEN NULL WHEN s.back IS NOT NULL AND r.state IN ('running', 'waiting') THEN r.now
        WHEN s.arrived <> r.arrived THEN r.now ELSE r.due END,
    pause = CASE WHEN {_PAUSED} THEN r.state END, waits = r.waits, error = r.error, result = r.result, worker = NULL"""
"""What becomes of an instance (s) that is let go of (r), and of what was ordered meanwhile;"""
RELEASABLE = "(r.state <> 'completed' OR s.back IS NULL)"
"""if it may be: who ordered it to be undone before counts."""


@lru_cache(maxsize=256)
def _marked(statement: str, mark: str) -> str:
    return statement.replace("?", mark)


class Dialect(NamedTuple):
    """What differs between stores. ``mark``: the placeholder. ``share``: locks the rows read, beside others who do; ``lock``: alone;
    ``skip``: alone, leaving out those that somebody has. ``living``: the workers whose lease lasts. ``lapse``: in how many seconds
    the first of them may be over, of workers other than one. ``now``: the arguments of ``living``; the last stands first in ``lapse``."""

    mark: str
    share: str
    lock: str
    skip: str
    living: str
    lapse: str
    now: tuple[Any, ...]


class Look(NamedTuple):
    """``found``: whether ``claim`` would find anything. ``due``: when the next instance is. ``lapse``: in how many seconds the lease of
    another worker may be over, so that what it has in hand is to be had; None if there is no other."""

    found: bool
    due: int | None
    lapse: float | None


class Hold(NamedTuple):
    """That ``worker`` holds an instance."""

    saga: str
    key: str
    worker: str
    epoch: int


@dataclass(slots=True)
class SagaRow:
    """An instance. Times are microseconds since 1970.

    ``state``: running, waiting, compensating, stuck, parked, paused, completed, compensated, cancelled or gone, ``since`` when. ``due``:
    when it is to be looked at. ``arrived``: how many events came for it. ``waits``: JSON list of what it waits for. ``envelope``: the event
    that began it. ``result``: JSON, of one that is completed. ``parent``: saga and key of the instance whose child it is. ``back``:
    ``compensate`` or ``cancel``, once an operator or the parent has ordered it; ``undo``: why, in the parent's words. ``pause``: the state
    that a paused one goes on with; not None while a worker has it: it is paused as soon as that one lets go of it.
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
    result: str | None = None
    parent: tuple[str, str] | None = None
    undo: str | None = None
    back: str | None = None
    pause: str | None = None

    @property
    def key(self) -> str:
        assert self.envelope.key is not None
        return self.envelope.key


@dataclass(slots=True)
class Entry:
    """One line of a journal: what became of a call (``kind``: step, undo, sleep, wait, pivot, child, changed, restart; back: it was ordered
    to be undone from here).

    ``seq``: its place in the order in which results were handed to the body; None while it is tried again. ``state``: done, refused, failed
    (attempts used up), late (nothing came in time), skipped (by an operator), retrying, then ``due`` says when, or begun: it is tried once
    at most, and what became of it isn't known. ``result``: JSON. ``digest``: of the arguments.
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
    """An instance to be made: due at once, or in the hands of ``worker`` from the first. ``parent``: see ``SagaRow``."""

    saga: str
    version: int
    app: str
    envelope: Envelope
    now: int
    worker: str | None = None
    parent: tuple[str, str] | None = None


class Release(NamedTuple):
    """How an instance is let go of; see ``SagaUnit.release``."""

    hold: Hold
    state: str
    due: int | None
    waits: str | None
    error: str | None
    arrived: int | None
    now: int
    result: str | None = None
    parent: tuple[str, str] | None = None

    @property
    def tells(self) -> bool:
        """Another instance hears of it, in the same transaction."""
        return self.parent is not None and self.state in CLOSED


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
    """What somebody did about an instance, and why. ``detail``: to what, with which result."""

    time: int
    actor: str
    action: str
    reason: str
    detail: str | None = None


class SagaUnit:
    """The statements of sagas in one transaction (``Unit.sagas``).

    Args:
        tell: called when other processes want to know of what was written, once it is committed.
    """

    def __init__(self, conn: Any, dialect: Dialect, tell: Callable[[], None] = lambda: None) -> None:
        self._conn = conn
        self._dialect = dialect
        self._tell = tell

    def _run(self, statement: str, *arguments: Any) -> Any:
        return self._conn.execute(_marked(statement, self._dialect.mark), arguments)

    # -- events come

    def start(
        self, saga: str, version: int, app: str, envelope: Envelope, now: int, worker: str | None = None,
        parent: tuple[str, str] | None = None,
    ) -> bool:  # fmt: skip
        """Make an instance, due at once, or in the hands of ``worker``; False if there is one of this key."""
        if worker is None:
            self._tell()
        return bool(self._run(START, *start_values(Start(saga, version, app, envelope, now, worker, parent))).rowcount == 1)

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

    def look(self, known: Sequence[tuple[str, int]], now: int, worker: str = "") -> Look:
        """What there is to do for a worker. One statement."""
        mine, names = among(known)
        at = self._dialect.now
        row = self._run(
            f"SELECT (SELECT due FROM tidings_sagas WHERE due IS NOT NULL AND worker IS NULL AND {mine} ORDER BY due LIMIT 1),"
            f" (SELECT count(*) FROM tidings_sagas WHERE worker IS NOT NULL AND worker NOT IN ({self._dialect.living}) AND {mine}),"
            f" ({self._dialect.lapse})",
            *names, *at, *names, at[-1], *at, worker,
        ).fetchone()  # fmt: skip
        due = None if row[0] is None else int(row[0])
        return Look(bool(row[1]) or (due is not None and due <= now), due, row[2])

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
        if entry.kind == "pivot":  # who ordered it to be undone before counts
            still += " AND back IS NULL"
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
        self, hold: Hold, state: str, *, due: int | None, waits: str | None, error: str | None, arrived: int | None, now: int,
        result: str | None = None, parent: tuple[str, str] | None = None,
    ) -> bool:  # fmt: skip
        """Let go of the instance until ``due``, or an event comes; at once if more than ``arrived`` events have come (None: never mind).

        What was ordered meanwhile counts: one that is to be paused is paused, one that is to be undone doesn't rest and is not completed
        (False then). ``parent``: is told when it is closed.
        """
        done = self._run(_RELEASE, *hold, state, due, waits, error, arrived, now, result)
        if state in CLOSED and parent is not None and done.rowcount == 1:
            self._run(
                "UPDATE tidings_sagas SET arrived = arrived + 1, due = CASE WHEN worker IS NULL AND state IN ('waiting', 'compensating',"
                " 'stuck') THEN CAST(? AS bigint) ELSE due END WHERE saga = ? AND key = ?",
                now, *parent,
            )  # fmt: skip
        if state in CLOSED or state == "parked" or (due is not None and due <= now):  # then anybody may take it
            self._tell()
        if state in CLOSED and done.rowcount == 1:
            self._run("DELETE FROM tidings_saga_events WHERE saga = ? AND key = ?", hold.saga, hold.key)
        return bool(done.rowcount == 1)

    def release_all(self, releases: Sequence[Release]) -> list[bool]:
        """``release`` of each; no two are of one instance."""
        return [
            self.release(
                one.hold, one.state, due=one.due, waits=one.waits, error=one.error, arrived=one.arrived, now=one.now, result=one.result,
                parent=one.parent,
            )
            for one in releases
        ]  # fmt: skip

    def write_all(
        self, starts: Sequence[Start], lines: Sequence[tuple[Hold, Entry]], releases: Sequence[Release]
    ) -> tuple[list[bool], list[bool], list[bool]]:
        """``start_all``, ``record_all``, ``release_all``, in this order; all of it or nothing, as ``Store.write_plainly`` runs it."""
        return self.start_all(starts), self.record_all(lines), self.release_all(releases)

    def restart(
        self, hold: Hold, version: int, envelope: Envelope, now: int, kept: Entry | None, taken: Sequence[int]
    ) -> bool:  # fmt: skip
        """Begin the instance anew with another event, due at once, and drop its journal; or keep it under ``kept``, a line of kind restart
        whose branch is its mark. ``taken``: positions of events that it has had: what may come again isn't had twice."""
        done = self._run(
            "UPDATE tidings_sagas SET version = ?, type = ?, version_ = ?, event_id = ?, time = ?, data = ?, state = 'running', since = ?,"
            " started = ?, due = ?, waits = NULL, error = NULL, worker = NULL WHERE saga = ? AND key = ? AND worker = ? AND epoch = ? AND"
            " back IS NULL",
            version, envelope.type, envelope.version, envelope.event_id, envelope.time, envelope.data, now, now, now, *hold,
        )  # fmt: skip
        if done.rowcount != 1:
            return False
        mine = "saga = ? AND key = ? AND substr(branch, 1, 1) <> 'g'"
        if kept is None:
            self._run(f"DELETE FROM tidings_saga_journal WHERE {mine}", hold.saga, hold.key)
        else:
            mark = f"{kept.branch}/"
            self._run(f"UPDATE tidings_saga_journal SET branch = CAST(? AS text) || branch WHERE {mine}", mark, hold.saga, hold.key)
            values = (hold.saga, hold.key, *entry_values(kept))
            self._run(f"INSERT INTO tidings_saga_journal (saga, key, {ENTRY}) VALUES ({', '.join('?' * len(values))})", *values)
        for position in taken:
            self._run(
                "UPDATE tidings_saga_events SET type = '', data = ? WHERE saga = ? AND key = ? AND position = ?",
                b"", hold.saga, hold.key, position,
            )  # fmt: skip
        self._run(
            f"DELETE FROM tidings_saga_events WHERE saga = ? AND key = ? AND type = '' AND position <= {_RETAINED}", hold.saga, hold.key
        )
        return True

    # -- going away

    def forget(self, before: int, now: int, limit: int) -> int:
        """Let go of instances that were closed before that time; how many.

        A tombstone stays: the row, with nothing in it, so that its start event, read once more, begins nothing. It goes once the log has
        let go of that event. A child is kept until its parent is closed.
        """
        closed = ", ".join(f"'{state}'" for state in CLOSED)
        found = self._run(
            "SELECT saga, key FROM tidings_sagas one WHERE state IN ('completed', 'compensated', 'cancelled') AND since < ? AND NOT EXISTS"
            " (SELECT 1 FROM tidings_sagas parent WHERE parent.saga = one.parent_saga AND parent.key = one.parent_key AND parent.state NOT"
            f" IN ({closed})) ORDER BY since LIMIT ? {self._dialect.skip}",
            before, limit,
        ).fetchall()  # fmt: skip
        for saga, key in found:
            for table in ("journal", "events", "actions"):
                self._run(f"DELETE FROM tidings_saga_{table} WHERE saga = ? AND key = ?", saga, key)
            self._run(
                "UPDATE tidings_sagas SET state = 'gone', since = ?, data = ?, waits = NULL, error = NULL, result = NULL, headers = NULL,"
                " undo = NULL, due = NULL WHERE saga = ? AND key = ?",
                now, b"", saga, key,
            )  # fmt: skip
        old = self._run(
            f"SELECT saga, key FROM tidings_sagas WHERE state = 'gone' AND position <= {_RETAINED} AND (position > 0 OR since < ?)"
            f" LIMIT ? {self._dialect.skip}",
            before, limit,
        ).fetchall()  # fmt: skip
        for saga, key in old:
            self._run("DELETE FROM tidings_sagas WHERE saga = ? AND key = ?", saga, key)
        return max(len(found), len(old))

    # -- children

    def adopt(self, hold: Hold, begun: Entry, refused: Entry, start: Start) -> Entry | None:
        """Begin a child, with the line that says so; or ``refused``, if there is an instance that isn't this one's. None:
        the parent is somebody else's by now."""
        entry = begun
        if not self.start(*start):
            child = self.row(start.saga, str(start.envelope.key))
            entry = begun if child is not None and child.parent == (hold.saga, hold.key) else refused
        return entry if self.record(hold, entry) else None

    def ask_undo(self, child: tuple[str, str], reason: str, now: int) -> None:
        """An instance is to be undone, whatever its body would do; nothing if it was asked already, or is undone. A worker that has it in
        hand hears of it as of an operator's order."""
        self._run(
            "UPDATE tidings_sagas SET undo = ?, back = coalesce(back, 'compensate'), arrived = arrived + 1, since = ?, state = CASE WHEN"
            " state = 'completed' THEN 'compensating' ELSE state END, due = CASE WHEN worker IS NULL AND state <> 'paused' THEN"
            " CAST(? AS bigint) ELSE due END WHERE saga = ? AND key = ? AND undo IS NULL AND state NOT IN"
            " ('compensated', 'cancelled', 'gone')",
            reason, now, now, *child,
        )  # fmt: skip
        self._tell()
        self._run(f"{CONTROL} AND EXISTS (SELECT 1 FROM tidings_sagas WHERE saga = ? AND key = ? AND worker IS NOT NULL)", *child)

    def free(self, hold: Hold, due: int) -> bool:
        """Let go of the instance as it is, until then."""
        self._tell()
        return bool(
            self._run(
                "UPDATE tidings_sagas SET worker = NULL, due = CASE WHEN pause IS NULL THEN CAST(? AS bigint) END,"
                " state = CASE WHEN pause IS NULL THEN state ELSE 'paused' END, pause = CASE WHEN pause IS NOT NULL THEN state END"
                " WHERE saga = ? AND key = ? AND worker = ? AND epoch = ?",
                due,
                *hold,
            ).rowcount
            == 1
        )

    def unpark(self, known: Sequence[tuple[str, int]], now: int) -> None:
        """A worker starts, perhaps with mended code: what is parked is tried once more."""
        mine, names = among(known)
        self._run(f"UPDATE tidings_sagas SET due = ? WHERE state = 'parked' AND worker IS NULL AND {mine}", now, *names)

    # -- what is known

    def row(self, saga: str, key: str, *, lock: bool = False) -> SagaRow | None:
        """``lock``: nobody else changes it until this transaction ends."""
        locked = self._dialect.lock if lock else ""
        row = self._run(f"SELECT {READ} FROM tidings_sagas WHERE saga = ? AND key = ? {locked}", saga, key).fetchone()
        return None if row is None else saga_row(row)

    def named(self, name: str, key: str) -> list[SagaRow]:
        """Instances of this key, ``name`` being the saga's, or its key's, without ``_id`` too."""
        rows = self._run(
            f"SELECT {READ} FROM tidings_sagas WHERE key = ? AND (saga = ? OR key_name = ? OR key_name = ?)", key, name, name, name + "_id"
        )
        return [saga_row(row) for row in rows.fetchall()]

    def names(self, limit: int = 100) -> list[str]:
        """The sagas that have instances, closed ones too. A step along the primary key for each."""
        rows = self._run(
            "WITH RECURSIVE names (saga) AS (SELECT min(saga) FROM tidings_sagas UNION ALL SELECT (SELECT min(saga) FROM tidings_sagas"
            " WHERE saga > names.saga) FROM names WHERE names.saga IS NOT NULL) SELECT saga FROM names WHERE saga IS NOT NULL LIMIT ?",
            limit,
        )
        return [row[0] for row in rows.fetchall()]

    def ended(self, asked: Sequence[tuple[str, str]]) -> list[tuple[str, str, str, str | None, str | None]]:
        """Saga, key, state, result and error of those that are closed or parked."""
        found: list[tuple[str, str, str, str | None, str | None]] = []
        for start in range(0, len(asked), 200):
            some = asked[start : start + 200]
            pairs = ", ".join(["(?, ?)"] * len(some))
            rows = self._run(
                f"SELECT saga, key, state, result, error FROM tidings_sagas WHERE (saga, key) IN (VALUES {pairs})"
                f" AND state IN {(*CLOSED, 'parked')}",
                *(value for pair in some for value in pair),
            )
            found += [(row[0], row[1], row[2], row[3], row[4]) for row in rows.fetchall()]
        return found

    def each(self, asked: Sequence[tuple[str, str]]) -> dict[tuple[str, str], SagaRow]:
        """Those that there are, by saga and key."""
        found: dict[tuple[str, str], SagaRow] = {}
        for start in range(0, len(asked), 200):
            some = asked[start : start + 200]
            pairs = ", ".join(["(?, ?)"] * len(some))
            rows = self._run(
                f"SELECT {READ} FROM tidings_sagas WHERE (saga, key) IN (VALUES {pairs})", *(value for pair in some for value in pair)
            )
            found |= {(row.saga, row.key): row for row in map(saga_row, rows.fetchall())}
        return found

    def rows(
        self, saga: str | None, states: Sequence[str], limit: int, *, version: int | None = None, before: int | None = None,
        waits: str | None = None, after: SagaRow | None = None,
    ) -> list[SagaRow]:  # fmt: skip
        """The oldest first; behind ``after``.

        Args:
            before: started no later. waits: a text that stands in what it waits for.
        """
        where, values = ["1 = 1"], list[Any]()
        if saga is not None:
            where.append("saga = ?")
            values.append(saga)
        if not states:
            where.append("state <> 'gone'")
        else:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
        if version is not None:
            where.append("version = ?")
            values.append(version)
        if before is not None:
            where.append("started <= ?")
            values.append(before)
        if waits is not None:
            where.append("worker IS NULL AND waits LIKE ? ESCAPE '!'")
            values.append("%" + waits.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%")
        if after is not None:
            where.append("(started, saga, key) > (?, ?, ?)")
            values += (after.started, after.saga, after.key)
        rows = self._run(
            f"SELECT {READ} FROM tidings_sagas WHERE {' AND '.join(where)} ORDER BY started, saga, key LIMIT ?", *values, limit
        )
        return [saga_row(row) for row in rows.fetchall()]

    def timers(self, saga: str | None, limit: int) -> list[SagaRow]:
        """Those that go on by themselves, the next one first."""
        where, values = ("AND saga = ?", (saga,)) if saga is not None else ("", ())
        rows = self._run(
            f"SELECT {READ} FROM tidings_sagas WHERE due IS NOT NULL AND worker IS NULL {where} ORDER BY due LIMIT ?", *values, limit
        )
        return [saga_row(row) for row in rows.fetchall()]

    def under_way(self, after: tuple[str, str], limit: int) -> list[SagaRow]:
        """Instances that aren't closed, by saga and key, behind this one."""
        closed = ", ".join(f"'{state}'" for state in CLOSED)
        rows = self._run(
            f"SELECT {READ} FROM tidings_sagas WHERE (saga, key) > (?, ?) AND state NOT IN ({closed}) ORDER BY saga, key LIMIT ?",
            *after, limit,
        )  # fmt: skip
        return [saga_row(row) for row in rows.fetchall()]

    def migrate(self, row: SagaRow, version: int, actor: str, reason: str, now: int) -> bool:
        """Go on with another version of the code, if nobody has had the instance since ``row`` was read; at once, if it is parked."""
        done = self._run(
            "UPDATE tidings_sagas SET version = ?, due = CASE WHEN state = 'parked' THEN CAST(? AS bigint) ELSE due END WHERE saga = ? AND"
            " key = ? AND version = ? AND epoch = ? AND worker IS NULL",
            version, now, row.saga, row.key, row.version, row.epoch,
        )  # fmt: skip
        if done.rowcount != 1:
            return False
        self.act([(row.saga, row.key)], Action(now, actor, f"migrate to version {version}", reason))
        return True

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
        rows = self._run(
            "SELECT time, actor, action, reason, detail FROM tidings_saga_actions WHERE saga = ? AND key = ? ORDER BY time", saga, key
        )
        return [Action(*row) for row in rows.fetchall()]

    # -- operators: what they may do, and when, says sagas/operating.py. The row is locked by whoever asks that.

    def again(self, saga: str, key: str, now: int) -> None:
        """Make it due now, and what it tries again with it."""
        self._run("UPDATE tidings_sagas SET due = ? WHERE saga = ? AND key = ? AND worker IS NULL AND state <> 'paused'", now, saga, key)
        self._run("UPDATE tidings_saga_journal SET due = ? WHERE saga = ? AND key = ? AND state = 'retrying'", now, saga, key)

    def not_done(self, saga: str, key: str, entry: Entry, error: str, now: int) -> None:
        """A step that was begun, and of which nobody knew, did not happen: it is to be called, as soon as ``again`` says."""
        self._run(
            "UPDATE tidings_saga_journal SET state = 'retrying', error = ?, ended = ?, due = ? WHERE saga = ? AND key = ? AND kind = 'step'"
            " AND branch = ? AND step = ? AND number = ? AND state = 'begun'",
            error, now, now, saga, key, entry.branch, entry.step, entry.number,
        )  # fmt: skip

    def skip(self, saga: str, key: str, entry: Entry, now: int) -> None:
        """Write what an operator says about a call, as the last line of the journal, and go on."""
        row = self._run("SELECT max(seq) FROM tidings_saga_journal WHERE saga = ? AND key = ?", saga, key).fetchone()
        if entry.seq is None:
            entry = replace(entry, seq=int(row[0] or 0) + 1)
        places = ", ".join(["?"] * (2 + len(entry_values(entry))))
        self._run(
            f"INSERT INTO tidings_saga_journal (saga, key, {ENTRY}) VALUES ({places}) ON CONFLICT (saga, key, kind, branch, step, number)"
            " DO UPDATE SET seq = excluded.seq, state = excluded.state, result = excluded.result, ended = excluded.ended, due = NULL",
            saga, key, *entry_values(entry),
        )  # fmt: skip
        self._run(
            "UPDATE tidings_sagas SET due = ?, waits = NULL WHERE saga = ? AND key = ? AND worker IS NULL AND state <> 'paused'",
            now,
            saga,
            key,
        )

    def supply(self, saga: str, key: str, type_: str, version: int, data: bytes, now: int) -> None:
        """Keep an event that is not in the log for an instance, as if it had come before all others."""
        row = self._run("SELECT max(position) FROM tidings_saga_events WHERE saga = ? AND key = ? AND position < 0", saga, key).fetchone()
        position = -(2**62) if row[0] is None else int(row[0]) + 1
        due = "CASE WHEN worker IS NULL AND state = 'waiting' THEN CAST(? AS bigint) ELSE due END"
        self._run(f"UPDATE tidings_sagas SET arrived = arrived + 1, due = {due} WHERE saga = ? AND key = ?", now, saga, key)
        self._run(
            "INSERT INTO tidings_saga_events (saga, key, position, type, version, time, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
            saga, key, position, type_, version, now, data,
        )  # fmt: skip

    def turn_back(self, saga: str, key: str, how: str, now: int) -> None:
        """Order that it be undone (``how``: compensate or cancel); one that is paused goes on for that."""
        self._run(
            "UPDATE tidings_sagas SET back = ?, state = CASE WHEN state = 'paused' THEN pause ELSE state END, pause = NULL,"
            " due = CASE WHEN worker IS NULL THEN CAST(? AS bigint) ELSE due END WHERE saga = ? AND key = ?",
            how, now, saga, key,
        )  # fmt: skip

    def pause(self, saga: str, key: str, now: int) -> None:
        """At once if nobody has it; else whoever has it will let go of it so."""
        self._run(
            "UPDATE tidings_sagas SET pause = state, state = CASE WHEN worker IS NULL THEN 'paused' ELSE state END,"
            " since = CASE WHEN worker IS NULL THEN CAST(? AS bigint) ELSE since END, due = CASE WHEN worker IS NULL THEN NULL ELSE due END"
            " WHERE saga = ? AND key = ?",
            now, saga, key,
        )  # fmt: skip

    def resume(self, saga: str, key: str, now: int) -> None:
        self._run(
            "UPDATE tidings_sagas SET state = CASE WHEN state = 'paused' THEN pause ELSE state END, pause = NULL,"
            " since = CASE WHEN state = 'paused' THEN CAST(? AS bigint) ELSE since END,"
            " due = CASE WHEN worker IS NULL THEN CAST(? AS bigint) ELSE due END WHERE saga = ? AND key = ?",
            now, now, saga, key,
        )  # fmt: skip

    def act(self, instances: Sequence[tuple[str, str]], action: Action) -> None:
        """Keep who did what to them and why, and tell the workers that there is something to be read."""
        for saga, key in instances:
            self._run(
                "INSERT INTO tidings_saga_actions (saga, key, time, actor, action, reason, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
                saga, key, action.time, action.actor, action.action, action.reason, action.detail,
            )  # fmt: skip
        if instances:  # the last lock: whoever has it waits for no instance
            self._run(CONTROL)
            self._tell()


CONTROL = "UPDATE tidings_meta SET value = CAST(CAST(value AS bigint) + 1 AS text) WHERE name = 'control'"
"""All workers see that it has changed, and look for what was ordered of those that they have in hand."""

_RETAINED = "(SELECT CAST(value AS bigint) FROM tidings_meta WHERE name = 'retained')"
"""Of the log, rows up to there may be gone."""

_RELEASE = f"""UPDATE tidings_sagas AS s SET {RELEASED} FROM (SELECT CAST(? AS text) AS saga, CAST(? AS text) AS key,
    CAST(? AS text) AS worker, CAST(? AS bigint) AS epoch, CAST(? AS text) AS state, CAST(? AS bigint) AS due, CAST(? AS text) AS waits,
    CAST(? AS text) AS error, CAST(? AS bigint) AS arrived, CAST(? AS bigint) AS now, CAST(? AS text) AS result) AS r
    WHERE s.saga = r.saga AND s.key = r.key AND s.worker = r.worker AND s.epoch = r.epoch AND {RELEASABLE}"""


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
    saga, version, app, envelope, now, worker, parent = start
    held = (None, worker, 1) if worker is not None else (now, None, 0)
    return (saga, version, app, "running", now, now, *held, 0, None, None, *envelope, None, *(parent or (None, None)), None)


def saga_row(row: Sequence[Any]) -> SagaRow:
    """From the columns of ``READ``, or of ``ROW``."""
    event: Any = (*row[12:22], bytes(row[22]), *row[23:27])
    parent = None if row[28] is None else (row[28], row[29])
    facts: Any = (*row[:12], Envelope(*event), row[27], parent, *row[30:33])
    return SagaRow(*facts)


def among(known: Sequence[tuple[str, int]]) -> tuple[str, tuple[Any, ...]]:
    """A condition that it is one of these sagas, in this version.

    Not one that the primary key could answer: SQLite, which has no statistics here, would read all instances of a saga instead of the few
    that are due.
    """
    return "(" + " OR ".join(["coalesce(saga, '') = ? AND version = ?"] * len(known)) + ")", tuple(
        value for pair in known for value in pair
    )
