"""The statements of an intake on PostgreSQL.

Two processes may both believe that a partition is theirs. The row locks of ``move`` make them take turns, taken in one order so that nobody
waits in a circle; the second then finds another offset than he expects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ..intakes import IntakeRow, MarkRow, Move, Offset, packed, unpacked

_OFFSET = "topic, partition, topic_id, next, ending, reached, owner, trouble, resume"

_LOCK = """SELECT 1 FROM tidings_offsets o JOIN unnest(%s::text[], %s::int[]) v (topic, partition) USING (topic, partition)
    WHERE o.intake = %s ORDER BY o.topic, o.partition FOR UPDATE OF o"""

_MOVE = """UPDATE tidings_offsets o SET next = v.next, ending = greatest(o.ending, v.ending),
        reached = coalesce(nullif(v.reached, 0), o.reached)
    FROM unnest(%s::text[], %s::int[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
         v (topic, partition, topic_id, expected, next, ending, reached)
    WHERE o.intake = %s AND o.topic = v.topic AND o.partition = v.partition AND o.topic_id = v.topic_id AND o.next = v.expected
    RETURNING o.topic, o.partition"""

_MARK = """INSERT INTO tidings_marks (intake, topic, partition, log_id, series, lanes)
    SELECT %s, * FROM unnest(%s::text[], %s::int[], %s::text[], %s::text[], %s::text[])
    ON CONFLICT (intake, topic, partition, log_id, series) DO UPDATE SET lanes = excluded.lanes"""

# In order, so that two who bring the same ids wait for each other and not in a circle.
_UNSEEN = """INSERT INTO tidings_window (intake, digest) SELECT %s, d FROM unnest(%s::bytea[]) d ORDER BY d
    ON CONFLICT (intake, digest) DO NOTHING RETURNING digest"""


def intakes(conn: Any) -> list[IntakeRow]:
    return [IntakeRow(*row) for row in conn.execute("SELECT intake, app, broker, since FROM tidings_intakes ORDER BY intake").fetchall()]


class PostgresIntake:
    """``IntakeUnit`` on what runs statements like a psycopg connection."""

    __slots__ = ("_conn", "_name")

    def __init__(self, conn: Any, name: str) -> None:
        self._conn = conn
        self._name = name

    def register(self, app: str, broker: str, now: int) -> None:
        self._conn.execute(
            "INSERT INTO tidings_intakes (intake, app, broker, since, dead) VALUES (%s, %s, %s, %s, 0)"
            " ON CONFLICT (intake) DO UPDATE SET app = excluded.app, broker = excluded.broker",
            (self._name, app, broker, now),
        )

    def offsets(self) -> list[Offset]:
        statement = f"SELECT {_OFFSET} FROM tidings_offsets WHERE intake = %s ORDER BY topic, partition"
        return [Offset(*row) for row in self._conn.execute(statement, (self._name,)).fetchall()]

    def begin(self, topic: str, partition: int, topic_id: str, next: int, end: int) -> None:
        self._conn.execute(
            "INSERT INTO tidings_offsets (intake, topic, partition, topic_id, next, ending) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (self._name, topic, partition, topic_id, next, end),
        )

    def own(self, partitions: Collection[tuple[str, int]], owner: str) -> None:
        topics, numbers = [topic for topic, _ in partitions], [partition for _, partition in partitions]
        self._conn.execute(
            "SELECT 1 FROM tidings_offsets o WHERE intake = %s AND (owner = %s OR (topic, partition) IN (SELECT * FROM"
            " unnest(%s::text[], %s::int[]))) ORDER BY topic, partition FOR UPDATE",
            (self._name, owner, topics, numbers),
        )
        self._conn.execute("UPDATE tidings_offsets SET owner = NULL WHERE intake = %s AND owner = %s", (self._name, owner))
        self._conn.execute(
            "UPDATE tidings_offsets SET owner = %s WHERE intake = %s AND (topic, partition) IN"
            " (SELECT * FROM unnest(%s::text[], %s::int[]))",
            (owner, self._name, topics, numbers),
        )

    def move(self, moves: Sequence[Move]) -> list[tuple[str, int]]:
        if not moves:
            return []
        columns = [list(column) for column in zip(*moves, strict=True)]
        if len(moves) > 1:
            self._conn.execute(_LOCK, (columns[0], columns[1], self._name))
        done = set(self._conn.execute(_MOVE, (*columns, self._name)).fetchall())
        return [move[:2] for move in moves if move[:2] not in done]

    def trouble(self, topic: str, partition: int, why: str | None) -> None:
        self._conn.execute(
            "UPDATE tidings_offsets SET trouble = %s WHERE intake = %s AND topic = %s AND partition = %s",
            (why, self._name, topic, partition),
        )

    def resume(self, topic: str, partition: int | None, where: str) -> int:
        done = self._conn.execute(
            "UPDATE tidings_offsets SET resume = %s WHERE intake = %s AND topic = %s AND (%s::int IS NULL OR partition = %s)",
            (where, self._name, topic, partition, partition),
        ).rowcount
        self._conn.execute("UPDATE tidings_meta SET value = value::bigint + 1 WHERE name = 'control'")
        return int(done)

    def settle(self, topic: str, partition: int, topic_id: str, next: int, end: int) -> None:
        self._conn.execute(
            "UPDATE tidings_offsets SET topic_id = %s, next = %s, ending = %s, trouble = NULL, resume = NULL"
            " WHERE intake = %s AND topic = %s AND partition = %s",
            (topic_id, next, end, self._name, topic, partition),
        )

    def marks(self, topic: str, partition: int) -> list[MarkRow]:
        rows = self._conn.execute(
            "SELECT log_id, series, lanes FROM tidings_marks WHERE intake = %s AND topic = %s AND partition = %s",
            (self._name, topic, partition),
        ).fetchall()
        return [MarkRow(topic, partition, log_id, series, unpacked(lanes)) for log_id, series, lanes in rows]

    def set_marks(self, rows: Sequence[MarkRow]) -> None:
        if rows:
            columns = [list(column) for column in zip(*(row[:4] for row in rows), strict=True)]
            self._conn.execute(_MARK, (self._name, *columns, [packed(row.lanes) for row in rows]))

    def unseen(self, digests: Sequence[bytes]) -> set[bytes]:
        return {row[0] for row in self._conn.execute(_UNSEEN, (self._name, list(digests))).fetchall()} if digests else set()

    def forget(self, keep: int) -> int:
        # Counted, since the numbers have gaps: each id that was there already has drawn one.
        oldest_kept = "SELECT number FROM tidings_window WHERE intake = %s ORDER BY number DESC LIMIT 1 OFFSET %s"
        done = self._conn.execute(
            f"DELETE FROM tidings_window WHERE intake = %s AND number < ({oldest_kept})", (self._name, self._name, keep - 1)
        ).rowcount
        return int(done)

    def lock(self) -> None:
        self._conn.execute("SELECT 1 FROM tidings_intakes WHERE intake = %s FOR UPDATE", (self._name,))

    def next_dead(self) -> int:
        statement = "UPDATE tidings_intakes SET dead = dead + 1 WHERE intake = %s RETURNING dead"
        return int(self._conn.execute(statement, (self._name,)).fetchone()[0])
