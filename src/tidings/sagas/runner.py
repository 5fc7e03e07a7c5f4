"""An app's sagas in one process: instances that are due are taken from the store and driven, as many at a time as there is room for.

It is one more of those that share a worker's lease (``Beside``), without lanes: each instance's row says who has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..clock import Clock, SystemClock
from ..envelope import Envelope
from ..errors import Fenced, StoreError
from ..event import EventType
from ..store.port import KeyState, Lane
from ..store.sagas import Arrival, Entry, Hold, Look, Release, SagaRow, Start, saga_row, start_values
from .attempt import Attempts, StoreTrouble
from .beginning import Beginning
from .driver import Driver
from .journal_writer import JournalWriter
from .saga import SagaDefinition
from .step import NOTHING

if TYPE_CHECKING:
    from ..publish.publisher import Publisher
    from ..publish.publishing import Publishing
    from ..store.port import SomeTransactions, Store, Unit

T = TypeVar("T")
log = logging.getLogger("tidings.sagas")

AT_ONCE = 128
"""Instances that one worker has in hand at the same time, unless told otherwise; what waits takes no place."""
START_SHARE = 0.75
"""Of its places for those that have just begun; the others are for those that are due and those whose worker died."""
LOOK_SECONDS = 10.0
"""The store is asked this often for what is due, when nothing else tells; and whenever the lease of another worker may be over."""
LAPSE_SECONDS = 0.5
"""For that, no more often than this."""
AGAIN_SECONDS = 1.0
"""The same after trouble with the store."""
FORGET_SECONDS = 30.0
"""Closed instances that are older than the retention are looked for this often,"""
FORGET_CHUNK = 200
"""and so many go in one transaction."""
PAUSE_SECONDS = 0.25
"""After commits of others it is asked no more often than this."""


class RunningSagas:
    """See the module. On the worker's loop.

    Attributes:
        drivers: instances in hand. changed: called when something has ended. lapses: how often the worker's lease was over.
    """

    def __init__(
        self,
        definitions: Mapping[tuple[str, int], SagaDefinition],
        app: str,
        store: Store,
        transactions: SomeTransactions,
        publisher: Publisher,
        type_of: Callable[[type], EventType],
        retention: timedelta | None = None,
        places: int = AT_ONCE,
    ) -> None:
        self._places = places
        self._retention = retention
        self._forgetter: asyncio.Task[None] | None = None
        self.name = f"sagas-{app}"
        self.groups = self.most_groups = 1
        self.trouble: str | None = None
        self.type_of = type_of
        self.rng = random.Random()
        self.journal = JournalWriter(store)
        provided = next((one.provided for one in definitions.values()), NOTHING)  # the app's, of each of them
        self.attempts = Attempts(store, transactions, publisher, self.journal, places, provided)
        self.drivers: set[Driver] = set()
        self.changed: Callable[[], None] = lambda: None
        self.stopping = False
        self._app = app
        self._definitions = dict(definitions)
        self._known = tuple(definitions)
        self._store = store
        self._clock: Clock = store.clock
        self._manual = not isinstance(store.clock, SystemClock)
        self._worker = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._until = 0.0
        self._renewed = asyncio.Event()
        self.lapses = 0
        self._wanted = asyncio.Event()
        self._looking = False
        self._crowded = False
        self._next: int | None = None
        self._starting: dict[tuple[str, str], SagaRow] = {}
        self._doubt = False
        self._control: str | None = None
        self._orders = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._reached_head: Callable[[], None] = lambda: None
        self._later: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._lapse: float | None = None
        self._lease = LOOK_SECONDS

    # -- what the worker tells (Beside)

    def register(self, unit: Unit, app: str, now: int) -> None:
        unit.sagas().unpark(self._known, now)

    def noted(self, facts: Mapping[str, str]) -> None:
        if facts.get("control") != self._control:
            self._control = facts.get("control")
            self._orders += 1
            for driver in self.drivers:
                driver.asked = True
            self.hurry()

    def start(self, worker: str, lease: float, reached_head: Callable[[], None]) -> None:
        self._worker, self._lease, self._reached_head = worker, lease, reached_head
        self._until = self._clock.monotonic() + lease
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.create_task(self._sweep(), name="tidings-sagas")
        if self._retention is not None:
            self._forgetter = self._loop.create_task(self._forget(), name="tidings-sagas-forget")
        self.hurry()

    @property
    def in_flight(self) -> int:
        return len(self.drivers)

    def held_lanes(self) -> Sequence[Any]:
        return ()

    def take(self, lanes: Sequence[Lane], keys: Sequence[KeyState]) -> None: ...
    def drop(self, lane: Any) -> None: ...
    def give_back(self, lanes: set[int]) -> None: ...
    def busy_lanes(self) -> Collection[int]:
        return ()

    def release(self, unit: Unit, lanes: Collection[int]) -> None: ...
    def pause(self, paused: bool) -> None: ...
    def regroup(self, groups: int) -> None: ...
    def look_again(self) -> None: ...

    def leased(self, until: float) -> None:
        self.lapses += self._clock.monotonic() > self._until
        self._until = until
        self._renewed.set()

    def prolonged(self, until: float) -> None:
        self.leased(until)

    def wake(self) -> None:
        """Somebody has committed something; it may be an event for an instance that we can take."""
        self._reached_head()
        loop = asyncio.get_running_loop()
        if self._manual:
            self.hurry()
        elif self._later is None:
            self._later = loop.call_at(max(loop.time(), self._looked + PAUSE_SECONDS), self._look_now)

    def _look_now(self) -> None:
        self._later = None
        self.hurry()

    async def drain(self) -> None:
        self.stopping = True
        self._wanted.set()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        self.kill()
        beside = (one for one in (self._sweeper, self._forgetter) if one is not None)
        await asyncio.gather(*self._tasks, *beside, return_exceptions=True)
        self.attempts.close()

    def kill(self) -> None:
        self.stopping = True
        if self._later is not None:
            self._later.cancel()
        for task in (*self._tasks, *(one for one in (self._sweeper, self._forgetter) if one is not None)):
            task.cancel()

    # -- what drivers need

    def now(self) -> int:
        return int(self._clock.time() * 1_000_000)

    async def query(self, job: Callable[[Any], T]) -> T:
        return await self._asked(self._store.query, job)

    async def _asked(self, ask: Callable[[Callable[[Any], T]], T], job: Callable[[Any], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(None, ask, job)
        except StoreError as error:
            raise StoreTrouble(str(error)) from error

    async def write(self, job: Callable[[Unit], T]) -> T:
        try:
            return await asyncio.wrap_future(self._store.write(job))
        except StoreError as error:
            raise StoreTrouble(str(error)) from error

    async def let_go(self, release: Release) -> bool:
        try:
            return await self.journal.release(release)
        except StoreError as error:
            raise StoreTrouble(str(error)) from error

    def lasts(self, driver: Driver) -> bool:
        """Whether ``owned`` would return at once."""
        return driver.lapses == self.lapses and self._clock.monotonic() <= self._until

    async def owned(self, driver: Driver) -> None:
        """Return when the worker's lease lasts. If it did not for a while, see that the instance is still ours.

        Raises:
            Fenced
        """
        while self._clock.monotonic() > self._until:
            self._renewed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._renewed.wait()
        if driver.lapses != self.lapses:
            hold, driver.lapses = driver.hold, self.lapses
            held = await self.query(lambda unit: unit.sagas().held(self._worker))
            if (hold.saga, hold.key, hold.epoch) not in held:
                raise Fenced(f"another worker holds {hold.saga} {hold.key} now; nothing was written")

    async def free(self, hold: Hold, seconds: float) -> None:
        """Let whoever wants take it after a while, as it is."""
        due = self.now() + int(seconds * 1_000_000)
        self.expect(due)
        try:
            await self.write(lambda unit: unit.sagas().free(hold, due))
        except StoreTrouble:
            self._be_in_doubt()

    def _be_in_doubt(self) -> None:
        """This worker may hold instances in the store of which it knows nothing: look soon."""
        self._doubt = True
        self._wanted.set()

    def expect(self, due: int | None) -> None:
        """Something will be due then; None: it may be now."""
        if due is None or self._next is None or due < self._next:
            self._next = due if due is not None else self._next
            self.hurry()

    def hurry(self) -> None:
        """Look now."""
        self._wanted.set()
        self.changed()

    def called(self, saga: Any) -> SagaDefinition | None:
        """The newest version of a saga, by its name or its function."""
        names = {one.name for one in self._definitions.values() if one.name == saga or one.main is saga}
        return max((one for one in self._definitions.values() if one.name in names), key=lambda one: one.version, default=None)

    # -- taking what is due

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopping:
            self._wanted.clear()
            self._looking = True
            try:
                await self._look()
                self.trouble = None
            except StoreTrouble as error:
                self.trouble = f"sagas that are due can't be looked for: {error}"
                log.warning("%s", self.trouble)
            self._looking = False
            self._looked = loop.time()
            self._reached_head()
            self.changed()
            pause = self._patience()
            if self._next is not None and len(self.drivers) < self._places:
                pause = min(pause, max(0.001, (self._next - self.now()) / 1e6 + 0.001))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

    def _patience(self) -> float:
        """Seconds until the store is asked again, if nobody wants it sooner."""
        if self.trouble is not None or self._doubt or self._clock.monotonic() > self._until:
            return AGAIN_SECONDS
        longest = min(LOOK_SECONDS, self._lease)
        return longest if self._lapse is None else min(longest, max(LAPSE_SECONDS, self._lapse + 0.01))

    async def _look(self) -> None:
        if self._clock.monotonic() > self._until:
            return
        if self._doubt:
            await self._free_what_nobody_drives()
        self._crowded = False
        while (room := self._places - self._places_taken()) > 0:
            now = self.now()
            found, self._next, self._lapse = await self._asked(self._store.at_once, partial(self._ask, now=now))  # one statement
            if not found:
                return
            self._crowded, orders = True, self._orders
            try:
                taken, self._next = await self.write(partial(self._claim, now=now, room=room))
            except StoreTrouble:
                self._doubt = True
                raise
            for row, entries, arrivals in taken:
                self._drive(row, entries, arrivals, orders)
            if len(taken) < room:  # that was all, or somebody else was quicker
                self._crowded = False
                return

    def _ask(self, unit: Unit, now: int) -> Look:
        return unit.sagas().look(self._known, now, self._worker)

    def _claim(self, unit: Unit, now: int, room: int) -> tuple[list[tuple[SagaRow, list[Entry], list[Arrival]]], int | None]:
        sagas = unit.sagas()
        rows = sagas.claim(self._known, self._worker, now, room)
        return [(row, *known) for row, known in zip(rows, sagas.known(rows), strict=True)], sagas.look(self._known, now).due

    async def _free_what_nobody_drives(self) -> None:
        """After trouble with the store the worker may hold instances of which it knows nothing."""
        driven = {(driver.row.saga, driver.row.key) for driver in self.drivers} | self._starting.keys()
        self._doubt = False
        try:
            held = await self.query(lambda unit: unit.sagas().held(self._worker))
        except StoreTrouble:
            self._doubt = True
            raise
        for saga, key, epoch in held:
            # What was begun meanwhile is in hand by now, or it will be.
            mine = driven | {(driver.row.saga, driver.row.key) for driver in self.drivers} | self._starting.keys()
            if (saga, key) not in mine:
                await self.free(Hold(saga, key, self._worker, epoch), 0.0)

    # -- what begins here

    async def begin(self, saga: str, version: int, envelope: Envelope) -> None:
        """Make an instance. If there is room it is in this worker's hands from the first: nobody looks for it, and nothing is read."""
        await self.journal.start(*self._reserve(saga, version, envelope))

    def begin_by(self, publisher: Publisher, saga: str, version: int, envelope: Envelope) -> Publishing:
        """The same for somebody who calls for it on this loop, with what he gets for it."""
        start, settled = self._reserve(saga, version, envelope)
        try:
            return publisher.own(lambda writer: Beginning(start, writer, settled))
        except BaseException:
            settled(None)
            raise

    def on_loop(self) -> bool:
        """Whether it runs, on the loop of whoever asks."""
        return self._loop is not None and not self.stopping and asyncio._get_running_loop() is self._loop

    def _reserve(self, saga: str, version: int, envelope: Envelope) -> tuple[Start, Callable[[bool | None], None]]:
        """A place for it, if there is one. The function is to be called in any case: whether it was made; None if nobody knows."""
        now, instance = self.now(), (saga, str(envelope.key))
        mine = not (
            self.stopping
            or self._crowded
            or self._places_taken() >= self._places * START_SHARE
            or instance in self._starting
            or self._clock.monotonic() > self._until
        )
        start, orders = Start(saga, version, self._app, envelope, now, self._worker if mine else None), self._orders
        if mine:
            self._starting[instance] = saga_row(start_values(start))

        def settled(made: bool | None) -> None:
            row = self._starting.pop(instance) if mine else None
            if made is None:
                self._be_in_doubt()
            elif mine and not made:  # it was there: perhaps made by us before, in a commit of which we weren't told
                self._doubt = True
                self.wake()
            if made and row is not None and not self.stopping:
                self._drive(row, [], [], orders)
            elif made:
                self._doubt = self._doubt or mine
                self.hurry()

        return start, settled

    def _places_taken(self) -> int:
        return len(self.drivers) + len(self._starting)

    def _drive(self, row: SagaRow, entries: list[Entry], arrivals: list[Arrival], orders: int) -> None:
        driver = Driver(self, self._definitions[row.saga, row.version], row, entries, arrivals)
        driver.asked = orders != self._orders  # somebody ordered something while the row was on its way here
        for other in self.drivers:  # after a failover, an earlier hold of ours may be gone from the store
            if other.hold[:2] == driver.hold[:2] and other.task is not None:
                other.task.cancel()
        self.drivers.add(driver)
        task = asyncio.get_running_loop().create_task(driver.run(), name=f"tidings-{row.saga}-{row.key}")
        self._tasks.add(task)
        driver.task = task

        def ended(done: asyncio.Task[None]) -> None:
            full = self._crowded
            self._tasks.discard(done)
            self.drivers.discard(driver)
            if not done.cancelled() and (error := done.exception()) is not None:
                log.error("%s %s: %s", row.saga, row.key, error)
                self._be_in_doubt()
            if full:
                self.hurry()
            self.changed()

        task.add_done_callback(ended)

    # -- what is over

    async def _forget(self) -> None:
        while not self.stopping:
            await asyncio.sleep(FORGET_SECONDS)
            try:
                await self.forget()
            except StoreTrouble as error:
                log.warning("closed sagas stay for now: %s", error)

    async def forget(self) -> int:
        """Let go of instances that were closed before the retention, in chunks; how many."""
        if self._retention is None:
            return 0
        done, before = 0, self.now() - int(self._retention.total_seconds() * 1_000_000)
        while (some := await self.write(lambda unit: unit.sagas().forget(before, self.now(), FORGET_CHUNK))) > 0 and not self.stopping:
            done += some
            await asyncio.sleep(0.02)
        return done

    def definition(self, saga: str, version: int) -> SagaDefinition | None:
        return self._definitions.get((saga, version))

    # -- for tests that settle by counting

    def outstanding(self) -> int:
        """Work that will happen without time passing."""
        if self.stopping:
            return 0
        due = self._store.query(lambda unit: unit.sagas().look(self._known, self.now()).found)
        return self._places_taken() + bool(due) + self._wanted.is_set() + self._looking

    def next_due(self) -> int | None:
        """Microseconds since 1970."""
        return self._store.query(lambda unit: unit.sagas().look(self._known, self.now()).due)
