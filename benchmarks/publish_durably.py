"""64 tasks that each publish durably and get a position, against a thread that drains a queue and commits what it finds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from .byhand import INSERT, OrderPlaced, connect, order, row, store
from .measure import Cost, Row, as_rate, compare, folder, now, thousands

TASKS = 64


def run(quick: bool) -> Iterator[Row]:
    count = 4_000 if quick else 16_000
    for synchronous in ("FULL", "NORMAL"):
        with folder() as path, asyncio.Runner() as runner:
            app = store(path / "log.db", synchronous=synchronous)
            group = GroupCommit(path / "log.db", synchronous)

            async def ours(event: OrderPlaced, app: Any = app) -> int:
                receipt = await app.publish(event, tx="own")
                return receipt.position  # type: ignore[no-any-return]

            async def hand(event: OrderPlaced, group: GroupCommit = group) -> int:
                return await group.add(row(event))

            commits: list[None] = []
            app.store.on_commit(partial(commits.append, None))
            try:
                comparison = compare(
                    lambda: runner.run(_publish(ours, count)),
                    lambda: runner.run(_publish(hand, count)),
                    seconds=2.0 if quick else 8.0,
                    least=5,
                )
            finally:
                group.close()
                app.close()
        ratio, spread = as_rate(comparison)
        rounds = len(comparison.pairs) + 1
        yield Row(
            f"durable publish, {TASKS} tasks, {synchronous}",
            f"{thousands(count / comparison.ours('wall'))} (by hand {thousands(count / comparison.hand('wall'))})",
            "≥ 85 %",
            ratio >= 0.85,
            ratio,
            spread,
            {
                "rate": count / comparison.ours("wall"),
                "by_hand_rate": count / comparison.hand("wall"),
                "cpu_us": 1e6 * comparison.ours() / count,
                "by_hand_cpu_us": 1e6 * comparison.hand() / count,
                "cpu_ratio": comparison.ratio(),
                "events_per_commit": round(rounds * count / max(1, len(commits)), 1),
                "by_hand_events_per_commit": round(rounds * count / group.commits, 1),
            },
        )


async def _publish(publish: Callable[[OrderPlaced], Awaitable[int]], count: int) -> Cost:
    numbers = iter(range(count))

    async def task() -> None:
        for number in numbers:
            if await publish(order(number)) < 1:
                raise AssertionError("no position")

    began = now()
    await asyncio.gather(*(task() for _ in range(TASKS)))
    return now() - began


class GroupCommit:
    """The same idea in forty lines: rows gather in a queue while the last group is being synced."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._conn = connect(path, synchronous)
        self._rows: SimpleQueue[tuple[tuple[Any, ...], asyncio.Future[int]] | None] = SimpleQueue()
        self.commits = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, values: tuple[Any, ...]) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._rows.put((values, future))
        return future

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join()
        self._conn.close()

    def _run(self) -> None:
        conn = self._conn
        while (first := self._rows.get()) is not None:
            group = [first]
            try:
                while len(group) < 1000 and (more := self._rows.get_nowait()) is not None:
                    group.append(more)
            except Empty:
                pass
            conn.execute("BEGIN IMMEDIATE")
            positions = [conn.execute(INSERT, values).lastrowid for values, _ in group]
            conn.execute("COMMIT")
            self.commits += 1

            def tell(group: list[tuple[Any, asyncio.Future[int]]] = group, positions: list[Any] = positions) -> None:
                for (_, future), position in zip(group, positions, strict=True):
                    future.set_result(position)

            first[1].get_loop().call_soon_threadsafe(tell)
