"""Rows of the log, a block at a time, without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from .unit import READ

_READ = READ.replace("%s", "$1", 1).replace("%s", "$2", 1).replace("%s", "$3", 1).encode()


def fetch(conn: psycopg.Connection[Any], after: int, upto: int, limit: int) -> list[tuple[Any, ...]]:
    """At most ``limit`` rows with ``after < position <= upto``, in the order of ``Envelope``'s fields.

    A cursor of the driver's takes the lock back for every few kilobytes that arrive, and a loop that is busy with the block before gives
    it late, each time. libpq's own call lets go of it from the question to the last row: so a thread reads while the loop works. What is
    left for the thread is to make the tuples. Nothing is prepared, so that any backend behind a pooler will do; planning it is a matter of
    microseconds for a thousand rows.

    Raises:
        psycopg.Error
    """
    values = [b"%d" % after, b"%d" % upto, b"%d" % limit]
    result = conn.pgconn.exec_params(_READ, values, result_format=pq.Format.BINARY)
    if result.status != pq.ExecStatus.TUPLES_OK:
        if conn.pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError(result.get_error_message())
        raise error_from_result(result)
    maker = Transformer(conn)
    maker.set_pgresult(result)
    rows: list[tuple[Any, ...]] = maker.load_rows(0, result.ntuples, tuple)
    return rows
