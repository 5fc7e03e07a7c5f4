"""A handler that upserts a row in its transaction, against a loop that does the same and keeps its place in that transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tidings import App, Context, Retry

from .byhand import CHECKPOINT, DATA, READ, OrderPlaced, connect, decode, fill, reader, store
from .empty_handler import forget
from .measure import Cost, Row, as_rate, compare, folder, now, thousands

UPSERT = "INSERT INTO totals VALUES (?, 1, ?) ON CONFLICT (order_id) DO UPDATE SET events = events + 1, total = total + excluded.total"
SIZE = 1000
"""Events in one transaction by hand; what a shared transaction of Tidings holds at most."""
KEYS = 10_000


def run(quick: bool) -> Iterator[Row]:
    count = 20_000 if quick else 100_000
    seconds = 2.0 if quick else 8.0
    with folder() as path:
        file = path / "log.db"
        store(file).close()
        fill(file, count, keys=KEYS)
        conn = connect(file)
        conn.execute("CREATE TABLE totals (order_id INTEGER PRIMARY KEY, events INTEGER NOT NULL, total REAL NOT NULL)")
        conn.close()
        for failing, goal in ((0, 0.80), (1000, 0.70)):
            comparison = compare(
                lambda: tidings(file, count, failing),  # noqa: B023
                lambda: by_hand(file, count, SIZE),
                seconds=seconds,
            )
            ratio, spread = as_rate(comparison)
            yield Row(
                f"handler that upserts in its transaction{', 0.1 % failing once' if failing else ''}",
                f"{thousands(count / comparison.ours('wall'))} (by hand {thousands(count / comparison.hand('wall'))})",
                f"≥ {goal:.0%}".replace("%", " %"),
                ratio >= goal,
                ratio,
                spread,
                {
                    "cpu_us": 1e6 * comparison.ours() / count,
                    "by_hand_cpu_us": 1e6 * comparison.hand() / count,
                    "cpu_share": 1 / comparison.ratio(),
                },
            )
        few = 1_000 if quick else 3_000
        comparison = compare(
            lambda: tidings(file, few, 0, shared=False, start=count - few),
            lambda: by_hand(file, few, 1, start=count - few),
            seconds=seconds / 2,
        )
        ratio, spread = as_rate(comparison)
        yield Row(
            "the same, a transaction for each event",
            f"{thousands(few / comparison.ours('wall'))} (by hand {thousands(few / comparison.hand('wall'))})",
            ratio=ratio,
            spread=spread,
            facts={"cpu_us": 1e6 * comparison.ours() / few, "by_hand_cpu_us": 1e6 * comparison.hand() / few},
        )


def tidings(file: Path, count: int, failing: int, *, shared: bool = True, start: int = 0) -> Cost:
    """``failing``: every so many-th event fails at its first attempt and is handled 50 ms later; 0 for none."""
    _empty(file)
    app = App("bench", f"sqlite:///{file}")

    @app.subscribe(OrderPlaced, name="totals", shared_tx=shared, start=start, retry=Retry(first=0.05, jitter=0.0))
    def total(event: OrderPlaced, ctx: Context, tx: sqlite3.Connection) -> None:
        if failing and ctx.attempt == 1 and ctx.position % failing == 7:
            raise RuntimeError("not today")
        tx.execute(UPSERT, (event.order_id, float(event.total)))

    async def main() -> Cost:
        began = now()
        async with app:
            worker = app.worker
            assert worker is not None
            while worker.runners["totals"].handled < count:  # noqa: ASYNC110 - committed, not only called
                await asyncio.sleep(0.002)
        return now() - began

    cost = asyncio.run(main())
    _check(file, count)
    forget(file, "totals")
    return cost


def by_hand(file: Path, count: int, size: int, *, start: int = 0) -> Cost:
    _empty(file)
    with reader(file) as conn:

        def total(event: OrderPlaced, tx: sqlite3.Connection) -> None:
            tx.execute(UPSERT, (event.order_id, float(event.total)))

        began = now()
        position = start
        while rows := conn.execute(READ, (position, size)).fetchall():
            conn.execute("BEGIN IMMEDIATE")
            for row in rows:
                total(decode(row[DATA]), conn)
            position = rows[-1][0]
            conn.execute(CHECKPOINT, (position,))
            conn.execute("COMMIT")
        cost = now() - began
    _check(file, count)
    return cost


def _empty(file: Path) -> None:
    conn = connect(file)
    conn.execute("DELETE FROM totals")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()


def _check(file: Path, count: int) -> None:
    conn = connect(file)
    events = conn.execute("SELECT sum(events) FROM totals").fetchone()[0]
    conn.close()
    if events != count:
        raise AssertionError(f"{events} of {count} events are in the table")
