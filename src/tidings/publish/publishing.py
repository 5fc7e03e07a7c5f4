"""What a publish returns, and a publish in a transaction of its own while it is under way."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Generator
from typing import Any, NamedTuple

from ..store.port import Row, Unit
from ..store.writer import Tell, Writer, wake

log = logging.getLogger("tidings.publish")


class Receipt(NamedTuple):
    """What a publish returns. ``position`` is None for an event that is scheduled (``at=``, ``after=``)."""

    event_id: str
    lane: int
    position: int | None


class OwnTransaction:
    """A row as a job of the writer. Lighter than a future: nothing is locked for it, and one hop into the loop wakes a whole group.

    Its writer settles it, in this order: the outcome, ``done``, a look at ``waiting``. Whoever waits enters ``waiting``, then looks at
    ``done``: so one of the two sees the other.
    """

    __slots__ = ("_begun", "_error", "_receipt", "_row", "_waiting", "_writer", "done", "forgotten")

    def __init__(self, row: Row, writer: Writer) -> None:
        self._row = row
        self._writer = writer
        self._begun = False
        self._receipt: Receipt
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[None] | concurrent.futures.Future[None]] = []
        self.done = False
        self.forgotten = False

    # -- for the writer

    def begin(self) -> bool:
        begun, self._begun = self._begun, True
        return not begun

    def run(self, unit: Unit) -> Receipt:
        event_id, lane, statement, values, scheduled = self._row
        position = unit.insert(statement, values)
        return tuple.__new__(Receipt, (event_id, lane, None if scheduled else position))

    def committed(self, result: Receipt) -> None:
        pass

    def settle(self, result: Any, error: BaseException | None, tell: Tell) -> None:
        self._receipt, self._error = result, error
        self.done = True
        for waiting in self._waiting:
            if isinstance(waiting, asyncio.Future):
                tell.setdefault(waiting.get_loop(), []).append(waiting)
            else:
                waiting.set_result(None)
        if self.forgotten:
            self.log_failure()

    # -- for whoever waits

    def wait(self) -> Generator[Any, None, Receipt]:
        """Until it is durable. A task that is cancelled takes its event back if it still can: then nothing was written."""
        if not self.done:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            if not self.done:
                try:
                    yield from waiting.__await__()
                except BaseException:
                    if self._writer.withdraw(self):
                        tell: Tell = {}
                        self.settle(None, concurrent.futures.CancelledError(), tell)
                        wake(tell)
                    raise
        try:
            return self._outcome()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None

    def result(self, timeout: float | None) -> Receipt:
        if not self.done:
            waiting: concurrent.futures.Future[None] = concurrent.futures.Future()
            self._waiting.append(waiting)
            if not self.done:
                waiting.result(timeout)
        return self._outcome()

    def log_failure(self) -> None:
        if self._error is not None:
            log.error("a publish that nobody awaited failed, so its event is NOT published: %s", self._error)

    def _outcome(self) -> Receipt:
        if self._error is not None:
            raise self._error
        return self._receipt


class Publishing(Awaitable[Receipt]):
    """A publish under way: await it, or call ``result()`` from a thread without a loop. If nobody does and it fails, that is logged."""

    __slots__ = ("_asked", "_job")

    def __init__(self, job: OwnTransaction) -> None:
        self._job = job
        self._asked = False

    def __await__(self) -> Generator[Any, None, Receipt]:
        self._asked = True
        return self._job.wait()

    def result(self, timeout: float | None = None) -> Receipt:
        """Block until the event is durable; ``timeout`` in seconds."""
        self._asked = True
        return self._job.result(timeout)

    def __del__(self) -> None:
        if not self._asked:
            self._job.forgotten = True
            if self._job.done:
                self._job.log_failure()
