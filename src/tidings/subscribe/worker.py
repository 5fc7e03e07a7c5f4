"""The worker: one process's share of the lanes, and the loops that keep it.

It renews one lease for the whole process, claims and gives back lanes so that every living worker has its fair share, publishes what was
scheduled, trims what everyone has passed, and tells its runners when the log has grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ..clock import Clock, SystemClock
from ..envelope import LANES
from ..errors import LogWentBack, StoreError
from ..store.port import Lane, SomeWaker, SubscriptionRow, WorkerRow
from .backlog import Backlog, Held, held_by, lapse_if_due, lapsed_text, limit_in
from .caution import Turn
from .checkpointing import Quiet
from .runner import Runner, groups_of
from .sharing import able, fair_share, to_give_back, whole_groups
from .tail import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..publish.publisher import Publisher
    from ..store.port import SomeTransactions, Store
    from .sharer import Beside, Sharer
    from .subscription import Subscription

log = logging.getLogger("tidings.worker")

CONTROL_SECONDS = 0.25
"""An operator's command is seen at the latest this long after the next commit, or at the next renewal."""
CONDENSE_SECONDS = (0.1, 1.0, 60.0)
"""Pace of condensing blocks of the log (search.py): when everything is handled, when not, and when no block was full."""
TRIM_CHUNK = 5_000
TRIM_SECONDS = 5.0
UPKEEP_SECONDS = 30.0
WATCH_SECONDS = 60.0
"""How often a worker looks at what subscriptions keep from being trimmed."""
LEAVE_SECONDS = 5.0
"""A worker that ends waits so long for a store that doesn't answer, and then lets its lease run out."""


def _add_block(unit: Any, block: Any) -> None:
    unit.add_block(block)


