"""Logical decoding: a slot, a publication, and the stream of what was committed, over libpq as psycopg hands it out.

A *slot* is the server's memory of how far somebody has come: it keeps the WAL from there on. A stream begins where the slot stands and
brings whole transactions in the order of their commits, each one after it was flushed: what a crash of the server could take back is never
sent.

The server forgets only what was ``confirmed``. A confirmation may be lost in a crash of the server, whose slots are written at checkpoints:
then a stream begins earlier than what was confirmed, so whoever reads it knows himself what he has had.

While nothing is committed in this database, but elsewhere on the server, the slot would hold the WAL back all the same. The server says in
its keepalives how far it has looked, and that may be confirmed when nothing is under way: so an idle database needs no writes of its own.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import StoreError, StoreFailed
from ...urls import label
from .connect import CONNECT_SECONDS, explain
from .pgoutput import XLOG_HEAD, keepalive, lsn, status

STATUS_SECONDS = 5.0
"""How often the server hears from us, and is asked how far it is. Its patience (wal_sender_timeout) is 60 s unless set."""

SETTINGS = "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=iso_8601 -c bytea_output=hex -c extra_float_digits=1"
"""How values are written, in a stream and in a SELECT: so that both give the same text."""


class SlotInfo(NamedTuple):
    """A slot, as the server sees it.

    Attributes:
        database, plugin: it belongs to. pid: the process that streams from it; None if nobody does.
        confirmed: up to where the server may forget. wal: ``reserved``, ``extended``, ``unreserved`` or ``lost``.
        behind, retained: bytes of WAL that were not confirmed, and that it keeps.
        left: bytes until it may be lost; None if that never happens, or not soon.
    """

    database: str
    plugin: str
    pid: int | None
    confirmed: int
    wal: str
    behind: int
    retained: int
    left: int | None


_SLOT = """
    SELECT database, plugin, active_pid, confirmed_flush_lsn::text, wal_status,
           pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,
           pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, safe_wal_size
    FROM pg_replication_slots WHERE slot_name = %s"""

_LIMIT = "SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"

_PUBLISHED = """
    SELECT p.pubinsert, concat_ws('.', p.oid, r.oid), p.puballtables OR r.oid IS NOT NULL OR EXISTS (
        SELECT FROM pg_publication_tables t JOIN pg_class c ON c.relname = t.tablename
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schemaname
        WHERE t.pubname = p.pubname AND c.oid IN (SELECT relid FROM pg_partition_tree(%(table)s::oid)))
    FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = %(table)s::oid WHERE p.pubname = %(name)s"""


def slot_info(conn: psycopg.Connection[Any], name: str) -> SlotInfo | None:
    """The slot of this name; None if there is none."""
    row = conn.execute(_SLOT, (name,)).fetchone()
    if row is None:
        return None
    database, plugin, pid, confirmed, wal, behind, retained, left = row
    return SlotInfo(database or "", plugin or "", pid, lsn(confirmed or "0/0"), wal or "lost", behind or 0, retained or 0, left)


def retention_is_limited(conn: psycopg.Connection[Any]) -> bool:
    """Whether a slot that nobody reads from is given up before it fills the disk (max_slot_wal_keep_size)."""
    row = conn.execute(_LIMIT).fetchone()
    return row is not None and row[0] >= 0


def published(conn: psycopg.Connection[Any], publication: str, table: int) -> str | None:
    """By what the publication sends the INSERTs of the table: another name once it was dropped and made anew. None if it doesn't."""
    row = conn.execute(_PUBLISHED, {"table": table, "name": publication}).fetchone()
    return str(row[1]) if row is not None and row[0] and row[2] else None


