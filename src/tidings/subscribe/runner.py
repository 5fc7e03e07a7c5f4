"""One subscription in one process: the feed gives events, handlers run, checkpoints are written.

    tail ──rows──▶ feed ──events──▶ crew | serial | lists ──ends──▶ checkpointing ──▶ store
                     ▲                                                   │
                     └───────────────── parked keys ◀────────────────────┘

Nothing is lost between memory and file, because a position stays in its lane's ``open`` set until its end is committed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ..envelope import LANES
from ..errors import Fenced, HandlerDefinitionError, StoreError, UndecodableEvent
from ..publish.publisher import current
from ..store.port import KeyState, Lane, RaisedByHandler
from .caution import Caution, Turn
from .checkpointing import Checkpointing, Committed, Quiet
from .context import DATA, POSITION, TYPE, VERSION, Context
from .crew import Crew
from .feed import Feed
from .lanes import LaneState
from .lists import Lists
from .pace import Pace
from .parked_keys import ParkedKeys
from .parking import Failure, Health, describe
from .serial import Serial
from .sharing import group_of
from .tail import Tail

if TYPE_CHECKING:
    from ..clock import Clock
    from ..publish.publisher import Publisher
    from ..store.port import SomeTransactions, Store, Transaction, Unit
    from .subscription import Options, Subscription

log = logging.getLogger("tidings.subscribe")

SWEEP_SECONDS = 2.0
"""Lanes whose events were all somebody else's get their position written this often."""
DECODED = 8192
DECODED_BYTES = 4 * 1024 * 1024
"""So many decoded events of a class are kept for other subscriptions, and of so much data: as objects they take a few times that."""
SLOW_HOLD_SECONDS = 0.25
"""An async handler that holds the file's write lock for longer is reported."""


def groups_of(options: Options) -> int:
    """Into how many groups a subscription's lanes are divided, as far as it goes by its own options."""
    return 1 if options.order == "log" else min(options.concurrency, LANES)


class LanesLost(Fenced):
    """Some lanes of a batch are somebody else's now; its transaction was rolled back."""

    def __init__(self, lanes: list[LaneState]) -> None:
        super().__init__("the lane is somebody else's now")
        self.lanes = lanes


