"""Nothing that a crash of the server could take back may leave the machine, whatever its writer's ``synchronous_commit`` was."""

from __future__ import annotations

import time
from typing import Any

import psycopg

FLUSH_SECONDS = 0.001
"""So long others' commits may take to carry what was read to disk, before it is done here."""


WRITTEN = """SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_current_wal_insert_lsn()::text END,
    CASE WHEN pg_is_in_recovery() THEN false ELSE pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn() END"""
"""How far has been written until now, and whether that is on disk. (A standby has no answer, and is no place to read from.)"""


def flush(conn: psycopg.Connection[Any], upto: str | None = None, *, seconds: float = FLUSH_SECONDS) -> None:
    """Wait until everything that was written until now has been flushed; if nobody's commit does it soon, make one that does.

    Args:
        upto: what ``WRITTEN`` told behind the rows, if it told too that this is not on disk. seconds: to wait for others' commits.
    """
    flushed = False
    if upto is None:
        upto, flushed = conn.execute(WRITTEN).fetchall()[0]
    until = time.monotonic() + seconds
    while not flushed and time.monotonic() < until:
        time.sleep(0.0002)
        again = conn.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", (upto,)).fetchone()
        flushed = again is not None and again[0]
    if not flushed:  # a transaction without a change of its own would not be written
        conn.execute("BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'tidings', ''); COMMIT")