def publish_table(conn: psycopg.Connection[Any], publication: str, table: int, name: str) -> str:
    """See that the publication sends the INSERTs of the table (its oid; its quoted name), and make it if it isn't there; as ``published``.

    Raises:
        StoreError: it isn't there and this role may not make it, or it sends something else; with the statement that helps.
    """
    row = conn.execute(_PUBLISHED, {"table": table, "name": publication}).fetchone()
    quoted = sql.Identifier(publication).as_string()
    if row is None:
        make = f"CREATE PUBLICATION {quoted} FOR TABLE {name} WITH (publish = 'insert', publish_via_partition_root = true)"
        try:
            conn.execute(make)
        except psycopg.errors.InsufficientPrivilege as error:
            raise StoreError(f"this role may not make the publication; let the table's owner run: {make}", statement=make) from error
        return publish_table(conn, publication, table, name)
    if not row[0] or not row[2]:
        mend = f"ALTER PUBLICATION {quoted} " + (f"ADD TABLE {name}" if row[0] else "SET (publish = 'insert')")
        lacks = "does not have the table" if row[0] else "sends no INSERTs"
        raise StoreError(f"the publication {publication} {lacks}; let its owner run: {mend}", statement=mend)
    return str(row[1])


def free_slot(conn: psycopg.Connection[Any], name: str) -> None:
    """End the process of the server that streams from the slot: somebody who is known to be gone or frozen."""
    conn.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active_pid IS NOT NULL", (name,)
    )


def forget_slot(conn: psycopg.Connection[Any], name: str) -> bool:
    """Drop the slot, if nobody streams from it; whether that was done."""
    query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
    return conn.execute(query, (name,)).fetchone() is not None


class System(NamedTuple):
    """Which server this is. timeline: raised when a standby is promoted. written: how far its WAL goes."""

    id: str
    timeline: int
    written: int


class Created(NamedTuple):
    """A new slot. start: what was committed before isn't in its stream. snapshot: sees exactly that, as long as this connection is idle."""

    start: int
    snapshot: str


