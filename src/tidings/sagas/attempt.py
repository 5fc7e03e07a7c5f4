"""One attempt at a step or an undo: called, and its journal entry written with what it did."""

from __future__ import annotations

import asyncio
import time
from asyncio import wrap_future
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from ..envelope import Envelope
from ..errors import Fenced, HandlerTimeout, StoreError
from ..publish.publisher import current
from ..store.port import RaisedByHandler
from ..store.sagas import Entry, Hold
from .shared_steps import SharedStep, SharedSteps
from .step import NOTHING, UNKNOWN, Function, Provided, StepContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..publish.publisher import Publisher
    from ..store.port import SomeTransactions, Store, Transaction, Unit
    from .journal_writer import JournalWriter

CONNECTIONS = 32
"""So many steps with a transaction run in threads at the same time, each on a connection."""

Outputs = list[tuple[Envelope, int | None]]


class StoreTrouble(Exception):
    """The store failed beside the step, or nobody knows what became of a commit: the journal will tell."""


class Attempts:
    """Runs functions for an app's sagas. ``done(result)`` makes the entry, at the last moment. ``places``: so many instances may be in
    hand, and so many plain steps block at the same time."""

    def __init__(
        self, store: Store, transactions: SomeTransactions, publisher: Publisher, journal: JournalWriter, places: int,
        provided: Provided = NOTHING,
    ) -> None:  # fmt: skip
        self._provided = provided
        self._store = store
        self._journal = journal
        self._transactions = transactions
        self._publisher = publisher
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="tidings-saga")
        self._connected = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="tidings-saga-tx")
        self._shared = SharedSteps(store, transactions) if store.one_writer else None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._connected.shutdown(wait=False, cancel_futures=True)
        if self._shared is not None:
            self._shared.close()

    def context(self, saga: str, envelope: Envelope, call: str, attempt: int) -> StepContext:
        return StepContext(tuple(envelope), saga, cast(Any, None), cast(Any, None), None, attempt, call=call)

    async def run(
        self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], ctx: StepContext, hold: Hold, done: Callable[[Any], Entry],
        *, timeout: float | None = None, result: Any = UNKNOWN, write: Callable[[Entry], Awaitable[None]] | None = None,
    ) -> Entry:  # fmt: skip
        """The entry, written; by ``write`` if there was no transaction and is nothing to publish, so that it is by itself.

        Raises:
            Fenced: the instance is somebody else's; nothing was written. StoreTrouble. Whatever the function raised; in a RaisedByHandler,
            if it is one of those that end programs and tasks.
        """

        def call() -> Any:
            current.set(ctx)
            try:
                value = function.call(args, kwargs, ctx, result, self._provided)
            except BaseException as error:
                raise _its_own(error) from None
            return _awaited(value) if function.is_async else value

        try:
            if function.tx is None:
                value = await self._outside(function, call, timeout)
                entry = done(value)
                outputs = self._outputs(ctx)
                if not outputs:
                    await (self.record(hold, entry) if write is None else write(entry))
                elif not await self._told_by(wrap_future(self._store.write(lambda unit: self._record(unit, hold, entry, outputs)))):
                    raise _fenced(hold)
                return entry
            if function.is_async:
                return await self._in_async_transaction(function, call, ctx, hold, done, timeout)
            if self._shared is not None and self._shared.takes(function, timeout):
                return await self._in_shared_transaction(self._shared, function, call, ctx, hold, done)
            return await self._in_transaction(function, call, ctx, hold, done, timeout)
        except RaisedByHandler as raised:
            if not isinstance(raised.error, Exception):
                raise
            raise raised.error from None

    async def record(self, hold: Hold, entry: Entry) -> None:
        """An entry by itself."""
        await self.held(hold, self._journal.record(hold, entry))

    async def held(self, hold: Hold, written: Awaitable[bool]) -> None:
        """That it was written.

        Raises:
            Fenced, StoreTrouble. As it is, what the store says to values that it can't keep.
        """
        if not await self._told_by(written):
            raise _fenced(hold)

    async def _told_by(self, written: Awaitable[bool]) -> bool:
        try:
            return await written
        except Exception as error:
            if self._store.is_refusal(error):
                raise
            raise StoreTrouble(str(error)) from error

    async def _outside(self, function: Function, call: Callable[[], Any], timeout: float | None) -> Any:
        if function.is_async:
            return await (call() if timeout is None else _bounded(function, call, timeout))
        # A thread can't be killed, so what it does is waited for; but it is late.
        future = asyncio.wrap_future(self._threads.submit(call))
        in_time = (await asyncio.wait([future], timeout=timeout))[0]
        value = await future
        if not in_time:
            raise _late(function, timeout)
        return value

    async def _in_shared_transaction(
        self, shared: SharedSteps, function: Function, call: Callable[[], Any], ctx: StepContext, hold: Hold, done: Callable[[Any], Entry]
    ) -> Entry:
        def finish(value: Any, transaction: Transaction) -> tuple[Entry, bool]:
            entry, outputs = done(value), self._outputs(ctx)
            if not self._record(self._store.unit(transaction.raw), hold, entry, outputs):
                raise _fenced(hold)
            return entry, bool(outputs)

        step = SharedStep(function, ctx, call, finish, asyncio.get_running_loop().create_future())
        shared.put(step)
        return await self._told(step.future)

    async def _in_transaction(
        self, function: Function, call: Callable[[], Any], ctx: StepContext, hold: Hold, done: Callable[[Any], Entry], timeout: float | None
    ) -> Entry:
        begun: list[Transaction] = []

        def work() -> Entry:
            assert function.tx is not None
            with self._transactions.begin(function.tx) as transaction:
                ctx.tx = transaction.tx
                begun.append(transaction)
                with transaction.guard.closed(function.name):
                    value = call()
                    transaction.flush()
                entry, outputs = done(value), self._outputs(ctx)
                transaction.settle()
                if not self._record(self._store.unit(transaction.raw), hold, entry, outputs):
                    raise _fenced(hold)
                transaction.told = bool(outputs)
            return entry

        future = asyncio.wrap_future(self._connected.submit(work))
        limit = None if timeout is None else time.monotonic() + timeout
        while limit is not None and not future.done():
            await asyncio.wait([future], timeout=max(0.005, limit - time.monotonic()))
            # What it waited for its transaction doesn't count.
            if not future.done() and not begun:
                limit = time.monotonic() + (timeout or 0.0)
            elif not future.done() and time.monotonic() >= limit:
                if self._transactions.abort(begun[0]):
                    await asyncio.wait([future])
                    future.exception()
                    raise _late(function, timeout)
                break
        return await self._told(future)

    async def _in_async_transaction(
        self, function: Function, call: Callable[[], Any], ctx: StepContext, hold: Hold, done: Callable[[Any], Entry], timeout: float | None
    ) -> Entry:
        async def work() -> Entry:
            assert function.tx is not None
            async with self._transactions.begin_async(function.tx) as transaction:
                ctx.tx = transaction.tx
                with transaction.guard.closed(function.name):
                    value = await _bounded(function, call, timeout)
                if hasattr(transaction.tx, "flush"):
                    await transaction.tx.flush()
                entry, outputs = done(value), self._outputs(ctx)
                if not await transaction.run(lambda raw: self._record(self._store.unit(raw), hold, entry, outputs)):
                    raise _fenced(hold)
                transaction.told = bool(outputs)
            return entry

        return await self._told(asyncio.ensure_future(work()))

    async def _told(self, future: asyncio.Future[Entry]) -> Entry:
        """Its result; what the store had to do with a failure is no attempt."""
        try:
            return await future
        except (RaisedByHandler, Fenced, HandlerTimeout):
            raise
        except Exception as error:
            if isinstance(error, StoreError) or self._store.is_busy(error) or self._store.is_lost(error):
                raise StoreTrouble(str(error)) from error
            raise

    def _outputs(self, ctx: StepContext) -> Outputs:
        found: Outputs = []
        for event, at, after, headers in ctx.published or ():
            found.append((self._envelope(event, headers, ctx), self._due(at, after)))
        return found

    def envelope(self, event: Any, ctx: StepContext) -> Envelope:
        """As if the step of this context published it."""
        return self._envelope(event, None, ctx)

    def _envelope(self, event: Any, headers: Mapping[str, str] | None, ctx: StepContext) -> Envelope:
        return self._publisher.envelope(event, headers=headers, cause=ctx)

    def _due(self, at: datetime | None, after: Any) -> int | None:
        return self._publisher.due(at, after)

    @staticmethod
    def _record(unit: Unit, hold: Hold, entry: Entry, outputs: Outputs) -> bool:
        """Last in its transaction: what it locks is wanted by whoever takes over, and by readers of the log."""
        if not unit.sagas().record(hold, entry):
            return False
        if plain := [envelope for envelope, due in outputs if due is None]:
            unit.append(plain)
        for envelope, due in outputs:
            if due is not None:
                unit.schedule(envelope, due)
        return True


def _its_own(error: BaseException) -> BaseException:
    """What the function raised, so that nobody takes it for the store's trouble, or for the end of this task or of the program."""
    return error if isinstance(error, Exception) and not isinstance(error, (StoreError, ConnectionError)) else RaisedByHandler(error)


async def _awaited(value: Awaitable[Any]) -> Any:
    try:
        return await value
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # by us: it is late, or the worker ends
            raise
        raise RaisedByHandler(error) from None
    except GeneratorExit:
        raise
    except BaseException as error:
        raise _its_own(error) from None


async def _bounded(function: Function, call: Callable[[], Any], timeout: float | None) -> Any:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await call()
    except TimeoutError:
        if not limit.expired():  # its own
            raise
        raise _late(function, timeout) from None


def _fenced(hold: Hold) -> Fenced:
    return Fenced(f"another worker holds {hold.saga} {hold.key} now; nothing was written")


def _late(function: Function, timeout: float | None) -> HandlerTimeout:
    return HandlerTimeout(f"{function.name} ran for longer than {timeout} s", seconds=timeout)
