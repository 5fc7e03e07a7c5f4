"""The log in parts, each a range of positions: so that old events go by dropping a table, and not row by row.

**Publishing never waits for a part to be made.** The last part has no end, so there is always a place, whether or not a worker has run
for weeks. Between the part that is written now and that last one stand empty ones, each sixteen times as wide as the one before: who comes
back after a long time finds a log in coarse parts, but in parts. Workers cut the next one to size while they run (``make_room``), and drop
those whose events are not wanted any more (``drop_passed``).

**What the horizon is owed** (horizon.py): a part is empty when it is attached, and that is committed before anybody can write to it by
name. Both hold because a part is made in a transaction that does nothing else, under a lock on the log that no writer can hold beside it.

**Whoever wants that lock makes every publisher behind him wait,** so he waits for 50 ms at most, gives way, and comes again later. A
transaction that holds the log for ever only delays the cutting and the dropping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

SMALLEST = 2**20
"""Positions in a part, at least; more in a log that keeps more than ``PARTS`` of them."""
PARTS = 32
WIDER = (1, 16, 256, 4096)
"""Where the parts ahead end, as multiples of the first one's width; the one behind these has no end."""
LOCK_SECONDS = 0.05
TRIES = 4
PAUSE_SECONDS = 0.2

NOT_AVAILABLE = "55P03"

# The bounds of a part, as the catalogue shows them: FOR VALUES FROM ('1048576') TO ('2097152'), with MINVALUE and MAXVALUE as they are.
_BOUNDS = """
    (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''?(-?\\d+)'))[1]::bigint,
    (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''?(-?\\d+)'))[1]::bigint"""

LIST = f"""
    SELECT c.oid::regclass::text, {_BOUNDS} FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'tidings_log'::regclass ORDER BY 2 NULLS FIRST"""

# The last position that the part of a row can have; NULL if it has no end.
END_OF_PART = f"SELECT parts.until - 1 FROM (SELECT c.oid, {_BOUNDS} FROM pg_class c) parts (oid, since, until) WHERE parts.oid = %s"

DRAWN = "SELECT coalesce(pg_sequence_last_value('tidings_log_position_seq'), 0)"

PASSED = "SELECT min(least(position, (SELECT min(p) - 1 FROM unnest(open) p))) FROM tidings_lanes"

RETAINED = "UPDATE tidings_meta SET value = %s WHERE name = 'retained' AND value::bigint < %s"

_ADVISORY_LOCK = 0x7469_6469_6E67_70
"""Held by the one process that changes parts; others leave it to him."""


class Part(NamedTuple):
    """A table with the positions ``since <= position < until``; None is without end."""

    name: str
    since: int | None
    until: int | None


def parts(conn: psycopg.Connection[Any]) -> list[Part]:
    """All of them, ascending."""
    return [Part(*row) for row in conn.execute(LIST)]


def width(kept: int) -> int:
    """How many positions a new part should have, in a log that keeps so many."""
    wanted = SMALLEST
    while wanted * PARTS < kept:
        wanted *= 2
    return wanted


def cut(since: int, until: int | None, wanted: int) -> list[tuple[int, int | None]]:
    """An empty range as parts: the first as wide as is wanted, each of the others far wider."""
    ends = [since + wanted * times for times in WIDER]
    ends = [end for end in ends if until is None or end < until]
    return list(zip([since, *ends], [*ends, until], strict=True))


def make_room(conn: psycopg.Connection[Any]) -> bool:
    """Cut the part behind the one that is written now to size; whether that was to be done.

    Raises:
        psycopg.Error: not now (``NOT_AVAILABLE``), or this role doesn't own the log. Nothing has changed.
    """

    def next_part() -> tuple[Part, int] | None:
        drawn, known = _one(conn, DRAWN), parts(conn)
        ahead = [part for part in known if part.since is not None and part.since > drawn]
        kept = drawn - (known[0].until or 0) + SMALLEST if known else 0
        wanted = width(kept)
        # 2: whoever finds one twice as wide, since the log has shrunk or grown, leaves it.
        if not ahead or (ahead[0].until is not None and ahead[0].until - _since(ahead[0]) <= 2 * wanted):
            return None
        return ahead[0], wanted

    if next_part() is None:
        return False
    with _alone(conn) as first:
        found = next_part() if first else None
        if found is None:
            return False
        part, wanted = found
        # Empty, since none of its positions was drawn and the lock keeps everyone from drawing one now; by name somebody might have.
        if conn.execute(f"SELECT 1 FROM {part.name} LIMIT 1").fetchone() is not None:
            return False
        conn.execute(f"DROP TABLE {part.name}".encode())
        for since, until in cut(_since(part), part.until, wanted):
            end = "MAXVALUE" if until is None else until
            conn.execute(f"CREATE TABLE tidings_log_{since} PARTITION OF tidings_log FOR VALUES FROM ({since}) TO ({end})".encode())
    return True


def drop_passed(conn: psycopg.Connection[Any], upto: int) -> bool:
    """Drop the oldest part if all of it is at or below ``upto`` and every subscription has passed it; whether it was.

    Raises:
        psycopg.Error: as ``make_room``.
    """

    def oldest() -> Part | None:
        known = parts(conn)
        gone = len(known) > 1 and known[0].until is not None and known[0].until - 1 <= min(upto, _one(conn, DRAWN))
        return known[0] if gone else None

    if oldest() is None:
        return False
    with _alone(conn) as first:
        part = oldest() if first else None
        if part is None:
            return False
        assert part.until is not None
        last = part.until - 1
        passed = conn.execute(PASSED).fetchone()
        if passed is not None and passed[0] is not None and passed[0] < last:  # added or rewound since
            return False
        # The mark goes up in the same transaction, so that a reader knows that what is missing below it was let go.
        conn.execute(RETAINED, (str(last), last))
        conn.execute("DELETE FROM tidings_attempts WHERE position <= %s", (last,))
        conn.execute(f"DROP TABLE {part.name}".encode())
    return True


def patiently(change: Callable[[psycopg.Connection[Any]], bool], conn: psycopg.Connection[Any]) -> bool:
    """Make one change, giving way to who holds the log and trying again a few times; False if there is nothing to do, or not now."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            return change(conn)
        except psycopg.errors.LockNotAvailable:
            continue
    return False


@contextmanager
def _alone(conn: psycopg.Connection[Any]) -> Iterator[bool]:
    """A transaction with the log to itself; False if another process is changing parts."""
    with conn.transaction():
        conn.execute(f"SET LOCAL lock_timeout = {int(LOCK_SECONDS * 1000)}".encode())
        row = conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_ADVISORY_LOCK,)).fetchone()
        first = row is not None and bool(row[0])
        if first:
            conn.execute("LOCK TABLE tidings_log IN ACCESS EXCLUSIVE MODE")
        yield first


def _one(conn: psycopg.Connection[Any], statement: str) -> int:
    row = conn.execute(statement.encode()).fetchone()
    assert row is not None
    return int(row[0])


def _since(part: Part) -> int:
    assert part.since is not None
    return part.since
