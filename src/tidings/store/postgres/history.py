"""Which server this is, and which line of its history: after a failover or a restore, what a process remembers may never have been.

A standby that is promoted without the last transactions, a backup that is restored, a dump in another database: the tables are as they were
at some moment, progress and log together, and go on from there. Whoever remembers more (rows that were read, positions that were passed, a
checkpoint that is about to be written) would skip what is published from now on under positions that he has seen before.

So every connection on which progress is read or written is asked, when it is made, for a name that no other line of history has; the name
that the tables were last used under stands in tidings_meta. Whoever finds another one there **fences everybody**, once, in one transaction:
all lanes are nobody's and their epochs rise, so that no checkpoint from before is taken any more. Then workers claim lanes anew, and read
from where the database says. Nothing is skipped; what had effects outside of the database and is not in it any more happens again, as after
a crash.
"""

from __future__ import annotations

from typing import Any

import psycopg

# The cluster, the timeline (a promotion and a restore to a point in time begin a new one), and the database. NULL on a standby.
_NAME = """CASE WHEN NOT pg_is_in_recovery() THEN
    (SELECT system_identifier FROM pg_control_system()) || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    || '/' || (SELECT oid FROM pg_database WHERE datname = current_database()) END"""

LOOK = f"SELECT {_NAME}, (SELECT value FROM tidings_meta WHERE name = 'history')"


def settle(conn: psycopg.Connection[Any]) -> tuple[str, bool]:
    """The name of this history, and whether everybody was fenced because the tables were last used under another. ``conn`` is in autocommit
    mode."""
    now, known = _look(conn)
    if now is None or now == known:
        return now or "", False
    with conn.transaction():
        conn.execute("SELECT 1 FROM tidings_meta WHERE name = 'control' FOR UPDATE")  # one after the other
        now, known = _look(conn)
        if now == known:
            return now or "", False
        if known is not None:
            conn.execute("SELECT 1 FROM tidings_lanes ORDER BY subscription, lane FOR UPDATE")
            conn.execute("UPDATE tidings_lanes SET worker = NULL, epoch = epoch + 1")
        conn.execute("UPDATE tidings_meta SET value = value::bigint + 1 WHERE name = 'control'")
        conn.execute("INSERT INTO tidings_meta VALUES ('history', %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (now,))
    return now or "", known is not None


def _look(conn: psycopg.Connection[Any]) -> tuple[str | None, str | None]:
    row = conn.execute(LOOK).fetchone()
    assert row is not None
    return row[0], row[1]