class Runner:
    """Runs one subscription over the lanes that this process holds."""

    Lost = LanesLost

    def __init__(
        self,
        subscription: Subscription,
        store: Store,
        tail: Tail,
        publisher: Publisher,
        transactions: SomeTransactions,
        worker: str,
        clock: Clock,
        rng: random.Random,
        turn: Turn,
        quiet: Quiet,
    ) -> None:
        options, handlers = subscription.options, subscription.handlers
        self.subscription = subscription
        self.name = subscription.name
        self.worker = worker
        self.store = store
        self.transactions = transactions
        self.order = options.order
        self.timeout = options.timeout
        self.groups = self.most_groups = groups_of(options)
        self.pace = None if options.rate is None else Pace(options.rate, time.monotonic)
        self.health = Health(next(iter(handlers.values())).name, options.max_parked)
        self.trouble: str | None = None
        self.stopping = self.paused = False
        self.at_head = False
        self.handled = self.failed = self.dead = self.published = 0
        self.changed: Callable[[], None] = lambda: None
        self.reached_head: Callable[[], None] = lambda: None
        self._tail = tail
        self._publisher = publisher
        self._clock = clock
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._tx_thread: ThreadPoolExecutor | None = None
        self._tx_turn = asyncio.Lock()
        self._last_sweep = 0.0
        self._probe_succeeded = False
        self._held_written = False
        self._asking = 0
        self._parting: dict[int, tuple[int, int, str | None]] = {}

        lists = any(handler.takes_list for handler in handlers.values())
        serial = not lists and all(handler.tx is not None and not handler.is_async for handler in handlers.values())
        serial = serial and len({handler.tx for handler in handlers.values()}) == 1
        serial = serial and (options.shared_tx or store.one_writer or options.order == "log")
        alone = lists or serial or options.order == "log"
        self.feed = Feed(self.name, handlers, options.order, chained=not alone)
        self.parked = ParkedKeys(self.name, options.order, handlers, store, self.feed, clock)
        self.checkpointing = Checkpointing(
            self.name,
            worker,
            store,
            self.feed,
            clock,
            quiet,
            age=options.checkpoint_age,
            holds=options.on_dead == "hold" and options.order != "none",
            settle=lambda committed: self.settle(committed, counted=True),
            trouble=self._note_trouble,
            post=self.on_loop,
        )
        self._serial = Serial(self, shared=options.shared_tx and serial)
        self.crew: Crew | Serial | Lists
        if lists:
            self.crew = Lists(self, options.size, options.age)
        else:
            self.crew = self._serial if serial else Crew(self, 1 if alone else options.concurrency)
        self.caution = Caution(self, turn)
        self.feed.given_up = self.parked.ended
        self.parked.loaded = self.crew.sleepers.wake
        self.feed.wanted = self._more.set

    # -- lifecycle

    def start(self) -> None:
        """Begin; there is nothing to do before ``take`` has given it lanes."""
        self._reader = self._loop.create_task(self._read(), name=f"tidings-{self.name}-reader")
        self.crew.start()

    async def drain(self) -> None:
        """Begin nothing new, wait for what runs, write the checkpoint."""
        self.stopping = self.feed.closed = self.feed.ended = True
        self.feed.discard(lambda ctx: True)
        self._more.set()
        while self.crew.running or self.checkpointing.outstanding():
            self.checkpointing.flush()
            self._idle.clear()
            if self.crew.running or self.checkpointing.outstanding():
                await self._idle.wait()
        self.sweep()

    async def close(self) -> None:
        """End the tasks."""
        self.kill()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        await self.crew.close()
        await self.caution.close()
        if self._tx_thread is not None:
            self._tx_thread.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        """End the tasks without writing anything, as a crash would."""
        self.stopping = self.feed.closed = self.feed.ended = True
        self.checkpointing.close()
        self.parked.close()
        self.crew.kill()
        self.caution.kill()
        if self._reader is not None:
            self._reader.cancel()

    def ends(self) -> bool:
        """Whether the worker is ending, or the loop, so that a task that was cancelled has to end. What a handler cancels is one task."""
        return self._reader is None or self._reader.done() or self._reader.cancelling() > 0

    def signal(self) -> None:
        """Something has ended."""
        self._idle.set()
        self.changed()

    # -- lanes come and go

    def take(self, lanes: Sequence[Lane], keys: Sequence[KeyState]) -> None:
        """Lanes that this worker has just claimed, and the keys that are parked there."""
        if lanes:
            for row in lanes:
                self._parting.pop(row.lane, None)
            self.feed.add(lanes)
            self.caution.taken()
            self._share_changed()  # first: how many keys may be parked here depends on it
            self.refresh(keys, {row.lane for row in lanes})
            self._more.set()

    def refresh(self, keys: Sequence[KeyState], lanes: set[int]) -> None:
        """All parked rows of these lanes as the store has them now."""
        self.parked.refresh(keys, lanes)
        self._review()
        self._look()

    def give_back(self, lanes: set[int]) -> None:
        """Begin to let go of lanes: nothing of theirs starts any more. ``busy_lanes`` says which can't be released yet."""
        self._parting.update({row[0]: row for row in self.caution.parting(lanes)})
        for number in lanes:
            self.feed.remove(number)
        self.feed.discard(lambda ctx: ctx.lane.lane in lanes)
        self.parked.forget_lost()
        self._share_changed()

    def leased(self, until: float) -> None:
        """The worker's lease holds until then (on the clock's monotonic reading), and lanes that went to others are dropped."""
        self.feed.until = until
        self._look()

    def prolonged(self, until: float) -> None:
        """The same when nothing else has changed: nobody is woken for it."""
        over = self.feed.now() > self.feed.until
        self.feed.until = until
        if over:
            self._look()

    def look_again(self) -> None:
        """An operator has changed something: read the parked rows of our lanes again.

        In the writer's turn, and posted to the loop from there: so it is seen in the same order as every other commit of this process.
        Read beside them, it could undo what was settled since.
        """
        if self.stopping:
            return
        numbers = {lane.lane for lane in self.feed.held()}
        if numbers:
            now = int(self._clock.time() * 1_000_000)
            future = self.store.write(lambda unit: unit.parked_keys(self.name, sorted(numbers), now))
            future.add_done_callback(lambda done: self.on_loop(lambda: self._looked(done, numbers)))

    def _looked(self, future: Future[list[KeyState]], numbers: set[int]) -> None:
        if (error := future.exception()) is not None:
            self._note_trouble(error)
            self._loop.call_later(1.0, self.look_again)
        elif not self.stopping:
            self.refresh(future.result(), numbers)

    def unbegun(self, ctx: Context) -> bool:
        """After a wait between taking and beginning: whether it must not begin any more; then it is given up, and stays open."""
        if not self.stopping and self.holds(ctx.lane):
            return False
        self.feed.release(ctx)
        return True

    def busy_lanes(self) -> set[int]:
        """Lanes with a handler running or an end not yet written."""
        ends = self.checkpointing
        contexts = [*self.crew.handling(), *ends.ended, *ends.writing]
        return {ctx.lane.lane for ctx in contexts} | {lane.lane for lane in ends.dirty}

    def release(self, unit: Unit, lanes: Collection[int]) -> None:
        """Give these lanes away in the store."""
        rows = [self._parting[number] for number in lanes if number in self._parting]
        if rows:
            unit.note_begun(self.name, self.worker, rows)
        unit.release(self.name, self.worker, lanes)

    def part(self, unit: Unit) -> None:
        """The worker ends, and gives all lanes back."""
        if rows := self.caution.parting(range(LANES)):
            unit.note_begun(self.name, self.worker, rows)

    def drop(self, lane: LaneState) -> None:
        """The lane is somebody else's: forget it. What still runs for it is not written."""
        lane.kept = False
        if self.feed.lanes[lane.lane] is lane:
            self.feed.remove(lane.lane)
        self.feed.discard(lambda ctx: ctx.lane is lane)
        self.checkpointing.dirty.discard(lane)
        self.parked.forget_lost()
        self._share_changed()

    def lose(self, lost: LanesLost, batch: Sequence[Context]) -> None:
        """A transaction was rolled back because of these lanes; the rest of its batch is run again."""
        for lane in lost.lanes:
            self.drop(lane)
        self.feed.again(batch)

    def held_lanes(self) -> list[LaneState]:
        return self.feed.held()

    def regroup(self, groups: int) -> None:
        """The number of groups that the living workers go by has changed."""
        if groups != self.groups:
            self.groups = groups
            self._share_changed()

    def pause(self, paused: bool) -> None:
        """Stop or go on by an operator's word; what runs ends."""
        if paused != self.paused:
            self.paused = self.parked.paused = paused
            self._look()

    def _share_changed(self) -> None:
        """Concurrency, rate and limits hold over all workers: each has the part that its groups of lanes stand for."""
        options, groups = self.subscription.options, self.groups
        held = {group_of(lane.lane, groups) for lane in self.feed.held()}
        self.health.most_parked = max(1.0, options.max_parked * len(held) / groups)
        if self.pace is not None and options.rate is not None:
            self.pace.rate = options.rate * len(held) / groups
        if isinstance(self.crew, Crew):
            concurrency = 1 if self.order == "log" else options.concurrency
            self.crew.limit = sum((group + 1) * concurrency // groups - group * concurrency // groups for group in held)

    def _look(self) -> None:
        """Whether ordinary events may be taken; then wake whoever can go on."""
        blocked = self.order == "log" and None in self.parked.keys
        self.feed.closed = self.stopping or self.paused or self.health.reason is not None or blocked
        self._more.set()
        self.crew.sleepers.wake()

    # -- reading

    def wake(self) -> None:
        """There may be something new in the log."""
        self.at_head = False  # until the reader has looked: `outstanding` must not say "nothing" in between
        self._more.set()

    def feed_has_work(self) -> bool:
        """Whether taking may give something."""
        feed = self.feed
        return bool(feed.urgent) or (not feed.closed and not feed.exhausted())

    async def _read(self) -> None:
        feed, more = self.feed, self._more
        while not self.stopping:
            more.clear()
            if feed.closed or not any(lane is not None for lane in feed.lanes):
                self.at_head = False
                self.signal()
                await more.wait()
                continue
            if not feed.wants_rows() or self.crew.stepping:
                self.at_head = False
                self.crew.sleepers.wake()
                await more.wait()
                continue
            after = feed.fetched
            try:
                block, index = await self._tail.read(after)
            except Exception as error:  # whatever it is: a reader that ended would stop the subscription in silence
                await self.in_trouble(error)
                continue
            if after != feed.fetched:
                continue  # lanes came meanwhile, from further back
            if block is not None:
                self.at_head = False
                feed.put(block, index)
                self.crew.sleepers.wake()
            elif not more.is_set():
                self.at_head = True
                if time.monotonic() - self._last_sweep > SWEEP_SECONDS:
                    self.sweep()
                self.signal()
                self.reached_head()
                await more.wait()
        await self._loop.create_future()  # until it is cancelled: see ``ends``

    # -- handling, for crew, serial and lists

    def decode(self, ctx: Context) -> Any:
        """The event, as the handler's class.

        Raises:
            UndecodableEvent
        """
        row, handler = ctx.row, ctx.handler
        shared = handler.decoded
        # The very same data, not only the same position: after a failover a position may be another event's.
        if shared is not None and (known := shared.get(row[POSITION])) is not None and known[0] is row[DATA]:
            return known[1]
        try:
            event = handler.decode(row[DATA])
        except Exception as error:
            raise UndecodableEvent(
                f"event {row[POSITION]} ({row[TYPE]} version {row[VERSION]}) does not fit {handler.event_type.cls.__name__}: {error}",
                position=row[POSITION],
                type=row[TYPE],
            ) from error
        if shared is not None:
            shared.size += len(row[DATA])
            if len(shared) >= DECODED or shared.size > DECODED_BYTES:
                shared.clear()
                shared.size = len(row[DATA])
            shared[row[POSITION]] = row[DATA], event
        return event

    def collect(self, ctx: Context, result: Any) -> None:
        """What the handler returned and published, as rows; an event that can't be published is the handler's failure."""
        outputs: list[tuple[Any, int | None]] = []
        for event, at, after, headers in ctx.published or ():
            outputs.append((self._publisher.envelope(event, headers=headers, cause=ctx), self._publisher.due(at, after)))
        if result is not None:
            returned = result if isinstance(result, (list, tuple)) else (result,)
            if inspect.iscoroutine(result):
                result.close()
                raise HandlerDefinitionError(f"{ctx.handler.name} returned a coroutine: make it `async def`, and what wraps it too")
            outputs += [(self._publisher.envelope(event, cause=ctx), None) for event in returned]
        if outputs:
            ctx.outputs = outputs

    def fail(self, ctx: Context, error: BaseException) -> None:
        """The handler failed: when, and whether, it is tried again."""
        if isinstance(error, RaisedByHandler):
            error = error.error
        final = isinstance(error, UndecodableEvent)  # a day's retries won't change it; a new class and `dead retry` will
        ctx.published = ctx.outputs = None
        self.health.last = error
        ctx.failure = Failure(error, None if final else self.subscription.options.retry.delay(ctx.attempt, error, self._rng))
        position, words = ctx.row[POSITION], describe(error)
        if ctx.failure.delay is not None:
            log.info("%s: event %d, attempt %d: %s", self.name, position, ctx.attempt, words)
        else:
            log.error(
                "%s: event %d becomes a dead letter, attempt %d was its last: %s (`tidings dead show %s %d`)",
                self.name, position, ctx.attempt, words, self.name, position,
            )  # fmt: skip

    def finish(self, ctx: Context) -> None:
        """A handler has ended; its end is still to be written."""
        key = ctx.key_id
        if self.holds(ctx.lane) and (ctx.failure is not None or ctx.parked):
            self.parked.unsettled[key] += 1
            if ctx.failure is not None:
                self.parked.keys[key] = ctx.lane.lane
                if len(self.parked.keys) >= self.health.most_parked:
                    self._review()
                    self._look()
                elif self.order == "log":
                    self._look()
        self.ended(ctx)
        self.checkpointing.end(ctx)

    def holds(self, lane: LaneState) -> bool:
        """Still, or not any more, or again: a lane that was lost and taken again is another hold, to which old events say nothing."""
        return self.feed.lanes[lane.lane] is lane

    def ended(self, ctx: Context) -> None:
        """What follows it may begin."""
        self.feed.release(ctx)
        if ctx.failure is None:
            self.handled += 1

    def ended_plainly(self, batch: Sequence[Context]) -> None:
        """Handlers without a transaction have ended, with nothing to be written but that they did."""
        dirty, release = self.checkpointing.dirty, self.feed.release
        for ctx in batch:
            lane, position = ctx.lane, ctx.row[POSITION]
            lane.open.discard(position)
            if position > lane.high:
                lane.high = position
            dirty.add(lane)
            release(ctx)
        self.handled += len(batch)
        self.checkpointing.ended_plainly(len(batch))

    def _committed(self, committed: Committed) -> None:
        """A handlers' transaction was committed."""
        for key, ctx in committed.touched.items():
            if self.holds(ctx.lane):
                self.parked.keys[key] = ctx.lane.lane
                self.parked.unsettled[key] += 1
        for ctx in committed.batch:
            if self.feed.chained or ctx.parked:
                self.feed.release(ctx)
            if ctx.failure is None:
                self.handled += 1
        self.settle(committed)
        if committed.touched:
            self._ask(committed.touched)

    def _ask(self, touched: dict[Any, Context]) -> None:
        """How keys stand since a handler's transaction has changed them."""
        self._asking += 1
        try:
            future = self.store.write(lambda unit: self.checkpointing.ask(unit, touched))
        except StoreError:  # closed under us
            return
        future.add_done_callback(lambda done: self.on_loop(lambda: self._told(done, touched)))

    def _told(self, future: Future[list[tuple[LaneState, Any, KeyState]]], touched: dict[Any, Context]) -> None:
        self._asking -= 1
        for key, ctx in touched.items():
            if self.holds(ctx.lane):
                self.parked.settled(key)
        if (error := future.exception()) is not None:
            self._note_trouble(error)
            self._loop.call_later(1.0, self.look_again)
            return
        self._apply(future.result())
        self.signal()
        self.crew.sleepers.wake()

    def _apply(self, keys: Sequence[tuple[LaneState, Any, KeyState]]) -> None:
        for lane, key, state in keys:
            if self.holds(lane):
                self.parked.apply(key, state)
        self._review()
        self._look()

    def settle(self, committed: Committed, *, counted: bool = False) -> None:
        """On the loop, behind the commit. ``counted``: ``finish`` has counted its ends as unsettled, so they are taken off again."""
        for lane in committed.fenced:
            self.drop(lane)
        probe = False
        failures, last = 0, None
        if self.caution.running:
            self.caution.ended(committed.batch)
        for ctx in committed.batch:
            failure = ctx.failure
            if failure is None and not ctx.parked:
                continue
            if counted and self.holds(ctx.lane):
                self.parked.settled(ctx.key_id)
            if failure is None:
                probe = True
            elif failure.error is not None:
                self.failed += 1
                self.dead += failure.delay is None
                failures += 1
                last = failure.error
        self.health.note(len(committed.batch) - failures, failures, last)
        self.published += committed.published
        self._note_trouble(None)  # the store works
        self._probe_succeeded = self._probe_succeeded or probe
        if committed.keys or failures:
            self._apply(committed.keys)
        self.signal()
        self.crew.sleepers.wake()

    def _review(self) -> None:
        """Hold reading, or go on, as the number of parked keys and the failures say."""
        before = self.health.reason
        reason = self.health.review(len(self.parked.keys), self._probe_succeeded)
        self._probe_succeeded = False
        if (reason is None) != (before is None) or (reason is not None and not self._held_written):
            self._held_written = reason is not None
            now = int(self._clock.time() * 1_000_000)
            self.store.write(lambda unit: unit.set_held(self.name, reason, now))
            log.warning("%s: %s", self.name, f"held: {reason}" if reason else "goes on")

    # -- transactions, for crew, serial and lists

    async def in_tx_thread(self, ctx: Context) -> None:
        """Run one synchronous handler in its transaction, in a thread; where transactions run one after another anyway, in the one thread
        for these, one at a time, so that none queues behind one that hangs."""
        async with self._tx_turn if self.store.one_writer else nullcontext():
            if self._tx_thread is None:
                threads = 1 if self.store.one_writer else min(self.subscription.options.concurrency, 64)
                self._tx_thread = ThreadPoolExecutor(threads, thread_name_prefix=f"tidings-{self.name}-tx")
            future = self._tx_thread.submit(self._serial.transact, [ctx])
            try:
                await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                if ctx.failure is not None:  # given up; its thread goes on, and its key waits until that has ended
                    if self.store.one_writer:
                        pool, self._tx_thread = self._tx_thread, None
                        pool.shutdown(wait=False)
                    ended = self.parked.stick(ctx, time.monotonic())
                    future.add_done_callback(lambda _: self.on_loop(ended))
                raise

    def give_up(self, ctx: Context, limit: float) -> bool:
        """Undo the transaction of a synchronous handler that has run since before ``limit``; False if it isn't running, or too late."""
        return self._serial.give_up(ctx, limit)

    def commit_in(self, transaction: Transaction, batch: list[Context]) -> Committed:
        """Write the checkpoint of a batch into the handler's own transaction, as its last statements.

        Raises:
            LanesLost: nothing of the transaction may stay.
        """
        transaction.settle()
        committed = self.checkpointing.commit(self.store.unit(transaction.raw), batch)
        if committed.fenced:
            raise LanesLost(committed.fenced)
        # Posted before the turn is handed on, so that the loop hears of all commits of this process in their order: what this one says of
        # a key must not come behind what a later one says.
        transaction.after += [committed.apply, lambda: self.on_loop(lambda: self._committed(committed))]
        transaction.told = committed.published > 0
        return committed

    async def transact_async(self, batch: list[Context], events: list[Any] | None = None) -> Committed:
        """Run an async handler in its transaction; ``events`` for one that takes a list."""
        ctx, handler = batch[-1], batch[-1].handler
        assert handler.tx is not None
        for one in batch:
            one.settling = True  # it waits for its turn, which is not the handler's time
        async with self.transactions.begin_async(handler.tx) as transaction:
            began = time.monotonic()
            for one in batch:
                one.tx = transaction.tx
            event = self.decode(ctx) if events is None else events
            if events is not None or handler.where is None or handler.where(event):
                current.set(ctx)
                self.crew.begun(ctx)
                ctx.settling = False
                with transaction.guard.closed(handler.name):
                    result = await handler.call(event, ctx)
                if ctx.failure is not None:  # timed out, and the handler swallowed the cancellation
                    raise asyncio.CancelledError
                self.crew.settling(ctx)
                if hasattr(transaction.tx, "flush"):
                    await transaction.tx.flush()
                self.collect(ctx, result)
            committed: Committed = await transaction.run(lambda conn: self.checkpointing.commit(self.store.unit(conn), batch))
            if committed.fenced:
                raise LanesLost(committed.fenced)
            transaction.after += [committed.apply, lambda: self._committed(committed)]
            transaction.told = committed.published > 0
            held = time.monotonic() - began
            if held > SLOW_HOLD_SECONDS and self.store.one_writer:
                log.warning(
                    "%s (%s) held the store's write lock for %.1f s, and nobody could publish. Await outside work in a handler without tx.",
                    handler.name,
                    self.name,
                    held,
                )
        return committed

    # -- housekeeping

    def sweep(self) -> None:
        """Write the position of lanes in which nothing of ours came by, so that status and retention see them pass."""
        if self.checkpointing.writes:
            return  # in one group with it, this would write positions that don't know of its ends yet
        self._last_sweep = time.monotonic()
        cursor = self.feed.cursor
        for lane in self.feed.held():
            if lane.recovered and lane.start <= cursor:  # nobody here handles their type any more
                lane.open -= lane.recovered
                lane.recovered.clear()
        lanes = [lane for lane in self.feed.held() if lane.swept < cursor and lane.start <= cursor and not lane.recovered]
        if not lanes:
            return
        for lane in lanes:
            lane.swept = cursor
        try:
            future = self.store.write(lambda unit: unit.advance(self.name, self.worker, [lane.checkpoint((), cursor) for lane in lanes]))
        except StoreError:
            return
        future.add_done_callback(lambda done: self.on_loop(lambda: self._swept(lanes, done)))

    def _swept(self, lanes: list[LaneState], future: Future[list[tuple[int, int]]]) -> None:
        if future.exception() is not None:
            for lane in lanes:
                lane.swept = 0
            return
        for lane in lanes:
            if (lane.lane, lane.epoch) in future.result():
                self.drop(lane)

    def poke(self) -> None:
        """Time may have moved (a manual clock)."""
        self.parked.check()

    def outstanding(self) -> int:
        """Work that would be done without time passing: for tests that settle by counting."""
        parked = 0 if self.paused else len(self.parked.running) + self.parked.due_now()
        working = self.crew.running + self._asking + self.checkpointing.outstanding() + len(self.feed.urgent) + parked
        if not self.feed.closed:
            taken = sum([len(lane.open) for lane in self.feed.held()])  # those that wait for ``rate`` are in nobody's hands yet
            working += self.feed.waiting() + taken + (not self.at_head)
        return working

    def stuck(self) -> list[dict[str, Any]]:
        """Threads that ran past their timeout and go on."""
        now = time.monotonic()
        return [
            {"handler": ctx.handler.name, "position": ctx.row[POSITION], "seconds": round(now - since, 1)}
            for since, ctx in self.parked.stuck.values()
        ]

    @property
    def in_flight(self) -> int:
        """Handlers under way."""
        return self.crew.running

    @property
    def parked_keys(self) -> int:
        return len(self.parked.keys)

    async def again(self, batch: Sequence[Context], error: BaseException) -> None:
        """The store could not do it: the same will be run again, after a moment. Where nobody knows whether it was committed, only what the
        store says has not ended: its lanes are let go, and read anew when they are claimed."""
        if self.store.is_lost(error):
            self.lose(LanesLost(list({ctx.lane for ctx in batch})), batch)
            self.feed.expired()
        else:
            self.feed.again(batch)
        await self.in_trouble(error)

    async def in_trouble(self, error: BaseException) -> None:
        """The store could not do it: note why, and wait a moment."""
        self._note_trouble(error)
        await asyncio.sleep(0.05 + 0.2 * self._rng.random())

    def _note_trouble(self, error: BaseException | None) -> None:
        text = None if error is None else describe(error)
        if text is not None and text != self.trouble:
            log.warning("%s: %s", self.name, text)
        self.trouble = text

    def on_loop(self, step: Callable[[], None]) -> None:
        """Call ``step`` on the loop, from any thread; nothing if the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(step)
        except RuntimeError:  # the loop is closed
            return
