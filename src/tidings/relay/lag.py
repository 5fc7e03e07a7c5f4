"""How far behind the relay of somebody else's outbox is, told by the database alone: also where no relay runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import StoreError
from ..store.port import Holder
from ..store.postgres.horizon import lockers
from ..store.postgres.leader import leader_of, reading
from ..store.postgres.outbox import OutboxTable
from ..store.postgres.replication import slot_info
from .outbox import Options

MOST = 100_000
"""Rows are counted so far."""


@dataclass
class SlotLag:
    """A replication slot. behind, retained: bytes of WAL that the relay has not confirmed, and that the server keeps for it.
    left: until it may be lost, None if never or not soon. wal: ``reserved``, ``extended``, ``unreserved`` or ``lost``."""

    name: str
    streaming: bool
    behind: int
    retained: int
    left: int | None
    wal: str


@dataclass
class Lag:
    """
    Attributes:
        behind: rows that were not sent; None where nothing says so (by CDC without ticks, ``slot`` does). exact: False if there are more.
        seconds: since the oldest of them was written.
        leader: where the relay that leads is, ``local`` by a local socket; None if none leads. leader_pid: the server's process for it.
        slot: by CDC. horizon: transactions that hold readers of this table back, the oldest first.
    """

    relay: str
    table: str
    mode: str
    behind: int | None
    exact: bool
    seconds: float | None
    leader: str | None
    leader_pid: int | None
    slot: SlotLag | None
    horizon: list[Holder]


def look(options: Options) -> Lag:
    """
    Raises:
        StoreError: no connection, no such table, no such slot.
    """
    layout = options.layout
    with reading(options.url, f"{options.name} lag") as conn:
        table = OutboxTable(
            conn,
            options.table,
            id=layout.id,
            columns=layout.columns,
            published=None if options.after == "nothing" else layout.published,
            time=layout.time,
            deletes=options.after == "delete",
        )
        behind, seconds = table.waiting(conn, MOST + 1) if table.marks else (None, None)
        led = leader_of(conn, options.name)
        slot = None
        if options.mode == "cdc":
            info = slot_info(conn, options.slot)
            if info is None:
                raise StoreError(f"there is no replication slot {options.slot}: the relay has not run yet, or give its name with --slot")
            slot = SlotLag(options.slot, info.pid is not None, info.behind, info.retained, info.left, info.wal)
        horizon = [Holder(one.seconds, one.words()) for one in lockers(conn, table.oid)]
    return Lag(
        options.name,
        table.name,
        options.mode,
        None if behind is None else min(behind, MOST),
        behind is None or behind <= MOST,
        seconds,
        None if led is None else (led.address or "local"),
        None if led is None else led.pid,
        slot,
        horizon,
    )
