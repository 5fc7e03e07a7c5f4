"""Reading an outbox by looking at the table itself: ahead of a cursor behind the horizon, and by sweeps what lies off that path."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from ..outbox import Batch, Given, Mark, Unsendable, Wanted
from .durable import flush
from .horizon import Horizon
from .leader import reading
from .outbox import OutboxTable
from .source import BATCH_BYTES, Threaded, unhexed, weight

IDLE_SECONDS = (0.002, 0.25)
"""With nothing to read, look again after so long: at first, and at the longest."""
SWEEP_SECONDS = 1.0
"""How often rows are looked for that lie off the fast path."""


class Polling(Threaded):
    """Reads the table itself: ahead of a cursor, and by sweeps what lies off that path.

    Rows ahead may be read while others are being sent. A sweep looks for rows without a tick, and those that are on their way have none
    either: so it waits until everything that was read is ticked off.
    """

    def __init__(self, url: str, wanted: Wanted, table: OutboxTable, mark: Mark, given: Given) -> None:
        super().__init__("outbox")
        self._url = url
        self._name = wanted.relay
        self._table = table
        self._record = given.record
        self._mark = mark
        self._unsendable = given.unsendable
        self._rows = wanted.batch
        self._most = min(256, wanted.batch)  # until the size of rows is known
        self._cursor: str | None = mark.cursor if mark.mode == "poll" else None
        self._from = ""  # where the next look through the rows behind the cursor begins
        self._thread.start()

    def _read(self) -> None:
        with reading(self._url, self._name) as conn:
            table = self._table
            horizon = Horizon(table.oid, table.sequence) if table.sequence is not None else None
            pause, swept, more = IDLE_SECONDS[0], 0.0, False
            while not self._stop.is_set():
                rows: list[list[bytes | None]] = []
                if horizon is not None:
                    safe = horizon.observe(conn)
                    if self._cursor is None or int(self._cursor) < safe:
                        rows = table.ahead(conn, self._cursor, safe, self._most)
                    if not rows and (self._cursor is None or int(self._cursor) < safe):
                        self._cursor = str(safe)  # nothing below has been left without a tick
                if rows:
                    self._cursor = (rows[-1][0] or b"").decode()
                    self._hand(conn, rows, late=False)
                    pause = IDLE_SECONDS[0]
                elif horizon is None or more or time.monotonic() - swept >= SWEEP_SECONDS:
                    if not self._settled():
                        return
                    more = self._sweep(conn, horizon)
                    swept = time.monotonic()
                if rows or more:
                    if time.monotonic() - swept < SWEEP_SECONDS or not self._settled():
                        continue
                    more = self._sweep(conn, horizon)
                    swept = time.monotonic()
                    continue
                self._stop.wait(pause)
                pause = min(pause * 1.5, IDLE_SECONDS[1])

    def _sweep(self, conn: psycopg.Connection[Any], horizon: Horizon | None) -> bool:
        """Send what lies off the fast path; whether there may be more of it."""
        table = self._table
        if horizon is None:
            ids = table.unordered(conn, self._most)
        else:
            ids = table.beyond(conn, horizon, self._most)
            if self._cursor is not None and table.indexed:
                ids = [*table.behind(conn, self._cursor, self._most), *ids]
            elif self._cursor is not None:
                last, behind = table.window(conn, self._from or _LEAST[table.id_type], self._cursor)
                self._from = behind[self._most - 1] if len(behind) > self._most else last or ""
                ids = [*behind[: self._most], *ids]
        if not ids:
            return False
        rows = table.these(conn, ids)
        if not rows:
            return False
        self._hand(conn, rows, late=table.ordered)
        return self._settled()

    def _hand(self, conn: psycopg.Connection[Any], rows: list[list[bytes | None]], *, late: bool) -> None:
        """Make a batch of rows, or several if they are large. Nothing leaves that a crash of the server would take back."""
        flush(conn)
        point = self._table.now(conn)
        records: list[Any] = []
        ids: list[str] = []
        total = 0
        ordered, binary = self._table.ordered, self._table.binary
        for row in rows:
            id = row[0] or b""
            try:
                given = unhexed(row, binary) if binary else row
                record = self._record(given, id.zfill(20) if ordered else None, None, late)
            except Unsendable as error:
                try:
                    self._unsendable(error.id, str(error))
                except Exception:
                    if ids:  # those before it are nobody's failure
                        self._give(self._batch(records, ids, point, late))
                    raise
            else:
                records.append(record)
                total += weight(row)
            ids.append(id.decode())
            if total > BATCH_BYTES:
                self._give(self._batch(records, ids, point, late))
                self._most = max(16, len(ids) // 2)
                records, ids, total = [], [], 0
        if ids:
            self._give(self._batch(records, ids, point, late))
        average = (total + 1) // max(1, len(records))
        self._most = max(16, min(self._rows, self._most * 2, BATCH_BYTES // (average + 1)))

    def _batch(self, records: list[Any], ids: list[str], point: int, late: bool) -> Batch:
        cursor = self._cursor if late else ids[-1] if self._table.ordered else None
        mark = Mark(
            "poll",
            self._mark.system,
            self._mark.timeline,
            self._table.oid,
            ids=ids if self._table.marks else [],
            point=point,
            cursor=cursor,
            database=self._mark.database,
        )
        return Batch(records, ids, mark, len(records) if late else 0)


_LEAST = {"smallint": "-32768", "integer": "-2147483648", "bigint": "-9223372036854775808"}
