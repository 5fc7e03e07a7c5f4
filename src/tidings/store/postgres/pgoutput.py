"""What the server's ``pgoutput`` plug-in says, as values: protocol version 1, from bytes, without I/O.

Transactions come whole, one after the other, in the order of their commits. ``Begin`` already carries the commit's LSN, so that each change
has a position, (commit LSN, ordinal), before the end of its transaction is read. All values are texts, as the session writes them.

Sources: PostgreSQL's documentation, chapter "Logical Replication Message Formats", and "Streaming Replication Protocol".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

Value = bytes | None
"""A column as text; None for NULL."""


class Unreadable(ValueError):
    """Bytes that are no such message."""


class Unchanged:
    """Stands for a large value that an UPDATE left as it was, and that isn't sent again."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged()
Row = list[Value | Unchanged]


class Begin(NamedTuple):
    """lsn: of the commit that will end it. time: of the commit, microseconds since 1970."""

    lsn: int
    time: int
    xid: int


class Commit(NamedTuple):
    """lsn: as in Begin. end: what may be confirmed once everything up to here was received."""

    lsn: int
    end: int
    time: int


class Column(NamedTuple):
    """key: whether it is part of the table's replica identity. type: its oid."""

    name: str
    key: bool
    type: int
    modifier: int


class Relation(NamedTuple):
    """A table as it is from here on, sent before its first row and again before the first row after it was altered."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]


class Type(NamedTuple):
    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    relation: int
    row: Row


class Update(NamedTuple):
    """old: the row, or its key, from before; None unless the table's replica identity has it sent."""

    relation: int
    old: Row | None
    row: Row


class Delete(NamedTuple):
    """old: the row, or its key alone with None elsewhere."""

    relation: int
    old: Row


