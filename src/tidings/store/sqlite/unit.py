"""The statements of one transaction, as named SQL beside the method that runs it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from ...clock import Clock
from ...envelope import LANES, Envelope
from ...errors import SubscriptionNameTaken
from .. import skips
from ..intakes import IntakeRow
from ..port import Behind, FailedAttempt, KeyState, Lane, Parked, Scheduled, SubscriptionRow, WorkerRow
from ..sagas import Dialect, SagaUnit
from . import schema, search
from .intakes import SQLiteIntake, intakes

EVENT = "lane, topic, type, version, key_name, key, event_id, time, source, data, correlation_id, causation_id, traceparent, headers"
"""The columns of an event, in the order of ``Envelope``'s fields after the position."""

APPEND = f"INSERT INTO tidings_log ({EVENT}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"

SCHEDULE = f"INSERT INTO tidings_scheduled (event_id_, due, {EVENT}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"

# A scheduled event is published when it is due, so that the times along the log go on as its positions do (``start=``, retention).
_RELEASED = EVENT.replace(" time,", " due,")

HEAD = "SELECT seq FROM sqlite_sequence WHERE name = 'tidings_log'"
READ = f"SELECT position, {EVENT} FROM tidings_log WHERE position > ? AND position <= ? ORDER BY position"

_ADVANCE = """UPDATE tidings_lanes SET position = given.column3, open = given.column4 FROM (VALUES {}) given
    WHERE subscription = ? AND worker = ? AND lane = given.column1 AND epoch = given.column2"""

_ACTIVE = "(state <> 'dead' OR holds = 1)"
_PARKED = f"subscription, state, holds, attempts, due, delay, since, error, traceback, position, {EVENT}"

# Never more than the whole delay from now, whatever the wall clock did in between.
_DUE_IN = "max(0, min(due - ?, delay))"

# A failed retry keeps the time of its first failure (since) and its copy of the event.
PARK = f"""INSERT INTO tidings_parked ({_PARKED}) VALUES ({",".join("?" * 24)})
    ON CONFLICT (subscription, position) DO UPDATE SET state = excluded.state, holds = excluded.holds, attempts = excluded.attempts,
    due = excluded.due, delay = excluded.delay, error = excluded.error, traceback = excluded.traceback"""


def only_in(log_id: str, statement: str) -> str:
    """``APPEND`` or ``SCHEDULE``, made so that it can't be prepared on a connection to another database than the log of this id.

    A connection can't be remembered by identity (CPython gives a dead one's id to the next), so the check rides with each statement, for
    nothing: the view is looked up when the statement is prepared, and again when the schema has changed, but never read, since coalesce
    stops at its first value. ``main``: what is attached or temporary under these names is not the store.
    """
    here = f"VALUES (coalesce(?, (SELECT 1 FROM main.{schema.name_of(log_id)}))"
    return statement.replace("INTO ", "INTO main.", 1).replace("VALUES (?", here, 1)


def append_with(constants: Mapping[str, str | int | None]) -> str:
    """``APPEND`` with the values of some columns written into it: binding a value costs more than anything else in it.

    Raises:
        ValueError: one of them can't stand in a statement as it would be bound.
    """
    values = [_literal(constants[column]) if column in constants else "?" for column in EVENT.split(", ")]
    return f"INSERT INTO tidings_log ({EVENT}) VALUES ({', '.join(values)})"


