"""One leader of each name on one database: an advisory lock that the server takes back from who is frozen.

The lock lives as long as its session. A process that dies closes its socket, and the server lets go of the lock at once; one that is frozen
says nothing, and the server ends its session after the lease (``idle_session_timeout``), so the leader speaks at least that often. What is
written through the leader's connection is therefore written by the leader or not at all.

A pooler in transaction mode gives sessions to others between transactions: the URL has to lead to the server itself.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import psycopg

from ...errors import StoreError
from ...urls import label
from .connect import connect, is_pooled
from .replication import SETTINGS

LEASE_SECONDS = 10.0
"""After so long without a word the session of a leader is ended."""


_LED = """
    SELECT l.pid, a.client_addr::text, extract(epoch FROM clock_timestamp() - a.backend_start)::float8
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid, hashtextextended(%s, 0) key
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32 | l.objid::bigint) = key"""


class Led(NamedTuple):
    """Who leads. pid: of the server's process. address: where from, None by a local socket. seconds: since it connected."""

    pid: int
    address: str | None
    seconds: float | None


def leader_of(conn: psycopg.Connection[Any], name: str) -> Led | None:
    """Who leads the relay of this name now; None if nobody does."""
    row = conn.execute(_LED, (f"tidings relay {name}",)).fetchone()
    return None if row is None else Led(*row)


class Leader:
    """A session that is the leader of this name, or would like to be. It belongs to the thread that uses it.

    Raises:
        StoreError: no connection, or one through a pooler.

    Attributes:
        conn: in autocommit mode; only to be written through once ``lead`` has said yes.
    """

    def __init__(self, url: str, name: str, *, lease: float = LEASE_SECONDS) -> None:
        self.conn: psycopg.Connection[Any] = _direct(url, name)
        self._name = f"tidings relay {name}"
        self._lease = lease
        self._spoke = time.monotonic()
        try:
            self.conn.execute(f"SET idle_session_timeout = {round(lease * 1000)}")
            # Row locks of the application's are waited for, but not for ever: the lease is spoken for meanwhile by trying again.
            self.conn.execute(f"SET lock_timeout = {round(lease * 500)}")
            self.conn.execute("SET synchronous_commit = on")
        except BaseException:
            self.conn.close()
            raise

    def lead(self) -> bool:
        """Whether it is the leader now."""
        row = self.conn.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (self._name,)).fetchone()
        self._spoke = time.monotonic()
        return row is not None and bool(row[0])

    def speak(self) -> None:
        """Say that it is alive, if it is time to. Raises psycopg.OperationalError: it is the leader no more."""
        if time.monotonic() - self._spoke >= self._lease / 4:
            self.conn.execute("SELECT")
            self._spoke = time.monotonic()

    def close(self) -> None:
        self.conn.close()


def _direct(url: str, name: str) -> psycopg.Connection[Any]:
    conn = connect(url, name=f"tidings relay {name}")
    try:
        pooled = is_pooled(conn)
    except BaseException:
        conn.close()
        raise
    if pooled:
        conn.close()
        raise StoreError(
            f"{label(url)} is reached through a pooler, where a session is not the relay's own: its lead could be lost unseen, and what it"
            " sets would stay for the application; give the server's own address and port",
            url=label(url),
        )
    return conn


def reading(url: str, name: str) -> psycopg.Connection[Any]:
    """A connection to read rows by, which writes values as a stream of changes does.

    Raises:
        StoreError: no connection, or one through a pooler.
    """
    conn = _direct(url, name)
    try:
        for setting in SETTINGS.split("-c ")[1:]:
            conn.execute(f"SET {setting}")
    except BaseException:
        conn.close()
        raise
    return conn
