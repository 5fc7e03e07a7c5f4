"""Running synchronous handlers with a transaction: in one thread, in the log's order, since the file has one writer.

With ``shared_tx`` neighbours share a transaction, bounded in number and time. A savepoint stands before each chunk; a chunk in which one
fails is undone and done again in smaller ones, so that only that one is rolled back. Without it each event has a transaction of its own,
and what neighbours share is the trip to the thread, which costs more than a commit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..errors import HandlerTimeout, StoreError
from ..publish.publisher import current
from .context import Context
from .crew import Sleepers
from .parking import FOLLOWS

if TYPE_CHECKING:
    from ..store.port import Transaction
    from .runner import Runner

SHARED_SIZE = 1000
SHARED_SECONDS = (0.02, 0.25)
"""A shared transaction ends after so many events or so much time. Where transactions take turns publishers wait for it; elsewhere who wants
the same rows does, and readers wait for what it publishes."""
CHUNK = 64
TRIP_SIZE = 64
TRIP_SECONDS = 0.02
"""Bounds of a trip: a worker that ends, and an operator's command, wait for it."""


class Serial:
    """Runs handlers one after another in a thread.

    Attributes:
        stepping: the thread works through many statements, and rows had better be read when it is done.
    """

    def __init__(self, runner: Runner, *, shared: bool) -> None:
        self._runner = runner
        self._shared = shared
        self._size = self._most = SHARED_SIZE if shared else TRIP_SIZE
        self._seconds = SHARED_SECONDS[0 if runner.store.one_writer else 1]
        self.limit = 1
        self.running = 0
        self.sleepers = Sleepers(runner.feed_has_work)
        self._batch: list[Context] = []
        self._now: dict[Context, tuple[float, Transaction]] = {}
        self._given_up: asyncio.Future[Context] | None = None
        self.stepping = False
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(), name=f"tidings-{self._runner.name}")]
        if self._runner.timeout is not None:
            self._tasks.append(loop.create_task(self._watch(self._runner.timeout), name=f"tidings-{self._runner.name}-watchdog"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        for task in self._tasks:
            task.cancel()

    def handling(self) -> list[Context]:
        return self._batch

    async def _run(self) -> None:
        runner, feed = self._runner, self._runner.feed
        parked = runner.parked.keys
        loop = asyncio.get_running_loop()
        while True:
            self._batch = batch = list[Context]()
            most = 1 if runner.pace is not None else self._most
            seen, changes = -1, feed.changes
            while seen < len(batch) < most:
                if seen >= 0:
                    if runner.at_head:
                        break
                    await asyncio.sleep(0)  # the runner reads on, if it can do so at once
                seen = len(batch)
                feed.take_many(batch, most)
                if parked:
                    self._batch = batch = [ctx for ctx in batch if not self._follows(ctx)]
            if runner.stopping or feed.changes != changes:
                self._batch = batch = [ctx for ctx in batch if not runner.unbegun(ctx)]
            if not batch:
                runner.checkpointing.rest()
                runner.signal()
                await self.sleepers.sleep()
                continue
            if runner.pace is not None and (pause := runner.pace.wait()) > 0:
                await asyncio.sleep(pause)
                batch = [ctx for ctx in batch if not runner.unbegun(ctx)]
                if not batch:
                    continue
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"tidings-{runner.name}-tx")
            self._given_up = given_up = loop.create_future()
            committed = loop.create_future() if self._shared else None  # a trip is told of as a whole
            self._batch, self.running, self.stepping = batch, 1, self._shared and not runner.store.reads_aside
            work: asyncio.Future[Any]
            if self._shared:
                work = loop.run_in_executor(self._thread, self.transact, batch, committed)
            else:
                work = loop.run_in_executor(self._thread, self._trip, batch)
            work.add_done_callback(_seen)
            failed, rest, error = batch, list[Context](), None
            either: list[asyncio.Future[Any]] = [work, given_up] if committed is None else [work, given_up, committed]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if given_up.done():
                    self._give_up(work, given_up.result(), batch)
                    continue
                if committed is None:
                    failed, rest, error = work.result()
                else:
                    rest = committed.result() if committed.done() else work.result()
            except Exception as raised:
                error = raised
            finally:
                self._batch, self.running, self.stepping = [], 0, False
                runner.feed.wanted()
            runner.feed.again(rest)
            if error is None:
                self._most = min(self._size, self._most * 2)
            elif isinstance(error, runner.Lost):
                runner.lose(error, failed)
            else:
                await self._failed(failed, error)

    def _follows(self, ctx: Context) -> bool:
        """Whether its key is parked, so that it is put behind the others of the key."""
        if ctx.parked or ctx.key_id not in self._runner.parked.keys:
            return False
        # Its head may not be written yet: through the same queue, so that it can't be parked before it.
        ctx.failure = FOLLOWS
        self._runner.finish(ctx)
        return True

    async def _failed(self, batch: list[Context], error: Exception) -> None:
        """The transaction was rolled back whole."""
        runner = self._runner
        if runner.store.is_busy(error) or isinstance(error, StoreError):
            self._most = max(1, len(batch) // 2)
            await runner.again(batch, error)
        elif len(batch) == 1:
            runner.fail(batch[0], error)
            runner.finish(batch[0])
        else:  # the commit itself failed: each is tried alone
            runner.feed.again(batch)
            self._most = 1

    def _give_up(self, work: asyncio.Future[Any], ctx: Context, batch: list[Context]) -> None:
        """A handler hangs in its transaction: its connection was closed, which undid it and freed the file."""
        pool, self._thread = self._thread, None
        ended = self._runner.parked.stick(ctx, time.monotonic())

        def over(done: asyncio.Future[Any]) -> None:
            if not done.cancelled():
                done.exception()
            if pool is not None:
                pool.shutdown(wait=False)
            ended()

        work.add_done_callback(over)
        failure = ctx.failure
        others = batch if self._shared else batch[batch.index(ctx) :]  # those before it had their own, and are committed
        self._runner.feed.again([other for other in others if other is not ctx])
        ctx.reset()
        ctx.failure = failure
        self._runner.finish(ctx)

    async def _watch(self, timeout: float) -> None:
        while True:
            await asyncio.sleep(min(timeout / 4, 1.0))
            given_up = self._given_up
            if not self._now or given_up is None or given_up.done():
                continue
            ctx, (began, transaction) = list(self._now.items())[-1]
            if began > time.monotonic() - timeout:
                continue
            if self._runner.transactions.abort(transaction):
                self._runner.fail(ctx, HandlerTimeout(f"{ctx.handler.name} ran for longer than {timeout} s", seconds=timeout))
                given_up.set_result(ctx)

    def begun(self, ctx: Context) -> None:
        """Nothing to do: ``_call`` notes it."""

    def settling(self, ctx: Context) -> None:
        """Nothing to do: ``Transaction.settle`` notes it."""

    def give_up(self, ctx: Context, limit: float) -> bool:
        """For the crew, whose synchronous handlers run here too: whether this one has run since before ``limit`` and was undone."""
        now = self._now.get(ctx)
        return now is not None and now[0] <= limit and self._runner.transactions.abort(now[1])

    # -- in the thread

    def _trip(self, batch: list[Context]) -> tuple[list[Context], list[Context], Exception | None]:
        """A transaction for each, until one fails or the time is over: the one that failed, what was not begun, and the error."""
        until = time.monotonic() + TRIP_SECONDS
        for at, ctx in enumerate(batch):
            if at and (time.monotonic() > until or self._runner.stopping):
                return [], batch[at:], None
            try:
                self.transact([ctx])
            except Exception as error:
                return [ctx], batch[at + 1 :], error
        return [], [], None

    def transact(self, batch: list[Context], committed: asyncio.Future[list[Context]] | None = None) -> list[Context]:
        """Handlers, then their checkpoint, then the commit. Returns what was not begun: its time was over.

        ``committed`` is told so earlier, so that the next batch is gathered while this thread leaves the file to others for a moment.
        """
        runner = self._runner
        kind = batch[0].handler.tx
        assert kind is not None
        try:
            return self._transact(batch, kind, committed)
        finally:
            if runner.timeout is not None:
                for ctx in batch:
                    self._now.pop(ctx, None)

    def _transact(self, batch: list[Context], kind: str, committed: asyncio.Future[list[Context]] | None) -> list[Context]:
        runner = self._runner
        with runner.transactions.begin(kind) as transaction:
            if self._shared:
                with runner.store.stepping():
                    done = self._share(batch, transaction, time.monotonic() + self._seconds, set())
            else:
                with transaction.guard.closed(batch[0].handler.name):
                    done = self._call(batch, transaction)
            runner.commit_in(transaction, batch[:done])
            if committed is not None:
                transaction.after.append(lambda: runner.on_loop(lambda: _tell(committed, batch[done:])))
        return batch[done:]

    def _share(self, batch: list[Context], transaction: Transaction, until: float, failed: set[Any], size: int = CHUNK) -> int:
        """How many of the batch were ended before the time was over; with ``order="log"`` nothing behind one that failed.

        A chunk in which one fails is undone and done again in smaller ones, whatever the time, until the one that fails stands alone.
        """
        at, known = 0, len(failed)
        while at < len(batch):
            searching = size < CHUNK and len(failed) == known
            if at and not searching and time.monotonic() > until:
                break
            chunk = batch[at : at + size]
            ended, again = 0, False
            try:
                with transaction.savepoint(), transaction.guard.closed(chunk[0].handler.name):
                    ended = self._call(chunk, transaction, float("inf") if searching else until, failed)
            except Exception as error:
                if self._is_stores(error, transaction):
                    raise
                for ctx in chunk:
                    ctx.reset()
                if len(chunk) > 1:
                    again = True
                else:
                    self._runner.fail(chunk[0], error)
                    failed.add(chunk[0].key_id)
                    ended = 1
            if again:  # here, since errors that are raised while one is handled bring it along in their tracebacks
                ended = self._share(chunk, transaction, until, failed, len(chunk) // 8 or 1)
            at += ended
            if ended < len(chunk) or (failed and self._runner.order == "log"):
                break
        return at

    def _is_stores(self, error: Exception, transaction: Transaction) -> bool:
        return transaction.aborted or not transaction.guard.alive() or self._runner.store.is_busy(error) or isinstance(error, StoreError)

    def _call(self, batch: list[Context], transaction: Transaction, until: float = float("inf"), failed: Collection[Any] = ()) -> int:
        """Their handlers, one after another, and of the first in any case. How many were ended before the time was over."""
        runner, clock, set_current = self._runner, time.monotonic, current.set
        decode, parked, timed = runner.decode, runner.parked.keys, runner.timeout is not None
        tx, flushes = transaction.tx, transaction.flushes
        ended = 0
        for ctx in batch:
            if ended and clock() > until:
                break
            ended += 1
            if (parked or failed) and not ctx.parked and (ctx.key_id in parked or ctx.key_id in failed):
                ctx.failure = FOLLOWS
                continue
            handler = ctx.handler
            event = decode(ctx)
            if handler.where is not None and not handler.where(event):
                continue
            ctx.tx = tx
            set_current(ctx)
            if timed:
                self._now[ctx] = (clock(), transaction)
            result = handler.call(event, ctx)
            if flushes:
                transaction.flush()
            if result is not None or ctx.published is not None:
                runner.collect(ctx, result)
        return ended


def _tell(committed: asyncio.Future[list[Context]], rest: list[Context]) -> None:
    if not committed.done():  # the worker was killed
        committed.set_result(rest)


def _seen(work: asyncio.Future[Any]) -> None:
    """Nobody may ask for it any more."""
    if not work.cancelled():
        work.exception()