def _literal(value: str | int | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("SQLite would read it as a real number")
        return str(value)
    if "\0" in value:
        raise ValueError("a statement ends at a zero byte")
    return "'" + value.replace("'", "''") + "'"


class SQLiteUnit:
    """``Unit`` on a sqlite3 connection; the transaction is its owner's."""

    __slots__ = ("_boot", "_clock", "_conn")

    def __init__(self, conn: sqlite3.Connection, clock: Clock, boot: str) -> None:
        self._conn = conn
        self._clock = clock
        self._boot = boot

    # -- the log

    def insert(self, statement: str, values: Sequence[Any]) -> int:
        return self._conn.execute(statement, values).lastrowid or 0

    def append(self, envelopes: Iterable[Envelope]) -> list[int]:
        execute = self._conn.execute
        return [execute(APPEND, envelope[1:]).lastrowid or 0 for envelope in envelopes]

    def append_many(self, envelopes: Sequence[Envelope]) -> None:
        self._conn.executemany(APPEND, [envelope[1:] for envelope in envelopes])

    def head(self) -> int:
        row = self._conn.execute(HEAD).fetchone()
        return int(row[0]) if row else 0

    def retained(self) -> int:
        return int(self._meta("retained"))

    def first_position_at(self, time: int) -> int:
        for span in search.spans(self._conn, since=time):
            places, positions = search.condition(span)
            row = self._conn.execute(
                f"SELECT position FROM tidings_log WHERE {places} AND time >= ? ORDER BY position LIMIT 1", (*positions, time)
            ).fetchone()
            if row is not None:
                return int(row[0]) - 1
        return self.head()

    def select(
        self, *, after: int = 0, limit: int, types: Sequence[str] = (), key: tuple[str | None, str] | None = None, since: int | None = None,
        until: int | None = None, event_ids: Sequence[str] = (), correlation_ids: Sequence[str] = (), newest: bool = False,
    ) -> list[Envelope]:  # fmt: skip
        where: list[str] = ["position > ?"]
        args: list[Any] = [after]
        several: tuple[tuple[str, Sequence[str]], ...] = (("type", types), ("event_id", event_ids), ("correlation_id", correlation_ids))
        for column, values in several:
            if values:
                where.append(f"{column} IN (SELECT value FROM json_each(?))")
                args.append(json.dumps(list(values)))
        if key is not None:
            where.append("key = ?")
            args.append(key[1])
            if key[0] is not None:
                where.append("key_name = ?")
                args.append(key[0])
        for condition, moment in (("time >= ?", since), ("time < ?", until)):
            if moment is not None:
                where.append(condition)
                args.append(moment)
        words = event_ids or ([key[1]] if key is not None else correlation_ids)
        order = "DESC" if newest else "ASC"
        statement = f"SELECT position, {EVENT} FROM tidings_log WHERE {{}} AND {' AND '.join(where)} ORDER BY position {order} LIMIT ?"
        rows: list[tuple[Any, ...]] = []
        for span in search.spans(self._conn, words, after=after, since=since, until=until, newest=newest):
            places, positions = search.condition(span)
            rows += self._conn.execute(statement.format(places), (*positions, *args, limit - len(rows))).fetchall()
            if len(rows) >= limit:
                break
        if newest:
            rows.reverse()
        return [Envelope(*row) for row in rows]

    def next_block(self) -> search.Block | None:
        """A part of the log that ``search`` can be told about, by ``add_block`` in any later transaction; None: it knows all it can."""
        first = self._conn.execute("SELECT min(position) FROM tidings_log").fetchone()[0]
        return None if first is None else search.next_block(self._conn, first, self.head())

    def add_block(self, block: search.Block) -> None:
        # Two workers may have condensed the same one: the results are the same.
        self._conn.execute(
            "INSERT OR IGNORE INTO tidings_blocks (block, oldest, newest, entries) VALUES (?, ?, ?, ?)",
            (block.number, block.oldest, block.newest, block.entries),
        )

    def searched_plainly(self) -> int:
        """How many positions of the log have no block yet."""
        row = self._conn.execute(
            "SELECT (SELECT max(position) FROM tidings_log), (SELECT min(position) FROM tidings_log),"
            " (SELECT max(block) FROM tidings_blocks)"
        ).fetchone()
        if row[0] is None:
            return 0
        return int(row[0]) + 1 - max(int(row[1]), 0 if row[2] is None else (int(row[2]) + 1) * search.BLOCK)

    def trim(self, upto: int, limit: int) -> int:
        """Deletes by range in chunks; the mark goes up first, so that a reader knows that what is missing below it was trimmed."""
        first = self._conn.execute("SELECT min(position) FROM tidings_log").fetchone()[0]
        if first is None or first > upto:
            return 0
        last = min(upto, first + limit - 1)
        self._conn.execute("UPDATE tidings_meta SET value = ? WHERE name = 'retained' AND CAST(value AS INTEGER) < ?", (str(last), last))
        self._conn.execute("DELETE FROM tidings_attempts WHERE position <= ?", (last,))
        self._conn.execute("DELETE FROM tidings_blocks WHERE block < ?", ((last + 1) >> search.OFFSET_BITS,))
        return self._conn.execute("DELETE FROM tidings_log WHERE position <= ?", (last,)).rowcount

    def trimmable(self) -> int:
        """The highest position that every subscription has passed, open positions included."""
        passed = self.head()
        for lane in self.lanes():
            passed = min(passed, lane.position, *(position - 1 for position in lane.open))
        return passed

    # -- scheduled events

    def schedule(self, envelope: Envelope, due: int) -> None:
        self._conn.execute(SCHEDULE, (envelope.event_id, due, *envelope[1:]))

    def release_due(self, now: int, limit: int) -> int:
        """Two workers may try at once: the write lock makes them take turns, and the second finds the rows gone."""
        rows = self._conn.execute(
            f"SELECT event_id_, {_RELEASED} FROM tidings_scheduled WHERE due <= ? ORDER BY due, event_id_ LIMIT ?", (now, limit)
        ).fetchall()
        for row in rows:
            self._conn.execute(APPEND, row[1:])
            self._conn.execute("DELETE FROM tidings_scheduled WHERE event_id_ = ?", (row[0],))
        return len(rows)

    def scheduled(self, limit: int = 1000) -> list[Scheduled]:
        rows = self._conn.execute(f"SELECT due, {EVENT} FROM tidings_scheduled ORDER BY due, event_id_ LIMIT ?", (limit,))
        return [Scheduled(row[0], Envelope(0, *row[1:])) for row in rows]

    def next_due(self) -> int | None:
        row = self._conn.execute("SELECT min(due) FROM tidings_scheduled").fetchone()
        return None if row[0] is None else int(row[0])

    def cancel(self, event_id: str) -> bool:
        return self._conn.execute("DELETE FROM tidings_scheduled WHERE event_id_ = ?", (event_id,)).rowcount > 0

    # -- subscriptions

    def register(self, name: str, app: str, types: Sequence[str], ordering: str, start: int, now: int, lapse: str | None = None) -> None:
        known = self._conn.execute("SELECT app, types FROM tidings_subscriptions WHERE name = ?", (name,)).fetchone()
        if known is None:
            self._conn.execute(
                "INSERT INTO tidings_subscriptions (name, app, types, ordering, created, start, lapse) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, app, json.dumps(sorted(types)), ordering, now, start, lapse),
            )
            self._conn.executemany(
                "INSERT INTO tidings_lanes (subscription, lane, position) VALUES (?, ?, ?)", [(name, lane, start) for lane in range(LANES)]
            )
            return
        if known[0] != app:
            raise SubscriptionNameTaken(
                f"the subscription {name!r} belongs to the app {known[0]!r}; give yours another name, for example {app + '-' + name!r}",
                name=name,
                app=known[0],
            )
        self._note_types(name, json.loads(known[1]), types)
        self._conn.execute(
            "UPDATE tidings_subscriptions SET types = ?, ordering = ?, lapse = ?"
            " WHERE name = ? AND (types <> ? OR ordering <> ? OR lapse IS NOT ?)",
            (json.dumps(sorted(types)), ordering, lapse, name, json.dumps(sorted(types)), ordering, lapse),
        )

    def subscriptions(self) -> list[SubscriptionRow]:
        rows = self._conn.execute(
            "SELECT name, app, types, ordering, created, paused, held, held_since, start, lapse, lapsed FROM tidings_subscriptions"
            " ORDER BY created, name"
        )
        return [
            SubscriptionRow(
                r[0], r[1], tuple(json.loads(r[2])), r[3], r[4], bool(r[5]), r[6], r[7], r[8], r[9],
                None if r[10] is None else (int((at := json.loads(r[10]))[0]), int(at[1])),
            )
            for r in rows
        ]  # fmt: skip

    def behind(self, name: str, most: int = 50_000) -> Behind:
        lanes = self.lanes(name)
        opened = [position for lane in lanes for position in lane.open]
        first, head = min((lane.position for lane in lanes), default=0), self.head()
        first = max(first, self.retained())
        upto = min(head, first + most)
        # CROSS JOIN keeps the log outside: one walk along its positions, with a look at the lane for each row of the right type.
        row = self._conn.execute(
            "SELECT count(*), min(g.time) FROM tidings_log g CROSS JOIN tidings_lanes l ON l.subscription = ? AND l.lane = g.lane"
            " WHERE g.position > ? AND g.position <= ? AND g.position > l.position"
            " AND (g.type IN (SELECT e.value FROM tidings_subscriptions s, json_each(s.types) e WHERE s.name = ?)"
            " OR g.source = (SELECT s.app FROM tidings_subscriptions s, json_each(s.types) e WHERE s.name = ? AND e.value = '*'))",
            (name, first, upto, name, name),
        ).fetchone()
        waiting = self._conn.execute(
            "SELECT count(*), min(time) FROM tidings_log WHERE position IN (SELECT value FROM json_each(?))", (json.dumps(opened),)
        ).fetchone()
        oldest = min((time for time in (row[1], waiting[1]) if time is not None), default=None)
        rest = round(row[0] * (head - upto) / (upto - first)) if upto > first else 0
        return Behind(row[0] + waiting[0] + rest, oldest, exact=upto == head)

    def set_paused(self, name: str, paused: bool) -> bool:
        done = self._conn.execute("UPDATE tidings_subscriptions SET paused = ? WHERE name = ?", (int(paused), name)).rowcount > 0
        self._raise_control()
        return done

    def set_held(self, name: str, reason: str | None, now: int) -> None:
        self._conn.execute(
            "UPDATE tidings_subscriptions SET held = ?, held_since = ? WHERE name = ?", (reason, None if reason is None else now, name)
        )

    def rewind(self, name: str, position: int) -> int:
        """Backwards, what lies below and is still open stays so: whoever had it in hand is fenced, and it would never end."""
        lapsed = self._conn.execute("SELECT lapsed FROM tidings_subscriptions WHERE name = ?", (name,)).fetchone()
        if lapsed is not None and lapsed[0] is not None:
            self._conn.execute("UPDATE tidings_subscriptions SET lapsed = NULL WHERE name = ?", (name,))
            # Behind the epochs that were: nobody who still holds one of them may be taken for the new holder.
            self._conn.executemany(
                "INSERT INTO tidings_lanes (subscription, lane, position, epoch) VALUES (?, ?, ?, ?)",
                [(name, lane, position, json.loads(lapsed[0])[2]) for lane in range(LANES)],
            )
        skipped = skips.rewound(skips.skips_in(self.facts(), name), self.lanes(name), position, self.retained())
        for lane in self.lanes(name):
            open_ = [one for one in lane.open if one <= position <= lane.position]
            self._conn.execute(
                "UPDATE tidings_lanes SET position = ?, open = ?, worker = NULL, epoch = epoch + 1, begun = NULL"
                " WHERE subscription = ? AND lane = ?",
                (position, json.dumps(open_) if open_ else None, name, lane.lane),
            )
        self._conn.execute("UPDATE tidings_subscriptions SET start = min(start, ?) WHERE name = ?", (position, name))
        dropped = self._conn.execute("DELETE FROM tidings_parked WHERE subscription = ? AND position > ?", (name, position)).rowcount
        self.note(skips.note_of(name), skipped)
        return dropped

    def _note_types(self, name: str, before: Collection[str], now: Collection[str]) -> None:
        if set(before) != set(now):
            known = skips.skips_in(self.facts(), name)
            self.note(skips.note_of(name), skips.retyped(known, self.lanes(name), before, now, self.retained()))

    def lapse(self, name: str, reached: int, now: int) -> bool:
        lanes = self.lanes(name)
        if not lanes or min(min((lane.position, *(one - 1 for one in lane.open))) for lane in lanes) > reached:
            return False
        skipped = skips.rewound(skips.skips_in(self.facts(), name), lanes, skips.FOREVER, self.retained())
        lapsed = json.dumps([now, reached, max(lane.epoch for lane in lanes)])
        self._conn.execute("UPDATE tidings_subscriptions SET lapsed = ? WHERE name = ?", (lapsed, name))
        self._conn.execute("DELETE FROM tidings_lanes WHERE subscription = ?", (name,))
        self.note(skips.note_of(name), skipped)
        return True

    def remove(self, name: str) -> bool:
        done = self._conn.execute("DELETE FROM tidings_subscriptions WHERE name = ?", (name,)).rowcount > 0
        for table in ("tidings_lanes", "tidings_parked", "tidings_attempts"):
            self._conn.execute(f"DELETE FROM {table} WHERE subscription = ?", (name,))
        self.note(skips.note_of(name), None)
        return done

    # -- workers and lanes

    def enrol(self, row: WorkerRow, until: float) -> None:
        self._conn.execute(
            "INSERT OR REPLACE INTO tidings_workers (worker, app, host, pid, boot, until, started, subscriptions, info)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row.worker, row.app, row.host, row.pid, self._boot, until, row.started, json.dumps(row.subscriptions), json.dumps(row.info)),
        )

    def renew(self, worker: str, until: float, info: dict[str, Any] | None) -> bool:
        return (
            self._conn.execute(
                "UPDATE tidings_workers SET until = ?, info = ? WHERE worker = ?", (until, json.dumps(info or {}), worker)
            ).rowcount
            == 1
        )

    def pulse(self, worker: str, until: float, info: dict[str, Any] | None) -> None:
        """A statement of its own would be a commit of its own, and looking costs next to nothing."""

    def workers(self) -> list[WorkerRow]:
        now = self._clock.monotonic()
        rows = self._conn.execute(
            "SELECT worker, app, host, pid, started, subscriptions, boot = ?, until, info FROM tidings_workers ORDER BY started, worker",
            (self._boot,),
        )
        return [
            WorkerRow(
                r[0], r[1], r[2], r[3], r[4], tuple(json.loads(r[5])), bool(r[6]) and r[7] > now, r[7] - now, json.loads(r[8] or "{}")
            )
            for r in rows
        ]

    def leave(self, worker: str) -> None:
        self._conn.execute("UPDATE tidings_lanes SET worker = NULL WHERE worker = ?", (worker,))
        self._conn.execute("DELETE FROM tidings_workers WHERE worker = ?", (worker,))

    def lanes(self, subscription: str | None = None) -> list[Lane]:
        rows = self._conn.execute(
            "SELECT subscription, lane, position, open, worker, epoch, begun FROM tidings_lanes"
            " WHERE ? IS NULL OR subscription = ? ORDER BY subscription, lane",
            (subscription, subscription),
        )
        return [_lane(row) for row in rows]

    def claim(self, subscription: str, worker: str, groups: int, share: int) -> list[Lane]:
        alive = {row.worker for row in self.workers() if row.alive}
        by_group: dict[int, list[Lane]] = {}
        for lane in self.lanes(subscription):
            by_group.setdefault(lane.lane * groups // LANES, []).append(lane)
        held = sum(all(lane.worker == worker for lane in lanes) for lanes in by_group.values())
        taken: list[Lane] = []
        for lanes in by_group.values():
            if held >= share:
                break
            if all(lane.worker == worker for lane in lanes):
                continue
            if any(lane.worker in alive and lane.worker != worker for lane in lanes):
                continue
            held += 1
            for lane in lanes:
                if lane.worker != worker:
                    lane.died = lane.worker is not None
                    lane.worker, lane.epoch = worker, lane.epoch + 1
                    taken.append(lane)
        self._conn.executemany(
            "UPDATE tidings_lanes SET worker = ?, epoch = ? WHERE subscription = ? AND lane = ?",
            [(worker, lane.epoch, subscription, lane.lane) for lane in taken],
        )
        return taken

    def bury(self) -> None:
        """Delete the rows of workers whose lease ran out and whose lanes all went to others."""
        dead = [row.worker for row in self.workers() if not row.alive]
        for worker in dead:
            self._conn.execute(
                "DELETE FROM tidings_workers WHERE worker = ? AND NOT EXISTS (SELECT 1 FROM tidings_lanes WHERE worker = ?)",
                (worker, worker),
            )

    def advance(self, subscription: str, worker: str, rows: Sequence[tuple[int, int, int, str | None]]) -> list[tuple[int, int]]:
        if not rows:
            return []
        # One statement for all: the sqlite3 module lets go of the interpreter's lock at each, and a busy event loop gives it back late.
        values = ", ".join(["(?, ?, ?, ?)"] * len(rows))
        done = self._conn.execute(_ADVANCE.format(values), (*chain.from_iterable(rows), subscription, worker)).rowcount
        if done == len(rows):
            return []
        owned = {(row.lane, row.epoch) for row in self.lanes(subscription) if row.worker == worker}
        # By epoch: a worker may have lost a lane and taken it again, and hold events of both times.
        return [(lane, epoch) for lane, epoch, _, _ in rows if (lane, epoch) not in owned]

    def note_begun(self, subscription: str, worker: str, rows: Sequence[tuple[int, int, str | None]]) -> list[tuple[int, int]]:
        return [
            (lane, epoch)
            for lane, epoch, text in rows
            if self._conn.execute(
                "UPDATE tidings_lanes SET begun = ? WHERE subscription = ? AND lane = ? AND worker = ? AND epoch = ?",
                (text, subscription, lane, worker, epoch),
            ).rowcount
            == 0
        ]

    def release(self, subscription: str, worker: str, lanes: Iterable[int]) -> None:
        self._conn.executemany(
            "UPDATE tidings_lanes SET worker = NULL WHERE subscription = ? AND lane = ? AND worker = ?",
            [(subscription, lane, worker) for lane in lanes],
        )

    # -- parked events and dead letters

    def park(self, row: Parked) -> None:
        facts = (row.subscription, row.state, int(row.holds), row.attempts, row.due, row.delay, row.since, row.error, row.traceback)
        self._conn.execute(PARK, (*facts, *row.envelope))

    def unpark(self, subscription: str, position: int) -> None:
        self._conn.execute("DELETE FROM tidings_parked WHERE subscription = ? AND position = ?", (subscription, position))

    def key_state(self, subscription: str, lane: int, key: tuple[str | None, str] | int | None, now: int) -> KeyState:
        where, args = _of_key(subscription, lane, key)
        row = self._conn.execute(
            f"SELECT position, state, attempts, {_DUE_IN} FROM tidings_parked WHERE {where} AND {_ACTIVE} ORDER BY position LIMIT 1",
            (now, *args),
        ).fetchone()
        if row is None:
            return KeyState(lane, key, "free")
        position, state, attempts, due_in = row
        if state == "dead":
            return KeyState(lane, key, "held", position, attempts)
        if state == "waiting":
            self._conn.execute(
                "UPDATE tidings_parked SET state = 'retry', due = ?, delay = 0 WHERE subscription = ? AND position = ?",
                (now, subscription, position),
            )
            due_in = 0
        return KeyState(lane, key, "retry", position, attempts, due_in / 1e6)

    def parked_keys(self, subscription: str, lanes: Sequence[int], now: int) -> list[KeyState]:
        """Ascending by position; with several rows of a key the first is its head."""
        rows = self._conn.execute(
            f"SELECT lane, key_name, key, position, state, attempts, {_DUE_IN} FROM tidings_parked WHERE subscription = ? AND {_ACTIVE}"
            " AND lane IN (SELECT value FROM json_each(?)) ORDER BY position",
            (now, subscription, json.dumps(list(lanes))),
        )
        return [
            KeyState(r[0], r[3] if r[2] is None else (r[1], r[2]), "held" if r[4] == "dead" else r[4], r[3], r[5], r[6] / 1e6) for r in rows
        ]

    def parked_row(self, subscription: str, position: int) -> Parked | None:
        row = self._conn.execute(
            f"SELECT {_PARKED} FROM tidings_parked WHERE subscription = ? AND position = ?", (subscription, position)
        ).fetchone()
        return _parked(row) if row else None

    def parked(
        self, subscription: str | None = None, states: Sequence[str] = (), limit: int = 1000, *, positions: Sequence[int] = (),
        key: tuple[str | None, str] | None = None, after: int = 0, type: str | None = None, error: str | None = None,
    ) -> list[Parked]:  # fmt: skip
        where = ["position > ?"]
        args: list[Any] = [after]
        chosen: tuple[tuple[str, Sequence[Any]], ...] = (("state", states), ("position", positions))
        for column, values in chosen:
            if values:
                where.append(f"{column} IN (SELECT value FROM json_each(?))")
                args.append(json.dumps(list(values)))
        for condition, value in (
            ("subscription = ?", subscription),
            ("key = ?", key and key[1]),
            ("key_name = ?", key and key[0]),
            ("type = ?", type),
            ("instr(error, ?) > 0", error),
        ):
            if value is not None:
                where.append(condition)
                args.append(value)
        rows = self._conn.execute(
            f"SELECT {_PARKED} FROM tidings_parked WHERE {' AND '.join(where)} ORDER BY subscription, position LIMIT ?", (*args, limit)
        )
        return [_parked(row) for row in rows]

    def count_parked(self, subscription: str) -> tuple[int, int, int]:
        row = self._conn.execute(
            "SELECT sum(state = 'retry'), sum(state = 'waiting'), sum(state = 'dead') FROM tidings_parked WHERE subscription = ?",
            (subscription,),
        ).fetchone()
        return (row[0] or 0, row[1] or 0, row[2] or 0)

    def record_attempt(self, row: FailedAttempt) -> None:
        self._conn.execute(
            "INSERT OR REPLACE INTO tidings_attempts (subscription, position, attempt, time, worker, outcome, error)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.subscription, row.position, row.attempt, row.time, row.worker, row.outcome, row.error),
        )

    def attempts(self, positions: Sequence[int]) -> list[FailedAttempt]:
        rows = self._conn.execute(
            "SELECT subscription, position, attempt, time, worker, outcome, error FROM tidings_attempts"
            " WHERE position IN (SELECT value FROM json_each(?)) ORDER BY position, subscription, time, attempt",
            (json.dumps(list(positions)),),
        )
        return [FailedAttempt(*row) for row in rows]

    def retry_dead(self, subscription: str, position: int, now: int) -> bool:
        done = self._conn.execute(
            "UPDATE tidings_parked SET state = 'retry', holds = 0, due = ?, delay = 0 WHERE subscription = ? AND"
            " position = ? AND state = 'dead'",
            (now, subscription, position),
        ).rowcount
        self._raise_control()
        return done > 0

    def drop_dead(self, subscription: str, position: int, now: int) -> bool:
        row = self.parked_row(subscription, position)
        if row is None or row.state != "dead":
            return False
        self.unpark(subscription, position)
        self.record_attempt(FailedAttempt(subscription, position, row.attempts + 1, now, "", "dropped", row.error))
        self._raise_control()
        return True

    # -- what comes in from a broker

    def intake(self, name: str) -> SQLiteIntake:
        return SQLiteIntake(self._conn, name)

    def intakes(self) -> list[IntakeRow]:
        return intakes(self._conn)

    # -- sagas

    def sagas(self) -> SagaUnit:
        """Transactions that write come one after another, so nothing there needs a lock."""
        living = "SELECT worker FROM tidings_workers WHERE boot = ? AND until > ?"
        lapse = "SELECT min(until - ?) FROM tidings_workers WHERE boot = ? AND until > ? AND worker <> ?"
        return SagaUnit(self._conn, Dialect("?", "", "", "", living, lapse, (self._boot, self._clock.monotonic())))

    # -- a log that went back in time

    def passed(self) -> int:
        row = self._conn.execute(
            "SELECT max(coalesce((SELECT max(position) FROM tidings_lanes), 0), coalesce((SELECT max(position) FROM tidings_parked), 0),"
            " coalesce((SELECT max(position) FROM tidings_attempts), 0))"
        ).fetchone()
        return int(row[0])

    def acknowledge(self, upto: int) -> int:
        if upto > self.head():
            self._conn.execute("DELETE FROM sqlite_sequence WHERE name = 'tidings_log'")
            self._conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('tidings_log', ?)", (upto,))
        self._conn.execute("UPDATE tidings_meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'incarnation'")
        self._raise_control()
        return int(self._meta("incarnation"))

    # -- operators' commands

    def note(self, name: str, value: str | None) -> None:
        if value is None:
            self._conn.execute("DELETE FROM tidings_meta WHERE name = ?", (name,))
        else:
            self._conn.execute(
                "INSERT INTO tidings_meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
            )
        self._raise_control()

    def free(self, subscription: str) -> None:
        self._conn.execute("UPDATE tidings_lanes SET worker = NULL, epoch = epoch + 1 WHERE subscription = ?", (subscription,))
        self._raise_control()

    def raise_incarnation(self) -> int:
        self._conn.execute("UPDATE tidings_meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE name = 'incarnation'")
        self._raise_control()
        return int(self._meta("incarnation"))

    def facts(self) -> dict[str, str]:
        """What the meta table says: schema, log_id, incarnation, retained, control."""
        return dict(self._conn.execute("SELECT name, value FROM tidings_meta"))

    def control(self) -> int:
        return int(self._meta("control"))

    def _raise_control(self) -> None:
        self._conn.execute("UPDATE tidings_meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'control'")

    def _meta(self, name: str) -> str:
        return str(self._conn.execute("SELECT value FROM tidings_meta WHERE name = ?", (name,)).fetchone()[0])


def _of_key(subscription: str, lane: int, key: tuple[str | None, str] | int | None) -> tuple[str, tuple[Any, ...]]:
    """The rows that wait for each other: of one key, of one event that promises no order, or (None) of the whole subscription."""
    if key is None:
        return "subscription = ?", (subscription,)
    if isinstance(key, int):
        return "subscription = ? AND position = ?", (subscription, key)
    return "subscription = ? AND lane = ? AND key = ? AND key_name IS ?", (subscription, lane, key[1], key[0])


def _lane(row: tuple[Any, ...]) -> Lane:
    return Lane(row[0], row[1], row[2], tuple(json.loads(row[3])) if row[3] else (), row[4], row[5], row[6])


def _parked(row: tuple[Any, ...]) -> Parked:
    return Parked(row[0], row[1], bool(row[2]), row[3], row[4], row[5], row[6], row[7], row[8], Envelope(*row[9:]))
