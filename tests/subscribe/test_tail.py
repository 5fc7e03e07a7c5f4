"""Readers that share one reading of the log: each sees every row once, in order, however they overlap."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tidings.subscribe.tail import BLOCK, Tail


class GrowingLog:
    """A log that grows at each read, as it does under many small commits. ``size``: bytes of each event. ``aside``: read ahead."""

    history = ""

    def __init__(self, last: int, size: int = 1, *, aside: bool = False) -> None:
        self.head = 0
        self.reads_aside = aside
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
@pytest.mark.parametrize("aside", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("size", [1, 100_000], ids=["small", "large"])
async def test_readers_that_overlap_see_every_row_once(size: int, aside: bool) -> None:
    log = GrowingLog(last=1500, size=size, aside=aside)
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


class OtherLog:
    """A server that may become another one: each row tells which one it was read from. A read waits while ``gate`` is down."""

    reads_aside = False

    def __init__(self) -> None:
        self.history = "before"
        self.gate = threading.Event()
        self.gate.set()

    def read(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        rows = [(position, self.history, *[None] * 8, b"", *[None] * 4) for position in range(after + 1, min(upto, 30) + 1)]
        self.gate.wait(10)
        return rows, max(after, min(upto, 30))

    def glance(self, after: int, upto: int) -> None:
        return None

    def durable(self) -> int:
        return 0


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("under_way", [False, True])
async def test_rows_of_another_history_are_forgotten(under_way: bool) -> None:
    """Those that are kept, and those that a fetch brings that was under way."""
    log = OtherLog()
    with ThreadPoolExecutor(4) as threads:
        tail = Tail(log, threads, durable=False)  # type: ignore[arg-type]
        if under_way:
            log.gate.clear()
            early = asyncio.ensure_future(tail.read(0))
            await asyncio.sleep(0.05)
            log.history = "after"
            late = asyncio.ensure_future(tail.read(10))
            await asyncio.sleep(0.05)
            log.gate.set()
            await asyncio.gather(early, late)
        else:
            await tail.read(0)
            log.history = "after"
        block, index = None, 0
        while block is None:
            block, index = await tail.read(10)
        assert {row[1] for row in block.rows[index:]} == {"after"}
        assert [row[0] for row in block.rows[index:]] == list(range(11, 31))


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


class WrittenLog:
    """A log that is all there. ``reads``: what was asked for. ``broken``: reading from there on fails."""

    reads_aside = True
    history = ""

    def __init__(self, last: int, broken: int | None = None) -> None:
        self._last = last
        self._broken = broken
        self.reads: list[tuple[int, int]] = []
        self.asked = threading.Condition()

    def read(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        with self.asked:
            self.reads.append((after, upto))
            self.asked.notify_all()
        if self._broken is not None and after >= self._broken:
            raise OSError("broken")
        upto = max(after, min(self._last, upto))
        return [(position, *[None] * 9, b"", *[None] * 4) for position in range(after + 1, upto + 1)], upto

    def wait_for(self, read: tuple[int, int]) -> bool:
        with self.asked:
            return self.asked.wait_for(lambda: read in self.reads, 10)

    def glance(self, after: int, upto: int) -> None:
        return None


async def test_the_next_block_is_read_while_one_is_handled() -> None:
    log = WrittenLog(last=10 * BLOCK)
    with ThreadPoolExecutor(1) as threads:
        tail = Tail(log, threads, durable=False)  # type: ignore[arg-type]
        await tail.read(0)
        assert await asyncio.to_thread(log.wait_for, (BLOCK, 2 * BLOCK))
        block, index = await tail.read(BLOCK)
        assert block is not None
        assert (block.rows[index][0], block.upto) == (BLOCK + 1, 2 * BLOCK)
        assert log.reads.count((BLOCK, 2 * BLOCK)) == 1


async def test_an_error_of_reading_ahead_is_told_to_who_asks() -> None:
    log = WrittenLog(last=10 * BLOCK, broken=BLOCK)
    with ThreadPoolExecutor(1) as threads:
        tail = Tail(log, threads, durable=False)  # type: ignore[arg-type]
        block, _ = await tail.read(0)
        assert block is not None
        assert await asyncio.to_thread(log.wait_for, (BLOCK, 2 * BLOCK))
        with pytest.raises(OSError, match="broken"):
            await tail.read(BLOCK)
