"""What instances write, written together: one statement for many lines, while the store is at the last ones.

Nobody waits for company: what is asked for while nothing is being written is on its way at once. Who lost his instance loses his own lines,
and a line that the store refuses is nobody else's trouble.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..store.sagas import Entry, Hold, Release, Start

if TYPE_CHECKING:
    from ..store.port import Store, Unit

GROUP = 256
"""At most this many are written in one transaction."""
COMPANY = 8
"""So many don't wait for the group before them, where a server can commit two at a time."""


class _Item:
    """What somebody asked for, and whom to tell. Of a line with a release: whether both were written."""

    __slots__ = ("future", "line", "release", "settled", "start")

    def __init__(
        self,
        future: asyncio.Future[bool],
        start: Start | None = None,
        line: tuple[Hold, Entry] | None = None,
        release: Release | None = None,
        settled: Callable[[bool | None], None] | None = None,
    ) -> None:
        self.future = future
        self.start = start
        self.line = line
        self.release = release
        self.settled = settled

    def settle(self, result: bool | None, error: BaseException | None) -> None:
        if self.settled is not None:
            self.settled(result)
        if self.future.done():
            return
        if error is None:
            self.future.set_result(bool(result))
        else:
            self.future.set_exception(error)
            self.future.exception()  # who asked may be gone


class JournalWriter:
    """See the module. On one loop. Each method tells whether it was written; what it raises is the store's error, and then nobody knows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._most = 1 if store.one_writer else 2
        self._waiting: list[_Item] = []
        self._writing = 0
        self._asked = False

    @property
    def busy(self) -> bool:
        return self._writing > 0 or self._asked

    def record(
        self, hold: Hold, entry: Entry, release: Release | None = None, told: asyncio.Future[bool] | None = None
    ) -> asyncio.Future[bool]:
        """A line; with a ``release``, the last one, and the instance's end, in one (False: perhaps the line stands, and the end doesn't).
        ``told``: the future to be settled, if there is one already."""
        if release is not None and release.tells:
            raise ValueError("who tells a parent locks it too, which has its place in release() alone")
        return self._ask(_Item(told or self._future(), line=(hold, entry), release=release))

    async def release(self, release: Release) -> bool:
        if release.tells:
            # It locks the instance, and then its parent, which may be in another worker's group: two such groups could deadlock.
            return await asyncio.wrap_future(self._store.write(lambda unit: unit.sagas().release_all([release])[0]))
        return await self._ask(_Item(self._future(), release=release))

    async def start(self, start: Start, settled: Callable[[bool | None], None]) -> bool:
        """``settled`` is called in any case, whoever has stopped waiting; with None if nobody knows."""
        return await self._ask(_Item(self._future(), start=start, settled=settled))

    @staticmethod
    def _future() -> asyncio.Future[bool]:
        return asyncio.get_running_loop().create_future()

    def _ask(self, item: _Item) -> asyncio.Future[bool]:
        self._waiting.append(item)
        self._write_soon()
        return item.future

    def _write_soon(self) -> None:
        """Behind the others whose turn on the loop it is: they may ask too."""
        if self._asked or not self._waiting:
            return
        if not self._writing or (self._writing < self._most and len(self._waiting) >= COMPANY):
            self._asked = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._asked = False
        items, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
        if items:
            self._writing += 1
            self._submit(items, self._written)

    def _submit(self, items: Sequence[_Item], then: Callable[[Sequence[_Item], Future[list[bool]]], None]) -> None:
        loop = asyncio.get_running_loop()
        starts = [item.start for item in items if item.start is not None]
        lines = [item.line for item in items if item.line is not None]
        releases = [item.release for item in items if item.release is not None]

        def job(unit: Unit) -> list[bool]:
            made, written, released = map(iter, unit.sagas().write_all(starts, lines, releases))
            results = []
            for item in items:
                done = item.start is None or next(made)
                done &= item.line is None or next(written)
                done &= item.release is None or next(released)
                results.append(done)
            return results

        def told(future: Future[list[bool]]) -> None:
            try:
                loop.call_soon_threadsafe(then, items, future)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                return

        try:
            self._store.write_plainly(job).add_done_callback(told)
        except Exception as error:  # closed
            failed: Future[list[bool]] = Future()
            failed.set_exception(error)
            loop.call_soon(then, items, failed)

    def _written(self, items: Sequence[_Item], future: Future[list[bool]]) -> None:
        error = future.exception()
        self._writing -= 1
        if error is not None and len(items) > 1 and self._store.is_refusal(error):
            for item in items:  # one of them can't be written: each alone
                self._submit([item], self._settle)
        else:
            self._settle(items, future)
        self._write_soon()

    @staticmethod
    def _settle(items: Sequence[_Item], future: Future[list[bool]]) -> None:
        error = future.exception()
        results = [None] * len(items) if error is not None else future.result()
        for item, result in zip(items, results, strict=True):
            item.settle(result, error)
