"""An outbox table on PostgreSQL, as ``store/outbox.py`` asks for it: a leader's session, and what reads for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from ...errors import StoreError
from ..outbox import Found, Given, Lag, Mark, Server, SlotLag, Source, Wanted
from ..port import Holder
from .connect import check_url, explain, is_busy, is_lost
from .horizon import lockers
from .leader import Leader, leader_of, reading
from .outbox import OutboxTable, server
from .replication import forget_slot, slot_info


class PostgresOutbox:
    """``Outbox``. Raises ConfigurationError: the URL is none."""

    def __init__(self, url: str, wanted: Wanted) -> None:
        self.url = check_url(url)
        self.wanted = wanted

    def table(self, conn: psycopg.Connection[Any]) -> OutboxTable:
        """The table, looked at. Raises StoreError: it is no such outbox."""
        wanted = self.wanted
        return OutboxTable(
            conn,
            wanted.table,
            id=wanted.id,
            columns=wanted.columns,
            published=wanted.published,
            time=wanted.time,
            deletes=wanted.deletes,
        )

    def look(self) -> Found:
        with reading(self.url, self.wanted.relay) as conn:
            return _found(self.table(conn))

    def leader(self, lease: float) -> PostgresLeader:
        return PostgresLeader(self, lease)

    def is_busy(self, error: BaseException) -> bool:
        return is_busy(error)

    def is_lost(self, error: BaseException) -> bool:
        return is_lost(error)

    def explain(self, error: Exception) -> Exception:
        return explain(error, self.url) if isinstance(error, psycopg.Error) else error

    def lag(self, most: int) -> Lag:
        wanted = self.wanted
        with reading(self.url, f"{wanted.relay} lag") as conn:
            table = self.table(conn)
            behind, seconds = table.waiting(conn, most + 1) if table.marks else (None, None)
            led = leader_of(conn, wanted.relay)
            slot = None
            if wanted.mode == "cdc":
                info = slot_info(conn, wanted.slot)
                if info is None:
                    raise StoreError(f"there is no replication slot {wanted.slot}: the relay has not run yet, or give its name with --slot")
                slot = SlotLag(wanted.slot, info.pid is not None, info.behind, info.retained, info.left, info.wal)
            horizon = [Holder(one.seconds, one.words()) for one in lockers(conn, table.oid)]
        return Lag(
            wanted.relay,
            table.name,
            wanted.mode,
            None if behind is None else min(behind, most),
            behind is None or behind <= most,
            seconds,
            None if led is None else (led.address or "local"),
            None if led is None else led.pid,
            slot,
            horizon,
        )


class PostgresLeader:
    """``Leader``, over one session."""

    def __init__(self, outbox: PostgresOutbox, lease: float) -> None:
        self._outbox = outbox
        self._leader = Leader(outbox.url, outbox.wanted.relay, lease=lease)
        self._conn = self._leader.conn
        self._table: OutboxTable | None = None

    def lead(self) -> bool:
        return self._leader.lead()

    def speak(self) -> None:
        self._leader.speak()

    def server(self) -> Server:
        return server(self._conn)

    def table(self) -> Found:
        return _found(self._looked())

    def _looked(self) -> OutboxTable:
        if self._table is None:
            self._table = self._outbox.table(self._conn)
        return self._table

    def tick(self, ids: Sequence[str], *, before: int | None = None) -> int:
        return self._looked().tick(self._conn, ids, before=before)

    def source(self, mark: Mark, given: Given) -> Source:
        url, wanted, table = self._outbox.url, self._outbox.wanted, self._looked()
        if wanted.mode == "poll":
            from .polling import Polling

            if mark.slot and forget_slot(self._conn, mark.slot):
                given.note(f"dropped the replication slot {mark.slot}: the relay polls now, and a slot that nobody reads keeps WAL")
            return Polling(url, wanted, table, mark, given)
        from .changes import Changes

        return Changes(url, wanted, table, mark, given, self._conn)

    def close(self) -> None:
        self._leader.close()


def _found(table: OutboxTable) -> Found:
    return Found(table.oid, table.name, table.marks, table.pooled, table.advice)