class Worker:
    """Runs subscriptions of one app in this process.

    Attributes:
        renewed: when the lease was last renewed, on the clock's monotonic reading. trouble: why it could not be since; None if it was.
        beside: what else runs in this process, by name, and what tells its trouble.

    Args:
        lease: seconds after which others take over the lanes of a worker that doesn't renew; renewed each third of it.
        retention: log rows older than this go away once every subscription has passed them; None keeps them.
        alarm: what any subscription of the store, also one that nobody runs, may hold before it is warned of.
        drain: seconds that ``stop`` waits for handlers that run.
        sharers: what else reads lanes, beside the subscriptions.
    """

    def __init__(
        self,
        app: str,
        subscriptions: Sequence[Subscription],
        store: Store,
        publisher: Publisher,
        transactions: SomeTransactions,
        *,
        clock: Clock,
        lease: float = 10.0,
        retention: timedelta | None = None,
        alarm: Backlog | None = None,
        drain: float = 30.0,
        seed: int | None = None,
        sharers: Sequence[Beside] = (),
    ) -> None:
        self.app = app
        self.id = f"{app}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._subscriptions = subscriptions
        self.sharers = {one.name: one for one in sharers}
        self._store = store
        self._publisher = publisher
        self._transactions = transactions
        self._clock = clock
        self.lease = lease
        self._retention = retention
        self._alarm = alarm
        self._alarms: dict[str, str] = {}
        self._lapsed: set[str] = set()
        self._unable: set[str] = set()
        self._drain = drain
        self._rng = random.Random(seed)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="tidings-reader")
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="tidings-lease")  # its own: a read that hangs must not cost the lease
        self._situation: str | None = None
        self._let_go = False
        """Lanes may be ours in the store and not in memory: to be looked at though nothing changed there."""
        self.runners: dict[str, Runner] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._control = -1
        self.renewed = clock.monotonic()
        self.trouble: str | None = None
        self._checked = 0.0
        self._giving_back: dict[str, set[int]] = {}
        self._looking = asyncio.Lock()
        self._hurrying = False
        self._stopping = False
        self._due: int | None = None
        self._waker: SomeWaker | None = None
        self.beside: dict[str, Callable[[], str | None]] = {}
        self.settled = asyncio.Event()
        self._committed = asyncio.Event()

    # -- lifecycle

    async def start(self) -> None:
        """Register the subscriptions, take lanes, begin to read.

        Raises:
            SubscriptionNameTaken, StoreError
        """
        self._loop = asyncio.get_running_loop()
        now = self._now()
        durable = any(handler.tx is None for sub in self._subscriptions for handler in sub.handlers.values())
        turn, quiet = Turn(), Quiet()
        self._tail = tail = Tail(self._store, self._readers, durable=durable)
        await asyncio.wrap_future(self._store.write(lambda unit: self._register(unit, now)))
        for subscription in self._subscriptions:
            runner = Runner(
                subscription,
                self._store,
                tail,
                self._publisher,
                self._transactions,
                self.id,
                self._clock,
                random.Random(self._rng.random()),
                turn,
                quiet,
            )
            runner.changed = self.settled.set
            runner.reached_head = self._on_head
            runner.feed.now = time.monotonic if isinstance(self._clock, SystemClock) else self._clock.monotonic
            runner.feed.expired = self._on_expired
            self.runners[subscription.name] = runner
            runner.start()
        for one in self.sharers.values():
            one.start(self.id, self.lease, self._on_head)
        self._store.on_commit(self._on_commit)
        self._waker = self._store.watch(self._on_wake)
        await self.balance()
        self._tasks = [
            self._loop.create_task(self._keep(), name="tidings-lease"),
            self._loop.create_task(self._schedule(), name="tidings-schedule"),
        ]
        self._tasks.append(self._loop.create_task(self._condense(), name="tidings-condense"))
        self._tasks.append(self._loop.create_task(self._trim(), name="tidings-trim"))
        self._tasks.append(self._loop.create_task(self._watch(), name="tidings-watch"))
        self._waker.arm()

    async def stop(self) -> None:
        """Drain: nothing new begins, what runs ends (at most ``drain`` seconds), checkpoints are written, lanes given back."""
        self._stopping = True
        self._store.off_commit(self._on_commit)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._waker is not None:
            self._waker.disarm()
            await self._loop.run_in_executor(None, self._waker.close)  # the system takes milliseconds to close an inotify descriptor
        keeping = self._loop.create_task(self._keep_lease())
        try:
            async with asyncio.timeout(self._drain):
                await asyncio.gather(*(reader.drain() for reader in self._all()))
        except TimeoutError:
            running = [name for name, runner in self.runners.items() if runner.in_flight]
            if running:
                log.warning("stopped while handlers of %s still ran; their events will be handled again", ", ".join(running))
            else:
                log.warning("stopped before everything was written to the store; what was not will be handled again")
        keeping.cancel()
        await asyncio.gather(*(reader.close() for reader in self._all()))
        await self._transactions.close()  # what still runs there holds the file, perhaps
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await asyncio.wrap_future(self._store.write(self._leave))
        except (StoreError, TimeoutError) as error:
            trouble = str(error) or f"the store has not answered for {LEAVE_SECONDS:.0f} s"
            log.warning("the lease could not be given back, so it has to run out: %s", trouble)
        self._readers.shutdown(wait=False)
        self._keeper.shutdown(wait=False)

    def _leave(self, unit: Any) -> None:
        for runner in self.runners.values():
            runner.part(unit)
        unit.leave(self.id)

    def kill(self) -> None:
        """Stop at once, as a crash would: nothing is written, the lease has to run out. For tests and a second SIGTERM."""
        self._stopping = True
        self._store.off_commit(self._on_commit)
        if self._waker is not None:
            self._waker.close()
        for task in self._tasks:
            task.cancel()
        for reader in self._all():
            reader.kill()

    async def crash(self) -> None:
        """``kill``, and wait until the tasks are gone; for tests, which go on in the same process."""
        self.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in self._all():
            await reader.close()
        self._readers.shutdown(wait=False)
        self._keeper.shutdown(wait=False)

    def _all(self) -> list[Sharer]:
        """Whoever shares lanes in this process."""
        return [*self.runners.values(), *self.sharers.values()]

    def _register(self, unit: Any, now: int) -> None:
        for subscription in self._subscriptions:
            start = subscription.options.start
            if start == "start":
                position = unit.retained()
            elif start == "now":
                position = unit.head()
            elif isinstance(start, datetime):
                position = unit.first_position_at(int(start.timestamp() * 1_000_000))
            else:
                position = min(start, unit.head())
            options, lapse = subscription.options, subscription.options.lapse
            limit = None if lapse is None else lapse.text()
            living = _reading(subscription.name, unit.workers(), self.id)
            living[self.id] = now, list(subscription.handlers)
            if self.id in (can := able(living)) and len(can) < len(living):
                unit.free(subscription.name)  # whoever holds lanes there would pass by what only this one handles, from here on
            unit.register(subscription.name, self.app, list(subscription.handlers), options.order, position, now, limit)
        for one in self.sharers.values():
            one.register(unit, self.app, now)
        self._enrol(unit, now)

    def _enrol(self, unit: Any, now: int) -> None:
        names = (*(subscription.name for subscription in self._subscriptions), *self.sharers)
        row = WorkerRow(self.id, self.app, socket.gethostname(), os.getpid(), now, names, True, self.lease, self._info())
        unit.enrol(row, self._clock.monotonic() + self.lease)

    # -- lanes

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self.lease / 3)
            try:
                await self.balance()
            except StoreError as error:
                self.trouble = f"the lease could not be renewed: {error}"
                log.warning("the lease could not be renewed: %s", error)

    async def _keep_lease(self) -> None:
        """While draining: only the lease."""
        while True:
            await asyncio.sleep(self.lease / 3)
            now = self._clock.monotonic()
            try:
                await asyncio.wrap_future(self._store.write(partial(self._renew, until=now + self.lease, info=self._info())))
                self.renewed, self.trouble = now, None
            except StoreError as error:
                self.trouble = f"the lease could not be renewed: {error}"
                log.warning("%s", self.trouble)

    async def balance(self) -> None:
        """Renew the lease, see what operators want, and take or give back lanes."""
        until = self._clock.monotonic() + self.lease
        info = self._info()
        pulse: tuple[str, int | None] | None = None
        if not self._store.one_writer:  # there it goes with a group of others, and looking costs nothing
            pulse = await self._loop.run_in_executor(self._keeper, self._store.at_once, lambda unit: unit.pulse(self.id, until, info))
        if pulse is not None:
            self.renewed, self.trouble = until - self.lease, None
            situation, due = pulse
            if due is not None and (self._due is None or due < self._due):
                self._committed.set()
            if situation != self._situation or self._let_go or any(self._giving_back.values()):
                self._situation, self._let_go = None, False  # if it fails, it is looked at again; what is let go of meanwhile, too
                await self._look_at_control(force=True)
                self._situation = situation
                for reader in self._all():
                    reader.leased(until)
            else:
                for reader in self._all():
                    reader.prolonged(until)
            return
        self._situation = None
        renewed = await asyncio.wrap_future(self._store.write(lambda unit: self._renew(unit, until, info)))
        if not renewed:  # frozen past the lease: others have the lanes
            for reader in self._all():
                for lane in reader.held_lanes():
                    reader.drop(lane)
            await asyncio.wrap_future(self._store.write(lambda unit: self._enrol(unit, self._now())))
        self.renewed, self.trouble = until - self.lease, None
        await self._look_at_control(force=True)
        for reader in self._all():
            reader.leased(until)

    def _on_expired(self) -> None:
        """A runner wants to go on and the lease is over, or it has let go of lanes: renew it now, and see which are still ours."""
        self._let_go = True
        if not self._hurrying and not self._stopping:
            self._hurrying = True
            self._spawn(self._hurry())

    async def _hurry(self) -> None:
        try:
            await self.balance()
        finally:
            self._hurrying = False

    def _renew(self, unit: Any, until: float, info: dict[str, Any]) -> bool:
        if not unit.renew(self.id, until, info):
            return False
        unit.bury()
        return True

    async def _look_at_control(self, force: bool = False) -> None:
        # One at a time: two that interleave would each judge by a snapshot from before the other's claims.
        async with self._looking:
            await self._look(force)

    async def _look(self, force: bool) -> None:
        self._checked = time.monotonic()
        facts, rows, workers, lanes = await self._loop.run_in_executor(self._readers, self._store.query, self._snapshot)
        control = int(facts["control"])
        changed = control != self._control
        if not changed and not force:
            return
        by_name = {row.name: row for row in rows}
        by_subscription: dict[str, list[Lane]] = {}
        for lane in lanes:
            by_subscription.setdefault(lane.subscription, []).append(lane)
        for one in self.sharers.values():
            one.noted(facts)
        # Side by side, so that what they claim is committed together.
        shares = [
            self._share(reader, by_name.get(reader.name), workers, by_subscription.get(reader.name, []), changed) for reader in self._all()
        ]
        # All of them are waited for: what one has claimed and not taken yet, the next look would find to be nobody's.
        for result in await asyncio.gather(*shares, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        self._control = control
        if not all(worker.alive for worker in workers):
            await asyncio.wrap_future(self._store.write(lambda unit: unit.bury()))

    @staticmethod
    def _snapshot(unit: Any) -> tuple[dict[str, str], list[SubscriptionRow], list[WorkerRow], list[Lane]]:
        return unit.facts(), unit.subscriptions(), unit.workers(), unit.lanes()

    async def _share(self, runner: Sharer, row: SubscriptionRow | None, workers: list[WorkerRow], lanes: list[Lane], changed: bool) -> None:
        """Bring one runner's lanes to this worker's fair share."""
        name = runner.name
        mine = {lane.lane: lane for lane in lanes if lane.worker == self.id}
        for held in runner.held_lanes():
            if held.lane not in mine or mine[held.lane].epoch != held.epoch:
                runner.drop(held)
        if row is None:  # removed by an operator
            return
        orphans = set(mine) - {lane.lane for lane in runner.held_lanes()} - self._giving_back.get(name, set())
        if orphans:  # ours in the store and not in memory: nobody would read them
            await asyncio.wrap_future(self._store.write(lambda unit: unit.release(name, self.id, orphans)))
        self._tell_if_lapsed(row)
        if row.lapsed is not None:  # it has no lanes, so there is nothing to share
            self._giving_back.pop(name, None)
            return
        runner.pause(row.paused)
        giving = self._giving_back.get(name, set())
        if giving:
            await self._hand_over(runner, giving & set(mine))
        alive = [worker for worker in workers if name in worker.subscriptions and (worker.alive or worker.worker == self.id)]
        can = able(_reading(name, workers, self.id))
        self._tell_if_unable(name, {worker.worker for worker in alive} - can)
        alive = [worker for worker in alive if worker.worker in can]
        runner.regroup(min([runner.most_groups, *(worker.info.get("groups", {}).get(name, LANES) for worker in alive)]))
        share = fair_share(self.id, [worker.worker for worker in alive], runner.groups)
        living = {worker.worker for worker in alive} - {self.id}
        others = {lane.lane: lane.worker for lane in lanes if lane.worker is not None and lane.worker in living}
        held_now = {lane.lane for lane in runner.held_lanes()}
        lanes_back = to_give_back(self.id, held_now, others, runner.groups, share)
        if lanes_back:
            runner.give_back(lanes_back)
            self._giving_back.setdefault(name, set()).update(lanes_back)
            await self._hand_over(runner, lanes_back)
        elif len(whole_groups(held_now, runner.groups)) < share and not self._stopping and not self._giving_back.get(name):
            now = self._now()

            def claim(unit: Any) -> tuple[list[Lane], list[Any]]:
                taken = unit.claim(name, self.id, runner.groups, share)
                # Asked behind the claim: there whatever freed the lanes can be seen.
                if self.id not in able(_reading(name, unit.workers(), self.id)):
                    unit.release(name, self.id, [lane.lane for lane in taken])
                    return [], []
                _refuse_future(unit, name, taken)
                return taken, unit.parked_keys(name, [lane.lane for lane in taken], now)

            taken, keys = await asyncio.wrap_future(self._store.write(claim))
            runner.take(taken, keys)
        if changed:
            runner.look_again()

    def _tell_if_lapsed(self, row: SubscriptionRow) -> None:
        if row.lapsed is None:
            self._lapsed.discard(row.name)
        elif row.name not in self._lapsed:
            self._lapsed.add(row.name)
            log.error("%s", lapsed_text(row))

    def _tell_if_unable(self, name: str, unable: set[str]) -> None:
        if self.id not in unable:
            self._unable.discard(name)
        elif name not in self._unable:
            self._unable.add(name)
            log.warning(
                "%s: a worker that handles more of its types runs as well, so this one leaves its events to that one while it lives", name
            )

    async def _hand_over(self, runner: Sharer, lanes: set[int]) -> None:
        """Release those of the lanes in which nothing runs any more; the others at the next look."""
        free = lanes - set(runner.busy_lanes())
        left = self._giving_back.setdefault(runner.name, set())
        left.intersection_update(lanes - free)
        if free:
            await asyncio.wrap_future(self._store.write(lambda unit: runner.release(unit, free)))
        if left:
            self._loop.call_later(0.05, lambda: self._spawn(self._look_at_control(force=True)))

    # -- waking up

    def _on_commit(self) -> None:
        """The writer of this process committed (called in its thread)."""
        try:
            self._loop.call_soon_threadsafe(self._on_committed)
        except RuntimeError:
            return

    def _on_committed(self) -> None:
        self._wake_runners()
        self._plan_to_look()

    def _on_wake(self) -> None:
        # What is scheduled the pulse asks for as well, and more often.
        self._wake_runners(due=self._waker is None or not self._waker.precaution)
        if self._waker is not None and not self._waker.polled:  # an operator's command would have been heard of
            self._plan_to_look()

    def _plan_to_look(self) -> None:
        if self._checked < float("inf"):
            since, self._checked = time.monotonic() - self._checked, float("inf")  # until the look that is now planned
            self._loop.call_later(max(0.0, CONTROL_SECONDS - since), lambda: self._spawn(self._look_at_control()))

    def _wake_runners(self, *, due: bool = True) -> None:
        if due:
            self._committed.set()
        grown = self._tail.grown()
        woken = False
        for runner in self.runners.values():
            if grown or not runner.at_head or runner.feed.fetched < self._tail.end:
                runner.wake()
                woken = True
        for one in self.sharers.values():
            one.wake()
            woken = True
        if not woken:  # else the runners do it, once they have come to the end
            self._on_head()

    def _on_head(self) -> None:
        """A runner has reached the end of the log."""
        if self._waker is not None and not self._stopping:
            self._waker.arm()

    def poke(self) -> None:
        """Look for new rows and due events now; for tests, whose clock moves by hand."""
        self._wake_runners()
        for runner in self.runners.values():
            runner.poke()
        for one in self.sharers.values():
            one.wake()

    def hint(self) -> None:
        """Somebody published in this process, in a transaction that isn't ours."""
        if self._waker is not None:
            self._loop.call_soon_threadsafe(self._waker.hint)

    def _spawn(self, work: Any) -> None:
        if self._stopping:
            work.close()
            return
        task = self._loop.create_task(work)
        self._tasks.append(task)

        def ended(done: asyncio.Task[None]) -> None:
            if done in self._tasks:
                self._tasks.remove(done)
            if not done.cancelled() and (error := done.exception()) is not None:
                log.warning("%s", error)

        task.add_done_callback(ended)

    # -- scheduled events and retention

    async def _schedule(self) -> None:
        """Publish what is due. Asks the store when something was committed, four times a second at most, and when the next is due."""
        while True:
            self._committed.clear()
            pause: float | None = 1.0
            try:
                pause = await self.publish_due()
            except StoreError as error:
                log.warning("scheduled events: %s", error)
            await asyncio.sleep(min(pause or 0.25, 0.25))
            while not self._committed.is_set() and (pause is None or not self._is_due()):
                # Not wait_for: on Python 3.11 it swallows a cancellation that comes in the same moment, and this task would never end.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(60.0 if pause is None else 1.0):
                        await self._committed.wait()

    def _is_due(self) -> bool:
        return self._due is not None and self._due <= self._now() + 1_000_000

    async def publish_due(self) -> float | None:
        """Move what is due into the log; seconds until the next is due, None if nothing is scheduled."""
        due: int | None
        self._due = due = await self._loop.run_in_executor(self._readers, self._store.at_once, lambda unit: unit.next_due())
        now = self._now()
        if due is None:
            return None
        if due > now:
            return (due - now) / 1e6 + 0.001
        moved = await asyncio.wrap_future(self._store.write(lambda unit: unit.release_due(now, 500)))
        return 0.0 if moved else 0.01

    async def _trim(self) -> None:
        """Keep the log in shape, and let go of what is older than the retention. Every worker does; the store sees that one is enough."""
        while True:
            await asyncio.sleep(TRIM_SECONDS if self._retention is not None else UPKEEP_SECONDS)
            try:
                if self._retention is None:
                    await asyncio.to_thread(self._store.upkeep, 0)
                    continue
                before = int((self._clock.time() - self._retention.total_seconds()) * 1_000_000)

                def old(unit: Any, before: int = before) -> int:
                    return min(unit.trimmable(), unit.first_position_at(before))  # type: ignore[no-any-return]

                upto = await self._loop.run_in_executor(self._readers, self._store.query, old)
                await asyncio.to_thread(self._store.upkeep, upto)
                while await self._trim_chunk(upto):  # noqa: ASYNC110 (a pace, not a wait for something)
                    await asyncio.sleep(0.05)
            except StoreError as error:
                log.warning("old events stay for now: %s", error)

    async def _trim_chunk(self, upto: int) -> int:
        # Looked at again in the transaction that deletes: a subscription may have been added or rewound since.
        return await asyncio.wrap_future(self._store.write(lambda unit: unit.trim(min(upto, unit.trimmable()), TRIM_CHUNK)))

    async def _watch(self) -> None:
        """Warn of subscriptions that keep too much of the log from going away, whoever's they are, and let lapse those that may."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self.look_at_backlogs()
            except StoreError as error:
                log.info("what subscriptions hold is not looked at for now: %s", error)

    async def look_at_backlogs(self) -> None:
        """Once. Only where the log is trimmed does anything lapse: nowhere else would it help."""
        now = self._now()

        def look(unit: Any) -> tuple[list[SubscriptionRow], list[Held]]:
            rows = unit.subscriptions()
            return rows, held_by(unit, rows)

        rows, found = await self._loop.run_in_executor(self._readers, self._store.query, look)
        alarms = {held.name: held.words(now) for held in found if self._alarm is not None and self._alarm.passed_by(held, now)}
        for name in alarms.keys() - self._alarms.keys():
            log.warning("%s %s: nothing of that can be trimmed", name, alarms[name])
        self._alarms = alarms
        limits = {row.name: limit_in(row.lapse) for row in rows if row.lapse is not None}
        for held in found if self._retention is not None else ():
            if held.name in limits and limits[held.name].passed_by(held, now):
                let = await asyncio.wrap_future(self._store.write(partial(lapse_if_due, name=held.name, now=now)))
                if let is not None:
                    log.error("%s %s, which is more than it may: it has lapsed", let.name, let.words(now))

    async def _condense(self) -> None:
        """Let ``search`` know full blocks of the log, one at a time. The worker that has lived longest does it for all of the store."""
        idle, busy, pause = CONDENSE_SECONDS
        pace = busy

        def look(unit: Any) -> Any:
            first = next((row.worker for row in unit.workers() if row.alive), None)
            return unit.next_block() if first == self.id else None

        while True:
            await asyncio.sleep(pace)
            block = None
            try:
                reading = self._loop.run_in_executor(None, self._store.query, look)
                try:
                    block = await asyncio.shield(reading)
                except asyncio.CancelledError:
                    await asyncio.wait({reading})  # its connection is closed behind us
                    raise
                if block is not None:
                    await asyncio.wrap_future(self._store.write(partial(_add_block, block=block)))
            except StoreError as error:
                log.info("the log's search stays behind: %s", error)
            pace = pause if block is None else idle if all(runner.at_head for runner in self.runners.values()) else busy

    # -- for tests and status

    def outstanding(self) -> int:
        """Work that will happen without time passing."""
        return sum(runner.outstanding() for runner in self.runners.values() if runner.held_lanes())

    def handling(self) -> list[str]:
        """Names of the handlers that are running."""
        return [ctx.handler.name for runner in self.runners.values() for ctx in runner.crew.handling()]

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "running": sum(reader.in_flight for reader in self._all()),
            "groups": {subscription.name: groups_of(subscription.options) for subscription in self._subscriptions},
            "types": {subscription.name: sorted(subscription.handlers) for subscription in self._subscriptions},
        }
        stuck = {name: runner.stuck() for name, runner in self.runners.items() if runner.stuck()}
        trouble = {reader.name: reader.trouble for reader in self._all() if reader.trouble}
        trouble |= {name: said for name, ask in self.beside.items() if (said := ask())}
        if self._alarms:
            info["alarm"] = self._alarms
        if stuck:
            info["stuck"] = stuck
        if trouble:
            info["trouble"] = trouble
        return info

    def _now(self) -> int:
        return int(self._clock.time() * 1_000_000)


def _reading(name: str, workers: Sequence[WorkerRow], me: str) -> dict[str, tuple[int, Sequence[str]]]:
    """For ``able``: ``me`` and the other living workers of a subscription. What else reads lanes, a relay for example, has no types."""
    return {
        worker.worker: (worker.started, worker.info.get("types", {}).get(name, ()))
        for worker in workers
        if name in worker.subscriptions and (worker.alive or worker.worker == me)
    }


def _refuse_future(unit: Any, name: str, lanes: list[Lane]) -> None:
    """Raise LogWentBack if a lane was read further than positions were given out: what is published next would be taken for handled."""
    read, head = max((lane.position for lane in lanes), default=0), unit.head()
    if read > head:
        raise LogWentBack(
            f"the log ends at position {head}, and the subscription {name!r} has read up to {read}: the log went back in time (restored"
            " without the rest?). `tidings store acknowledge` lets positions go on behind what was read, so that nothing is skipped",
            subscription=name,
            head=head,
            read=read,
        )
