"""A handler that does nothing, horizon and checkpoints included, against a loop that reads the same columns, decodes, calls and keeps its
place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tidings import App

from ..byhand import DATA, OrderPlaced, decode
from ..empty_handler import CHECKPOINT_EVERY
from ..measure import Cost, Row, as_rate, compare, now, thousands
from .byhand import CHECKPOINT, READ, database, fill, forget, place


def run(quick: bool) -> Iterator[Row]:
    count = 50_000 if quick else 200_000
    with database() as url:
        fill(url, count)
        for kind in ("async", "sync"):
            comparison = compare(
                lambda: tidings(url, count, kind),  # noqa: B023
                lambda: by_hand(url, count, kind),  # noqa: B023
                seconds=3.0 if quick else 12.0,
            )
            ratio, spread = as_rate(comparison)
            rate = count / comparison.ours("wall")
            yield Row(
                f"PostgreSQL: empty {kind} handler",
                f"{thousands(rate)} (by hand {thousands(count / comparison.hand('wall'))})",
                "≥ 150,000/s and ≥ 60 %",
                ratio >= 0.60 and rate >= 150_000,
                ratio,
                spread,
                {
                    "rate": rate,
                    "by_hand_rate": count / comparison.hand("wall"),
                    "cpu_us": 1e6 * comparison.ours() / count,
                    "by_hand_cpu_us": 1e6 * comparison.hand() / count,
                },
            )


def tidings(url: str, count: int, kind: str, start: int = 0) -> Cost:
    """From start to stop: lanes taken, everything handled, checkpoints written, lanes given back."""
    app = App("bench", url)
    seen = 0
    done = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    if kind == "async":

        @app.subscribe(OrderPlaced, name="empty", start=start)
        async def handle(event: OrderPlaced) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                done.set()
    else:

        @app.subscribe(OrderPlaced, name="empty", start=start)
        def handle_in_thread(event: OrderPlaced) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                loops[0].call_soon_threadsafe(done.set)

    async def main() -> Cost:
        loops.append(asyncio.get_running_loop())
        began = now()
        async with app:
            await asyncio.wait_for(done.wait(), 120)
        return now() - began

    cost = asyncio.run(main())
    if seen != count:
        raise AssertionError(f"handled {seen} of {count}")
    forget(url, "empty")
    return cost


def by_hand(url: str, count: int, kind: str) -> Cost:
    with place(url) as conn, conn.cursor(binary=True) as cursor:

        async def handle(event: OrderPlaced) -> None:
            pass

        def handle_sync(event: OrderPlaced) -> None:
            pass

        async def main() -> Cost:
            began = now()
            position = seen = 0
            while rows := cursor.execute(READ, (position, CHECKPOINT_EVERY)).fetchall():
                for row in rows:
                    await handle(decode(row[DATA]))
                position, seen = rows[-1][0], seen + len(rows)
                conn.execute(CHECKPOINT, (position,))
            assert seen == count
            return now() - began

        def main_sync() -> Cost:
            began = now()
            position = seen = 0
            while rows := cursor.execute(READ, (position, CHECKPOINT_EVERY)).fetchall():
                for row in rows:
                    handle_sync(decode(row[DATA]))
                position, seen = rows[-1][0], seen + len(rows)
                conn.execute(CHECKPOINT, (position,))
            assert seen == count
            return now() - began

        return asyncio.run(main()) if kind == "async" else main_sync()
