"""One subscription in one process: rows of its lanes go in, handlers run, checkpoints come out.

A fixed crew of tasks pulls from one deque; each goes on inline while nothing suspends, and wakes one more before a run, so that a
handler that waits costs nobody else's time and one that doesn't costs no task. Events of one key follow each other: the second
stands in the key's chain until the first has ended. Handlers that share SQLite's one transaction run one after another, in a thread.

Nothing is lost between memory and file because a position stays in its lane's ``open`` set until its end is committed.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..envelope import LANES
from ..errors import Fenced, HandlerTimeout, StoreError, TidingsError, UndecodableEvent
from ..publish import enlist
from ..publish.publisher import current
from ..store.port import FailedAttempt, KeyState, Lane
from .context import DATA, KEY, KEY_NAME, LANE, POSITION, TYPE, Context
from .lanes import LaneState
from .pace import Pace
from .parking import FOLLOWS, Failure, Health, describe, parked_row
from .tail import Block, Tail

if TYPE_CHECKING:
    from ..clock import Clock
    from ..publish.publisher import Publisher
    from ..store.sqlite.store import SQLiteStore
    from .subscription import Subscription
    from .transactions import Transaction, Transactions

log = logging.getLogger("tidings.subscribe")

WINDOW = 4096
"""Events read and not yet handled, at most ..."""
WINDOW_BYTES = 32 * 1024 * 1024
"""... and their data."""
FLUSH_SIZE = 2000
"""Handled events that are written into the checkpoint at once, at the latest after the subscription's ``checkpoint_age``."""
SHARED_SECONDS = 0.02
"""A shared transaction ends after this time, so that publishers don't wait for the file."""
SHARED_SIZE = 1000
CHUNK = 64
"""Events between two savepoints of a shared transaction."""
SWEEP_SECONDS = 2.0
"""Lanes whose events were all somebody else's get their position written this often."""
SLOW_HOLD_SECONDS = 0.25
"""An async handler that holds the file's write lock for longer is reported."""


@dataclass(slots=True)
class Committed:
    """What one checkpoint's transaction did."""

    batch: list[Context]
    finished: list[tuple[LaneState, set[int]]] = field(default_factory=list)
    fenced: list[LaneState] = field(default_factory=list)
    keys: list[tuple[Any, KeyState]] = field(default_factory=list)
    published: int = 0

    def apply(self) -> None:
        """The lanes learn it, before any other transaction of this process begins."""
        for lane, finished in self.finished:
            lane.committed(finished)


class _FencedBatch(Fenced):
    def __init__(self, lanes: list[LaneState]) -> None:
        super().__init__("the lane is somebody else's now")
        self.lanes = lanes


