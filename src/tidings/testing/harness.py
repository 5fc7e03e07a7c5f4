"""Apps on a real store with a clock that a test moves: publish, settle, advance, and see what was published and handled.

async def test_what_was_paid_is_shipped() -> None:
    async with Harness(shop) as harness:
        await harness.publish(OrderPlaced(order_id=42, total=Decimal("9.90")))
        await harness.settle()
        assert harness.published(PaymentSucceeded) == [PaymentSucceeded(order_id=42)]
        assert harness.handled(charge_card) == [OrderPlaced(order_id=42, total=Decimal("9.90"))]
"""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

from ..app import App
from ..clock import Clock, ManualClock
from ..envelope import Envelope
from ..errors import ConfigurationError, NotFound, TidingsError
from ..publish.publishing import Receipt
from ..sagas.runner import RunningSagas
from ..store import store_at
from ..store.port import Parked, Scheduled, Store, Unit
from ..store.sagas import SagaRow
from ..subscribe.context import Context
from ..subscribe.middleware import Call as HandlerCall
from ..subscribe.subscription import Subscription
from ..subscribe.worker import Worker
from .faults import Fault, Faults, What

E = TypeVar("E")

STEPS = 10_000
"""One ``advance`` stops at most at this many due times on its way."""
AFTER = 1e-5
"""Seconds behind a due time at which it is over for certain; due times are whole microseconds, clocks are floats."""


class Unsettled(TidingsError, AssertionError):
    """Work was still outstanding when the harness lost its patience. The text says whose."""


