"""Running handlers that don't share a transaction: a fixed crew of tasks that pull from the feed.

Each goes on inline while nothing suspends; before a run it wakes one more, so that work goes on if it does. A task for each event, or
for each key, costs twice as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import HandlerTimeout, StoreError
from ..publish.publisher import current
from .context import DATA, Context
from .handler import contained
from .parking import FOLLOWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from .runner import Runner

TURN_AFTER = 128
"""After this many events in one go the loop gets its turn."""

CHUNK = 512
CHUNK_SECONDS = 0.002
"""Synchronous handlers share a trip to a thread as long as it takes no longer than this."""
QUICK = 64
"""Handlers of which so many fit in a trip make one trip at a time: they have no time to wait, so more threads would only be in each other's
way."""


Begun = tuple[Context, Awaitable[Any] | None]
TURN: Begun = (None, None)  # type: ignore[assignment]


class _Raised(NamedTuple):
    error: BaseException


class Sleepers:
    """Tasks that wait for work; woken one at a time."""

    def __init__(self, work_left: Callable[[], bool]) -> None:
        self._work_left = work_left
        self.asleep: deque[asyncio.Future[None]] = deque()
        self._waking = False

    def wake(self) -> None:
        """Wake one if there is work."""
        if self._waking or not self.asleep or not self._work_left():
            return
        while self.asleep:
            sleeper = self.asleep.popleft()
            if not sleeper.done():
                self._waking = True
                sleeper.set_result(None)
                return

    async def sleep(self, seconds: float | None = None) -> None:
        """Until woken, or for ``seconds``. May be woken from the moment of the call: a task made for it would begin a little later."""
        sleeper = asyncio.get_running_loop().create_future()
        self.asleep.append(sleeper)
        try:
            if seconds is None:
                await sleeper
            else:
                await asyncio.wait([sleeper], timeout=seconds)
        finally:
            if not sleeper.done():
                self.asleep.remove(sleeper)
            self._waking = False


class Crew:
    """Runs handlers side by side, each event in its own transaction if it asked for one.

    Attributes:
        limit: this process's part of the subscription's concurrency. running: handlers under way.
    """

    def __init__(self, runner: Runner, size: int) -> None:
        self._runner = runner
        self.limit = size
        self.running = 0
        self.stepping = False
        self.sleepers = Sleepers(lambda: not self._alone and runner.feed_has_work())
        self._slots: list[Context | None] = [None] * size
        self._chunks: dict[int, list[Context]] = {}
        self._alone = False  # a trip of quick ones is under way
        self._seconds = CHUNK_SECONDS  # that a synchronous handler took, lately
        self._started = [0.0] * size
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: ThreadPoolExecutor | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        name = self._runner.name
        self._tasks = [loop.create_task(self._run(number), name=f"tidings-{name}-{number}") for number in range(len(self._slots))]
        if self._runner.timeout is not None:
            self._tasks.append(loop.create_task(self._watch(self._runner.timeout), name=f"tidings-{name}-watchdog"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        for task in self._tasks:
            task.cancel()

    def handling(self) -> list[Context]:
        """What is in handlers' hands."""
        return [ctx for ctx in (*self._slots, *(ctx for chunk in self._chunks.values() for ctx in chunk)) if ctx is not None]

    async def _run(self, number: int) -> None:
        while True:
            try:
                await self._work(number)
            except asyncio.CancelledError:
                if self._runner.ends():
                    raise
                uncancel()  # a handler has cancelled the task that it ran in, and ended before that was heard of

    async def _work(self, number: int) -> None:
        runner, sleepers = self._runner, self.sleepers
        while True:
            begun = None if self.running >= self.limit or self._alone else self._inline()
            if begun is None:
                if self.running == 0:
                    runner.checkpointing.rest()
                    runner.signal()
                await sleepers.sleep()
            elif begun is TURN:
                await asyncio.sleep(0)
            else:
                await self._handle(number, *begun)

    def _inline(self) -> Begun | None:
        """Handle events for as long as their handlers don't suspend: nobody can see these begin, so there is nothing to note but their end.

        Returns what is to be handled otherwise; ``TURN`` when the loop must have its turn; None if there is nothing to handle.
        """
        runner, feed, parked = self._runner, self._runner.feed, self._runner.parked.keys
        offer, set_current, paced = feed.offer, current.set, runner.pace is not None
        dirty = runner.checkpointing.dirty
        count = 0
        try:
            while True:
                ctx = offer()
                if ctx is None:
                    return None
                handler = ctx.handler
                if not handler.inline or paced or ctx.taken or (parked and ctx.key_id in parked):
                    return ctx, None
                try:
                    event = handler.decode(ctx.row[DATA]) if handler.decoded is None else runner.decode(ctx)
                except Exception:
                    return ctx, None  # it can't be decoded there either, which is the handler's failure
                try:
                    if handler.where is None or handler.where(event):
                        set_current(ctx)
                        work = handler.call(event, ctx)
                        if type(work) is not CoroutineType:
                            return ctx, work
                        try:
                            waits = work.send(None)
                        except StopIteration as stop:
                            if stop.value is not None or ctx.published is not None:
                                return ctx, _returned(stop.value)
                        else:
                            return ctx, _go_on(work, waits)
                except (Exception, asyncio.CancelledError) as error:
                    return ctx, _raised(error)
                except BaseException:  # the program ends, and this event has not been handled
                    feed.register(ctx)
                    raise
                dirty.add(ctx.lane)
                count += 1
                if count == TURN_AFTER:
                    feed.pass_by(ctx)
                    return TURN
        finally:
            if count:
                runner.handled += count
                runner.checkpointing.ended_plainly(count)

    async def _handle(self, number: int, ctx: Context, work: Awaitable[Any] | None) -> None:
        """``work``: the rest of a handler that has begun."""
        runner = self._runner
        if not ctx.taken:
            runner.feed.register(ctx)
        self.sleepers.wake()  # so that work goes on if this one suspends
        if runner.pace is not None and (pause := runner.pace.wait()) > 0:
            await asyncio.sleep(pause)
            if runner.unbegun(ctx):
                return
        handler, timed = ctx.handler, runner.timeout is not None
        self.running += 1
        self._slots[number] = ctx
        if timed:
            self._started[number] = time.monotonic()
        try:
            if work is None:
                if not ctx.parked and ctx.key_id in runner.parked.keys:
                    ctx.failure = FOLLOWS
                elif handler.tx is not None:
                    await self._in_transaction(ctx)
                    return
                elif not handler.is_async and not timed and runner.pace is None:
                    await self._in_chunk(number, ctx)
                    return
                else:
                    event = runner.decode(ctx)
                    if handler.where is None or handler.where(event):
                        if handler.is_async:
                            current.set(ctx)
                            work = handler.call(event, ctx)
                        else:
                            work = self._in_thread(ctx, event)
            if work is not None:
                result = await work
                if ctx.failure is not None:  # timed out, and the handler swallowed the cancellation
                    self._cancelled(ctx, asyncio.CancelledError())
                elif result is not None or ctx.published is not None:
                    runner.collect(ctx, result)
        except asyncio.CancelledError as error:
            self._cancelled(ctx, error)
        except Exception as error:
            runner.fail(ctx, error)
        finally:
            self.running -= 1
            self._slots[number] = None
        self._end(ctx)

    async def _in_chunk(self, number: int, first: Context) -> None:
        """Quick synchronous handlers share one trip to a thread, which costs more than they do; slow ones have one each.

        No event is in two chunks' hands and no key twice in one: the feed keeps the followers of a key back until it has ended.
        """
        runner = self._runner
        # With order="log" what comes behind must not begin before this one has ended.
        most = 1 if runner.order == "log" else min(CHUNK, int(CHUNK_SECONDS / max(self._seconds, 1e-9)))
        chunk = self._chunks[number] = [first]
        alone = self._alone = self.stepping = self._seconds * QUICK < CHUNK_SECONDS
        ended: list[Any] = []
        try:
            self._gather(chunk, most)
            if alone:
                await self._gather_on(chunk, most)
            waiting = deque(chunk)
            future = asyncio.wrap_future(self._pool().submit(self._call_chunk, waiting, ended))
            if (len(chunk) > 1 or alone) and not (await asyncio.wait([future], timeout=5 * CHUNK_SECONDS))[0]:
                if alone:
                    alone = self._stop_alone()
                self._take_back(chunk, waiting)  # one of them is slow: the others go on in other threads
            await future
            if waiting:
                self._take_back(chunk, waiting)  # the time was over
        finally:
            del self._chunks[number]
            if alone:
                self._stop_alone()
        plain: list[Context] = []
        for ctx, result in zip(chunk, ended, strict=True):
            if result is None and ctx.published is None and not ctx.parked and ctx.outputs is None:
                plain.append(ctx)
                continue
            if isinstance(result, _Raised):
                runner.fail(ctx, result.error)
            else:
                try:
                    runner.collect(ctx, result)
                except Exception as error:
                    runner.fail(ctx, error)
            self._end(ctx)
        runner.ended_plainly(plain)

    def _gather(self, chunk: list[Context], most: int) -> None:
        """Take what may share the trip."""
        runner, take, parked = self._runner, self._runner.feed.take, self._runner.parked.keys
        while len(chunk) < most and (ctx := take()) is not None:
            if ctx.handler.is_async or ctx.handler.tx is not None:
                runner.feed.again([ctx])
                break
            if parked and not ctx.parked and ctx.key_id in parked:
                ctx.failure = FOLLOWS
                runner.finish(ctx)
            else:
                chunk.append(ctx)

    async def _gather_on(self, chunk: list[Context], most: int) -> None:
        """The same from rows that the runner can read at once."""
        seen, changes = 0, self._runner.feed.changes
        while seen < len(chunk) < most and not self._runner.at_head:
            seen = len(chunk)
            self.stepping = False
            self._runner.feed.wanted()
            await asyncio.sleep(0)
            self.stepping = True
            self._gather(chunk, most)
        if self._runner.stopping or self._runner.feed.changes != changes:
            chunk[:] = [ctx for ctx in chunk if not self._runner.unbegun(ctx)]

    def _stop_alone(self) -> bool:
        self._alone = self.stepping = False
        self._runner.feed.wanted()
        self.sleepers.wake()
        return False

    def _take_back(self, chunk: list[Context], waiting: deque[Context]) -> None:
        """What the thread hasn't begun, for whoever is free."""
        back: list[Context] = []
        with contextlib.suppress(IndexError):  # the thread may take the last one meanwhile
            while True:
                back.append(waiting.pop())
        back.reverse()
        del chunk[len(chunk) - len(back) :]
        self._runner.feed.again(back)
        self.sleepers.wake()

    def _call_chunk(self, waiting: deque[Context], ended: list[Any]) -> None:
        """In a thread: what each handler returned or raised, until all are done or the time is over."""
        decode, set_current, clock, next_one = self._runner.decode, current.set, time.perf_counter, waiting.popleft
        began = now = clock()
        while now < began + CHUNK_SECONDS:
            try:
                ctx = next_one()
            except IndexError:
                break
            handler, result = ctx.handler, None
            try:
                event = decode(ctx)
                if handler.where is None or handler.where(event):
                    set_current(ctx)
                    result = handler.call(event, ctx)
            except BaseException as error:
                result = _Raised(error)
            ended.append(result)
            now = clock()
        if ended:
            self._seconds = 0.5 * self._seconds + 0.5 * (now - began) / len(ended)

    def _end(self, ctx: Context) -> None:
        """A handler without a transaction has ended."""
        if ctx.failure is not None or ctx.outputs is not None or ctx.parked:
            self._runner.finish(ctx)
            return
        self._runner.ended_plainly([ctx])

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(len(self._slots), 64), thread_name_prefix=f"tidings-{self._runner.name}")
        return self._threads

    def begun(self, ctx: Context) -> None:
        """Its handler is called only now: what it waited for its transaction doesn't count."""
        self._started[self._slots.index(ctx)] = time.monotonic()

    def settling(self, ctx: Context) -> None:
        """The handler has ended and the commit follows, which must not be cut in two: the watchdog keeps off."""
        ctx.settling = True

    def _cancelled(self, ctx: Context, error: asyncio.CancelledError) -> None:
        """The watchdog's doing is a failure of the handler; that of an inner task, or its own, too; the end of the worker is neither."""
        if self._runner.ends():
            raise error
        uncancel()
        if ctx.failure is not None:  # set by the watchdog
            ctx.published = ctx.outputs = None
        else:
            self._runner.fail(ctx, error)

    async def _in_thread(self, ctx: Context, event: Any) -> Any:
        """Call a synchronous handler without blocking the loop."""
        call = ctx.handler.call

        def run() -> Any:
            current.set(ctx)
            return contained(call)(event, ctx)

        future = self._pool().submit(run)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done() and ctx.failure is not None:
                # A thread can't be killed: until it has ended its key waits, and `status` names it.
                ended = self._runner.parked.stick(ctx, time.monotonic())
                future.add_done_callback(lambda _: self._runner.on_loop(ended))
            raise

    async def _in_transaction(self, ctx: Context) -> None:
        """Run a handler in a transaction of its own. Afterwards it is committed, or handed back to be run again."""
        runner = self._runner
        try:
            if ctx.handler.is_async:
                await runner.transact_async([ctx])
            else:
                await runner.in_tx_thread(ctx)
        except runner.Lost as lost:
            runner.lose(lost, [ctx])
        except Exception as error:
            if not runner.store.is_busy(error) and not isinstance(error, StoreError):
                raise
            await runner.again([ctx], error)

    async def _watch(self, timeout: float) -> None:
        """One watchdog over started times; a timer for each event would cost half of everything."""
        while True:
            await asyncio.sleep(min(timeout / 4, 1.0))
            limit = time.monotonic() - timeout
            for number, ctx in enumerate(self._slots):
                if ctx is None or self._started[number] > limit or ctx.failure is not None or ctx.settling:
                    continue
                if ctx.handler.tx is not None and not ctx.handler.is_async and not self._runner.give_up(ctx, limit):
                    continue  # it waits for its turn, or is being committed
                self._runner.fail(ctx, HandlerTimeout(f"{ctx.handler.name} ran for longer than {timeout} s", seconds=timeout))
                self._tasks[number].cancel()


def uncancel() -> None:
    """What was asked of this task is done with; else whatever is cancelled in it later would be taken for its own end."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


async def _returned(result: Any) -> Any:
    return result


async def _raised(error: BaseException) -> Any:
    raise error


@coroutine
def _go_on(work: Coroutine[Any, Any, Any], waits: Any) -> Generator[Any, Any, Any]:
    """The rest of a coroutine whose first step is done; ``waits`` is what that step gave."""
    try:
        yield waits
    except BaseException as error:
        try:
            waits = work.throw(error)
        except StopIteration as stop:
            return stop.value
        return (yield from _go_on(work, waits))
    return (yield from work)
