"""Running a handler that takes a list: up to a number of events, or what has come within a time.

Lists run one after another. When one fails, each of its events is parked and tried again in a list of its own, so that the one at fault is
found and the others get through.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import HandlerTimeout, StoreError
from ..publish.publisher import current
from .checkpointing import Committed
from .context import Context
from .crew import Sleepers, uncancel
from .handler import contained
from .parking import FOLLOWS

if TYPE_CHECKING:
    from ..store.port import Transaction
    from .runner import Runner


def _on_loop(runner: Runner, step: Callable[[], None], _: object) -> None:
    runner.on_loop(step)


class Lists:
    """Gathers events and calls the handler with them."""

    def __init__(self, runner: Runner, size: int, age: float) -> None:
        self._runner = runner
        self._size = size
        self._age = age
        self.limit = 1
        self.running = 0
        self.stepping = False
        self.sleepers = Sleepers(runner.feed_has_work)
        self._gathered: list[Context] = []
        self._batch: list[Context] = []
        self._thread: ThreadPoolExecutor | None = None
        self._now: tuple[float, Transaction] | None = None
        self._deadline: asyncio.Timeout | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.get_running_loop().create_task(self._run(), name=f"tidings-{self._runner.name}")]

    async def close(self) -> None:
        self.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        for task in self._tasks:
            task.cancel()

    def handling(self) -> list[Context]:
        return [*self._batch, *self._gathered]

    async def _run(self) -> None:
        runner = self._runner
        gathered = self._gathered
        since = 0.0
        while True:
            while len(gathered) < self._size and not (gathered and gathered[0].parked) and (ctx := runner.feed.take()) is not None:
                if ctx.parked and gathered:
                    runner.feed.urgent.appendleft(ctx)
                    break
                since = since if gathered else time.monotonic()
                gathered.append(ctx)
            for ctx in [ctx for ctx in gathered if runner.feed.lanes[ctx.lane.lane] is not ctx.lane]:
                gathered.remove(ctx)
                runner.unbegun(ctx)
            left = self._age - (time.monotonic() - since)
            full = len(gathered) >= self._size or (gathered and (gathered[0].parked or runner.feed.urgent or left <= 0))
            if runner.stopping:
                gathered.clear()  # not begun, so still open: whoever comes next takes them
            if not gathered or not full:
                if not gathered:
                    runner.checkpointing.rest()
                    runner.signal()
                await self.sleepers.sleep(left if gathered else None)
                continue
            self._batch = batch = list(gathered)
            gathered.clear()
            self.running = 1
            if runner.pace is not None:
                await asyncio.sleep(max([runner.pace.wait() for _ in batch]))
                self._batch = batch = [ctx for ctx in batch if not runner.unbegun(ctx)]
            try:
                if batch:
                    await self._handle(batch)
            finally:
                self._batch, self.running = [], 0
            runner.signal()

    async def _handle(self, batch: list[Context]) -> None:
        runner, handler = self._runner, batch[0].handler
        chosen: list[Context] = []
        events: list[Any] = []
        failed: set[Any] = set()
        for ctx in batch:
            if not ctx.parked and (ctx.key_id in runner.parked.keys or ctx.key_id in failed):
                ctx.failure = FOLLOWS
                continue
            try:
                event = runner.decode(ctx)
                if handler.where is None or handler.where(event):
                    chosen.append(ctx)
                    events.append(event)
            except Exception as error:
                runner.fail(ctx, error)
                failed.add(ctx.key_id)
        committed: Committed | None = None
        if chosen:
            chosen[-1].each = chosen
            try:
                in_thread = handler.tx is not None and not handler.is_async  # which sees to its time itself
                async with asyncio.timeout(None if in_thread else runner.timeout) as self._deadline:
                    committed = await self._call(chosen, events)
            except runner.Lost as lost:
                runner.lose(lost, batch)
                return
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError):
                    if runner.ends():
                        raise
                    uncancel()
                if handler.tx is not None and (runner.store.is_busy(error) or isinstance(error, StoreError)):
                    await runner.again(batch, error)
                    return
                if isinstance(error, TimeoutError):
                    error = HandlerTimeout(f"{handler.name} ran for longer than {runner.timeout} s", seconds=runner.timeout)
                for ctx in chosen:
                    ctx.reset()
                    runner.fail(ctx, error)
        for ctx in batch:
            if committed is None or ctx not in chosen:
                runner.finish(ctx)

    async def _call(self, chosen: list[Context], events: list[Any]) -> Committed | None:
        """What was committed with the handler's transaction; None if it has none."""
        runner, handler, last = self._runner, chosen[0].handler, chosen[-1]
        if handler.is_async:
            if handler.tx is not None:
                return await runner.transact_async(chosen, events)
            current.set(last)
            runner.collect(last, await handler.call(events, last))
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"tidings-{runner.name}")
        self._now = None
        future: Future[Any] = self._thread.submit(self._call_in_thread, chosen, events)
        waiting = asyncio.wrap_future(future)
        try:
            if handler.tx is not None and runner.timeout is not None:
                await self._watched(waiting, runner.timeout)
            result = await waiting
        except (asyncio.CancelledError, TimeoutError):
            waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody will ask for it any more
            if not future.done():  # can't be killed: its keys wait until it has ended
                self._thread = None
                for ctx in chosen:
                    future.add_done_callback(partial(_on_loop, runner, runner.parked.stick(ctx, time.monotonic())))
            raise
        if handler.tx is not None:
            committed: Committed = result
            return committed
        runner.collect(last, result)
        return None

    async def _watched(self, waiting: asyncio.Future[Any], timeout: float) -> None:
        """Wait for a handler in its transaction. One that runs for too long is given up, unless its commit has begun."""
        while not waiting.done():
            await asyncio.wait([waiting], timeout=min(timeout / 4, 1.0))
            now = self._now
            if now is not None and now[0] < time.monotonic() - timeout and self._runner.transactions.abort(now[1]):
                raise TimeoutError

    def begun(self, ctx: Context) -> None:
        """Its handler is called only now: what it waited for its transaction doesn't count."""
        if self._deadline is not None and self._runner.timeout is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._runner.timeout)

    def settling(self, ctx: Context) -> None:
        """The handler has ended and the commit follows, which must not be cut in two."""
        if self._deadline is not None:
            self._deadline.reschedule(None)

    def _call_in_thread(self, chosen: list[Context], events: list[Any]) -> Any:
        runner, handler, last = self._runner, chosen[0].handler, chosen[-1]
        current.set(last)
        if handler.tx is None:
            return contained(handler.call)(events, last)
        with runner.transactions.begin(handler.tx) as transaction:
            for ctx in chosen:
                ctx.tx = transaction.tx
            self._now = time.monotonic(), transaction
            with transaction.guard.closed(handler.name):
                result = handler.call(events, last)
                transaction.flush()
            runner.collect(last, result)
            return runner.commit_in(transaction, chosen)
