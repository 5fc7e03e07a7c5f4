"""Nothing that a crash of the server could take back may leave the machine, whatever its writer's ``synchronous_commit`` was."""

from __future__ import annotations

import time
from typing import Any

import psycopg

FLUSH_SECONDS = 0.001
"""So long others' commits may take to carry what was read to disk, before it is done here."""


def flush(conn: psycopg.Connection[Any]) -> None:
    """Wait until everything that was written until now has been flushed; if nobody's commit does it soon, make one that does."""
    row = conn.execute("SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()").fetchone()
    assert row is not None
    until = time.monotonic() + FLUSH_SECONDS
    flushed = row[1]
    while not flushed and time.monotonic() < until:
        time.sleep(0.0002)
        again = conn.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", (row[0],)).fetchone()
        flushed = again is not None and again[0]
    if not flushed:  # a transaction without a change of its own would not be written
        conn.execute("BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'tidings', ''); COMMIT")
