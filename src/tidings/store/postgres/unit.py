"""The statements of one transaction, as named SQL beside the method that runs it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ...clock import Clock, SystemClock
from ...envelope import LANES, Envelope
from ...errors import SubscriptionNameTaken, TransactionEnded
from .. import skips
from ..intakes import IntakeRow
from ..port import Behind, FailedAttempt, KeyState, Lane, Parked, Scheduled, SubscriptionRow, WorkerRow
from ..sagas import Dialect
from . import partitions
from .bulk import arrays, insert_many
from .intakes import PostgresIntake, intakes
from .sagas import ServerSagas

EVENT = "lane, topic, type, version, key_name, key, event_id, time, source, data, correlation_id, causation_id, traceparent, headers"
"""The columns of an event, in the order of ``Envelope``'s fields after the position."""

APPEND = f"INSERT INTO tidings_log ({EVENT}) VALUES (%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s) RETURNING position"

APPEND_MANY = insert_many(EVENT)

SCHEDULE = f"INSERT INTO tidings_scheduled (event_id_, due, {EVENT}) VALUES ({','.join(['%s'] * 16)}) RETURNING 0"

READ = f"SELECT position, {EVENT} FROM tidings_log WHERE position > %s AND position <= %s ORDER BY position LIMIT %s"

# Whatever was given out, committed or not: the sequence is in no transaction.
HEAD = "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM tidings_log_position_seq"

_ACTIVE = "(state <> 'dead' OR holds)"
_PARKED = f"subscription, state, holds, attempts, due, delay, since, error, traceback, position, {EVENT}"

# Never more than the whole delay from now, whatever the wall clock did in between.
# A scheduled event is published when it is due, so that the times along the log go on as its positions do (``start=``, retention).
_RELEASED = EVENT.replace(" time,", " due,")

_DUE_IN = "greatest(0, least(due - %s, delay))"

# A failed retry keeps the time of its first failure (since) and its copy of the event.
PARK = f"""INSERT INTO tidings_parked ({_PARKED}) VALUES ({",".join(["%s"] * 24)})
    ON CONFLICT (subscription, position) DO UPDATE SET state = excluded.state, holds = excluded.holds, attempts = excluded.attempts,
    due = excluded.due, delay = excluded.delay, error = excluded.error, traceback = excluded.traceback"""

# Leases are on the server's clock, which all workers share; a clock that tests move is given as an argument.
_CLOCK = "coalesce(%s::float8, extract(epoch FROM clock_timestamp())::float8)"

# Handlers of one lane may be committing at the same time, each with what its process knew before the other's commit. So the row takes
# from a checkpoint only what is newer than itself: it was told ``open`` up to ``position`` (v), and knows better (l) beyond that and
# of what ended meanwhile. The rows are locked first, in the order of their lanes, so that two who need several can't wait for each other;
# PostgreSQL then looks at each as the first one left it. Four texts for all lanes: every driver binds these, and none takes long about it.
ADVANCE = """WITH locked AS MATERIALIZED (
        SELECT lane FROM tidings_lanes WHERE subscription = %s AND lane = ANY (%s::text::int[]) ORDER BY lane FOR UPDATE)
    UPDATE tidings_lanes l SET position = greatest(l.position, v.position),
    open = CASE WHEN l.open = '{}' AND v.open = '{}' THEN '{}' ELSE ARRAY(
        SELECT p FROM unnest(l.open) p WHERE p > v.position OR p = ANY (v.open)
        UNION SELECT p FROM unnest(v.open) p WHERE p > l.position ORDER BY 1) END
    FROM locked JOIN (SELECT a AS lane, b AS epoch, c AS position, d::bigint[] AS open
          FROM unnest(%s::text::int[], %s::text::int[], %s::text::bigint[], %s::text::text[]) AS given (a, b, c, d)) v
          ON v.lane = locked.lane
    WHERE l.subscription = %s AND l.worker = %s AND l.lane = v.lane AND l.epoch = v.epoch{still}"""

# In a handler's transaction: only while it is the one that was begun for it (transactions.py).
_STILL = " AND current_setting('tidings.tx', true) = %s"
ADVANCE_STILL = ADVANCE.replace("{still}", _STILL)
ADVANCE = ADVANCE.replace("{still}", "")

# In order, so that two who need several lanes can't wait for each other.
LOCK_LANES = "SELECT 1 FROM tidings_lanes WHERE subscription = %s AND lane = ANY (%s::int[]) ORDER BY lane FOR UPDATE"


