"""What sagas ask of a server for many instances in one statement, each of which can be its own commit (``Store.write_plainly``).

Rows are locked in the order of their keys, so that two who need several of them can't wait for each other: by their code points, as
Python sorts them, whatever the database's own order of texts is.
"""

from __future__ import annotations

from collections.abc import Sequence

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

ORDER = 'ORDER BY s.saga COLLATE "C", s.key COLLATE "C"'

# The order of keys is that of the one transaction that inserts them.
START = f"""INSERT INTO tidings_sagas ({ROW}) SELECT * FROM {rows_of(_ROW_TYPES)} ON CONFLICT (saga, key) DO NOTHING RETURNING saga, key"""

# As ``record`` does with one: the row of each instance that is still held is locked, beside others who do, and its lines are written; but
# no pivot in one that was ordered to be undone before.
RECORD = f"""WITH e AS MATERIALIZED (
        SELECT * FROM {rows_of((*_HOLD_TYPES, *_ENTRY_TYPES))} AS e (saga, key, worker, epoch, {ENTRY})),
    held AS MATERIALIZED (
        SELECT s.saga, s.key, s.back FROM tidings_sagas s JOIN (SELECT DISTINCT saga, key, worker, epoch FROM e) h
        ON s.saga = h.saga AND s.key = h.key AND s.worker = h.worker AND s.epoch = h.epoch {ORDER} FOR SHARE OF s)
    INSERT INTO tidings_saga_journal (saga, key, {ENTRY}) SELECT saga, key, {ENTRY} FROM e JOIN held USING (saga, key)
    WHERE e.kind <> 'pivot' OR held.back IS NULL {AGAIN} RETURNING saga, key, kind, branch, step, number"""

# As ``release`` does with one. Events that came for an instance which is closed are of no use any more.
RELEASE = f"""WITH r AS MATERIALIZED (
        SELECT * FROM {rows_of((*_HOLD_TYPES, *_RELEASE_TYPES))} AS r (saga, key, worker, epoch, state, due, waits, error, arrived, now,
        result)),
    held AS MATERIALIZED (
        SELECT s.saga, s.key FROM tidings_sagas s JOIN r
        ON s.saga = r.saga AND s.key = r.key AND s.worker = r.worker AND s.epoch = r.epoch AND {RELEASABLE}
        {ORDER} FOR NO KEY UPDATE OF s),
    done AS (
        UPDATE tidings_sagas s SET {RELEASED}
        FROM r JOIN held USING (saga, key) WHERE s.saga = r.saga AND s.key = r.key RETURNING s.saga, s.key, s.state, s.arrived),
    gone AS (
        DELETE FROM tidings_saga_events e USING done d WHERE e.saga = d.saga AND e.key = d.key AND d.state IN {CLOSED} AND d.arrived > 0)
    SELECT saga, key FROM done"""

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

    def start_all(self, starts: Sequence[Start]) -> list[bool]:
        if len(starts) == 1:
            return super().start_all(starts)
        if any(one.worker is None for one in starts):
            self._tell()
        rows = sorted((start_values(one) for one in starts), key=lambda row: (row[0], row[18]))
        made = set(self._conn.execute(START, columns(_ROW_TYPES, rows)).fetchall())
        told: list[bool] = []
        for one in starts:
            told.append((instance := (one.saga, one.envelope.key)) in made)
            made.discard(instance)  # of two alike, one made it
        return told

    def record_all(self, lines: Sequence[tuple[Hold, Entry]]) -> list[bool]:
        if len(lines) == 1:
            return super().record_all(lines)
        rows = [(*hold, *entry_values(entry)) for hold, entry in lines]
        written = set(self._conn.execute(RECORD, columns((*_HOLD_TYPES, *_ENTRY_TYPES), rows)).fetchall())
        return [(hold.saga, hold.key, entry.kind, entry.branch, entry.step, entry.number) in written for hold, entry in lines]

    def release_all(self, releases: Sequence[Release]) -> list[bool]:
        if any(one.tells for one in releases):
            for one in releases:
                if one.tells and one.parent is not None:
                    self._conn.execute(KIN, (*one.hold[:2], *one.parent))
            return super().release_all(releases)
        if any(one.state in CLOSED or one.state == "parked" or (one.due is not None and one.due <= one.now) for one in releases):
            self._tell()
        rows = [(*one.hold, one.state, one.due, one.waits, one.error, one.arrived, one.now, one.result) for one in releases]
        done = set(self._conn.execute(RELEASE, columns((*_HOLD_TYPES, *_RELEASE_TYPES), rows)).fetchall())
        return [(one.hold.saga, one.hold.key) in done for one in releases]

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
