"""An instance that somebody calls for, made in a transaction of its own, and then in the hands of the worker beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..publish.publishing import OwnTransaction, Receipt
from ..store.port import Unit
from ..store.sagas import Start
from ..store.writer import Tell, Writer


class Beginning(OwnTransaction):
    """A job of the writer's. Made on the worker's loop, on which ``settled`` is called."""

    __slots__ = ("_loop", "_made", "_settled", "_start")

    def __init__(self, start: Start, writer: Writer, settled: Callable[[bool | None], None]) -> None:
        super().__init__((start.envelope.event_id, start.envelope.lane, "", (), True), writer)
        self._start = start
        self._settled = settled
        self._made = False
        self._loop = asyncio.get_running_loop()

    def run(self, unit: Unit) -> Receipt:
        self._made = unit.sagas().start(*self._start)
        return Receipt(self._start.envelope.event_id, self._start.envelope.lane, None)

    def settle(self, result: Any, error: BaseException | None, tell: Tell) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is at work there any more
            self._loop.call_soon_threadsafe(self._settled, None if error is not None else self._made)
        super().settle(result, error, tell)