class Runner:
    """Runs one subscription over the lanes that this process holds."""

    def __init__(
        self,
        subscription: Subscription,
        store: SQLiteStore,
        tail: Tail,
        publisher: Publisher,
        transactions: Transactions,
        worker: str,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.subscription = subscription
        self.name = subscription.name
        self.worker = worker
        self._store = store
        self._tail = tail
        self._publisher = publisher
        self._transactions = transactions
        self._clock = clock
        self._rng = rng
        self._handlers = subscription.handlers
        options = subscription.options
        self._order = options.order
        self._timeout = options.timeout
        self._retry = options.retry
        self._holds = options.on_dead == "hold"
        self._lists = any(handler.takes_list for handler in self._handlers.values())
        kinds = {(handler.tx, handler.is_async) for handler in self._handlers.values()}
        self._serial_tx = not self._lists and len(kinds) == 1 and all(tx is not None and not is_async for tx, is_async in kinds)
        self._shared = options.shared_tx and self._serial_tx
        self._one_at_a_time = self._serial_tx or self._lists or self._order == "log"
        self.groups = 1 if self._order == "log" else max(1, min(options.concurrency, LANES))

        self.lanes: list[LaneState | None] = [None] * LANES
        self.cursor = 0
        self._ready: deque[Context] = deque()
        self._urgent: deque[Context] = deque()
        self._chains: dict[Any, deque[Context] | None] = {}
        self._asleep: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._window = 0
        self._window_bytes = 0
        self._full = False
        self._running = 0
        self._started: dict[Any, tuple[float, Context]] = {}
        self._tx_running: tuple[float, Context, Transaction] | None = None
        self._tx_abandoned: asyncio.Future[Context] | None = None
        self._stuck: dict[Any, tuple[float, Context]] = {}

        self._parked: set[Any] = set()
        self._heads: dict[Any, KeyState] = {}
        self._heads_running: set[Any] = set()
        self._due: list[tuple[float, int, Any, KeyState]] = []
        self._due_timer: asyncio.TimerHandle | None = None
        self._sequence = 0
        self._unsettled: Counter[Any] = Counter()

        self._done: list[Context] = []
        self._flushing: list[Context] = []
        self._in_batch: list[Context] = []
        self._urgent_flush = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._last_sweep = 0.0
        self._probe_succeeded = False

        self.health = Health(next(iter(self._handlers.values())).name, options.max_parked)
        self._most_parked = options.max_parked
        self._pace = None if options.rate is None else Pace(options.rate, time.monotonic)
        self._paused = False
        self._stopping = False
        self.at_head = False
        self.trouble: str | None = None
        self.handled = self.failed = self.dead = self.published = 0
        self._batch = SHARED_SIZE
        self._loop = asyncio.get_event_loop()
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: ThreadPoolExecutor | None = None
        self._tx_thread: ThreadPoolExecutor | None = None
        self.changed: Callable[[], None] = lambda: None
        self.reached_head: Callable[[], None] = lambda: None

    # -- lifecycle

    def start(self) -> None:
        """Begin; reads nothing before ``take`` has given it lanes."""
        spawn = self._loop.create_task
        self._tasks = [spawn(self._read(), name=f"tidings-{self.name}-reader")]
        if self._lists:
            self._tasks.append(spawn(self._run_lists(), name=f"tidings-{self.name}"))
        elif self._serial_tx:
            self._tasks.append(spawn(self._run_serial(), name=f"tidings-{self.name}"))
        else:
            crew = 1 if self._one_at_a_time else self.subscription.options.concurrency
            self._crew_limit = crew
            self._tasks += [spawn(self._run_crew(number), name=f"tidings-{self.name}-{number}") for number in range(crew)]
        if self._timeout is not None:
            self._tasks.append(spawn(self._watch(), name=f"tidings-{self.name}-watchdog"))

    async def drain(self) -> None:
        """Begin nothing new, wait for what runs, write the checkpoint."""
        self._stopping = True
        self._wake_reader()
        self._discard(lambda ctx: True)
        while self._running or self._done or self._flushing:
            self._flush()
            self._idle.clear()
            if self._running or self._done or self._flushing:
                await self._idle.wait()
        self.sweep()

    async def close(self) -> None:
        """End the tasks."""
        self._stopping = True
        for timer in (self._due_timer, self._flush_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for pool in (self._threads, self._tx_thread):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        """End the tasks without writing anything, as a crash would."""
        self._stopping = True
        self._done.clear()
        for timer in (self._due_timer, self._flush_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()

    # -- lanes come and go

    def take(self, lanes: Sequence[Lane], keys: Sequence[KeyState]) -> None:
        """Lanes that this worker has just claimed, and the keys that are parked there."""
        if not lanes:
            return
        for held in self.lanes:
            if held is not None:
                held.start = max(held.start, self.cursor)
        for row in lanes:
            self.lanes[row.lane] = LaneState(row)
        self.cursor = min(lane.first for lane in self.held_lanes())
        self.refresh(keys, {row.lane for row in lanes})
        self._share_changed()
        self._wake_reader()

    def refresh(self, keys: Sequence[KeyState], lanes: set[int]) -> None:
        """Parked keys as the store has them now, for these lanes."""
        seen: set[Any] = set()
        for state in keys:
            key = self._key_of_state(state)
            if key in seen or self.lanes[state.lane] is None:
                continue
            seen.add(key)
            if key in self._heads_running or self._unsettled.get(key):
                continue
            if state.state == "waiting":  # its head was dropped: promote it
                self._promote(key, state)
                self._parked.add(key)
            else:
                self._apply(key, state)
        for key in [key for key in self._parked if key not in seen and key not in self._heads_running and not self._unsettled.get(key)]:
            lane = self._heads[key].lane if key in self._heads else None
            if lane is None or lane in lanes:
                self._heads.pop(key, None)
                self._parked.discard(key)
        self._review()
        self._kick()

    def _promote(self, key: Any, state: KeyState) -> None:
        future = self._store.write(lambda unit: unit.key_state(self.name, state.lane, key, self._now()))
        future.add_done_callback(lambda done: self._on_loop(lambda: self._apply(key, done.result())))

    def give_back(self, lanes: set[int]) -> None:
        """Begin to let go of lanes: nothing new of theirs starts. ``busy_lanes`` says when they can be released."""
        for number in lanes:
            lane = self.lanes[number]
            if lane is not None:
                self.lanes[number] = None
        self._discard(lambda ctx: ctx.lane.lane in lanes)
        self._share_changed()

    def busy_lanes(self) -> set[int]:
        """Lanes with a handler running or an end not yet written."""
        contexts = [*(ctx for _, ctx in self._started.values()), *self._done, *self._flushing, *self._in_batch]
        return {ctx.lane.lane for ctx in contexts}

    def drop(self, lane: LaneState) -> None:
        """The lane is somebody else's: forget it. What still runs for it is not written."""
        lane.kept = False
        if self.lanes[lane.lane] is lane:
            self.lanes[lane.lane] = None
        self._discard(lambda ctx: ctx.lane is lane)
        self._share_changed()

    def held_lanes(self) -> list[LaneState]:
        return [lane for lane in self.lanes if lane is not None]

    def pause(self, paused: bool) -> None:
        """Stop or go on by an operator's word; what runs ends."""
        if paused != self._paused:
            self._paused = paused
            self._kick()
            self._wake_reader()

    def _share_changed(self) -> None:
        """Concurrency, rate and limits hold over all workers: each has the part that its groups of lanes stand for."""
        held = {lane.lane * self.groups // LANES for lane in self.held_lanes()}
        self.health.most_parked = max(1.0, self._most_parked * len(held) / self.groups)
        if self._pace is not None and self.subscription.options.rate is not None:
            self._pace.rate = self.subscription.options.rate * len(held) / self.groups
        if not self._one_at_a_time:
            concurrency = self.subscription.options.concurrency
            self._crew_limit = sum((group + 1) * concurrency // self.groups - group * concurrency // self.groups for group in held)

    # -- reading

    def wake(self) -> None:
        """There may be something new in the log."""
        self._more.set()

    def _wake_reader(self) -> None:
        self._more.set()
        self._room.set()

    async def _read(self) -> None:
        while not self._stopping:
            if self._paused or self.health.reason is not None or not any(lane is not None for lane in self.lanes):
                self._more.clear()
                self.at_head = False
                self.changed()
                await self._more.wait()
                continue
            if self._window >= WINDOW or self._window_bytes >= WINDOW_BYTES:
                self._full = True
                self._room.clear()
                await self._room.wait()
                continue
            self._more.clear()
            cursor = self.cursor
            try:
                block, index = await self._tail.read(cursor)
            except TidingsError as error:
                await self._in_trouble(error)
                continue
            if cursor != self.cursor:
                continue  # lanes came meanwhile, from further back
            if block is None:
                if not self._more.is_set():
                    self.at_head = True
                    self._sweep_soon()
                    self.changed()
                    self.reached_head()
                    await self._more.wait()
                continue
            self.at_head = False
            self.trouble = None
            self._offer(block, index)
            self._kick()
            if self._window < WINDOW // 2:
                await asyncio.sleep(0)

    def _offer(self, block: Block, index: int) -> None:
        """Give the rows of our lanes to the handlers, until the window is full."""
        handlers, lanes, chains, ready, name = self._handlers, self.lanes, self._chains, self._ready, self.name
        chained = self._order == "key" and not self._one_at_a_time
        keyed, whole = self._order == "key", self._order == "log"
        rows = block.rows
        window, size = self._window, self._window_bytes
        for at in range(index, len(rows)):
            row = rows[at]
            handler = handlers.get(row[TYPE])
            if handler is None:
                continue
            lane = lanes[row[LANE]]
            if lane is None:
                continue
            position = row[POSITION]
            if position <= lane.start:
                if position not in lane.recovered:
                    continue
                lane.recovered.discard(position)
            key = row[KEY]
            key_id = None if whole else (row[KEY_NAME], key) if keyed and key is not None else position
            lane.open.add(position)
            window += 1
            size += len(row[DATA])
            ctx = Context(row, name, handler, lane, key_id)
            if chained and key is not None:
                if key_id in chains:
                    chain = chains[key_id]
                    if chain is None:
                        chains[key_id] = deque((ctx,))
                    else:
                        chain.append(ctx)
                else:
                    chains[key_id] = None
                    ready.append(ctx)
            else:
                ready.append(ctx)
            if window >= WINDOW or size >= WINDOW_BYTES:
                self.cursor = position
                break
        else:
            self.cursor = max(self.cursor, block.upto)
        self._window, self._window_bytes = window, size

    def _discard(self, which: Callable[[Context], bool]) -> None:
        """Take back what was offered and not begun; it stays open, so whoever has the lane next reads it again."""
        for chain in self._chains.values():
            if chain:
                for ctx in [ctx for ctx in chain if which(ctx)]:
                    chain.remove(ctx)
                    self._leave_window(ctx)
        for queue in (self._ready, self._urgent):
            offered = list(queue)
            queue.clear()
            for ctx in offered:
                if which(ctx):
                    self._forget(ctx)
                else:
                    queue.append(ctx)
        for ctx_key in [key for key, state in self._heads.items() if self.lanes[state.lane] is None]:
            del self._heads[ctx_key]
            self._parked.discard(ctx_key)

    def _forget(self, ctx: Context) -> None:
        if ctx.parked:
            self._heads_running.discard(ctx.key_id)
        else:
            self._leave_window(ctx)
            self._next_of_key(ctx)

    def _leave_window(self, ctx: Context) -> None:
        self._window -= 1
        self._window_bytes -= len(ctx.row[DATA])
        if self._full and self._window <= WINDOW // 2 and self._window_bytes <= WINDOW_BYTES // 2:
            self._full = False
            self._room.set()

    # -- running

    def _kick(self) -> None:
        """Wake one sleeper if there is work."""
        if self._waking or not (self._ready or self._urgent):
            return
        while self._asleep:
            sleeper = self._asleep.popleft()
            if not sleeper.done():
                self._waking = True
                sleeper.set_result(None)
                return

    def _take(self) -> Context | None:
        """The next event to handle, parked ones first."""
        if self._stopping:
            return None
        if self._urgent:
            return self._urgent.popleft()
        if self._paused or self.health.reason is not None or (self._order == "log" and None in self._parked):
            return None
        if self._ready:
            return self._ready.popleft()
        return None

    async def _sleep(self) -> None:
        sleeper = self._loop.create_future()
        self._asleep.append(sleeper)
        try:
            await sleeper
        finally:
            self._waking = False

    async def _run_crew(self, number: int) -> None:
        """One of the tasks that run handlers which don't share a transaction."""
        count = 0
        timed = self._timeout is not None
        while True:
            ctx = self._take() if self._running < self._crew_limit else None
            if ctx is None:
                await self._sleep()
                continue
            if self._asleep and not self._waking and (self._ready or self._urgent):
                self._kick()
            if self._pace is not None and (pause := self._pace.wait()) > 0:
                await asyncio.sleep(pause)
            self._running += 1
            self._started[number] = (time.monotonic() if timed else 0.0, ctx)
            try:
                if not ctx.parked and self._parked and ctx.key_id in self._parked:
                    ctx.failure = FOLLOWS
                elif ctx.handler.tx is not None:
                    if await self._in_transaction(ctx):
                        continue
                else:
                    handler = ctx.handler
                    event = self._decode(ctx)
                    if handler.where is None or handler.where(event):
                        if handler.is_async:
                            current.set(ctx)
                            result = await handler.call(event, ctx)
                        else:
                            result = await self._in_thread(handler.call, event, ctx)
                        if ctx.failure is not None:  # timed out, and the handler swallowed the cancellation
                            self._cancelled(ctx, asyncio.CancelledError())
                        elif result is not None or ctx.published is not None:
                            self._collect(ctx, result)
            except asyncio.CancelledError as error:
                self._cancelled(ctx, error)
            except Exception as error:
                self._fail(ctx, error)
            finally:
                self._running -= 1
                del self._started[number]
            self._finish(ctx)
            count += 1
            if not count & 127:
                await asyncio.sleep(0)

    def _cancelled(self, ctx: Context, error: asyncio.CancelledError) -> None:
        """The watchdog's doing is a failure of the handler; an inner task's too; the end of the worker is neither."""
        task = asyncio.current_task()
        if ctx.failure is not None:  # set by the watchdog
            ctx.published = ctx.outputs = None
            if task is not None:
                task.uncancel()
        elif task is not None and task.cancelling():
            raise error
        else:
            self._fail(ctx, error)

    async def _in_thread(self, call: Callable[[Any, Any], Any], event: Any, ctx: Context) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(self.subscription.options.concurrency, 64), thread_name_prefix=f"tidings-{self.name}")

        def run() -> Any:
            current.set(ctx)
            return call(event, ctx)

        future = self._threads.submit(run)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done():
                self._stick(ctx, future)
            raise

    def _stick(self, ctx: Context, future: Future[Any]) -> None:
        """A thread can't be killed: until it has ended, its key waits, and ``status`` names it."""
        key = ctx.key_id
        self._stuck[key] = (time.monotonic(), ctx)

        def ended(_: object) -> None:
            self._stuck.pop(key, None)
            self._on_due()

        future.add_done_callback(lambda _: self._on_loop(lambda: ended(None)))

    async def _in_transaction(self, ctx: Context) -> bool:
        """Run a handler in a transaction of its own; True if it was handed back to be run again."""
        handler = ctx.handler
        try:
            if handler.is_async:
                committed = await self._transact_async([ctx])
            else:
                committed = (await self._loop.run_in_executor(self._tx_pool(), self._transact, [ctx]))[0]
        except _FencedBatch as fenced:
            for lane in fenced.lanes:
                self.drop(lane)
            self._again([ctx])
            return True
        except Exception as error:
            if not self._store.is_busy(error) and not isinstance(error, StoreError):
                raise
            self._again([ctx])
            await self._in_trouble(error)
            return True
        self._finished(ctx)
        self._settle(committed)
        self._kick()
        return True

    async def _transact_async(self, batch: list[Context]) -> Committed:
        ctx, handler = batch[-1], batch[-1].handler
        assert handler.tx is not None
        async with self._transactions.begin_async(handler.tx) as transaction:
            began = time.monotonic()
            for one in batch:
                one.tx = transaction.tx
            events = [self._decode(one) for one in batch]
            if handler.where is None or self._lists or handler.where(events[0]):
                current.set(ctx)
                result = await handler.call(events if handler.takes_list else events[0], ctx)
                if ctx.failure is not None:
                    raise asyncio.CancelledError
                ctx.settling = True  # from here on the watchdog keeps off: a commit must not be cut in two
                if hasattr(transaction.tx, "flush"):
                    await transaction.tx.flush()
                self._collect(ctx, result)
            committed: Committed = await transaction.run(lambda conn: self._commit(self._store.unit(conn), batch))
            if committed.fenced:
                raise _FencedBatch(committed.fenced)
            transaction.after.append(committed.apply)
            held = time.monotonic() - began
            if held > SLOW_HOLD_SECONDS:
                log.warning(
                    "%s (%s) awaited for %.1f s while it held the store's write lock; nobody could publish. Await outside work in a handler"
                    " without tx.",
                    handler.name,
                    self.name,
                    held,
                )
        return committed

    def _tx_pool(self) -> ThreadPoolExecutor:
        if self._tx_thread is None:
            self._tx_thread = ThreadPoolExecutor(1, thread_name_prefix=f"tidings-{self.name}-tx")
        return self._tx_thread

    async def _run_serial(self) -> None:
        """Handlers that share the store's one write transaction: batches of them in one thread, in the log's order."""
        while True:
            batch: list[Context] = []
            while len(batch) < (self._batch if self._shared and self._pace is None else 1) and (ctx := self._take()) is not None:
                batch.append(ctx)
            if not batch:
                await self._sleep()
                continue
            if self._pace is not None and (pause := self._pace.wait()) > 0:
                await asyncio.sleep(pause)
            self._running += 1
            self._in_batch = batch
            abandoned: asyncio.Future[Context] = self._loop.create_future()
            self._tx_abandoned = abandoned
            work = self._loop.run_in_executor(self._tx_pool(), self._transact, batch)
            either: list[asyncio.Future[Any]] = [work, abandoned]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    self._abandon(work, abandoned.result(), batch)
                    continue
                committed, rest = work.result()
            except _FencedBatch as fenced:
                for lane in fenced.lanes:
                    self.drop(lane)
                self._again(batch)
                continue
            except Exception as error:
                if self._store.is_busy(error) or isinstance(error, StoreError):
                    self._again(batch)
                    self._batch = max(1, len(batch) // 2)
                    await self._in_trouble(error)
                else:
                    self._fail_alone(batch, error)
                continue
            finally:
                self._running -= 1
                self._tx_running = None
                self._in_batch = []
            self._again(rest)
            self._batch = min(SHARED_SIZE, self._batch * 2)
            for ctx in committed.batch:
                self._finished(ctx)
            self._settle(committed)

    def _abandon(self, work: asyncio.Future[Any], ctx: Context, batch: list[Context]) -> None:
        """A handler hangs in its transaction: its connection was closed, which undid the batch and freed the file."""
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        pool, self._tx_thread = self._tx_thread, None
        assert pool is not None
        key = ctx.key_id
        self._stuck[key] = (time.monotonic(), ctx)

        def ended(_: object) -> None:
            self._stuck.pop(key, None)
            pool.shutdown(wait=False)
            self._on_due()

        work.add_done_callback(ended)
        self._again([other for other in batch if other is not ctx])
        self._finish(ctx)

    def _fail_alone(self, batch: list[Context], error: BaseException) -> None:
        """The transaction was rolled back. One event: it failed. Several: the commit itself failed, and each is tried alone."""
        if len(batch) == 1:
            self._fail(batch[0], error)
            self._finish(batch[0])
        else:
            self._again(batch)
            self._batch = 1

    def _again(self, batch: Sequence[Context]) -> None:
        """Back to the front, as if they had never been taken."""
        for ctx in reversed(batch):
            ctx.published = ctx.outputs = ctx.failure = ctx.tx = None
            ctx.settling = False
            if not ctx.lane.kept:
                self._forget(ctx)
            elif ctx.parked:
                self._urgent.appendleft(ctx)
            else:
                self._ready.appendleft(ctx)
        self._signal_idle()

    def _transact(self, batch: list[Context]) -> tuple[Committed, list[Context]]:
        """In a thread: handlers one after another in one transaction, then their checkpoint, then commit. The second part: not begun."""
        kind = batch[0].handler.tx
        assert kind is not None
        with self._transactions.begin(kind) as transaction:
            if self._shared:
                done = self._share(batch, transaction)
            else:
                ctx = batch[0]
                if ctx.parked or ctx.key_id not in self._parked:
                    self._call_in(ctx, transaction)
                else:
                    ctx.failure = FOLLOWS
                done = 1
            transaction.settle()
            committed = self._commit(self._store.unit(transaction.raw), batch[:done])
            if committed.fenced:
                raise _FencedBatch(committed.fenced)
            transaction.after.append(committed.apply)
        return committed, batch[done:]

    def _share(self, batch: list[Context], transaction: Transaction) -> int:
        """How many of the batch were handled before the time was over. A savepoint each ``CHUNK``; a chunk in which one fails is undone
        and done again one by one, so that only that one is rolled back."""
        until = time.monotonic() + SHARED_SECONDS
        failed: set[Any] = set()
        at = 0
        while at < len(batch) and (at == 0 or time.monotonic() < until):
            chunk = batch[at : at + CHUNK]
            try:
                with transaction.savepoint():
                    for ctx in chunk:
                        if not ctx.parked and (ctx.key_id in self._parked or ctx.key_id in failed):
                            ctx.failure = FOLLOWS
                        else:
                            self._call_in(ctx, transaction)
            except Exception as error:
                if transaction.aborted or self._store.is_busy(error) or isinstance(error, StoreError):
                    raise
                done = self._one_by_one(chunk, transaction, failed)
                if done < len(chunk):
                    return at + done
            at += len(chunk)
        return at

    def _one_by_one(self, chunk: list[Context], transaction: Transaction, failed: set[Any]) -> int:
        """How many were ended: all, but with ``order="log"`` nothing behind one that failed."""
        for done, ctx in enumerate(chunk, 1):
            ctx.published = ctx.outputs = ctx.failure = None
            if not ctx.parked and (ctx.key_id in self._parked or ctx.key_id in failed):
                ctx.failure = FOLLOWS
                continue
            try:
                with transaction.savepoint():
                    self._call_in(ctx, transaction)
            except Exception as error:
                if transaction.aborted or self._store.is_busy(error):
                    raise
                self._fail(ctx, error)
                if self._order == "log":
                    return done
                failed.add(ctx.key_id)
        return len(chunk)

    def _call_in(self, ctx: Context, transaction: Transaction) -> None:
        handler = ctx.handler
        event = self._decode(ctx)
        if handler.where is not None and not handler.where(event):
            return
        ctx.tx = transaction.tx
        current.set(ctx)
        self._tx_running = (time.monotonic(), ctx, transaction)
        try:
            with transaction.guard.closed(handler.name):
                result = handler.call([event] if handler.takes_list else event, ctx)
            enlist.flush(transaction.tx)
        finally:
            ctx.tx = None
        if result is not None or ctx.published is not None:
            self._collect(ctx, result)

    async def _run_lists(self) -> None:
        """A handler that takes a list: up to ``size`` events, or what has come within ``age`` seconds."""
        options = self.subscription.options
        waiting: list[Context] = []
        since = 0.0
        while True:
            while len(waiting) < options.size and not any(ctx.parked for ctx in waiting) and (ctx := self._take()) is not None:
                if not waiting:
                    since = time.monotonic()
                if ctx.parked and waiting:
                    self._urgent.appendleft(ctx)
                    break
                waiting.append(ctx)
            for ctx in [ctx for ctx in waiting if not ctx.lane.kept]:
                waiting.remove(ctx)
                self._forget(ctx)
            left = options.age - (time.monotonic() - since)
            if not waiting or (
                len(waiting) < options.size and left > 0 and not waiting[0].parked and not self._stopping and not self._urgent
            ):
                sleeper = asyncio.ensure_future(self._sleep())
                await asyncio.wait({sleeper}, timeout=left if waiting else None)
                sleeper.cancel()
                if self._stopping and waiting:
                    self._again(waiting)
                    waiting = []
                continue
            batch, waiting = waiting, []
            await self._run_list(batch)

    async def _run_list(self, batch: list[Context]) -> None:
        handler = batch[0].handler
        self._running += 1
        self._in_batch = batch
        self._started[0] = (time.monotonic(), batch[0])
        chosen: list[Context] = []
        try:
            for ctx in batch:
                if not ctx.parked and ctx.key_id in self._parked:
                    ctx.failure = FOLLOWS
                    continue
                try:
                    event = self._decode(ctx)
                    if handler.where is None or handler.where(event):
                        chosen.append(ctx)
                except Exception as error:
                    self._fail(ctx, error)
                    if self._order == "key":
                        self._parked.add(ctx.key_id)
            if chosen:
                last = chosen[-1]
                last.each = chosen
                if self._pace is not None:
                    await asyncio.sleep(sum(self._pace.wait() for _ in chosen[:1]))
                try:
                    if handler.tx is not None and handler.is_async:
                        await self._list_committed(await self._transact_async(chosen), batch, chosen)
                        return
                    if handler.tx is not None:
                        committed = await self._loop.run_in_executor(self._tx_pool(), self._transact_list, chosen)
                        await self._list_committed(committed, batch, chosen)
                        return
                    events = [self._decode(ctx) for ctx in chosen]
                    if handler.is_async:
                        current.set(last)
                        self._collect(last, await handler.call(events, last))
                    else:
                        self._collect(last, await self._in_thread(handler.call, events, last))
                except _FencedBatch as fenced:
                    for lane in fenced.lanes:
                        self.drop(lane)
                    self._again(chosen)
                    batch = [ctx for ctx in batch if ctx not in chosen]
                except asyncio.CancelledError as error:
                    self._cancelled(batch[0], error)
                    for ctx in chosen:
                        self._fail(ctx, HandlerTimeout(f"{handler.name} ran for longer than {self._timeout} s"))
                except Exception as error:
                    if self._store.is_busy(error) or isinstance(error, StoreError):
                        self._again(chosen)
                        batch = [ctx for ctx in batch if ctx not in chosen]
                        await self._in_trouble(error)
                    else:
                        for ctx in chosen:  # each is tried again alone, so that the one at fault is found
                            ctx.outputs = ctx.published = None
                            self._fail(ctx, error)
        finally:
            self._running -= 1
            self._in_batch = []
            self._started.pop(0, None)
            self._signal_idle()
        for ctx in batch:
            self._finish(ctx)

    async def _list_committed(self, committed: Committed, batch: list[Context], chosen: list[Context]) -> None:
        for ctx in chosen:
            self._finished(ctx)
        self._settle(committed)
        for ctx in batch:
            if ctx not in chosen:
                self._finish(ctx)

    def _transact_list(self, chosen: list[Context]) -> Committed:
        handler, last = chosen[0].handler, chosen[-1]
        assert handler.tx is not None
        with self._transactions.begin(handler.tx) as transaction:
            current.set(last)
            for ctx in chosen:
                ctx.tx = transaction.tx
            with transaction.guard.closed(handler.name):
                result = handler.call([self._decode(ctx) for ctx in chosen], last)
            enlist.flush(transaction.tx)
            self._collect(last, result)
            transaction.settle()
            committed = self._commit(self._store.unit(transaction.raw), chosen)
            if committed.fenced:
                raise _FencedBatch(committed.fenced)
            transaction.after.append(committed.apply)
        return committed

    def _decode(self, ctx: Context) -> Any:
        event_type = ctx.handler.event_type
        row = ctx.row
        shared = self.subscription.decoded
        if event_type.shareable and shared is not None:
            found = shared.get((event_type.cls, row[POSITION]))
            if found is not None:
                return found
        try:
            event = event_type.decode(row[DATA])
        except Exception as error:
            raise UndecodableEvent(
                f"event {row[POSITION]} ({row[TYPE]} version {row[4]}) does not fit {event_type.cls.__name__}: {error}",
                position=row[POSITION],
                type=row[TYPE],
            ) from error
        if event_type.shareable and shared is not None:
            shared.put((event_type.cls, row[POSITION]), event)
        return event

    def _collect(self, ctx: Context, result: Any) -> None:
        """What the handler returned and published, as rows; an event that can't be published is the handler's failure."""
        outputs: list[tuple[Any, int | None]] = []
        for event, at, after, headers in ctx.published or ():
            outputs.append((self._publisher.envelope(event, headers=headers, cause=ctx), self._publisher.due(at, after)))
        if result is not None:
            for event in result if isinstance(result, (list, tuple)) else (result,):
                outputs.append((self._publisher.envelope(event, cause=ctx), None))
        ctx.outputs = outputs or None

    def _fail(self, ctx: Context, error: BaseException) -> None:
        final = isinstance(error, UndecodableEvent)
        ctx.failure = Failure(error, None if final else self._retry.delay(ctx.attempt, error, self._rng))
        ctx.published = ctx.outputs = None
        log.info("%s: event %d, attempt %d: %s", self.name, ctx.row[POSITION], ctx.attempt, describe(error))

    # -- ends

    def _finish(self, ctx: Context) -> None:
        """A handler has ended; its end is still to be written."""
        self._done.append(ctx)
        if ctx.failure is not None or ctx.parked:
            self._unsettled[ctx.key_id] += 1
            if ctx.failure is not None:
                self._parked.add(ctx.key_id)
            self._urgent_flush = True
        elif ctx.outputs is not None:
            self._urgent_flush = True
        self._finished(ctx)
        if not self._flushing and (self._urgent_flush or len(self._done) >= FLUSH_SIZE or self._window == 0):
            self._flush()
        elif self._flush_timer is None:
            self._flush_timer = self._loop.call_later(self.subscription.options.checkpoint_age, self._flush)

    def _finished(self, ctx: Context) -> None:
        """What follows it may begin."""
        if ctx.parked:
            self._heads_running.discard(ctx.key_id)
            return
        self._leave_window(ctx)
        if ctx.failure is None:
            self.handled += 1
        self._next_of_key(ctx)

    def _next_of_key(self, ctx: Context) -> None:
        key = ctx.key_id
        chains = self._chains
        if key in chains:
            chain = chains[key]
            if chain:
                self._ready.append(chain.popleft())
                self._kick()
            else:
                del chains[key]

    def _flush(self) -> None:
        """Hand what has ended to the writer; one at a time, and meanwhile the next gathers."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._flushing or not self._done:
            return
        batch, self._done = self._done, []
        self._flushing, self._urgent_flush = batch, False
        try:
            future = self._store.write(lambda unit: self._commit(unit, batch), Committed.apply)
        except StoreError as error:
            self._flushing = []
            self._done = batch + self._done
            log.error("%s: %s", self.name, error)
            return
        future.add_done_callback(lambda done: self._on_loop(lambda: self._flushed(batch, done)))

    def _flushed(self, batch: list[Context], future: Future[Committed]) -> None:
        self._flushing = []
        error = future.exception()
        if error is not None:
            # Full disk, a locked file: what has ended stays in memory and is written once the store works again.
            self._done = batch + self._done
            self._note_trouble(error)
            self._flush_timer = self._loop.call_later(0.5, self._flush)
            return
        self.trouble = None
        self._settle(future.result())
        if self._urgent_flush or len(self._done) >= FLUSH_SIZE or (self._done and self._window == 0):
            self._flush()
        self._signal_idle()

    def _commit(self, unit: Any, batch: list[Context]) -> Committed:
        """Checkpoints, parked rows and follow-up events of a batch, in the transaction of ``unit``. May run twice for one batch."""
        result = Committed(batch)
        by_lane: dict[LaneState, set[int]] = {}
        special: list[Context] = []
        for ctx in batch:
            finished = by_lane.get(ctx.lane)
            if finished is None:
                finished = by_lane[ctx.lane] = set()
            if ctx.parked:
                special.append(ctx)
            else:
                finished.add(ctx.row[POSITION])
                if ctx.failure is not None or ctx.outputs is not None:
                    special.append(ctx)
        cursor = self.cursor
        fenced = unit.advance(self.name, self.worker, [lane.checkpoint(finished, cursor) for lane, finished in by_lane.items()])
        if fenced:
            result.fenced = [lane for lane in by_lane if lane.lane in fenced]
        result.finished = [(lane, finished) for lane, finished in by_lane.items() if lane not in result.fenced]
        if special:
            self._commit_special(unit, [ctx for ctx in special if ctx.lane not in result.fenced], result)
        return result

    def _commit_special(self, unit: Any, batch: list[Context], result: Committed) -> None:
        now = self._now()
        touched: dict[Any, Context] = {}
        for ctx in batch:
            if ctx.failure is not None:
                row = parked_row(ctx, now, self._holds)
                unit.park(row)
                touched[ctx.key_id] = ctx
                if ctx.failure.error is not None:
                    outcome = "dead" if ctx.failure.delay is None else "retry"
                    unit.record_attempt(FailedAttempt(self.name, ctx.row[POSITION], ctx.attempt, now, self.worker, outcome, row.error))
            elif ctx.parked:
                unit.unpark(self.name, ctx.row[POSITION])
                touched[ctx.key_id] = ctx
        for key, ctx in touched.items():
            result.keys.append((key, unit.key_state(self.name, ctx.row[LANE], key, now)))
        outputs = [
            output for ctx in batch for output in ctx.outputs or ()
        ]  # last: on other stores an INSERT holds readers back until the commit
        unit.append([envelope for envelope, due in outputs if due is None])
        for envelope, due in outputs:
            if due is not None:
                unit.schedule(envelope, due)
        result.published = len(outputs)

    def _settle(self, committed: Committed) -> None:
        """On the loop, behind the commit."""
        for lane in committed.fenced:
            self.drop(lane)
        probe = False
        failures, last = 0, None
        for ctx in committed.batch:
            failure = ctx.failure
            if failure is None and not ctx.parked:
                continue
            key = ctx.key_id
            if self._unsettled[key] > 1:
                self._unsettled[key] -= 1
            else:
                self._unsettled.pop(key, None)
            if failure is None:
                self.handled += 1
                probe = True
            elif failure.error is not None:
                self.failed += 1
                self.dead += failure.delay is None
                failures += 1
                last = failure.error
        self.health.note(len(committed.batch) - failures, failures, last)
        self.published += committed.published
        self._probe_succeeded = self._probe_succeeded or probe
        for key, state in committed.keys:
            self._apply(key, state)
        if committed.keys:
            self._review()
        self._signal_idle()
        self._kick()

    # -- parked keys

    def _apply(self, key: Any, state: KeyState) -> None:
        if self.lanes[state.lane] is None:
            return
        if state.state == "free":
            self._heads.pop(key, None)
            if not self._unsettled.get(key):
                self._parked.discard(key)
            return
        self._parked.add(key)
        if state.state == "retry" and key not in self._heads_running:
            self._heads[key] = state
            self._sequence += 1
            heapq.heappush(self._due, (self._clock.monotonic() + state.due_in, self._sequence, key, state))
            self._arm_due()

    def _arm_due(self) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        if self._due and not self._stopping:
            self._due_timer = self._loop.call_later(max(0.0, self._due[0][0] - self._clock.monotonic()), self._on_due)

    def poke(self) -> None:
        """Time may have moved (a manual clock)."""
        self._on_due()

    def _on_due(self) -> None:
        """Fetch the parked rows whose time has come."""
        now = self._clock.monotonic()
        due: list[tuple[Any, KeyState]] = []
        later = []
        while self._due and self._due[0][0] <= now and len(due) < 100:
            entry = heapq.heappop(self._due)
            _, _, key, state = entry
            if self._heads.get(key) is not state:
                continue
            if key in self._stuck or self._paused:
                later.append((now + 0.5, *entry[1:]))
                continue
            self._heads.pop(key)
            self._heads_running.add(key)
            due.append((key, state))
        for entry in later:
            heapq.heappush(self._due, entry)
        self._arm_due()
        if due and not self._stopping:
            self._tasks.append(self._loop.create_task(self._load(due)))
            self._tasks = [task for task in self._tasks if not task.done()]

    async def _load(self, due: list[tuple[Any, KeyState]]) -> None:
        try:
            rows = await self._loop.run_in_executor(
                None, self._store.query, lambda unit: [unit.parked_row(self.name, state.position) for _, state in due]
            )
        except TidingsError as error:
            self._note_trouble(error)
            for key, state in due:
                self._heads_running.discard(key)
                state.due_in = 1.0
                self._apply(key, state)
            return
        for (key, state), row in zip(due, rows, strict=True):
            lane = self.lanes[state.lane]
            handler = None if row is None else self._handlers.get(row.envelope.type)
            if lane is None or row is None or row.state != "retry" or handler is None:
                self._heads_running.discard(
                    key
                )  # dropped or changed by an operator: `refresh` follows; or no handler any more: it stays parked
                continue
            ctx = Context(tuple(row.envelope), self.name, handler, lane, key)
            ctx.parked = True
            ctx.attempt = row.attempts + 1
            self._urgent.append(ctx)
        self._kick()

    def _review(self) -> None:
        """Hold reading, or go on, as the number of parked keys and the failures say."""
        before = self.health.reason
        reason = self.health.review(len(self._parked), self._probe_succeeded)
        self._probe_succeeded = False
        if reason != before:
            now = self._now()
            self._store.write(lambda unit: unit.set_held(self.name, reason, now))
            log.warning("%s: %s", self.name, f"held: {reason}" if reason else "goes on")
            self._wake_reader()
            self._kick()

    def _key_of_state(self, state: KeyState) -> Any:
        if self._order == "log":
            return None
        return state.key if self._order == "key" else state.position

    # -- housekeeping

    async def _watch(self) -> None:
        """One watchdog over started times; a timer for each event would cost half of everything."""
        assert self._timeout is not None
        crew = {int(task.get_name().rsplit("-", 1)[1]): task for task in self._tasks if task.get_name().rsplit("-", 1)[1].isdigit()}
        while True:
            await asyncio.sleep(min(self._timeout / 4, 1.0))
            limit = time.monotonic() - self._timeout
            for number, (started, ctx) in list(self._started.items()):
                if started < limit and ctx.failure is None and not ctx.settling:
                    self._fail(ctx, HandlerTimeout(f"{ctx.handler.name} ran for longer than {self._timeout} s", seconds=self._timeout))
                    task = crew.get(number) or next(task for task in self._tasks if task.get_name() == f"tidings-{self.name}")
                    task.cancel()
            running = self._tx_running
            if running is not None and running[0] < limit and self._tx_abandoned is not None and not self._tx_abandoned.done():
                _, ctx, transaction = running
                if not self._transactions.abort(transaction):
                    continue
                self._fail(ctx, HandlerTimeout(f"{ctx.handler.name} ran for longer than {self._timeout} s", seconds=self._timeout))
                self._tx_abandoned.set_result(ctx)

    def _sweep_soon(self) -> None:
        if time.monotonic() - self._last_sweep > SWEEP_SECONDS:
            self.sweep()

    def sweep(self) -> None:
        """Write the position of lanes in which nothing of ours came by, so that status and retention see them pass."""
        self._last_sweep = time.monotonic()
        cursor = self.cursor
        lanes = [lane for lane in self.held_lanes() if lane.swept < cursor and lane.start <= cursor and not lane.recovered]
        if not lanes:
            return

        def job(unit: Any) -> list[int]:
            return unit.advance(self.name, self.worker, [lane.checkpoint((), cursor) for lane in lanes])  # type: ignore[no-any-return]

        for lane in lanes:
            lane.swept = cursor
        try:
            self._store.write(job).add_done_callback(lambda done: self._on_loop(lambda: self._swept(lanes, done)))
        except StoreError:
            return

    def _swept(self, lanes: list[LaneState], future: Future[list[int]]) -> None:
        if future.exception() is not None:
            for lane in lanes:
                lane.swept = 0
            return
        for lane in lanes:
            if lane.lane in future.result():
                self.drop(lane)

    def outstanding(self) -> int:
        """Work that would happen without time passing: for tests that settle by counting."""
        now = self._clock.monotonic()
        due = sum(1 for at, _, key, state in self._due if at <= now and self._heads.get(key) is state)
        working = self._running + len(self._done) + len(self._flushing) + len(self._urgent) + len(self._heads_running) + due
        if not self._paused and self.health.reason is None and not (self._order == "log" and None in self._parked):
            working += self._window
        return working

    def stuck(self) -> list[dict[str, Any]]:
        """Threads that ran past their timeout and go on."""
        now = time.monotonic()
        return [
            {"handler": ctx.handler.name, "position": ctx.row[POSITION], "seconds": round(now - since, 1)}
            for since, ctx in self._stuck.values()
        ]

    @property
    def in_flight(self) -> int:
        return self._running

    @property
    def parked_keys(self) -> int:
        return len(self._parked)

    def _now(self) -> int:
        return int(self._clock.time() * 1_000_000)

    def _on_loop(self, step: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(step)
        except RuntimeError:  # the loop is closed; what was committed is committed
            return

    def _signal_idle(self) -> None:
        self._idle.set()
        self.changed()

    def _note_trouble(self, error: BaseException) -> None:
        text = describe(error)
        if text != self.trouble:
            log.warning("%s: %s", self.name, text)
        self.trouble = text

    async def _in_trouble(self, error: BaseException) -> None:
        self._note_trouble(error)
        await asyncio.sleep(0.05 + 0.2 * self._rng.random())
