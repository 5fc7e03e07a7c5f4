"""placeholder until merged"""

from __future__ import annotations

from typing import Any


class Horizon:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.safe = 0
        self.held_back = False
        self._pending: list[tuple[int, frozenset[str]]] = []

    def observe(self, conn: Any) -> int:
        last = conn.execute("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tidings_log_position_seq").fetchone()[0]
        if last <= self.safe:
            return self.safe
        now = frozenset(
            r[0]
            for r in conn.execute(
                "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'tidings_log'::regclass"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            ).fetchall()
        )
        self._pending.append((last, now))
        left = []
        for s, l in self._pending:
            l = l & now
            if l:
                left.append((s, l))
            else:
                self.safe = max(self.safe, s)
        self._pending = [p for p in left if p[0] > self.safe][:64]
        self.held_back = bool(self._pending)
        return self.safe
