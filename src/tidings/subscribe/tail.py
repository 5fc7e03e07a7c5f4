"""One reading of the log for all subscriptions of a process: blocks of rows, fetched once, kept while somebody may want them."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import OrderedDict
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from .context import DATA, POSITION

if TYPE_CHECKING:
    from ..store.port import Store

BLOCK = 1024
"""Positions in a block."""
KEPT = 12
"""Blocks kept at most; fewer if they are large (32 MiB of data in all)."""
KEPT_BYTES = 32 * 1024 * 1024
SLOW_SECONDS = 0.02
THREAD_SECONDS = 0.5
"""After a read on the loop that took so long (a slow disk, large events), a thread reads for a while."""


class Block:
    """Rows of one range of positions. ``upto``: complete up to there."""

    __slots__ = ("first", "rows", "size", "upto")

    def __init__(self, first: int) -> None:
        self.first = first
        self.upto = first
        self.rows: list[tuple[Any, ...]] = []
        self.size = 0


class Tail:
    """Reads for whoever asks, each block once.

    On the loop, a few rows at a time, if the store can do that without waiting: a thread that steps through rows and a loop that handles
    them hand the interpreter's lock to and fro, and are slower together than one after the other. Else in a thread.
    """

    def __init__(self, store: Store, executor: Executor, *, durable: bool) -> None:
        self._store = store
        self._executor = executor
        self._durable = durable
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._fetching: dict[int, asyncio.Future[bool]] = {}
        self._lasting = 0
        """Up to here everything survives a crash of the machine. What was there when the worker began is synced once."""
        self.end = 0
        """Where somebody found nothing more, and nothing has grown since."""
        self._in_thread_until = 0.0
        self._history = store.history

    async def read(self, after: int) -> tuple[Block | None, int]:
        """The block that holds the next rows behind ``after`` and the index of the first of them; None if there are none yet.

        A block without such rows whose ``upto`` is above ``after`` says that positions were trimmed or rolled back.
        """
        if self._store.history != self._history:
            self.forget()
        number = after // BLOCK
        while (block := self._blocks.get(number)) is None or block.upto <= after or after < block.first:
            fetching = self._fetching.get(number)
            joined = fetching is not None
            if fetching is None:
                block = self._opened(number, block, after)
                found = self._glance(block.upto, (number + 1) * BLOCK)
                if found is not None and (not found[0] or self._lasts(*found)):
                    if not self._keep(number, block, *found):
                        return None, 0
                    continue
                fetching = self._fetching[number] = asyncio.ensure_future(self._fetch(number, block, found))
            # One that began before we asked may have looked before what we were woken for.
            if not await asyncio.shield(fetching) and not joined:
                return None, 0
        self._blocks.move_to_end(number)
        if self._store.reads_aside and block.upto >= (number + 1) * BLOCK:
            self._read_ahead(number + 1)
        return block, bisect_left(block.rows, (after + 1,))

    def _read_ahead(self, number: int) -> None:
        """Fetch a block that will be asked for when the one before is handled. If that fails, who asks hears of it."""
        if number not in self._blocks and number not in self._fetching:
            block = Block(number * BLOCK)
            fetching = self._fetching[number] = asyncio.ensure_future(self._fetch(number, block, None))
            fetching.add_done_callback(_seen)

    def grown(self) -> bool:
        """Whether there may be more than whoever came to the end has seen."""
        found = self._glance(self.end, self.end + 1)
        return found is None or found[1] > self.end

    def forget(self) -> None:
        """Drop what was read; after a trim or a restore."""
        self._blocks.clear()
        self.end = self._lasting = 0
        self._history = self._store.history

    @staticmethod
    def _opened(number: int, block: Block | None, after: int) -> Block:
        """The block that takes what comes next of these positions."""
        if block is None:
            return Block(number * BLOCK)
        return Block(after) if after < block.first or block.size > KEPT_BYTES // 4 else block

    def _glance(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int] | None:
        began = time.monotonic()
        if began < self._in_thread_until:
            return None
        found = self._store.glance(after, upto)
        if time.monotonic() - began > SLOW_SECONDS:
            self._in_thread_until = began + THREAD_SECONDS
        return found

    def _lasts(self, rows: list[tuple[Any, ...]], upto: int) -> bool:
        return not self._durable or upto <= self._lasting or self._store.lasts(upto, rows[-1] if rows[-1][POSITION] == upto else None)

    async def _fetch(self, number: int, block: Block, found: tuple[list[tuple[Any, ...]], int] | None) -> bool:
        """Whether there was anything."""
        upto, history = (number + 1) * BLOCK, self._history
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._read, block.upto, upto, found)
            if not (history == self._history == self._store.history):  # the block is from before, and these rows may be from after
                self.forget()
                return False
            return self._keep(number, block, *found)
        finally:
            # By the fetch itself and not by those who wait: one that resumes late would take away the next fetch, and two at once would put
            # their rows into the block twice.
            del self._fetching[number]

    def _keep(self, number: int, block: Block, rows: list[tuple[Any, ...]], upto: int) -> bool:
        if upto == block.upto:
            self.end = max(self.end, upto)
            return False
        block.rows = block.rows + rows if block.rows else rows  # not in place: a feed may be on its way through them
        block.upto = upto
        block.size += sum([len(row[DATA]) for row in rows])
        self._blocks[number] = block
        self._blocks.move_to_end(number)
        while len(self._blocks) > 1 and (len(self._blocks) > KEPT or sum(kept.size for kept in self._blocks.values()) > KEPT_BYTES):
            self._blocks.popitem(last=False)
        return True

    def _read(self, after: int, upto: int, found: tuple[list[tuple[Any, ...]], int] | None) -> tuple[list[tuple[Any, ...]], int]:
        rows, safe = found or self._store.read(after, upto)
        if rows and not self._lasts(rows, safe):
            self._lasting = self._store.durable()  # before an effect leaves the machine, whatever the writer's setting was
        return rows, safe


def _seen(fetch: asyncio.Future[bool]) -> None:
    if not fetch.cancelled():
        fetch.exception()
