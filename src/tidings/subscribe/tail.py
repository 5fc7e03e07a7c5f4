"""One reading of the log for all subscriptions of a process: blocks of rows, fetched once, kept while somebody may want them."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..store.port import Store

BLOCK = 1024
"""Positions in a block."""
KEPT = 12
"""Blocks kept at most; fewer if they are large (32 MiB of data in all)."""
KEPT_BYTES = 32 * 1024 * 1024


class Block:
    """Rows of one range of positions. ``upto``: complete up to there. ``decoded``: events by class and position, shared if frozen."""

    __slots__ = ("decoded", "first", "rows", "size", "upto")

    def __init__(self, first: int) -> None:
        self.first = first
        self.upto = first
        self.rows: list[tuple[Any, ...]] = []
        self.size = 0
        self.decoded: dict[type, dict[int, Any]] = {}


class Tail:
    """Reads for whoever asks, in a thread, each block once."""

    def __init__(self, store: Store, executor: Executor, *, durable: bool) -> None:
        self._store = store
        self._executor = executor
        self._durable = durable
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._fetching: dict[int, asyncio.Future[None]] = {}

    async def read(self, after: int) -> tuple[Block | None, int]:
        """The block that holds the next rows behind ``after`` and the index of the first of them; None if there are none yet.

        A block without such rows whose ``upto`` is above ``after`` says that positions were trimmed or rolled back.
        """
        number = after // BLOCK
        while (block := self._blocks.get(number)) is None or block.upto <= after or after < block.first:
            fetching = self._fetching.get(number)
            joined = fetching is not None
            if fetching is None:
                fetching = self._fetching[number] = asyncio.ensure_future(self._fetch(number, block, after))
                # By the fetch itself and not by those who wait: one that resumes late would take away the next fetch, and two at once
                # would put their rows into the block twice.
                fetching.add_done_callback(lambda _: self._fetching.pop(number))
            await asyncio.shield(fetching)
            block = self._blocks.get(number)
            if block is None or block.upto <= after or after < block.first:
                if joined and block is not None and after < block.first:
                    continue  # it was read for somebody further on
                return None, 0
        self._blocks.move_to_end(number)
        return block, bisect_left(block.rows, (after + 1,))

    def forget(self) -> None:
        """Drop what was read; after a trim or a restore."""
        self._blocks.clear()

    async def _fetch(self, number: int, block: Block | None, after: int) -> None:
        first, last = number * BLOCK, (number + 1) * BLOCK
        if block is None or after < block.first or block.size > KEPT_BYTES // 4:
            block = Block(after if block is not None else first)
        since = block.upto
        rows, upto = await asyncio.get_running_loop().run_in_executor(self._executor, self._read, since, last)
        if upto == since:
            return
        block.rows = block.rows + rows if block.rows else rows
        block.upto = upto
        block.size += sum([len(row[10]) for row in rows])
        self._blocks[number] = block
        self._blocks.move_to_end(number)
        while len(self._blocks) > 1 and (len(self._blocks) > KEPT or sum(kept.size for kept in self._blocks.values()) > KEPT_BYTES):
            self._blocks.popitem(last=False)

    def _read(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        rows, safe = self._store.read(after, upto)
        if rows and self._durable:
            self._store.durable()  # before an effect leaves the machine, whatever the writer's setting was
        return rows, safe