class Replication:
    """A connection that speaks the replication protocol. It belongs to the thread that uses it.

    Raises:
        StoreError: no connection; the role has no REPLICATION right; wal_level is not logical.
        psycopg.OperationalError: while streaming: the connection is lost. Make another one.

    Attributes:
        seen: how far the server has looked, as it said last; everything that was committed before has been read from here.
    """

    def __init__(self, url: str, *, name: str = "tidings") -> None:
        self._url = url
        given = conninfo_to_dict(url)
        given["options"] = f"{given.get('options') or ''} {SETTINGS}".strip()
        conninfo = make_conninfo(**{  # type: ignore[arg-type]
            "connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30, "keepalives_interval": 10, **given,
            "replication": "database", "application_name": name,
        })  # fmt: skip
        self._conn = pq.PGconn.connect(conninfo.encode())
        self.seen = 0
        self._received = 0
        self._confirmed = 0
        self._told = 0.0
        if self._conn.status != pq.ConnStatus.OK:
            said = self._conn.get_error_message()
            self.close()
            raise _explain(said, url)
        self._poll = select.poll()
        self._poll.register(self._conn.socket, select.POLLIN)

    def system(self) -> System:
        ((name, timeline, written, *_),) = self._rows("IDENTIFY_SYSTEM")
        return System(str(name), int(timeline or 0), lsn(written or "0/0"))

    def create(self, slot: str) -> Created:
        """Make the slot. Waits until every transaction that is writing now has ended.

        Raises:
            StoreError: it is there already; there is no slot left; wal_level is not logical.
        """
        ((_, start, snapshot, *_),) = self._rows(f"CREATE_REPLICATION_SLOT {_quoted(slot)} LOGICAL pgoutput (SNAPSHOT 'export')")
        return Created(lsn(start or "0/0"), snapshot or "")

    def drop(self, slot: str) -> None:
        self._rows(f"DROP_REPLICATION_SLOT {_quoted(slot)}")

    def start(self, slot: str, publication: str) -> None:
        """Begin to stream from where the slot stands."""
        names = _literal(sql.Identifier(publication).as_string())
        command = f"START_REPLICATION SLOT {_quoted(slot)} LOGICAL 0/0 (proto_version '1', publication_names {names})"
        result = self._conn.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise _explain(result.get_error_message(), self._url)
        self._told = 0.0

    def read(self) -> bytes | None:
        """The next message of pgoutput; None if nothing has come yet. What the server asks in between is answered."""
        return next(self.messages(), None)

    def messages(self) -> Iterator[bytes]:
        """Those that have come, until there are none left; otherwise as ``read``. Quicker, for many."""
        get, waited = self._conn.get_copy_data, False
        while True:
            size, view = get(1)
            if size > 0:
                if view[0] == 119:  # w
                    yield bytes(view[XLOG_HEAD:])
                else:
                    self._keepalive(bytes(view))
                waited = False
            elif size < 0:
                self._ended()
            elif waited:
                return
            else:
                self._consume()  # takes what has arrived, and doesn't wait
                waited = True

    def wait(self, seconds: float, other: int | None = None) -> None:
        """Until something comes, or the file descriptor ``other`` can be read, or so long."""
        poll = self._poll
        if other is not None:
            poll.register(other, select.POLLIN)
        try:
            poll.poll(max(0.0, seconds) * 1000)
        finally:
            if other is not None:
                poll.unregister(other)

    def confirm(self, done: int, *, now: bool = False) -> None:
        """Everything committed before ``done`` is in safe hands. The server is told from time to time, or ``now``."""
        self._confirmed = max(self._confirmed, done)
        moment = time.monotonic()
        if now or moment - self._told >= STATUS_SECONDS:
            self._tell(answer=True)

    def close(self) -> None:
        self._conn.finish()

    def __enter__(self) -> Replication:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- on the wire

    def _rows(self, command: str) -> list[list[str | None]]:
        result = self._conn.exec_(command.encode())
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise _explain(result.get_error_message(), self._url)
        cells = [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]
        return [[None if cell is None else cell.decode() for cell in row] for row in cells]

    def _consume(self) -> None:
        try:
            self._conn.consume_input()
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise psycopg.OperationalError(str(error)) from error

    def _keepalive(self, data: bytes) -> None:
        told = keepalive(data)
        self.seen = max(self.seen, told.end)
        if told.answer:
            self._tell()

    def _tell(self, *, answer: bool = False) -> None:
        self._told = time.monotonic()
        received = max(self.seen, self._confirmed)
        self._conn.put_copy_data(status(received, self._confirmed, time.time_ns() // 1000, answer=answer))
        self._conn.flush()

    def _ended(self) -> None:
        """The stream has ended: by an error of the server's, or because it shuts down."""
        result = self._conn.get_result()
        said = "" if result is None else result.get_error_message()
        state = None if result is None else result.error_field(pq.DiagnosticField.SQLSTATE)
        if state in (None, b"57P01", b"57P02", b"57P03") or self._conn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError(said or "the server ended the stream")
        if state == b"42704" and "publication" in said:
            raise psycopg.OperationalError(said)  # it was dropped: what that means is found out at the next start
        raise _explain(said, self._url)


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string()


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _explain(said: str, url: str) -> StoreError:
    """The server's words, and what to do. The replication protocol's errors come as text."""
    said = " ".join(said.split())
    for words, advice in (
        ("wal_level", "set wal_level = logical in postgresql.conf and restart the server"),
        ("all replication slots are in use", "raise max_replication_slots, or drop a slot that nobody needs"),
        ("number of requested standby connections", "raise max_wal_senders"),
        ("permission denied to start WAL sender", "give the role the right: ALTER ROLE … REPLICATION"),
        ("must be superuser or replication role", "give the role the right: ALTER ROLE … REPLICATION"),
        ("permission denied to use replication slots", "give the role the right: ALTER ROLE … REPLICATION"),
        ("replication connection", "allow it in pg_hba.conf"),
    ):
        if words in said:
            return StoreFailed(f"{label(url)}: {said} -- {advice}", url=label(url))
    cause = psycopg.OperationalError(said)
    made = explain(cause, url)
    made.__cause__ = cause  # by which it is known that trying again may help
    return made
