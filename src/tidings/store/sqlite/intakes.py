"""The statements of an intake on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

from ..intakes import IntakeRow, MarkRow, Move, Offset, packed, unpacked

_OFFSET = "topic, partition, topic_id, next, ending, reached, owner, trouble, resume"

_MOVE = """UPDATE tidings_offsets SET next = ?, ending = max(ending, ?), reached = coalesce(nullif(?, 0), reached)
    WHERE intake = ? AND topic = ? AND partition = ? AND topic_id = ? AND next = ?"""

_MARK = """INSERT INTO tidings_marks (intake, topic, partition, log_id, series, lanes) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (intake, topic, partition, log_id, series) DO UPDATE SET lanes = excluded.lanes"""


def intakes(conn: sqlite3.Connection) -> list[IntakeRow]:
    return [IntakeRow(*row) for row in conn.execute("SELECT intake, app, broker, since FROM tidings_intakes ORDER BY intake")]


class SQLiteIntake:
    """``IntakeUnit`` on a sqlite3 connection. Transactions that write come one after another, so nothing here needs a lock."""

    __slots__ = ("_conn", "_name")

    def __init__(self, conn: sqlite3.Connection, name: str) -> None:
        self._conn = conn
        self._name = name

    def register(self, app: str, broker: str, now: int) -> None:
        self._conn.execute(
            "INSERT INTO tidings_intakes (intake, app, broker, since, dead) VALUES (?, ?, ?, ?, 0)"
            " ON CONFLICT (intake) DO UPDATE SET app = excluded.app, broker = excluded.broker",
            (self._name, app, broker, now),
        )

    def offsets(self) -> list[Offset]:
        rows = self._conn.execute(f"SELECT {_OFFSET} FROM tidings_offsets WHERE intake = ? ORDER BY topic, partition", (self._name,))
        return [Offset(*row) for row in rows]

    def begin(self, topic: str, partition: int, topic_id: str, next: int, end: int) -> None:
        self._conn.execute(
            "INSERT OR IGNORE INTO tidings_offsets (intake, topic, partition, topic_id, next, ending) VALUES (?, ?, ?, ?, ?, ?)",
            (self._name, topic, partition, topic_id, next, end),
        )

    def own(self, partitions: Collection[tuple[str, int]], owner: str) -> None:
        self._conn.execute("UPDATE tidings_offsets SET owner = NULL WHERE intake = ? AND owner = ?", (self._name, owner))
        self._conn.executemany(
            "UPDATE tidings_offsets SET owner = ? WHERE intake = ? AND topic = ? AND partition = ?",
            [(owner, self._name, topic, partition) for topic, partition in partitions],
        )

    def move(self, moves: Sequence[Move]) -> list[tuple[str, int]]:
        left = []
        for one in moves:
            arguments = (one.next, one.end, one.reached, self._name, one.topic, one.partition, one.topic_id, one.expected)
            if self._conn.execute(_MOVE, arguments).rowcount != 1:
                left.append((one.topic, one.partition))
        return left

    def trouble(self, topic: str, partition: int, why: str | None) -> None:
        self._conn.execute(
            "UPDATE tidings_offsets SET trouble = ? WHERE intake = ? AND topic = ? AND partition = ?", (why, self._name, topic, partition)
        )

    def resume(self, topic: str, partition: int | None, where: str) -> int:
        done = self._conn.execute(
            "UPDATE tidings_offsets SET resume = ? WHERE intake = ? AND topic = ? AND (? IS NULL OR partition = ?)",
            (where, self._name, topic, partition, partition),
        ).rowcount
        self._conn.execute("UPDATE tidings_meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'control'")
        return done

    def settle(self, topic: str, partition: int, topic_id: str, next: int, end: int) -> None:
        self._conn.execute(
            "UPDATE tidings_offsets SET topic_id = ?, next = ?, ending = ?, trouble = NULL, resume = NULL"
            " WHERE intake = ? AND topic = ? AND partition = ?",
            (topic_id, next, end, self._name, topic, partition),
        )

    def marks(self, topic: str, partition: int) -> list[MarkRow]:
        rows = self._conn.execute(
            "SELECT log_id, series, lanes FROM tidings_marks WHERE intake = ? AND topic = ? AND partition = ?",
            (self._name, topic, partition),
        )
        return [MarkRow(topic, partition, log_id, series, unpacked(lanes)) for log_id, series, lanes in rows]

    def set_marks(self, rows: Sequence[MarkRow]) -> None:
        self._conn.executemany(_MARK, [(self._name, *row[:4], packed(row.lanes)) for row in rows])

    def unseen(self, digests: Sequence[bytes]) -> set[bytes]:
        statement = "INSERT OR IGNORE INTO tidings_window (intake, digest) VALUES (?, ?)"
        return {digest for digest in digests if self._conn.execute(statement, (self._name, digest)).rowcount == 1}

    def forget(self, keep: int) -> int:
        oldest_kept = "SELECT number FROM tidings_window WHERE intake = ? ORDER BY number DESC LIMIT 1 OFFSET ?"
        return self._conn.execute(
            f"DELETE FROM tidings_window WHERE intake = ? AND number < ({oldest_kept})", (self._name, self._name, keep - 1)
        ).rowcount

    def lock(self) -> None:
        pass

    def next_dead(self) -> int:
        self._conn.execute("UPDATE tidings_intakes SET dead = dead + 1 WHERE intake = ?", (self._name,))
        return int(self._conn.execute("SELECT dead FROM tidings_intakes WHERE intake = ?", (self._name,)).fetchone()[0])
