"""A table that belongs to somebody else: what it is, which of its rows are still to be sent, and how they are ticked off.

The flag, or where there is none the row's presence, is the truth. Positions are only the fast path: an application may draw ids long before
it inserts, write smaller ones by hand, or set a flag back, and each such row is found by its flag.

*Ahead* are rows above a cursor and below the horizon (horizon.py, over this table and its sequence): those come in the order in which they
were written, as far as that can be told. *Loose* are the others that have no tick: behind the cursor, or above everything that the sequence
has given out.

Nothing is made or changed in the application's schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import psycopg
from psycopg import sql

from ...errors import ConfigurationError, StoreError
from ..outbox import Server
from .horizon import Horizon

Cells = list[bytes | None]
"""One row: the texts of the columns that were asked for."""

WINDOW = 20_000
"""Without an index for it, a sweep looks at so many rows at a time."""

_TABLE = """
    SELECT c.oid::bigint, c.relkind::text, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)"""

_TABLES = """
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace NOT IN
      (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\\_%' OR nspname = 'information_schema')
    ORDER BY pg_table_is_visible(c.oid) DESC, 1"""

_COLUMNS = """
    SELECT attname, format_type(atttypid, NULL), attnotnull, has_column_privilege(attrelid, attnum, 'SELECT'),
           has_column_privilege(attrelid, attnum, 'UPDATE')
    FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""

_SEQUENCE = """
    SELECT s.seqrelid::bigint, s.seqcache = 1 AND s.seqincrement = 1 AND NOT s.seqcycle,
           has_sequence_privilege(s.seqrelid, 'USAGE, SELECT'), s.seqrelid::regclass::text
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    JOIN pg_depend p ON (p.classid, p.refclassid) = ('pg_class'::regclass, 'pg_class'::regclass)
                        AND (p.refobjid, p.refobjsubid) = (a.attrelid, a.attnum) AND p.deptype IN ('a', 'i')
                     OR (p.classid, p.objid, p.refclassid) = ('pg_attrdef'::regclass, d.oid, 'pg_class'::regclass)
    JOIN pg_sequence s ON s.seqrelid IN (p.objid, p.refobjid)
    WHERE a.attrelid = %s AND a.attname = %s LIMIT 1"""

_INDEXES = """
    SELECT i.indisunique AND i.indpred IS NULL, coalesce(pg_get_expr(i.indpred, i.indrelid), '')
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = %s AND a.attname = %s AND i.indisvalid"""

_SYSTEM = """
    SELECT s.system_identifier::text,
           CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,
           pg_is_in_recovery(), d.datname::text, d.oid::bigint
    FROM pg_control_system() s, pg_database d WHERE d.datname = current_database()"""

_WHOLE = {"smallint", "integer", "bigint"}


def server(conn: psycopg.Connection[Any]) -> Server:
    row = conn.execute(_SYSTEM).fetchone()
    assert row is not None
    return Server(*row)


class OutboxTable:
    """
    Args:
        conn: in autocommit mode.
        name: as SQL takes it, with or without a schema.
        id: the column that tells rows apart. columns: the columns to be read; each SELECT gives them in this order, behind the id.
        published: the column that says that a row was sent, a boolean or a timestamp, or None. time: a column to go by where ids have
            no order.
        deletes: rows are deleted instead of being flagged.

    Raises:
        StoreError: there is no such table, it lacks a column or a unique id, or the role lacks a right; names what there is, or the GRANT.

    Attributes:
        oid, name: the name is quoted. binary: where in a row bytes stand, as hexadecimal digits.
        ordered: ids come from a sequence, so there is an order and a horizon. pooled: but not one by one, so the order is loose.
        indexed: rows without a tick are found by an index. advice: the statement that makes it.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        name: str,
        *,
        id: str,
        columns: Sequence[str],
        published: str | None,
        time: str | None = None,
        deletes: bool = False,
    ) -> None:
        self.oid, self.name = _find(conn, name)
        self.deletes = deletes
        self.marks = deletes or published is not None
        found = {row[0]: row for row in conn.execute(_COLUMNS, (self.oid,))}
        for column in dict.fromkeys([id, *columns, *([published] if published else [])]):
            if column not in found:
                near = get_close_matches(column, found, 1)
                raise StoreError(
                    f"{self.name} has no column {column!r}{f'; did you mean {near[0]!r}?' if near else ''} -- it has {', '.join(found)};"
                    " name the ones to use with --columns",
                    columns=list(found),
                )
            if not found[column][3]:
                raise StoreError(f"the role may not read it; GRANT SELECT ON {self.name} TO {_role(conn)}")
        self.id_type = str(found[id][1])
        self.binary = [at for at, column in enumerate(columns, 1) if found[column][1] == "bytea"]
        self._rights(conn, found, published)
        indexes = conn.execute(_INDEXES, (self.oid, id)).fetchall()
        if not any(unique for unique, _ in indexes):
            raise StoreError(
                f"the column {id!r} of {self.name} is not unique, so rows can't be told apart; name another with --columns id=…"
            )
        row = conn.execute(_SEQUENCE, (self.oid, id)).fetchone() if self.id_type in _WHOLE else None
        self.ordered = row is not None
        self.sequence: int | None = None if row is None else row[0]
        self.pooled = row is not None and not row[1]
        if row is not None and not row[2]:
            raise StoreError(f"the role may not read the sequence of {id!r}; GRANT USAGE, SELECT ON SEQUENCE {row[3]} TO {_role(conn)}")
        quoted = sql.Identifier(id).as_string()
        flag = sql.Identifier(published).as_string() if published else ""
        self._moment = published is not None and _is_moment(found[published][1])
        untick = (
            "true"
            if not published
            else f"{flag} IS NULL"
            if self._moment
            else f"NOT {flag}"
            if found[published][2]
            else f"{flag} IS NOT TRUE"
        )
        by_time = time is not None and not self.ordered  # what rows are then ordered by
        if time is not None and by_time:
            indexes = conn.execute(_INDEXES, (self.oid, time)).fetchall()
        self.indexed = not published or any(flag.strip('"') in predicate for _, predicate in indexes if predicate)
        key = f"{sql.Identifier(time).as_string()}, {quoted}" if time is not None and by_time else quoted
        self.advice = None if self.indexed else f"CREATE INDEX CONCURRENTLY ON {self.name} ({key}) WHERE {untick}"
        self._write(quoted, [sql.Identifier(column).as_string() for column in columns], untick, flag, found, time)

    def _rights(self, conn: psycopg.Connection[Any], found: dict[str, Any], published: str | None) -> None:
        if self.deletes:
            row = conn.execute("SELECT has_table_privilege(%s::oid, 'DELETE')", (self.oid,)).fetchone()
            if row is None or not row[0]:
                raise StoreError(f"the role may not delete rows; GRANT DELETE ON {self.name} TO {_role(conn)}")
        elif published is not None:
            if found[published][1] != "boolean" and not _is_moment(found[published][1]):
                raise StoreError(
                    f"the column {published!r} of {self.name} is {found[published][1]}, not boolean, nor a timestamp; name another with"
                    " --columns published=…"
                )
            if not found[published][4]:
                raise StoreError(f"the role may not flag rows; GRANT UPDATE ({published}) ON {self.name} TO {_role(conn)}")

    def _write(self, id: str, columns: list[str], untick: str, flag: str, found: dict[str, Any], time: str | None) -> None:
        """The statements, for this table's names."""
        table, kind = self.name, self.id_type
        reading = f"SELECT {', '.join([id, *columns])} FROM {table}"
        order = f"{sql.Identifier(time).as_string()}, {id}" if time and not self.ordered else id
        self._ahead = f"{reading} WHERE {id} > %s::{kind} AND {id} <= %s::{kind} AND {untick} ORDER BY {id} LIMIT %s"
        self._first = f"{reading} WHERE {id} <= %s::{kind} AND {untick} ORDER BY {id} LIMIT %s"
        ids = f"SELECT {id}::text AS as_text FROM {table} WHERE {untick}"  # a name of its own, or they would be ordered as texts
        self._any = f"{ids} ORDER BY {order} LIMIT %s"
        self._behind = f"{ids} AND {id} <= %s::{kind} ORDER BY {id} LIMIT %s"
        self._beyond = f"{ids} AND {id} > %s::{kind} ORDER BY {id} LIMIT %s"
        # Goes along the key over so many rows, and takes those without a tick out of them.
        self._window = f"""
            SELECT max(id)::text, coalesce(array_agg(id::text ORDER BY id) FILTER (WHERE open), '{{}}'), count(*)
            FROM (SELECT {id} AS id, ({untick}) AS open FROM {table}
                  WHERE {id} > %s::{kind} AND {id} <= %s::{kind} ORDER BY {id} LIMIT %s) looked"""
        these = f"{id} = ANY(%s::text[]::{kind}[]) AND {untick}"
        self._these = f"{reading} WHERE {these} ORDER BY {order}"
        tick = f"DELETE FROM {table}" if self.deletes else f"UPDATE {table} SET {flag} = {'now()' if self._moment else 'true'}"
        self._tick = f"{tick} WHERE {these}"
        # A row written again since has another xmin. (age() counts back from now, so it also orders the 32 bits that a row keeps.)
        self._tick_old = f"{tick} WHERE {these} AND age(xmin) > age(%s::text::xid)"
        self._all = f"{reading} WHERE {untick} ORDER BY {order}"
        when = sql.Identifier(time).as_string() if time and found[time][1].startswith("timestamp") else "NULL::timestamptz"
        self._waiting = f"""
            SELECT count(*), extract(epoch FROM clock_timestamp() - min(at))::float8
            FROM (SELECT {when} AS at FROM {table} WHERE {untick} ORDER BY {order} LIMIT %s) open"""

    # -- reading; each in a snapshot of its own

    def ahead(self, conn: psycopg.Connection[Any], after: str | None, upto: int, most: int) -> list[Cells]:
        """Rows without a tick above ``after`` (None: from the first), up to a horizon."""
        if after is None:
            return _cells(conn, self._first, (str(upto), most))
        return _cells(conn, self._ahead, (after, str(upto), most))

    def unordered(self, conn: psycopg.Connection[Any], most: int) -> list[str]:
        """Ids of rows without a tick, where ids have no order."""
        return _ids(conn, self._any, (most,))

    def behind(self, conn: psycopg.Connection[Any], cursor: str, most: int) -> list[str]:
        """Ids of rows without a tick at or below ``cursor``; quick with an index, and else by ``window``."""
        return _ids(conn, self._behind, (cursor, most))

    def beyond(self, conn: psycopg.Connection[Any], horizon: Horizon, most: int) -> list[str]:
        """Ids of rows without a tick that the sequence has not given out."""
        found = _ids(conn, self._beyond, (str(horizon.drawn), most))
        if not found:
            return found
        horizon.observe(conn)  # rows that were written since the last reading are above it too, and will be read in their turn
        return [id for id in found if int(id) > horizon.drawn]

    def window(self, conn: psycopg.Connection[Any], after: str, cursor: str) -> tuple[str | None, list[str]]:
        """Look at some rows above ``after`` up to ``cursor``: where the look ended (None: there), and the ids of those without a tick."""
        row = conn.execute(self._window, (after, cursor, WINDOW)).fetchone()
        assert row is not None
        last, ids, looked = row
        return (last if looked == WINDOW else None), list(ids)

    def these(self, conn: psycopg.Connection[Any], ids: Sequence[str]) -> list[Cells]:
        """Those of them that have no tick."""
        return _cells(conn, self._these, (list(ids),)) if ids else []

    def everything(self, conn: psycopg.Connection[Any], most: int) -> Iterator[list[Cells]]:
        """All rows without a tick in the snapshot of a transaction that is open on ``conn``."""
        conn.execute(f"DECLARE everything NO SCROLL CURSOR FOR {self._all}")
        while rows := _cells(conn, f"FETCH {most:d} FROM everything", None):
            yield rows

    def waiting(self, conn: psycopg.Connection[Any], most: int) -> tuple[int, float | None]:
        """How many rows have no tick, counted up to ``most``, and how long ago the oldest was written in seconds, if that can be told."""
        row = conn.execute(self._waiting, (most,)).fetchone()
        assert row is not None
        return int(row[0]), row[1]

    def now(self, conn: psycopg.Connection[Any]) -> int:
        """A point in the history of the server's transactions: what is written from now on is younger."""
        row = conn.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric %% 4294967296", ()).fetchone()
        assert row is not None
        return int(row[0])

    # -- ticking off

    def tick(self, conn: psycopg.Connection[Any], ids: Sequence[str], *, before: int | None = None) -> int:
        """Flag or delete rows; how many had no tick. ``before``: only those that were not written again since that point (``now``)."""
        if not ids or not self.marks:
            return 0
        if before is None:
            return conn.execute(self._tick, (list(ids),)).rowcount
        return conn.execute(self._tick_old, (list(ids), str(before))).rowcount


def columns_of(conn: psycopg.Connection[Any], oid: int) -> list[str]:
    """Names of the columns that a table has now."""
    return [row[0] for row in conn.execute(_COLUMNS, (oid,))]


def _is_moment(kind: str) -> bool:
    return kind.startswith("timestamp")


def partition_of(conn: psycopg.Connection[Any], oid: int, table: int) -> bool:
    """Whether a table is this one or one of its partitions."""
    row = conn.execute("SELECT EXISTS (SELECT FROM pg_partition_tree(%s::oid) WHERE relid = %s::oid)", (table, oid)).fetchone()
    return oid == table or (row is not None and bool(row[0]))


def _find(conn: psycopg.Connection[Any], name: str) -> tuple[int, str]:
    try:
        row = conn.execute(_TABLE, (name,)).fetchone()
    except psycopg.errors.SyntaxError as error:
        raise ConfigurationError(f"{name!r} is no name of a table; write schema.table, with quotes where SQL wants them") from error
    if row is None:
        tables = [table for (table,) in conn.execute(_TABLES)]
        called = {_plain(part): table for table in reversed(tables) for part in (table, table.rpartition(".")[2])}
        near = get_close_matches(_plain(name), called, 1) or get_close_matches(_plain(name.rpartition(".")[2]), called, 1)
        hint = (
            f"did you mean {called[near[0]]}?"
            if near
            else f"there are {', '.join(tables[:20])}"
            if tables
            else "the database has no table that this role can see"
        )
        raise StoreError(f"there is no table {name}; {hint}", tables=tables)
    oid, kind, quoted = row
    if kind not in "rp":
        raise StoreError(f"{quoted} is not a table; an outbox is one that the application inserts into")
    return oid, quoted


def _plain(name: str) -> str:
    return name.replace('"', "").lower()


def _role(conn: psycopg.Connection[Any]) -> str:
    return sql.Identifier(conn.info.user).as_string()


def _cells(conn: psycopg.Connection[Any], statement: str, parameters: tuple[Any, ...] | None) -> list[Cells]:
    """Rows as the bytes that the server sent, without a look at their types."""
    with conn.cursor() as cursor:
        cursor.execute(statement, parameters)
        result = cursor.pgresult
        assert result is not None
        get, columns = result.get_value, range(result.nfields)
        return [[get(row, column) for column in columns] for row in range(result.ntuples)]


def _ids(conn: psycopg.Connection[Any], statement: str, parameters: tuple[Any, ...]) -> list[str]:
    return [id for (id,) in conn.execute(statement, parameters)]