# Only while it lasts, so that nobody can have taken the lanes. Who is claiming them has locked the row if it was over; then this waits, and
# finds it over too.
PULSE = f"""UPDATE tidings_workers w SET until = {_CLOCK} + %s, info = %s WHERE worker = %s AND until > {_CLOCK} RETURNING
    (SELECT value FROM tidings_meta WHERE name = 'control')
    || (SELECT md5(coalesce(string_agg(concat_ws(' ', worker, subscriptions, info::jsonb -> 'groups'), ',' ORDER BY worker), ''))
        FROM tidings_workers WHERE until > {_CLOCK})
    || (SELECT md5(coalesce(string_agg(concat_ws(' ', subscription, lane, worker, epoch), ',' ORDER BY subscription, lane), ''))
        FROM tidings_lanes),
    (SELECT min(due) FROM tidings_scheduled)"""


def append_with(constants: Mapping[str, str | int | None]) -> str:
    """``APPEND`` with the values of some columns written into it: less to be sent and taken apart for each event.

    Raises:
        ValueError: one of them can't stand in a statement as it would be bound.
    """
    values = [_literal(constants[column]) if column in constants else "%s" for column in EVENT.split(", ")]
    return f"INSERT INTO tidings_log ({EVENT}) VALUES ({', '.join(values)}) RETURNING position"


