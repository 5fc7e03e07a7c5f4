"""What sagas ask of a server for many instances in one statement, each of which can be its own commit (``Store.write_plainly``).

Rows are locked in the order of their keys, so that two who need several of them can't wait for each other: by their code points, as
Python sorts them, whatever the database's own order of texts is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..sagas import (
    AGAIN,
    CLOSED,
    ENTRY,
    READ,
    RELEASABLE,
    RELEASED,
    ROW,
    Arrival,
    Entry,
    Hold,
    Release,
    SagaRow,
    SagaUnit,
    Start,
    entry_values,
    saga_row,
    start_values,
)
from .bulk import BYTEA, INT4, INT8, TEXT, columns, rows_of

_EVENT_TYPES = (INT8, INT4, TEXT, TEXT, INT4, TEXT, TEXT, TEXT, INT8, TEXT, BYTEA, TEXT, TEXT, TEXT, TEXT)
_ROW_TYPES = (TEXT, INT4, TEXT, TEXT, INT8, INT8, INT8, TEXT, INT8, INT8, TEXT, TEXT, *_EVENT_TYPES, TEXT, TEXT, TEXT, TEXT)
_ENTRY_TYPES = (TEXT, TEXT, TEXT, INT4, INT8, TEXT, TEXT, TEXT, INT4, INT8, INT8, INT8, TEXT)
_HOLD_TYPES = (TEXT, TEXT, TEXT, INT8)
_RELEASE_TYPES = (TEXT, INT8, TEXT, TEXT, INT8, INT8, TEXT)

_NONE = (None,) * 4
ORDER = 'ORDER BY s.saga COLLATE "C", s.key COLLATE "C"'

# The order of keys is that of the one transaction that inserts them.
_START = f"""started AS (
        INSERT INTO tidings_sagas ({ROW}) SELECT * FROM {rows_of(_ROW_TYPES)} ON CONFLICT (saga, key) DO NOTHING RETURNING saga, key)"""

# As ``record`` does with one: the row of each instance that is still held is locked, beside others who do, and its lines are written; but
# no pivot in one that was ordered to be undone before.
_RECORD = f"""held AS MATERIALIZED (
        SELECT {", ".join("e." + name for name in ("saga", "key", *ENTRY.split(", ")))}, s.back
        FROM {rows_of((*_HOLD_TYPES, *_ENTRY_TYPES))} AS e (saga, key, worker, epoch, {ENTRY})
        JOIN tidings_sagas s ON s.saga = e.saga AND s.key = e.key AND s.worker = e.worker AND s.epoch = e.epoch {ORDER} FOR SHARE OF s),
    recorded AS (
        INSERT INTO tidings_saga_journal (saga, key, {ENTRY}) SELECT saga, key, {ENTRY} FROM held WHERE kind <> 'pivot' OR back IS NULL
        {AGAIN} RETURNING saga, key, kind, branch, step, number)"""

# As ``release`` does with one. Events that came for an instance which is closed are of no use any more.
_RELEASE = f"""leaving AS MATERIALIZED (
        SELECT r.* FROM {rows_of((*_HOLD_TYPES, *_RELEASE_TYPES))} AS r (saga, key, worker, epoch, state, due, waits, error, arrived, now,
        result)
        JOIN tidings_sagas s ON s.saga = r.saga AND s.key = r.key AND s.worker = r.worker AND s.epoch = r.epoch AND {RELEASABLE}
        {ORDER} FOR NO KEY UPDATE OF s),
    done AS (
        UPDATE tidings_sagas s SET {RELEASED}
        FROM leaving r WHERE s.saga = r.saga AND s.key = r.key RETURNING s.saga, s.key, s.state, s.arrived),
    gone AS (
        DELETE FROM tidings_saga_events e USING done d WHERE e.saga = d.saga AND e.key = d.key AND d.state IN {CLOSED} AND d.arrived > 0)"""

_NO_LINE = "NULL::text, NULL::text, NULL::text, NULL::bigint"
_PARTS = (
    (_START, f"SELECT 0, saga, key, {_NO_LINE} FROM started"),
    (_RECORD, "SELECT 1, saga, key, kind, branch, step, number FROM recorded"),
    (_RELEASE, f"SELECT 2, saga, key, {_NO_LINE} FROM done"),
)


@lru_cache(maxsize=8)
def _statement(*parts: bool) -> str:
    """Those of them in one statement. It is one packet, so the server has all of it before it locks anything: a process that is frozen in
    the middle of a pipeline would hold what the first half has locked."""
    chosen = [part for part, is_in in zip(_PARTS, parts, strict=True) if is_in]
    return f"WITH {', '.join(part[0] for part in chosen)} {' UNION ALL '.join(part[1] for part in chosen)}"


# A child that is closed tells its parent.
KIN = f"SELECT FROM tidings_sagas s WHERE (s.saga, s.key) IN ((%s, %s), (%s, %s)) {ORDER} FOR NO KEY UPDATE"

TAKE = f"""UPDATE tidings_sagas s SET worker = %s, epoch = s.epoch + 1, due = NULL FROM {rows_of((TEXT, TEXT))} AS f (saga, key)
    WHERE s.saga = f.saga AND s.key = f.key RETURNING {", ".join("s." + name for name in READ.split(", "))}"""

JOURNALS = f"""SELECT f.n, {", ".join("j." + name for name in ENTRY.split(", "))}
    FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS f (saga, key, n) JOIN tidings_saga_journal j ON j.saga = f.saga AND j.key = f.key
    ORDER BY coalesce(j.seq, 9223372036854775807), j.started"""

ARRIVALS = """SELECT f.n, e.position, e.type, e.version, e.time, e.data
    FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS f (saga, key, n) JOIN tidings_saga_events e ON e.saga = f.saga AND e.key = f.key
    ORDER BY e.position"""


class ServerSagas(SagaUnit):
    """The same statements, each for many."""

    def write_all(
        self, starts: Sequence[Start], lines: Sequence[tuple[Hold, Entry]], releases: Sequence[Release]
    ) -> tuple[list[bool], list[bool], list[bool]]:
        if not (starts or releases) and len(lines) == 1:
            return [], super().record_all(lines), []
        if not (lines or releases) and len(starts) == 1:
            return super().start_all(starts), [], []
        if any(one.tells for one in releases):
            raise ValueError("who tells a parent locks it too, which has its place in release_all alone")
        if any(one.worker is None for one in starts) or any(
            one.state in CLOSED or one.state == "parked" or (one.due is not None and one.due <= one.now) for one in releases
        ):
            self._tell()
        arguments: list[Any] = []
        if starts:
            arguments += columns(_ROW_TYPES, sorted(map(start_values, starts), key=lambda row: (row[0], row[18])))
        if lines:
            arguments += columns((*_HOLD_TYPES, *_ENTRY_TYPES), [(*hold, *entry_values(entry)) for hold, entry in lines])
        if releases:
            rows = [(*one.hold, one.state, one.due, one.waits, one.error, one.arrived, one.now, one.result) for one in releases]
            arguments += columns((*_HOLD_TYPES, *_RELEASE_TYPES), rows)
        done = set(self._conn.execute(_statement(bool(starts), bool(lines), bool(releases)), arguments).fetchall())
        made: list[bool] = []
        for start in starts:
            made.append((instance := (0, start.saga, start.envelope.key, *_NONE)) in done)
            done.discard(instance)  # of two alike, one made it
        return (
            made,
            [(1, hold.saga, hold.key, entry.kind, entry.branch, entry.step, entry.number) in done for hold, entry in lines],
            [(2, one.hold.saga, one.hold.key, *_NONE) in done for one in releases],
        )

    def start_all(self, starts: Sequence[Start]) -> list[bool]:
        return self.write_all(starts, (), ())[0] if starts else []

    def record_all(self, lines: Sequence[tuple[Hold, Entry]]) -> list[bool]:
        return self.write_all((), lines, ())[1] if lines else []

    def release_all(self, releases: Sequence[Release]) -> list[bool]:
        if any(one.tells for one in releases):
            for one in releases:
                if one.tells and one.parent is not None:
                    self._conn.execute(KIN, (*one.hold[:2], *one.parent))
            return super().release_all(releases)
        return self.write_all((), (), releases)[2] if releases else []

    def _take(self, found: Sequence[tuple[str, str]], worker: str) -> list[SagaRow]:
        if not found:
            return []
        rows = self._conn.execute(TAKE, (worker, *columns((TEXT, TEXT), found))).fetchall()
        taken = {(row.saga, row.key): row for row in map(saga_row, rows)}
        return [taken[one] for one in found]

    def known(self, rows: Sequence[SagaRow]) -> list[tuple[list[Entry], list[Arrival]]]:
        found: list[tuple[list[Entry], list[Arrival]]] = [([], []) for _ in rows]
        begun = [(row.saga, row.key) for row in rows]
        if begun:
            for number, *entry in self._conn.execute(JOURNALS, columns((TEXT, TEXT), begun)).fetchall():
                found[number - 1][0].append(Entry(*entry))
        if any(row.arrived for row in rows):
            for number, position, type_, version, time, data in self._conn.execute(ARRIVALS, columns((TEXT, TEXT), begun)).fetchall():
                found[number - 1][1].append(Arrival(position, type_, version, time, bytes(data)))
        return found
