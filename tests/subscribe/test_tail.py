"""Readers that share one reading of the log: each sees every row once, in order, however they overlap."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tidings.subscribe.tail import Tail


class GrowingLog:
    """A log that grows at each read, as it does under many small commits. ``size``: bytes of each event."""

    def __init__(self, last: int, size: int = 1) -> None:
        self.head = 0
        self._last = last
        self._data = bytes(size)

    def read(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        self.head = min(self._last, self.head + random.randrange(3))
        upto = max(after, min(self.head, upto))
        return [(position, *[None] * 9, self._data, *[None] * 4) for position in range(after + 1, upto + 1)], upto

    def glance(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int] | None:
        return self.read(after, upto) if random.random() < 0.5 else None

    def durable(self) -> int:
        return self.head

    def lasts(self, upto: int, last: tuple[Any, ...] | None) -> bool:
        return False


@pytest.mark.promise("effects once")
@pytest.mark.promise("order per key")
@pytest.mark.parametrize("size", [1, 100_000], ids=["small", "large"])
async def test_readers_that_overlap_see_every_row_once(size: int) -> None:
    log = GrowingLog(last=1500, size=size)
    with ThreadPoolExecutor(4) as threads:
        tail = Tail(log, threads, durable=False)  # type: ignore[arg-type]

        async def reader() -> list[int]:
            seen: list[int] = []
            cursor = 0
            while cursor < 1500:
                block, index = await tail.read(cursor)
                if block is None:
                    await asyncio.sleep(0)
                    continue
                seen += [row[0] for row in block.rows[index:]]
                cursor = block.upto
            return seen

        async with asyncio.timeout(30):
            for seen in await asyncio.gather(*(reader() for _ in range(5))):
                assert seen == list(range(1, 1501))


async def test_a_reader_behind_a_large_block_is_not_told_that_the_log_ends() -> None:
    log = GrowingLog(last=200, size=200_000)
    log.head = 200
    with ThreadPoolExecutor(2) as threads:
        tail = Tail(log, threads, durable=False)  # type: ignore[arg-type]
        await tail.read(0)
        for head in (300, 400):  # each new block of these positions begins further on, since the last one holds as much as may be kept
            log._last = log.head = head
            ahead, behind = await asyncio.gather(tail.read(head - 100), tail.read(100))
            assert ahead[0] is not None
            assert behind[0] is not None
            assert behind[0].rows[behind[1]][0] == 101
