"""A handler that does nothing, everything else included, against a loop that reads the same columns, decodes, calls and keeps its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path

from tidings import App
from tidings.subscribe.checkpointing import FLUSH_SIZE

from .byhand import CHECKPOINT, DATA, READ, OrderPlaced, decode, fill, reader, store
from .measure import Cost, Row, as_rate, compare, folder, now, thousands

READ_AT_ONCE = 2000
CHECKPOINT_EVERY = FLUSH_SIZE


def run(quick: bool) -> Iterator[Row]:
    count = 30_000 if quick else 150_000
    with folder() as path:
        file = path / "log.db"
        store(file).close()
        fill(file, count)
        for kind in ("async", "sync"):
            comparison = compare(
                lambda: tidings(file, count, kind),  # noqa: B023
                lambda: by_hand(file, count, kind),  # noqa: B023
                seconds=3.0 if quick else 10.0,
            )
            ratio, spread = as_rate(comparison)
            rate = count / comparison.ours("wall")
            yield Row(
                f"empty {kind} handler",
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
                    "cpu_share": 1 / comparison.ratio(),
                },
            )


def tidings(file: Path, count: int, kind: str) -> Cost:
    """From start to stop: lanes taken, everything handled, checkpoints written, lanes given back."""
    app = App("bench", f"sqlite:///{file}")
    seen = 0
    done = asyncio.Event()

    if kind == "async":

        @app.subscribe(OrderPlaced, name="empty")
        async def handle(event: OrderPlaced) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                done.set()
    else:
        loops: list[asyncio.AbstractEventLoop] = []

        @app.subscribe(OrderPlaced, name="empty")
        def handle_in_thread(event: OrderPlaced) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                loops[0].call_soon_threadsafe(done.set)

    async def main() -> Cost:
        if kind == "sync":
            loops.append(asyncio.get_running_loop())
        began = now()
        async with app:
            await asyncio.wait_for(done.wait(), 120)
        return now() - began

    cost = asyncio.run(main())
    if seen != count:
        raise AssertionError(f"handled {seen} of {count}")
    forget(file, "empty")
    return cost


def forget(file: Path, *names: str) -> None:
    """Remove subscriptions, so that the next repetition begins at the start of the log."""
    app = store(file)
    try:
        for name in names:
            app.store.write(methodcaller("remove", name)).result()
    finally:
        app.close()


def by_hand(file: Path, count: int, kind: str) -> Cost:
    with reader(file) as conn:

        async def handle(event: OrderPlaced) -> None:
            pass

        def handle_sync(event: OrderPlaced) -> None:
            pass

        async def main() -> Cost:
            began = now()
            position = seen = kept = 0
            while rows := conn.execute(READ, (position, READ_AT_ONCE)).fetchall():
                for row in rows:
                    await handle(decode(row[DATA]))
                position, seen = rows[-1][0], seen + len(rows)
                if seen - kept >= CHECKPOINT_EVERY or seen == count:
                    conn.execute(CHECKPOINT, (position,))
                    kept = seen
            assert seen == count
            return now() - began

        def main_sync() -> Cost:
            began = now()
            position = seen = kept = 0
            while rows := conn.execute(READ, (position, READ_AT_ONCE)).fetchall():
                for row in rows:
                    handle_sync(decode(row[DATA]))
                position, seen = rows[-1][0], seen + len(rows)
                if seen - kept >= CHECKPOINT_EVERY or seen == count:
                    conn.execute(CHECKPOINT, (position,))
                    kept = seen
            assert seen == count
            return now() - began

        return asyncio.run(main()) if kind == "async" else main_sync()
