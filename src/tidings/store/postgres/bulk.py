"""Many rows in one statement; the events of a publisher in one INSERT.

Not COPY, though it would cost the server a third less. COPY locks the log and then waits for its client, and no time-out of the server ends
that wait (tried on 18: neither idle_in_transaction_session_timeout nor transaction_timeout does). A process that is frozen in the
middle of one would hold the horizon, and with it every reader of the log, until it wakes up. An INSERT whose rows are one argument each
column travels as one packet: the server has all of it before it takes the lock, and the next wait for the client is one that it bounds.

The rows get their positions in their order: the server draws the column's default for one after another, as they come out of ``unnest``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Dumper

from ...envelope import Envelope

INT4, INT8, BYTEA, TEXT = 23, 20, 17, 25
"""What the server calls its types."""

_OIDS = {"lane": INT4, "version": INT4, "time": INT8, "data": BYTEA}
_TYPES = {INT4: "int4", INT8: "int8", BYTEA: "bytea", TEXT: "text"}

_HEADER = struct.Struct(">iiIii").pack
_LENGTH = struct.Struct(">i").pack
_INT4_ELEMENT = struct.Struct(">ii").pack
_INT8_ELEMENT = struct.Struct(">iq").pack
_NULL = _LENGTH(-1)


class Array:
    """An array as the server's binary protocol has it; the driver's own way costs eight times as much."""

    __slots__ = ("content",)

    def __init__(self, values: Sequence[Any], oid: int) -> None:
        nulls = False
        if oid == INT4:
            parts = [_INT4_ELEMENT(4, value) for value in values]
        elif oid == INT8:
            parts = [_NULL if value is None else _INT8_ELEMENT(8, value) for value in values]
            nulls = None in values
        elif oid == BYTEA:
            parts = [part for value in values for part in (_LENGTH(len(value)), value)]
        else:
            seen: dict[str | None, bytes] = {None: _NULL}  # most columns say the same again and again
            parts = []
            for value in values:
                part = seen.get(value)
                if part is None:
                    encoded = value.encode()
                    part = seen[value] = _LENGTH(len(encoded)) + encoded
                parts.append(part)
            nulls = _NULL in parts
        self.content = _HEADER(1, nulls, oid, len(values), 1) + b"".join(parts)


class _ArrayDumper(Dumper):
    format = pq.Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.content


psycopg.adapters.register_dumper(Array, _ArrayDumper)


def insert_many(columns: str) -> str:
    """The INSERT for ``arrays``; ``columns`` as they stand in it."""
    names = columns.split(", ")
    arrays = ", ".join(f"%b::{_TYPES[_OIDS.get(name, TEXT)]}[]" for name in names)
    return f"INSERT INTO tidings_log ({columns}) SELECT * FROM unnest({arrays})"


def arrays(columns: str, envelopes: Iterable[Envelope]) -> list[Array]:
    """One argument for each column."""
    by_column = zip(*[envelope[1:] for envelope in envelopes], strict=True)
    return [Array(values, _OIDS.get(name, TEXT)) for name, values in zip(columns.split(", "), by_column, strict=True)]


def rows_of(types: Sequence[int]) -> str:
    """Rows for a FROM whose columns are one argument each (``columns``)."""
    return f"unnest({', '.join(f'%b::{_TYPES[oid]}[]' for oid in types)})"


def columns(types: Sequence[int], rows: Sequence[Sequence[Any]]) -> list[Array]:
    """The arguments."""
    return [Array(values, oid) for oid, values in zip(types, zip(*rows, strict=True), strict=True)]
