"""Looking at a running shop from outside: what its store says about orders, subscriptions and what is still to come.

Reads only, in one snapshot, on a connection of its own.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path


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

    @property
    def orders(self) -> int:
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        return self.orders - self.states.get("placed", 0)

    @property
    def settled(self) -> bool:
        """Nothing is under way, waiting for another attempt, or due later: nothing will happen any more unless somebody acts."""
        return not self.scheduled and not any(reader.behind or reader.parked for reader in self.readers)

    def pending(self) -> str:
        """What it still waits for, in words."""
        parts = [
            f"{reader.name}: {reader.behind} behind, {reader.parked} parked" for reader in self.readers if reader.behind or reader.parked
        ]
        if self.scheduled:
            parts.append(f"{self.scheduled} scheduled")
        return "; ".join(parts) or "nothing"


class Watch:
    """Takes snapshots of one store. Used by one thread at a time, any."""

    def __init__(self, store_file: Path) -> None:
        self._conn = sqlite3.connect(f"file:{store_file}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        self._conn.close()

    def look(self) -> Snapshot:
        self._conn.execute("BEGIN")
        try:
            return self._look()
        finally:
            self._conn.execute("ROLLBACK")

    def _look(self) -> Snapshot:
        rows = self._conn.execute
        tables = {name for (name,) in rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "tidings_log" not in tables:
            return Snapshot(0, 0, {}, (), 0)
        places: dict[str, dict[int, int]] = {}
        waiting: dict[str, int] = {}
        holders: dict[str, set[str]] = {}
        for subscription, lane, position, still_open, worker in rows(
            "SELECT subscription, lane, position, open, worker FROM tidings_lanes"
        ):
            places.setdefault(subscription, {})[lane] = position
            # Below a lane's position everything is done but what it lists as open.
            waiting[subscription] = waiting.get(subscription, 0) + len(json.loads(still_open or "[]"))
            if worker:
                holders.setdefault(subscription, set()).add(worker)
        lowest = min((position for lanes in places.values() for position in lanes.values()), default=0)
        tail = rows("SELECT position, lane, type FROM tidings_log WHERE position > ?", (lowest,)).fetchall()
        parked: dict[str, dict[str, int]] = {}
        for subscription, state, count in rows("SELECT subscription, state, count(*) FROM tidings_parked GROUP BY 1, 2"):
            parked.setdefault(subscription, {})[state] = count
        readers = []
        for name, app, types in rows("SELECT name, app, types FROM tidings_subscriptions ORDER BY created, name"):
            wanted, at = frozenset(json.loads(types)), places.get(name, {})
            ahead = sum(1 for position, lane, kind in tail if kind in wanted and position > at.get(lane, 0))
            held = parked.get(name, {})
            readers.append(
                Reader(
                    name=name,
                    app=app,
                    behind=waiting.get(name, 0) + ahead,
                    parked=held.get("retry", 0) + held.get("waiting", 0),
                    dead=held.get("dead", 0),
                    workers=len(holders.get(name, ())),
                )
            )
        return Snapshot(
            events=rows("SELECT coalesce(max(position), 0) FROM tidings_log").fetchone()[0],
            scheduled=rows("SELECT count(*) FROM tidings_scheduled").fetchone()[0],
            states=dict(rows("SELECT state, count(*) FROM shop_orders GROUP BY state")) if "shop_orders" in tables else {},
            readers=tuple(readers),
            alerts=rows("SELECT count(*) FROM support_alerts").fetchone()[0] if "support_alerts" in tables else 0,
        )