def _literal(value: str | int | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if not value.isprintable() or any(sign in value for sign in "'\\%$:"):  # drivers see placeholders in some of these
        raise ValueError("no literal that every driver leaves alone")
    return f"'{value}'"


class PostgresUnit:
    """``Unit`` on a psycopg connection, or on what runs statements like one; the transaction is its owner's.

    Args:
        conn: ``execute(statement, arguments)`` gives a cursor with ``fetchone``, ``fetchall`` and ``rowcount``.

    Attributes:
        told: something was written that readers want to hear of.
    """

    __slots__ = ("_clock", "_conn", "positions", "told")

    def __init__(self, conn: Any, clock: Clock) -> None:
        self._conn = conn
        self._clock = clock
        self.told = False
        self.positions: list[int] = []

    def _seconds(self) -> float | None:
        """For ``_CLOCK``."""
        return None if isinstance(self._clock, SystemClock) else self._clock.monotonic()

    def _one(self, statement: str, *arguments: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._conn.execute(statement, arguments).fetchone()
        return row

    def _all(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._conn.execute(statement, arguments).fetchall()
        return rows

    def _count(self, statement: str, *arguments: Any) -> int:
        return int(self._conn.execute(statement, arguments).rowcount)

    # -- the log

    def append(self, envelopes: Iterable[Envelope]) -> list[int]:
        execute = self._conn.execute
        envelopes = list(envelopes)
        self.told = self.told or bool(envelopes)
        positions = [execute(APPEND, envelope[1:]).fetchone()[0] for envelope in envelopes]
        self.positions += positions
        return positions

    def insert(self, statement: str, values: Sequence[Any]) -> int:
        self.told = True
        position = int(self._conn.execute(statement, values).fetchone()[0])
        self.positions.append(position)
        return position

    def append_many(self, envelopes: Sequence[Envelope]) -> None:
        if envelopes:
            self.told = True
            self._conn.execute(APPEND_MANY, arrays(EVENT, envelopes))

    def head(self) -> int:
        row = self._one(HEAD)
        assert row is not None
        return int(row[0])

    def retained(self) -> int:
        return int(self._meta("retained"))

    def first_position_at(self, time: int) -> int:
        row = self._one("SELECT position FROM tidings_log WHERE time >= %s ORDER BY position LIMIT 1", time)
        return self.head() if row is None else int(row[0]) - 1

    def select(
        self, *, after: int = 0, limit: int, types: Sequence[str] = (), key: tuple[str | None, str] | None = None, since: int | None = None,
        until: int | None = None, event_ids: Sequence[str] = (), correlation_ids: Sequence[str] = (), newest: bool = False,
    ) -> list[Envelope]:  # fmt: skip
        where: list[str] = ["position > %s"]
        args: list[Any] = [after]
        several: tuple[tuple[str, Sequence[str]], ...] = (("type", types), ("event_id", event_ids), ("correlation_id", correlation_ids))
        for column, values in several:
            if values:
                where.append(f"{column} = ANY (%s::text[])")
                args.append(list(values))
        if key is not None:
            where.append("key = %s")
            args.append(key[1])
            if key[0] is not None:
                where.append("key_name = %s")
                args.append(key[0])
        for condition, moment in (("time >= %s", since), ("time < %s", until)):
            if moment is not None:
                where.append(condition)
                args.append(moment)
        order = "DESC" if newest else "ASC"
        source = "tidings_log"
        if key is not None or event_ids or correlation_ids:
            # Few rows: found by the summaries first and put in order then. Left to itself the planner may walk the whole log in order.
            source = f"(SELECT * FROM tidings_log WHERE {' AND '.join(where)} OFFSET 0) found"
            where = ["true"]
        rows = self._all(f"SELECT position, {EVENT} FROM {source} WHERE {' AND '.join(where)} ORDER BY position {order} LIMIT %s",
                         *args, limit)  # fmt: skip
        if newest:
            rows.reverse()
        return [Envelope(*row) for row in rows]

    def next_block(self) -> None:
        """Nothing for workers to condense: the server summarises (see the index ``tidings_log_search``)."""

    def add_block(self, block: Any) -> None:
        """Not called: there are no blocks."""

    def searched_plainly(self) -> int:
        return 0

    def trim(self, upto: int, limit: int) -> int:
        """Deletes by range in chunks; the mark goes up first, so that a reader knows that what is missing below it was trimmed.

        Only in the part of the log that is written now. One that is full waits until it can be dropped whole (``PostgresStore.upkeep``),
        and is emptied row by row only if that was not possible."""
        first = self._one("SELECT position, tableoid FROM tidings_log ORDER BY position LIMIT 1")
        if first is None or first[0] > upto:
            return 0
        end = self._one(partitions.END_OF_PART, first[1])
        if end is not None and end[0] is not None and upto < end[0] <= self.head():
            return 0
        last = min(upto, first[0] + limit - 1)
        self._count(partitions.RETAINED, str(last), last)
        self._count("DELETE FROM tidings_attempts WHERE position <= %s", last)
        return self._count("DELETE FROM tidings_log WHERE position <= %s", last)

    def trimmable(self) -> int:
        """The highest position that every subscription has passed, open positions included."""
        row = self._one("SELECT min(least(position, (SELECT min(p) - 1 FROM unnest(open) p))) FROM tidings_lanes")
        assert row is not None
        return self.head() if row[0] is None else int(row[0])

    # -- scheduled events

    def schedule(self, envelope: Envelope, due: int) -> None:
        self.insert(SCHEDULE, (envelope.event_id, due, *envelope[1:]))

    def release_due(self, now: int, limit: int) -> int:
        """Two workers may try at once: the second waits for the first one's rows and finds them gone."""
        rows = self._all(
            f"SELECT event_id_, {_RELEASED} FROM tidings_scheduled WHERE due <= %s ORDER BY due, event_id_ LIMIT %s FOR UPDATE", now, limit
        )
        if rows:
            self.told = True
            self._count("DELETE FROM tidings_scheduled WHERE event_id_ = ANY (%s::text[])", [row[0] for row in rows])
            for row in rows:
                self._conn.execute(APPEND, row[1:])
        return len(rows)

    def scheduled(self, limit: int = 1000) -> list[Scheduled]:
        rows = self._all(f"SELECT due, {EVENT} FROM tidings_scheduled ORDER BY due, event_id_ LIMIT %s", limit)
        return [Scheduled(row[0], Envelope(0, *row[1:])) for row in rows]

    def next_due(self) -> int | None:
        row = self._one("SELECT min(due) FROM tidings_scheduled")
        return None if row is None or row[0] is None else int(row[0])

    def cancel(self, event_id: str) -> bool:
        return self._count("DELETE FROM tidings_scheduled WHERE event_id_ = %s", event_id) > 0

    # -- subscriptions

    def register(self, name: str, app: str, types: Sequence[str], ordering: str, start: int, now: int, lapse: str | None = None) -> None:
        made = self._count(
            "INSERT INTO tidings_subscriptions (name, app, types, ordering, created, start, lapse) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            name, app, sorted(types), ordering, now, start, lapse,
        )  # fmt: skip
        if made:
            self._count(
                "INSERT INTO tidings_lanes (subscription, lane, position) SELECT %s, lane, %s FROM generate_series(0, %s) lane",
                name, start, LANES - 1,
            )  # fmt: skip
            return
        known = self._one("SELECT app FROM tidings_subscriptions WHERE name = %s", name)
        if known is not None and known[0] != app:
            raise SubscriptionNameTaken(
                f"the subscription {name!r} belongs to the app {known[0]!r}; give yours another name, for example {app + '-' + name!r}",
                name=name,
                app=known[0],
            )
        before = self._one("SELECT types FROM tidings_subscriptions WHERE name = %s", name)
        self._note_types(name, types if before is None else before[0], types)
        self._count(
            "UPDATE tidings_subscriptions SET types = %s::text[], ordering = %s, lapse = %s"
            " WHERE name = %s AND (types <> %s::text[] OR ordering <> %s OR lapse IS DISTINCT FROM %s)",
            sorted(types), ordering, lapse, name, sorted(types), ordering, lapse,
        )  # fmt: skip

    def subscriptions(self) -> list[SubscriptionRow]:
        rows = self._all(
            "SELECT name, app, types, ordering, created, paused, held, held_since, start, lapse, lapsed FROM tidings_subscriptions"
            " ORDER BY created, name"
        )
        return [SubscriptionRow(r[0], r[1], tuple(r[2]), *r[3:10], None if r[10] is None else tuple(r[10][:2])) for r in rows]  # type: ignore[call-arg]

    def behind(self, name: str, most: int = 50_000) -> Behind:
        lanes = self.lanes(name)
        opened = [position for lane in lanes for position in lane.open]
        first, head = min((lane.position for lane in lanes), default=0), self.head()
        first = max(first, self.retained())
        upto = min(head, first + most)
        row = self._one(
            "SELECT count(*), min(g.time) FROM tidings_log g JOIN tidings_lanes l ON l.subscription = %s AND l.lane = g.lane"
            " WHERE g.position > %s AND g.position <= %s AND g.position > l.position"
            " AND (g.type = ANY (SELECT unnest(types) FROM tidings_subscriptions WHERE name = %s)"
            " OR g.source = (SELECT app FROM tidings_subscriptions WHERE name = %s AND '*' = ANY (types)))",
            name, first, upto, name, name,
        )  # fmt: skip
        waiting = self._one("SELECT count(*), min(time) FROM tidings_log WHERE position = ANY (%s::bigint[])", opened)
        assert row is not None
        assert waiting is not None
        oldest = min((time for time in (row[1], waiting[1]) if time is not None), default=None)
        rest = round(row[0] * (head - upto) / (upto - first)) if upto > first else 0
        return Behind(row[0] + waiting[0] + rest, oldest, exact=upto == head)

    def set_paused(self, name: str, paused: bool) -> bool:
        done = self._count("UPDATE tidings_subscriptions SET paused = %s WHERE name = %s", paused, name) > 0
        self._raise_control()
        return done

    def set_held(self, name: str, reason: str | None, now: int) -> None:
        self._count(
            "UPDATE tidings_subscriptions SET held = %s, held_since = %s WHERE name = %s", reason, None if reason is None else now, name
        )

    def rewind(self, name: str, position: int) -> int:
        """Backwards, what lies below and is still open stays so: whoever had it in hand is fenced, and it would never end."""
        lapsed = self._one("SELECT lapsed[3] FROM tidings_subscriptions WHERE name = %s AND lapsed IS NOT NULL FOR UPDATE", name)
        if lapsed is not None:
            self._count("UPDATE tidings_subscriptions SET lapsed = NULL WHERE name = %s", name)
            # Behind the epochs that were: nobody who still holds one of them may be taken for the new holder.
            self._count(
                "INSERT INTO tidings_lanes (subscription, lane, position, epoch) SELECT %s, lane, %s, %s FROM generate_series(0, %s) lane",
                name, position, lapsed[0], LANES - 1,
            )  # fmt: skip
        self._all(LOCK_LANES, name, list(range(LANES)))
        skipped = skips.rewound(skips.skips_in(self.facts(), name), self.lanes(name), position, self.retained())
        self._count(
            "UPDATE tidings_lanes l SET open = ARRAY(SELECT p FROM unnest(l.open) p WHERE p <= least(%s::bigint, l.position) ORDER BY 1),"
            " position = %s, worker = NULL, epoch = epoch + 1, begun = NULL WHERE subscription = %s",
            position, position, name,
        )  # fmt: skip
        self._count("UPDATE tidings_subscriptions SET start = least(start, %s) WHERE name = %s", position, name)
        dropped = self._count("DELETE FROM tidings_parked WHERE subscription = %s AND position > %s", name, position)
        self.note(skips.note_of(name), skipped)
        return dropped

    def _note_types(self, name: str, before: Collection[str], now: Collection[str]) -> None:
        if set(before) != set(now):
            known = skips.skips_in(self.facts(), name)
            self.note(skips.note_of(name), skips.retyped(known, self.lanes(name), before, now, self.retained()))

    def lapse(self, name: str, reached: int, now: int) -> bool:
        self._all(LOCK_LANES, name, list(range(LANES)))  # a checkpoint that is being committed is waited for
        row = self._one(
            "SELECT min(least(position, (SELECT min(p) - 1 FROM unnest(open) p))), max(epoch) FROM tidings_lanes WHERE subscription = %s",
            name,
        )
        if row is None or row[0] is None or row[0] > reached:
            return False
        skipped = skips.rewound(skips.skips_in(self.facts(), name), self.lanes(name), skips.FOREVER, self.retained())
        self._count("UPDATE tidings_subscriptions SET lapsed = ARRAY[%s, %s, %s]::bigint[] WHERE name = %s", now, reached, row[1], name)
        self._count("DELETE FROM tidings_lanes WHERE subscription = %s", name)
        self.note(skips.note_of(name), skipped)
        return True

    def remove(self, name: str) -> bool:
        done = self._count("DELETE FROM tidings_subscriptions WHERE name = %s", name) > 0
        for table in ("tidings_lanes", "tidings_parked", "tidings_attempts"):
            self._count(f"DELETE FROM {table} WHERE subscription = %s", name)
        self.note(skips.note_of(name), None)
        return done

    # -- workers and lanes

    def enrol(self, row: WorkerRow, until: float) -> None:
        self._count(
            f"INSERT INTO tidings_workers (worker, app, host, pid, until, started, subscriptions, info)"
            f" VALUES (%s, %s, %s, %s, {_CLOCK} + %s, %s, %s, %s) ON CONFLICT (worker) DO UPDATE SET app = excluded.app,"
            f" host = excluded.host, pid = excluded.pid, until = excluded.until, started = excluded.started,"
            f" subscriptions = excluded.subscriptions, info = excluded.info",
            row.worker, row.app, row.host, row.pid, self._seconds(), until - self._clock.monotonic(), row.started,
            list(row.subscriptions), json.dumps(row.info),
        )  # fmt: skip

    def renew(self, worker: str, until: float, info: dict[str, Any] | None) -> bool:
        return (
            self._count(
                f"UPDATE tidings_workers SET until = {_CLOCK} + %s, info = %s WHERE worker = %s",
                self._seconds(), until - self._clock.monotonic(), json.dumps(info or {}), worker,
            )
            == 1
        )  # fmt: skip

    def pulse(self, worker: str, until: float, info: dict[str, Any] | None) -> tuple[str, int | None] | None:
        now = self._seconds()
        row = self._one(PULSE, now, until - self._clock.monotonic(), json.dumps(info or {}), worker, now, now)
        return None if row is None else (row[0], row[1])

    def workers(self) -> list[WorkerRow]:
        rows = self._all(
            f"SELECT worker, app, host, pid, started, subscriptions, until - {_CLOCK}, info FROM tidings_workers ORDER BY started, worker",
            self._seconds(),
        )
        return [WorkerRow(r[0], r[1], r[2], r[3], r[4], tuple(r[5]), r[6] > 0, r[6], json.loads(r[7] or "{}")) for r in rows]

    def leave(self, worker: str) -> None:
        self._all("SELECT 1 FROM tidings_lanes WHERE worker = %s ORDER BY subscription, lane FOR UPDATE", worker)
        self._count("UPDATE tidings_lanes SET worker = NULL WHERE worker = %s", worker)
        self._count("DELETE FROM tidings_workers WHERE worker = %s", worker)

    def lanes(self, subscription: str | None = None) -> list[Lane]:
        rows = self._all(
            "SELECT subscription, lane, position, open, worker, epoch, begun FROM tidings_lanes"
            " WHERE %s::text IS NULL OR subscription = %s ORDER BY subscription, lane",
            subscription, subscription,
        )  # fmt: skip
        return [_lane(row) for row in rows]

    def claim(self, subscription: str, worker: str, groups: int, share: int) -> list[Lane]:
        # A lease that its owner is renewing is waited for, and is not over then; one that is over can't be renewed before its lanes are
        # seen to be gone. Beside each other, both would have them.
        over = {row[0] for row in self._all(f"SELECT worker FROM tidings_workers WHERE until <= {_CLOCK} ORDER BY 1 FOR UPDATE",
                                            self._seconds())}  # fmt: skip
        # A checkpoint that its owner is committing is waited for, so that what is taken stands as it left it.
        rows = self._all(
            "SELECT subscription, lane, position, open, worker, epoch, begun FROM tidings_lanes WHERE subscription = %s ORDER BY lane"
            " FOR UPDATE",
            subscription,
        )
        alive = {row.worker for row in self.workers()} - over
        by_group: dict[int, list[Lane]] = {}
        for row in rows:
            by_group.setdefault(row[1] * groups // LANES, []).append(_lane(row))
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
        if taken:
            self._count(
                "UPDATE tidings_lanes SET worker = %s, epoch = epoch + 1 WHERE subscription = %s AND lane = ANY (%s::int[])",
                worker, subscription, [lane.lane for lane in taken],
            )  # fmt: skip
        return taken

    def bury(self) -> None:
        """Delete the rows of workers whose lease ran out and whose lanes all went to others."""
        self._count(
            f"DELETE FROM tidings_workers w WHERE until <= {_CLOCK}"
            " AND NOT EXISTS (SELECT 1 FROM tidings_lanes l WHERE l.worker = w.worker)",
            self._seconds(),
        )

    def advance(self, subscription: str, worker: str, rows: Sequence[tuple[int, int, int, str | None]]) -> list[tuple[int, int]]:
        if not rows:
            return []
        mark: str | None = getattr(self._conn, "mark", None)
        lanes = _array([row[0] for row in rows])
        done = self._count(
            ADVANCE if mark is None else ADVANCE_STILL,
            subscription, lanes, lanes, _array([row[1] for row in rows]), _array([row[2] for row in rows]),
            "{" + ",".join(['"{}"' if row[3] is None else '"{' + row[3].strip("[]") + '}"' for row in rows]) + "}",
            subscription, worker, *(() if mark is None else (mark,)),
        )  # fmt: skip
        if done == len(rows):
            return []
        if mark is not None and self._all("SELECT current_setting('tidings.tx', true)") != [(mark,)]:
            raise TransactionEnded(
                "the handler ended the transaction it was given: the worker commits it, with the checkpoint; what was committed stays, and"
                " the event counts as not handled"
            )
        # By epoch: a worker may have lost a lane and taken it again, and hold events of both times.
        owned = {(row.lane, row.epoch) for row in self.lanes(subscription) if row.worker == worker}
        return [(lane, epoch) for lane, epoch, _, _ in rows if (lane, epoch) not in owned]

    def note_begun(self, subscription: str, worker: str, rows: Sequence[tuple[int, int, str | None]]) -> list[tuple[int, int]]:
        self._all(LOCK_LANES, subscription, [row[0] for row in rows])
        written = self._all(
            "UPDATE tidings_lanes l SET begun = v.begun FROM unnest(%s::int[], %s::bigint[], %s::text[]) v (lane, epoch, begun)"
            " WHERE l.subscription = %s AND l.lane = v.lane AND l.worker = %s AND l.epoch = v.epoch RETURNING l.lane, l.epoch",
            [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], subscription, worker,
        )  # fmt: skip
        return [(lane, epoch) for lane, epoch, _ in rows if (lane, epoch) not in set(written)]

    def release(self, subscription: str, worker: str, lanes: Iterable[int]) -> None:
        numbers = list(lanes)
        self._all(LOCK_LANES, subscription, numbers)
        self._count(
            "UPDATE tidings_lanes SET worker = NULL WHERE subscription = %s AND worker = %s AND lane = ANY (%s::int[])",
            subscription, worker, numbers,
        )  # fmt: skip

    # -- parked events and dead letters

    def park(self, row: Parked) -> None:
        facts = (row.subscription, row.state, row.holds, row.attempts, row.due, row.delay, row.since, row.error, row.traceback)
        self._count(PARK, *(_storable(fact) for fact in facts), *row.envelope)

    def unpark(self, subscription: str, position: int) -> None:
        self._count("DELETE FROM tidings_parked WHERE subscription = %s AND position = %s", subscription, position)

    def key_state(self, subscription: str, lane: int, key: tuple[str | None, str] | int | None, now: int) -> KeyState:
        where, args = _of_key(subscription, lane, key)
        row = self._one(
            f"SELECT position, state, attempts, {_DUE_IN} FROM tidings_parked WHERE {where} AND {_ACTIVE} ORDER BY position LIMIT 1",
            now, *args,
        )  # fmt: skip
        if row is None:
            return KeyState(lane, key, "free")
        position, state, attempts, due_in = row
        if state == "dead":
            return KeyState(lane, key, "held", position, attempts)
        if state == "waiting":
            self._count(
                "UPDATE tidings_parked SET state = 'retry', due = %s, delay = 0 WHERE subscription = %s AND position = %s",
                now, subscription, position,
            )  # fmt: skip
            due_in = 0
        return KeyState(lane, key, "retry", position, attempts, due_in / 1e6)

    def parked_keys(self, subscription: str, lanes: Sequence[int], now: int) -> list[KeyState]:
        """Ascending by position; with several rows of a key the first is its head."""
        rows = self._all(
            f"SELECT lane, key_name, key, position, state, attempts, {_DUE_IN} FROM tidings_parked WHERE subscription = %s AND {_ACTIVE}"
            " AND lane = ANY (%s::int[]) ORDER BY position",
            now, subscription, list(lanes),
        )  # fmt: skip
        return [
            KeyState(r[0], r[3] if r[2] is None else (r[1], r[2]), "held" if r[4] == "dead" else r[4], r[3], r[5], r[6] / 1e6) for r in rows
        ]

    def parked_row(self, subscription: str, position: int) -> Parked | None:
        row = self._one(f"SELECT {_PARKED} FROM tidings_parked WHERE subscription = %s AND position = %s", subscription, position)
        return _parked(row) if row else None

    def parked(
        self, subscription: str | None = None, states: Sequence[str] = (), limit: int = 1000, *, positions: Sequence[int] = (),
        key: tuple[str | None, str] | None = None, after: int = 0, type: str | None = None, error: str | None = None,
    ) -> list[Parked]:  # fmt: skip
        where = ["position > %s"]
        args: list[Any] = [after]
        if states:
            where.append("state = ANY (%s::text[])")
            args.append(list(states))
        if positions:
            where.append("position = ANY (%s::bigint[])")
            args.append(list(positions))
        for condition, value in (
            ("subscription = %s", subscription),
            ("key = %s", key and key[1]),
            ("key_name = %s", key and key[0]),
            ("type = %s", type),
            ("strpos(error, %s) > 0", error),
        ):
            if value is not None:
                where.append(condition)
                args.append(value)
        rows = self._all(
            f"SELECT {_PARKED} FROM tidings_parked WHERE {' AND '.join(where)} ORDER BY subscription, position LIMIT %s", *args, limit
        )
        return [_parked(row) for row in rows]

    def count_parked(self, subscription: str) -> tuple[int, int, int]:
        row = self._one(
            "SELECT count(*) FILTER (WHERE state = 'retry'), count(*) FILTER (WHERE state = 'waiting'),"
            " count(*) FILTER (WHERE state = 'dead') FROM tidings_parked WHERE subscription = %s",
            subscription,
        )
        assert row is not None
        return (row[0], row[1], row[2])

    def record_attempt(self, row: FailedAttempt) -> None:
        self._count(
            "INSERT INTO tidings_attempts (subscription, position, attempt, time, worker, outcome, error)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (subscription, position, attempt, time)"
            " DO UPDATE SET worker = excluded.worker, outcome = excluded.outcome, error = excluded.error",
            row.subscription, row.position, row.attempt, row.time, row.worker, row.outcome, _storable(row.error),
        )  # fmt: skip

    def attempts(self, positions: Sequence[int]) -> list[FailedAttempt]:
        rows = self._all(
            "SELECT subscription, position, attempt, time, worker, outcome, error FROM tidings_attempts"
            " WHERE position = ANY (%s::bigint[]) ORDER BY position, subscription, time, attempt",
            list(positions),
        )
        return [FailedAttempt(*row) for row in rows]

    def retry_dead(self, subscription: str, position: int, now: int) -> bool:
        done = self._count(
            "UPDATE tidings_parked SET state = 'retry', holds = false, due = %s, delay = 0 WHERE subscription = %s AND"
            " position = %s AND state = 'dead'",
            now, subscription, position,
        )  # fmt: skip
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

    def intake(self, name: str) -> PostgresIntake:
        return PostgresIntake(self._conn, name)

    def intakes(self) -> list[IntakeRow]:
        return intakes(self._conn)

    # -- sagas

    def sagas(self) -> ServerSagas:
        living = f"SELECT worker FROM tidings_workers WHERE until > {_CLOCK}"
        lapse = f"SELECT min(until - {_CLOCK}) FROM tidings_workers WHERE until > {_CLOCK} AND worker <> %s"
        dialect = Dialect("%s", "FOR SHARE", "FOR UPDATE", "FOR UPDATE SKIP LOCKED", living, lapse, (self._seconds(),))
        return ServerSagas(self._conn, dialect, lambda: setattr(self, "told", True))

    # -- a log that went back in time

    def passed(self) -> int:
        row = self._one(
            "SELECT greatest((SELECT max(greatest(position, (SELECT max(p) FROM unnest(open) p))) FROM tidings_lanes),"
            " (SELECT max(position) FROM tidings_parked), (SELECT max(position) FROM tidings_attempts), 0)"
        )
        assert row is not None
        return int(row[0])

    def acknowledge(self, upto: int) -> int:
        if upto > self.head():
            self._one("SELECT setval('tidings_log_position_seq', %s)", upto)
        self._count("UPDATE tidings_meta SET value = value::bigint + 1 WHERE name = 'incarnation'")
        self._raise_control()
        return int(self._meta("incarnation"))

    # -- operators' commands

    def facts(self) -> dict[str, str]:
        """What the meta table says: schema, log_id, incarnation, retained, control."""
        return dict(self._all("SELECT name, value FROM tidings_meta"))

    def note(self, name: str, value: str | None) -> None:
        if value is None:
            self._count("DELETE FROM tidings_meta WHERE name = %s", name)
        else:
            self._count("INSERT INTO tidings_meta VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
        self._raise_control()

    def free(self, subscription: str) -> None:
        self._all(LOCK_LANES, subscription, list(range(LANES)))
        self._count("UPDATE tidings_lanes SET worker = NULL, epoch = epoch + 1 WHERE subscription = %s", subscription)
        self._raise_control()

    def raise_incarnation(self) -> int:
        self._count("UPDATE tidings_meta SET value = value::bigint + 1 WHERE name = 'incarnation'")
        self._raise_control()
        return int(self._meta("incarnation"))

    def count(self) -> int:
        """Events in the log."""
        row = self._one("SELECT count(*) FROM tidings_log")
        assert row is not None
        return int(row[0])

    def count_parts(self) -> int:
        """Partitions of the log."""
        return len(self._all(partitions.LIST))

    def bytes(self) -> int:
        """What our tables and their indexes take."""
        row = self._one(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid)"
            " AND c.relname LIKE 'tidings\\_%%'"
        )
        assert row is not None
        return int(row[0])

    def control(self) -> int:
        return int(self._meta("control"))

    def _raise_control(self) -> None:
        self.told = True
        self._count("UPDATE tidings_meta SET value = value::bigint + 1 WHERE name = 'control'")

    def _meta(self, name: str) -> str:
        row = self._one("SELECT value FROM tidings_meta WHERE name = %s", name)
        assert row is not None
        return str(row[0])


def _storable(value: Any) -> Any:
    """An error's words may hold a NUL, which the server's texts can't."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _of_key(subscription: str, lane: int, key: tuple[str | None, str] | int | None) -> tuple[str, tuple[Any, ...]]:
    """The rows that wait for each other: of one key, of one event that promises no order, or (None) of the whole subscription."""
    if key is None:
        return "subscription = %s", (subscription,)
    if isinstance(key, int):
        return "subscription = %s AND position = %s", (subscription, key)
    return "subscription = %s AND lane = %s AND key = %s AND key_name IS NOT DISTINCT FROM %s", (subscription, lane, key[1], key[0])


def _array(numbers: Sequence[int]) -> str:
    """As the server writes it."""
    return "{" + ",".join(map(str, numbers)) + "}"


def _lane(row: tuple[Any, ...]) -> Lane:
    return Lane(row[0], row[1], row[2], tuple(row[3]), row[4], row[5], row[6])


def _parked(row: tuple[Any, ...]) -> Parked:
    return Parked(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], Envelope(*row[9:]))