class Truncate(NamedTuple):
    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class Message(NamedTuple):
    """Written by pg_logical_emit_message. It has a place of its own in the WAL."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class Origin(NamedTuple):
    lsn: int
    name: str


Change = Begin | Commit | Relation | Type | Insert | Update | Delete | Truncate | Message | Origin

EPOCH = 946_684_800_000_000
"""The server counts microseconds from 2000."""

_BEGIN = struct.Struct("!QqI").unpack_from
_COMMIT = struct.Struct("!BQQq").unpack_from
_U32 = struct.Struct("!I").unpack_from
_U16 = struct.Struct("!H").unpack_from
_COLUMN_TAIL = struct.Struct("!Ii").unpack_from
_HEAD = struct.Struct("!IcH").unpack_from


def decode(data: bytes) -> Change:
    """One message.

    Raises:
        Unreadable: it is none, is cut off, or goes on behind its end.
    """
    try:
        made, end = _decode(data)
    except (struct.error, IndexError, ValueError) as error:  # a ValueError: no end of a text, no UTF-8, or already Unreadable
        raise Unreadable(f"a message of pgoutput that can't be read: {data[:40]!r}…") from error
    if end != len(data):
        raise Unreadable(f"a message of pgoutput with {len(data) - end} bytes that don't belong to it: {data[:40]!r}…")
    return made


def insert(data: bytes) -> tuple[int, list[bytes | None]]:
    """The table and the row of an INSERT (``data`` begins with ``I``), as ``decode`` gives them, and quicker: it is what there are most of.

    Raises:
        Unreadable
    """
    try:
        relation, new, count = _HEAD(data, 1)
        row: list[bytes | None] = []
        at = 8
        for _ in range(count):
            if data[at] == 116:  # t
                begin = at + 5
                at = begin + _U32(data, at + 1)[0]
                row.append(data[begin:at])
            elif data[at] == 110:  # n
                row.append(None)
                at += 1
            else:
                raise Unreadable(f"an INSERT with a column of the kind {data[at : at + 1]!r}: {data[:40]!r}…")
    except (struct.error, IndexError) as error:
        raise Unreadable(f"an INSERT that can't be read: {data[:40]!r}…") from error
    if new != b"N" or at != len(data):
        raise Unreadable(f"an INSERT that can't be read: {data[:40]!r}…")
    return relation, row


def begin(data: bytes) -> tuple[int, int]:
    """LSN and time of a ``Begin`` (``data`` begins with ``B``), as ``decode`` gives them, and quicker. Raises Unreadable."""
    if len(data) != 21:
        raise Unreadable(f"a BEGIN that can't be read: {data[:40]!r}…")
    lsn, moment, _ = _BEGIN(data, 1)
    return lsn, moment + EPOCH


def commit_end(data: bytes) -> int:
    """The end of a ``Commit`` (``data`` begins with ``C``), as ``decode`` gives it, and quicker. Raises Unreadable."""
    if len(data) != 26:
        raise Unreadable(f"a COMMIT that can't be read: {data[:40]!r}…")
    end: int = _COMMIT(data, 1)[2]
    return end


def _decode(data: bytes) -> tuple[Change, int]:
    match data[:1]:
        case b"B":
            lsn, moment, xid = _BEGIN(data, 1)
            return Begin(lsn, moment + EPOCH, xid), 21
        case b"C":
            _, lsn, end, moment = _COMMIT(data, 1)
            return Commit(lsn, end, moment + EPOCH), 26
        case b"I":
            row, at = _row(data, _marked(data, 5, b"N"))
            return Insert(_U32(data, 1)[0], row), at
        case b"U":
            old, at = None, 5
            if data[5:6] in (b"K", b"O"):
                old, at = _row(data, 6)
            row, at = _row(data, _marked(data, at, b"N"))
            return Update(_U32(data, 1)[0], old, row), at
        case b"D":
            old, at = _row(data, _marked(data, 5, b"KO"))
            return Delete(_U32(data, 1)[0], old), at
        case b"R":
            return _relation(data)
        case b"Y":
            schema, at = _text(data, 5)
            name, at = _text(data, at)
            return Type(_U32(data, 1)[0], schema or "pg_catalog", name), at
        case b"T":
            count, options = _U32(data, 1)[0], data[5]
            relations = tuple(_U32(data, 6 + 4 * n)[0] for n in range(count))
            return Truncate(relations, bool(options & 1), bool(options & 2)), 6 + 4 * count
        case b"M":
            flags, lsn = data[1], struct.unpack_from("!Q", data, 2)[0]
            prefix, at = _text(data, 10)
            size = _U32(data, at)[0]
            content = data[at + 4 : at + 4 + size]
            return Message(bool(flags & 1), lsn, prefix, content), at + 4 + size
        case b"O":
            name, at = _text(data, 9)
            return Origin(struct.unpack_from("!Q", data, 1)[0], name), at
    raise Unreadable(f"a message of pgoutput of an unknown kind: {data[:40]!r}…")


def _relation(data: bytes) -> tuple[Relation, int]:
    schema, at = _text(data, 5)
    name, at = _text(data, at)
    identity = chr(data[at])
    columns = []
    count, at = _U16(data, at + 1)[0], at + 3
    for _ in range(count):
        flags = data[at]
        column, at = _text(data, at + 1)
        oid, modifier = _COLUMN_TAIL(data, at)
        columns.append(Column(column, bool(flags & 1), oid, modifier))
        at += 8
    # The server leaves the schema's name out for pg_catalog.
    return Relation(_U32(data, 1)[0], schema or "pg_catalog", name, identity, tuple(columns)), at


def _row(data: bytes, at: int) -> tuple[Row, int]:
    row: Row = []
    count, at = _U16(data, at)[0], at + 2
    for _ in range(count):
        match data[at : at + 1]:
            case b"n":
                row.append(None)
                at += 1
            case b"u":
                row.append(UNCHANGED)
                at += 1
            case b"t":
                size = _U32(data, at + 1)[0]
                row.append(data[at + 5 : at + 5 + size])
                at += 5 + size
            case other:
                raise Unreadable(f"a column of the kind {other!r}, which nobody asked for")
    return row, at


def _marked(data: bytes, at: int, kinds: bytes) -> int:
    if data[at] not in kinds:
        raise Unreadable(f"a row of the kind {data[at : at + 1]!r} where {kinds!r} belongs: {data[:40]!r}…")
    return at + 1


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1


# -- around them: the replication protocol

_XLOG = struct.Struct("!QQq")
_KEEPALIVE = struct.Struct("!QqB")
_STATUS = struct.Struct("!cQQQqB")

XLOG_HEAD = 25
"""So many bytes stand before the message in a ``w``: its place in the WAL, the WAL's end, a clock."""


class Keepalive(NamedTuple):
    """end: everything that was committed before has been sent. answer: the server wants to hear from us now."""

    end: int
    time: int
    answer: bool


def keepalive(data: bytes) -> Keepalive:
    """A ``k``."""
    try:
        end, moment, answer = _KEEPALIVE.unpack_from(data, 1)
    except struct.error as error:
        raise Unreadable(f"a keepalive that can't be read: {data!r}") from error
    return Keepalive(end, moment + EPOCH, bool(answer))


def status(received: int, done: int, time: int, *, answer: bool = False) -> bytes:
    """What we tell the server: how far we have received, and up to where it may forget. ``time``: microseconds since 1970."""
    return _STATUS.pack(b"r", received, done, done, time - EPOCH, answer)


def lsn(text: str | bytes) -> int:
    """``0/16B3748`` as a number. Raises ValueError."""
    high, _, low = (text.decode() if isinstance(text, bytes) else text).partition("/")
    return int(high, 16) << 32 | int(low, 16)


def lsn_text(number: int) -> str:
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"
