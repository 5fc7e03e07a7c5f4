"""What instances write, written together: one statement for many lines, while the store is at the last ones.

Nobody waits for company: what is asked for while nothing is being written is on its way at once. Who lost his instance loses his own lines,
and a line that the store refuses is nobody else's trouble.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..store.sagas import Entry, Hold, Release, Start

if TYPE_CHECKING:
    from ..store.port import Store, Unit

GROUP = 256
"""At most this many are written in one transaction."""

START, RECORD, RELEASE = range(3)
"""What can be asked for, in the order in which it is written."""

_METHODS = ("start_all", "record_all", "release_all")


class _Item:
    """What somebody asked for, and whom to tell."""

    __slots__ = ("future", "kind", "settled", "value")

    def __init__(self, kind: int, value: Any, future: asyncio.Future[bool], settled: Callable[[bool | None], None] | None) -> None:
        self.kind = kind
        self.value = value
        self.future = future
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
        self._waiting: list[_Item] = []
        self._writing = False
        self._asked = False

    @property
    def busy(self) -> bool:
        return self._writing or self._asked

    def record(self, hold: Hold, entry: Entry) -> asyncio.Future[bool]:
        return self._ask(RECORD, (hold, entry))

    async def release(self, release: Release) -> bool:
        if (
            release.tells
        ):  # it locks the instance, and then its parent, which may be in another worker's group: two such groups could deadlock
            return await asyncio.wrap_future(self._store.write(lambda unit: unit.sagas().release_all([release])[0]))
        return await self._ask(RELEASE, release)

    async def start(self, start: Start, settled: Callable[[bool | None], None]) -> bool:
        """``settled`` is called in any case, whoever has stopped waiting; with None if nobody knows."""
        return await self._ask(START, start, settled)

    def _ask(self, kind: int, value: Any, settled: Callable[[bool | None], None] | None = None) -> asyncio.Future[bool]:
        loop = asyncio.get_running_loop()
        item = _Item(kind, value, loop.create_future(), settled)
        self._waiting.append(item)
        if not self._writing and not self._asked:  # behind the others whose turn on the loop it is: they may ask too
            self._asked = True
            loop.call_soon(self._write)
        return item.future

    def _write(self) -> None:
        self._asked = False
        items, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
        if items:
            self._writing = True
            self._submit(items, self._written)

    def _submit(self, items: Sequence[_Item], then: Callable[[Sequence[_Item], Future[list[bool]]], None]) -> None:
        loop = asyncio.get_running_loop()
        parts = [(kind, [item.value for item in items if item.kind == kind]) for kind in (START, RECORD, RELEASE)]
        parts = [(kind, values) for kind, values in parts if values]

        def job(unit: Unit) -> list[bool]:
            sagas, done = unit.sagas(), [False] * len(items)
            for kind, values in parts:
                results = iter(getattr(sagas, _METHODS[kind])(values))
                for number, item in enumerate(items):
                    if item.kind == kind:
                        done[number] = next(results)
            return done

        def told(future: Future[list[bool]]) -> None:
            try:
                loop.call_soon_threadsafe(then, items, future)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                return

        try:
            (self._store.write_plainly if len(parts) == 1 else self._store.write)(job).add_done_callback(told)
        except Exception as error:  # closed
            failed: Future[list[bool]] = Future()
            failed.set_exception(error)
            loop.call_soon(then, items, failed)

    def _written(self, items: Sequence[_Item], future: Future[list[bool]]) -> None:
        error = future.exception()
        self._writing = False
        if error is not None and len(items) > 1 and self._store.is_refusal(error):
            for item in items:  # one of them can't be written: each alone
                self._submit([item], self._settle)
        else:
            self._settle(items, future)
        if self._waiting and not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._write)

    @staticmethod
    def _settle(items: Sequence[_Item], future: Future[list[bool]]) -> None:
        error = future.exception()
        results = [None] * len(items) if error is not None else future.result()
        for item, result in zip(items, results, strict=True):
            item.settle(result, error)
