"""Looking at a running shop from outside: what its store says about orders, subscriptions and what is still to come.

Reads only. How far the subscriptions are is seen in one snapshot, the shop's own rows right after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from apps.checkout.books import snapshot, tables_of
from apps.checkout.tables import run
from tidings import StoreNotInitialised
from tidings.store import store_at
from tidings.store.port import Unit
from tidings.store.sagas import CLOSED


@dataclass(frozen=True, slots=True)
class Reader:
    """A subscription: events it has yet to handle, keys that wait for another attempt, dead letters, workers that share its lanes."""

    name: str
    app: str
    behind: int
    parked: int
    dead: int
    workers: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    events: int
    scheduled: int
    states: dict[str, int]
    readers: tuple[Reader, ...]
    alerts: int
    sagas: dict[str, int] = field(default_factory=dict)

    @property
    def orders(self) -> int:
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        return self.orders - self.states.get("placed", 0)

    @property
    def settled(self) -> bool:
        """Nothing is under way, waiting for another attempt, or due later: nothing will happen any more unless somebody acts."""
        readers = any(reader.behind or reader.parked for reader in self.readers)
        return not self.scheduled and not self.open_sagas and not readers

    @property
    def open_sagas(self) -> dict[str, int]:
        """Those that have not come to an end, by state."""
        return {state: count for state, count in self.sagas.items() if state not in CLOSED}

    def pending(self) -> str:
        """What it still waits for, in words."""
        parts = [
            f"{reader.name}: {reader.behind} behind, {reader.parked} parked" for reader in self.readers if reader.behind or reader.parked
        ]
        if self.scheduled:
            parts.append(f"{self.scheduled} scheduled")
        parts += [f"{count} sagas {state}" for state, count in self.open_sagas.items()]
        return "; ".join(parts) or "nothing"


class Watch:
    """Takes snapshots of one store. Used by one thread at a time, any."""

    def __init__(self, store: str) -> None:
        self._url = store
        self._store = store_at(store)
        self._opened = False

    def close(self) -> None:
        if self._opened:
            self._store.close()

    def look(self) -> Snapshot:
        if not self._opened:
            try:
                self._store.open_to_read()
            except StoreNotInitialised:  # nobody has begun yet
                return Snapshot(0, 0, {}, (), 0)
            self._opened = True
        events, scheduled, readers = self._store.query(_progress)
        with snapshot(self._url) as conn:
            tables = tables_of(conn)
            states = dict(run(conn, "SELECT state, count(*) FROM shop_orders GROUP BY state")) if "shop_orders" in tables else {}
            alerts = run(conn, "SELECT count(*) FROM support_alerts").fetchone()[0] if "support_alerts" in tables else 0
            sagas = dict(run(conn, "SELECT state, count(*) FROM tidings_sagas GROUP BY state ORDER BY state"))
        return Snapshot(events, scheduled, states, readers, alerts, sagas)


def _progress(unit: Unit) -> tuple[int, int, tuple[Reader, ...]]:
    """Events, scheduled events, and how far each subscription is."""
    holders: dict[str, set[str]] = {}
    for lane in unit.lanes():
        if lane.worker:
            holders.setdefault(lane.subscription, set()).add(lane.worker)
    readers = []
    for row in unit.subscriptions():
        retry, waiting, dead = unit.count_parked(row.name)
        behind = unit.behind(row.name).events
        readers.append(Reader(row.name, row.app, behind, retry + waiting, dead, len(holders.get(row.name, ()))))
    return unit.head(), len(unit.scheduled()), tuple(readers)