class Unkilled(TidingsError, AssertionError):
    """A worker was to be killed at a step that never ran. The text says which."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a handler. ``error`` is what it raised; ``attempt`` is 1 for the first."""

    event: Any
    attempt: int
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that used up its attempts. ``error`` is one line; ``position`` its place in the log."""

    event: Any
    error: str
    attempts: int
    position: int


@dataclass(slots=True)
class _Seen:
    position: int
    call: Call


class Harness:
    """Runs apps together on a store of their own, in a temporary folder unless given, by a ManualClock.

    While it is entered, the apps' own store is not touched. What ``provide`` and ``use`` were given before holds, so a test can replace a
    gateway. Due times, delays and leases are the clock's; a handler's ``timeout``, a list's ``age`` and ``rate`` are real time.

    Args:
        apps: one or more, not running.
        store: where to run instead: the URL of a database that is this test's own (``postgresql://…``), a store on a ManualClock, or a
            function from the clock to a store. What is made there stays.
        transactions: for handlers that ask for another driver's transactions: a function from the path of the temporary store's file (or
            the store's URL) to what ``App(transactions=…)`` takes, or one such function for each app name.
        start: what the clock says first, with a time zone.
        patience: seconds of real time that ``settle`` waits for a worker to tell of any progress before it raises.

    Attributes:
        clock: a ManualClock. path: of the store's file, or the URL of the store that was given; connect to it as your own code would.
        store: the store.
    """

    def __init__(
        self,
        *apps: App,
        store: str | Store | Callable[[Clock], Store] | None = None,
        transactions: Callable[[str], Any] | Mapping[str, Callable[[str], Any]] | None = None,
        start: datetime = datetime(2030, 1, 1, tzinfo=UTC),
        patience: float = 10.0,
    ) -> None:
        if not apps:
            raise ConfigurationError("Harness() needs an app: Harness(shop)")
        if start.tzinfo is None:
            raise ConfigurationError(f"Harness(start={start!r}): give the time zone too, datetime(…, tzinfo=UTC)")
        self.apps = apps
        self.clock = ManualClock(start.timestamp())
        if store is not None and not isinstance(store, str) and not callable(store):
            if not isinstance(store.clock, ManualClock):
                raise ConfigurationError("Harness(store=…): give the store a ManualClock, or give its URL")
            self.clock = store.clock
        self._given = store
        self._transactions = transactions
        self._patience = patience
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._restore: list[Callable[[], None]] = []
        self._seen: dict[str, list[_Seen]] = {}
        self._killed: list[App] = []
        self.faults = Faults()
        self.path = ""
        self.store: Store

    async def __aenter__(self) -> Self:
        given = self._given
        if given is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tidings-")
            self.path = str(Path(self._folder.name) / "store.db")
            given = f"sqlite:///{self.path}"
        if isinstance(given, str):
            self.store = store_at(given, clock=self.clock)
        else:
            self.store = given(self.clock) if callable(given) else given
        self.path = self.path or self.store.url
        self.store.open()
        try:
            for app in self.apps:
                self._borrow(app)
            for app in self.apps:
                await self._start(app)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._end()
        if error is None and (left := [fault for fault in self.faults.planned if fault.times]):
            ended = ", ".join(dict.fromkeys(point.step for point in self.faults.ended)) or "none"
            raise Unkilled(f"kill_{left[0].what}({left[0].name!r}): nobody was killed there; steps that ended: {ended}")

    async def _start(self, app: App) -> None:
        await app.start()
        if app.sagas is not None:
            self.faults.around(app.sagas.attempts, partial(self._kill, app))

    def _kill(self, app: App) -> None:
        if app.worker is not None and app not in self._killed:
            self._killed.append(app)
            app.worker.kill()
            app.worker.settled.set()

    def _borrow(self, app: App) -> None:
        own, given = app.store, app._given_transactions
        source = self._transactions.get(app.name) if isinstance(self._transactions, Mapping) else self._transactions
        app.use_store(self.store, source(self.path) if source is not None else None)
        app._middleware.insert(0, self._record)

        def restore() -> None:
            app._middleware.remove(self._record)
            app.use_store(own, given)

        self._restore.append(restore)

    async def _end(self) -> None:
        for app in self.apps:
            await app.stop()
        for restore in reversed(self._restore):
            restore()
        self._restore.clear()
        self.store.close()
        if self._folder is not None:
            self._folder.cleanup()

    # -- what a test does

    async def publish(
        self,
        event: object,
        *,
        app: App | None = None,
        at: datetime | None = None,
        after: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Publish in a transaction of its own, as ``app`` (the first one unless given)."""
        return await (app or self.apps[0]).publish(event, tx="own", at=at, after=after, headers=headers)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A transaction on the store's file (or database: a psycopg connection), to make tables, to put rows there and to publish with
        them; commits at the end."""
        if self._folder is None:
            with self.store.transaction() as conn:
                yield conn
            return
        conn = sqlite3.connect(self.path)
        try:
            with conn:
                conn.execute("BEGIN IMMEDIATE")
                yield conn
        finally:
            conn.close()

    async def settle(self) -> None:
        """Return when nothing is left to do without time passing: every event was read, handled, and its checkpoint written. If a worker
        dies meanwhile (``kill_after``), another one takes over, once its lease is over.

        Raises:
            Unsettled: for ``patience`` seconds no worker told of any progress.
        """
        await self._settle()
        while self._killed:
            app = self._killed[0]
            await self.crash(app)
            await self.restart(app)

    async def _settle(self) -> None:
        for worker in self._workers():
            worker.poke()
        while not self._killed:
            for worker in self._workers():
                worker.settled.clear()
            left = self.outstanding()
            if not left:
                return
            told = [asyncio.ensure_future(worker.settled.wait()) for worker in self._workers()]
            try:
                done, _ = await asyncio.wait(told, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in told:
                    waiting.cancel()
            if not done:
                what = ", ".join(f"{name} has {count}" for name, count in left.items())
                running = [handler for worker in self._workers() for handler in worker.handling()]
                doing = f"; in the hands of {', '.join(running)}" if running else ""
                raise Unsettled(f"not settled after {self._patience} s: {what} outstanding{doing}", outstanding=left)

    def outstanding(self) -> dict[str, int]:
        """How much work is left to do without time passing, by the name of the subscription; those without any are left out."""
        runners = {name: runner for worker in self._workers() if worker.outstanding() for name, runner in worker.runners.items()}
        counts = {name: runner.outstanding() for name, runner in runners.items() if runner.held_lanes()}
        counts |= {sagas.name: sagas.outstanding() for sagas in self._sagas()}
        return {name: count for name, count in counts.items() if count}

    async def advance(self, seconds: float | timedelta) -> None:
        """Let time pass: stop at everything that falls due on the way (retries, scheduled events), and settle each time.

        Workers that live renew their lease; the lanes of crashed ones go to others once their lease has run out.

        Raises:
            Unsettled: as ``settle``, or there was no end of due times.
        """
        await self.settle()
        until = self.clock.time() + (seconds.total_seconds() if isinstance(seconds, timedelta) else seconds)
        for _ in range(STEPS):
            due = self.next_due()
            step = until if due is None or due > until + AFTER else max(due + AFTER, self.clock.time())
            await self._pass(max(0.0, step - self.clock.time()))
            if step >= until:
                return
        raise Unsettled(f"{STEPS} due times in one advance({seconds}): does a handler schedule events without a delay?")

    async def _pass(self, seconds: float) -> None:
        """Leases go on first: a worker that lives would have renewed them in between."""
        for worker in self._workers():
            await asyncio.wrap_future(self.store.write(partial(_renew, worker.id, self.clock.monotonic() + seconds + worker.lease)))
        self.clock.advance(seconds)
        for worker in self._workers():
            await worker.balance()
            while await worker.publish_due() == 0.0:
                pass
        await self.settle()

    def next_due(self) -> float | None:
        """When something falls due next, in seconds since 1970, by the harness's clock; None if nothing does."""
        now = int(self.clock.time() * 1_000_000)
        scheduled = self.store.query(lambda unit: unit.next_due())
        times = [row.due for row in self._parked(("retry",))] + ([scheduled] if scheduled is not None else [])
        times += [due for sagas in self._sagas() if (due := sagas.next_due()) is not None]
        ahead = [time for time in times if time > now]
        return min(ahead) / 1e6 if ahead else None

    async def crash(self, app: App | None = None) -> None:
        """End an app's worker as SIGKILL would: nothing more is written, its lease has to run out. The first app unless given."""
        app = app or self.apps[0]
        worker, app.worker, app.sagas = app.worker, None, None
        if worker is None:
            raise ConfigurationError(f"the app {app.name!r} isn't running, so it can't crash")
        await worker.crash()
        if app in self._killed:
            self._killed.remove(app)

    async def restart(self, app: App | None = None) -> None:
        """Start a new worker for an app that crashed; the clock moves past the dead one's lease. The first app unless given."""
        app = app or self.apps[0]
        await self._start(app)
        assert app.worker is not None
        await self.advance(app.worker.lease)

    def kill_after(self, step: str, *, times: int = 1) -> None:
        """A saga's worker is to die, as by SIGKILL, as soon as this step is in the journal; ``settle`` and ``advance`` let another one take
        over. Say so before the step runs. If it never does, the harness raises ``Unkilled`` at its end.

        Args:
            step: its name; ``undo charge`` for a step's undo; of several, as ``tidings saga show`` tells it: ``charge (call 2)``.
            times: so many workers.
        """
        self._plan("after", step, times)

    def kill_in(self, step: str, *, times: int = 1) -> None:
        """The same, when the step has been called, and nothing of it is written: what it did outside has happened, and nobody knows."""
        self._plan("in", step, times)

    def _plan(self, what: What, step: str, times: int) -> None:
        self.faults.planned.append(Fault(what, lambda point: point.is_called(step), step, times))

    # -- what a test asks

    def log(self) -> list[Envelope]:
        """Every event in the log, in its order."""
        return self.store.query(lambda unit: unit.select(limit=1_000_000))

    def published(self, cls: type[E]) -> list[E]:
        """The events of a class in the log, in its order. A class without ``type=`` counts under the name of each of the apps."""
        names = {app.type_of(cls).name for app in self.apps}
        decode = self.apps[0].type_of(cls).decode
        return [cast(E, decode(envelope.data)) for envelope in self.log() if envelope.type in names]

    def handled(self, subscription: str | Subscription | Callable[..., Any]) -> list[Any]:
        """The events that a subscription's handlers have handled, and whose end is committed, in the order of handling.

        Args:
            subscription: its name, itself, or the function that handles.

        Raises:
            NotFound: no app has it.
        """
        name = self._name(subscription)
        lanes = {lane.lane: lane for lane in self.store.query(lambda unit: unit.lanes(name))}
        parked = {row.envelope.position for row in self._parked() if row.subscription == name}
        lane_of = {envelope.position: envelope.lane for envelope in self.log()}

        def is_done(position: int) -> bool:
            lane = lanes[lane_of[position]]
            return position <= lane.position and position not in lane.open and position not in parked

        last = {seen.position: seen for seen in self._seen.get(name, ()) if seen.call.error is None and is_done(seen.position)}
        return [seen.call.event for seen in self._seen.get(name, ()) if last.get(seen.position) is seen]

    def calls(self, subscription: str | Subscription | Callable[..., Any]) -> list[Call]:
        """Every call of a subscription's handlers, failed attempts and repeats after a crash included, in the order of their ends."""
        return [seen.call for seen in self._seen.get(self._name(subscription), ())]

    def parked(self, subscription: str | Subscription | Callable[..., Any]) -> list[Parked]:
        """What waits in a subscription: for another attempt, or behind such an event of its key."""
        name = self._name(subscription)
        return [row for row in self._parked(("retry", "waiting")) if row.subscription == name]

    def dead(self, subscription: str | Subscription | Callable[..., Any]) -> list[DeadLetter]:
        """A subscription's dead letters, by position."""
        name = self._name(subscription)
        handlers = self._subscription(name).handlers
        return [
            DeadLetter(_decoded(row, handlers), row.error or "", row.attempts, row.envelope.position)
            for row in self._parked(("dead",))
            if row.subscription == name
        ]

    def scheduled(self) -> list[Scheduled]:
        """What will be published later, the next first."""
        return self.store.query(lambda unit: unit.scheduled())

    def saga(self, name: str, key: object) -> SagaRow:
        """How an instance stands. ``state`` is running, waiting, compensating, stuck, parked, paused, completed, compensated or
        cancelled.

        Raises:
            NotFound: it hasn't begun.
        """
        row = self.store.query(lambda unit: unit.sagas().row(name, str(key)))
        if row is None:
            raise NotFound(f"there is no saga {name!r} of key {key!r} yet")
        return row

    # -- inside

    def _workers(self) -> list[Worker]:
        return [app.worker for app in self.apps if app.worker is not None]

    def _sagas(self) -> list[RunningSagas]:
        return [app.sagas for app in self.apps if app.worker is not None and app.sagas is not None]

    def _parked(self, states: tuple[Literal["retry", "waiting", "dead"], ...] = ()) -> list[Parked]:
        return self.store.query(lambda unit: unit.parked(None, states, 1_000_000))

    def _subscription(self, name: str) -> Subscription:
        return next(app.subscriptions[name] for app in self.apps if name in app.subscriptions)

    def _name(self, asked: str | Subscription | Callable[..., Any]) -> str:
        for app in self.apps:
            for subscription in app.subscriptions.values():
                if asked in (subscription, subscription.name) or any(handler.fn is asked for handler in subscription.handlers.values()):
                    return subscription.name
        names = ", ".join(name for app in self.apps for name in app.subscriptions)
        raise NotFound(f"no app here has the subscription {asked!r}; there are {names or 'none'}")

    def _record(self, call: HandlerCall) -> HandlerCall:
        def recorded(event: Any, ctx: Context) -> Any:
            try:
                result = call(event, ctx)
            except BaseException as error:
                self._note(event, ctx, error)
                raise
            if ctx.handler.is_async and inspect.isawaitable(result):  # else it is what the handler returned, wrongly
                return self._awaited(result, event, ctx)
            self._note(event, ctx, None)
            return result

        return recorded

    async def _awaited(self, result: Any, event: Any, ctx: Context) -> Any:
        try:
            value = await result
        except BaseException as error:
            self._note(event, ctx, error)
            raise
        self._note(event, ctx, None)
        return value

    def _note(self, event: Any, ctx: Context, error: BaseException | None) -> None:
        seen = self._seen.setdefault(ctx.subscription, [])
        for one, its in zip(event, ctx.each, strict=True) if ctx.each is not None else ((event, ctx),):
            seen.append(_Seen(its.position, Call(one, its.attempt, error)))


def _renew(worker: str, until: float, unit: Unit) -> bool:
    return unit.renew(worker, until, None)


def _decoded(row: Parked, handlers: Mapping[str, Any]) -> Any:
    """The event, or its bytes if they fit no class (that may be why it is dead)."""
    handler = handlers.get(row.envelope.type)
    try:
        return row.envelope.data if handler is None else handler.event_type.decode(row.envelope.data)
    except Exception:
        return row.envelope.data
