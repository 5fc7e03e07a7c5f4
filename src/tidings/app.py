"""The composition root: an app is a name, a store, and what subscribes to it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from .brokers import broker_at
from .brokers.port import Broker
from .clock import Clock, SystemClock
from .envelope import Envelope
from .errors import (
    ConfigurationError,
    InvalidEvent,
    LateEvent,
    NotFound,
    SagaDefinitionError,
    StoreBusy,
    SubscriptionNameTaken,
    UndecodableEvent,
)
from .event import EventType
from .publish.publisher import Publisher
from .publish.publishing import Publishing, Receipt
from .relay.intake import Intake, RunningIntake
from .relay.relay import Relay, RunningRelay
from .retry import Retry
from .sagas.operator import Operator
from .sagas.result import Result, Watches, decoder_of
from .sagas.runner import AT_ONCE, RunningSagas
from .sagas.saga import Late, Main, SagaDefinition, define
from .spelling import misspelt, spelled, spelled_options
from .store import store_at
from .store.port import Scheduled, Store
from .store.sagas import CLOSED, START, Start, start_values
from .subscribe.backlog import Backlog
from .subscribe.context import Context
from .subscribe.handler import Decoded, Handler, tell_apart
from .subscribe.middleware import Middleware, wrap
from .subscribe.subscription import F, Given, Options, Subscription
from .subscribe.worker import Worker

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

ALARM = Backlog(timedelta(days=1), 1_000_000)
"""Unless given."""
_NAME = 'a name is letters, digits, - and _, for example "shop"'


@spelled_options
class App:
    """One service: publishes events under its name, and handles those it subscribes to.

    Args:
        name: the CloudEvents ``source`` of its events, and the first part of their type names.
        store: ``sqlite:///shop.db``, ``postgresql://user@host/database``, or a store object.
        transactions: where handlers' transactions come from: a SQLAlchemy engine or sessionmaker, their async twins, a callable that
            returns an aiosqlite connection, or several of these. ``sqlite3.Connection`` needs nothing.
        topic: where its events go between services; its name unless given.
        synchronous: ``FULL`` or ``NORMAL``, see ``SQLiteStore``.
        lease: seconds after which other workers take over from one that is dead or frozen.
        retention: how long events stay in the log after every subscription has passed them; None keeps them.
        alarm: a subscription of this store that holds more of the log than this is warned of in the log and in ``tidings status``.
        drain: seconds that stopping waits for handlers that run.
        clock: tests give a ManualClock.
        broker: ``kafka://host:9092``, or a broker object: what this app publishes goes there, and what others publish comes in from there.
        relay: how it goes there; False: not from here.
        intake: what of it, and how; False for nothing.
        saga_concurrency: instances of sagas that this process has in hand at the same time; one that waits isn't.

    Raises:
        ConfigurationError: something here can't work.
    """

    def __init__(
        self,
        name: str,
        store: str | Store,
        *,
        transactions: Any = None,
        topic: str | None = None,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        lease: float = 10.0,
        retention: timedelta | None = None,
        alarm: Backlog | None = ALARM,
        drain: float = 30.0,
        clock: Clock | None = None,
        broker: str | Broker | None = None,
        relay: Relay | bool = True,
        intake: Intake | bool = True,
        saga_concurrency: int = AT_ONCE,
    ) -> None:
        if not name or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigurationError(f"App({name!r}): {_NAME}")
        if lease < 0.2:
            raise ConfigurationError(f"lease={lease!r}: seconds, 0.2 or more; a worker must be able to renew it in time")
        if retention is not None and not isinstance(retention, timedelta):
            raise ConfigurationError(f"retention={retention!r}: give a timedelta, as in timedelta(days=30), or None")
        if alarm is not None and not isinstance(alarm, Backlog):
            raise ConfigurationError(f"alarm={alarm!r}: give a Backlog(age=…) or Backlog(events=…), or None")
        given: Any = drain  # who doesn't use a type checker may have given anything
        if not isinstance(given, (int, float)) or given < 0:
            raise ConfigurationError(f"drain={drain!r}: seconds, 0 or more")
        if type(saga_concurrency) is not int or saga_concurrency < 1:
            raise ConfigurationError(f"saga_concurrency={saga_concurrency!r}: a whole number from 1")
        self._saga_concurrency = saga_concurrency
        self.name = name
        self.clock: Clock = clock or (SystemClock() if isinstance(store, str) else store.clock)
        self.store = store_at(store, synchronous=synchronous, clock=self.clock) if isinstance(store, str) else store
        self.subscriptions: dict[str, Subscription] = {}
        self._types: dict[type, EventType] = {}
        self._topic = topic or name
        self._given_transactions = transactions
        self._provided: dict[type, Any] = {}
        self._middleware: list[Middleware] = []
        self._opened = False
        self._worker_options: dict[str, Any] = {"lease": lease, "retention": retention, "alarm": alarm, "drain": drain}
        self.worker: Worker | None = None
        self.relay: RunningRelay | None = None
        self.intake: RunningIntake | None = None
        self.sagas: RunningSagas | None = None
        self._sagas: dict[tuple[str, int], SagaDefinition] = {}
        self._watches = Watches()
        for said, option, kind in (("relay", relay, Relay), ("intake", intake, Intake)):
            if not isinstance(option, (bool, kind)):
                raise ConfigurationError(f"App({name!r}, {said}={option!r}): {kind.__name__}(…), True or False")
        if broker is not None and not isinstance(broker, str) and not hasattr(broker, "open_slot"):
            raise ConfigurationError(f'App({name!r}, broker={broker!r}): "kafka://host:9092" or a KafkaBroker')
        self._relay_options = Relay() if relay is True else relay or None
        self._intake_options = Intake() if intake is True else intake or None
        self.use_store(self.store, transactions)
        self.broker: Broker | None = broker_at(broker) if isinstance(broker, str) else broker
        self._closes_broker = isinstance(broker, str)

    def use_store(self, store: Store, transactions: Any) -> None:
        """Publish to and read from another store from now on, by its clock and without the broker; for tests. Not while the app is open.

        Raises:
            ConfigurationError: it is open, or ``transactions`` is none of the known kinds.
        """
        if self._opened:
            raise ConfigurationError(f"the app {self.name!r} is open; close it before it gets another store")
        _check_transactions(transactions)
        self.store, self.clock, self._given_transactions = store, store.clock, transactions
        self.broker = None
        self._publisher = Publisher(self.name, self._topic, store, self.type_of)
        self._transactions = store.transactions(transactions, self._worker_options["lease"])

    # -- publishing

    @overload
    def publish(
        self,
        event: Any,
        tx: Literal["own"],
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Publishing: ...
    @overload
    def publish(
        self,
        event: Any,
        tx: sqlite3.Connection,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt: ...
    @overload
    def publish(
        self,
        event: Any,
        tx: Any = None,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any: ...
    def publish(
        self,
        event: Any,
        tx: Any = None,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Announce an event in the transaction that your own rows are in: it exists if and only if you commit.

        Args:
            tx: an open transaction: of sqlite3, psycopg or psycopg2, a SQLAlchemy Connection or Session, ``django.db.connection``; with
                aiosqlite, asyncpg, async psycopg, AsyncConnection or AsyncSession the call must be awaited. ``"own"`` for a transaction of
                its own: await it, or call ``.result()``.
            at: publish then instead (a time with time zone). after: publish after this time instead.
            headers: further texts that travel along; ``traceparent`` goes into its own field.

        Returns:
            A Receipt with event id, lane and position (None for a scheduled event), or an awaitable of it.

        Raises:
            InvalidEvent, OutsideTransaction, UnsupportedTransaction, WrongStore, UnawaitedPublish: nothing was written.
        """
        if not self._opened:
            self._open_at_first_publish()
        result = self._publisher.publish(event, tx, at, after, headers)
        if self.worker is not None and tx != "own":
            self.worker.hint()
        return result

    def scheduled(self) -> list[Scheduled]:
        """Events that are to be published later, the next first (at most 1,000)."""
        self.open()
        return self.store.query(lambda unit: unit.scheduled())

    def cancel(self, event_id: str) -> bool:
        """Take back a scheduled event; False if there is none of that id (it may have been published)."""
        self.open()
        return self.store.write(lambda unit: unit.cancel(event_id)).result()

    # -- subscribing

    @spelled
    def subscription(
        self,
        name: str,
        *,
        order: Literal["key", "none", "log"] = "key",
        concurrency: int = 16,
        rate: float | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        start: Literal["start", "now"] | datetime | int = "start",
        on_dead: Literal["go on", "hold"] = "go on",
        size: int = 100,
        age: float = 1.0,
        shared_tx: bool = False,
        max_parked: int = 1000,
        checkpoint_age: float = 0.25,
        lapse: Backlog | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> Subscription:
        """A reader of the log with a name and a place of its own; add handlers with ``on``.

        Args:
            order: ``key`` (events of one key one after another), ``none``, or ``log`` (one after another, all of them).
            concurrency: handlers at the same time, over all workers.
            rate: events a second, over all workers.
            timeout: seconds for one call of a handler.
            retry: when a failed event is tried again.
            start: where a new subscription begins: the oldest event, now, a time, or behind a position. Ignored once it exists.
            on_dead: what a key does behind a dead letter: ``go on``, or ``hold`` until someone retries or drops it.
            size, age: for a handler that takes a list: up to so many events, or what came within so many seconds.
            shared_tx: the handler has no effects outside its transaction and its events, so neighbours may share one transaction.
            max_parked: with so many parked keys it stops reading, and goes on by itself when they have become fewer.
            checkpoint_age: seconds; after a crash, handlers without ``tx`` run again only for what was in flight or ended within this time.
            lapse: once it holds more of the log than this, retention no longer waits for it, and it stays where it is until someone chooses
                where it goes on (``tidings subscription rewind``). None: retention waits.
            middleware: functions around the handlers, inside those of ``App.use``.

        Raises:
            ConfigurationError, SubscriptionNameTaken
        """
        if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigurationError(f"subscription {name!r}: {_NAME}")
        if name in self.subscriptions:
            raise SubscriptionNameTaken(
                f"the app {self.name!r} has a subscription {name!r} already; give one of them another name", name=name
            )
        options = Options(
            order,
            concurrency,
            rate,
            timeout,
            retry or Retry(),
            start,
            on_dead,
            size,
            age,
            shared_tx,
            max_parked,
            checkpoint_age,
            lapse,
            middleware,
        )
        subscription = self.subscriptions[name] = Subscription(name, options, self.type_of)
        return subscription

    def subscribe(
        self,
        *classes: type,
        name: str | None = None,
        where: Callable[[Any], bool] | None = None,
        **options: Unpack[Given],
    ) -> Callable[[F], F]:
        """The decorated function is a subscription of its own, named after it. Options as in ``subscription``.

        Raises:
            ConfigurationError: an option that doesn't exist, or a value that can't be.
        """
        known = [option for option in inspect.signature(self.subscription).parameters if option != "name"]
        for option in options:
            if option not in known:
                raise ConfigurationError(misspelt("subscribe", option, known))

        def mark(fn: F) -> F:
            subscription = self.subscription(name or fn.__name__, **options)
            try:
                return subscription.on(*classes, where=where)(fn)
            except BaseException:
                del self.subscriptions[subscription.name]
                raise

        return mark

    @spelled
    def saga(
        self,
        start: type,
        *,
        version: int = 1,
        name: str | None = None,
        waits: Sequence[type] = (),
        failures: Sequence[type[Exception]] = (),
        late: Late = "ignore",
    ) -> Callable[[Main], Main]:
        """The decorated ``async def`` is a saga: a process of its own for each key of ``start``, begun by that event.

        Args:
            version: of the code. Several of one name may stand side by side: instances go on with the one that they began with, new ones
                begin with the highest.
            name: the function's unless given. Its subscription has the same.
            waits: the classes of events that it may wait for. They are kept for an instance from its start.
            failures: exceptions of your own that say that the business can't go on. When the body lets one of them pass, or a failed step,
                a refusal, or a wait's time-out, what was done is undone. Any other exception is a mistake in the code: the instance is
                parked, and goes on once it is mended.
            late: what becomes of such an event that comes too late: ``"ignore"``, ``"dead"`` (a dead letter of the saga's
                subscription), or a function of (event, ctx) that handles it.

        Raises:
            SagaDefinitionError, SubscriptionNameTaken
        """

        if not isinstance(start, type):
            raise SagaDefinitionError(
                f"@app.saga({getattr(start, '__name__', start)}): name the event that starts it, @app.saga(OrderPlaced)"
            )
        for what, given in (("waits", waits), ("failures", failures)):
            if isinstance(given, (str, type)) or (what == "waits" and not all(isinstance(one, type) for one in given)):
                raise SagaDefinitionError(f"@app.saga({start.__name__}, {what}={given!r}): give a list of classes, {what}=[…]")

        def mark(main: Main) -> Main:
            definition = define(
                name, version, main, self.type_of(start), [self.type_of(one) for one in waits], failures, late, self._provided
            )
            others = [one for one in self._sagas.values() if one.name == definition.name]
            for other in others:
                if other.start.name != definition.start.name:
                    raise SagaDefinitionError(
                        f"the app {self.name!r} has a saga {definition.name!r} that {other.start.name} starts, as it must start all its"
                        " versions: give this one another name",
                        saga=definition.name,
                    )
                if other.version == version:
                    raise SagaDefinitionError(
                        f"the app {self.name!r} has a saga {definition.name!r} of version {version}: give this one another version, or"
                        " another name",
                        saga=definition.name,
                    )
            if others:
                reader = self.subscriptions[definition.name]
            else:
                retry = Retry(attempts=1_000_000, most=30.0, give_up_on=(UndecodableEvent, LateEvent))
                reader = self.subscription(definition.name, retry=retry)
                reader.on(start)(self._starting(definition.name))
            for one in waits:
                if self.type_of(one).name not in reader.handlers:
                    reader.on(one)(self._arriving(definition.name))
            self._sagas[definition.name, version] = definition
            return main

        return mark

    @overload
    def start_saga(self, saga: str | Main, event: Any, tx: Literal["own"]) -> Publishing: ...
    @overload
    def start_saga(self, saga: str | Main, event: Any, tx: sqlite3.Connection) -> Receipt: ...
    @overload
    def start_saga(self, saga: str | Main, event: Any, tx: Any = None) -> Any: ...
    def start_saga(self, saga: str | Main, event: Any, tx: Any = None) -> Any:
        """Begin an instance in the transaction that your own rows are in, without publishing an event: one INSERT. If there is an instance
        of this key, or was, nothing happens.

        Args:
            saga: its name, or the decorated function. event: of the class that starts it. tx: as ``publish`` takes it.

        Returns:
            A Receipt, or an awaitable of it.

        Raises:
            NotFound: there is no such saga in this app. Otherwise as ``publish``.
        """
        if not self._opened:
            self._open_at_first_publish()
        definition = self._saga_called(saga)
        if self.type_of(type(event)).name != definition.start.name:
            raise InvalidEvent(
                f"the saga {definition.name!r} is started by {definition.start.name}, not by {type(event).__name__}",
                type=type(event).__name__,
            )
        envelope = self._publisher.envelope(event)
        if tx == "own" and self.sagas is not None and self.sagas.on_loop():
            return self.sagas.begin_by(self._publisher, definition.name, definition.version, envelope)
        start = Start(definition.name, definition.version, self.name, envelope, int(self.clock.time() * 1_000_000))
        result = self._publisher.insert(START, start_values(start), envelope, tx, type(event))
        if self.worker is not None and tx != "own":
            self.worker.hint()
        return result

    def saga_result(self, saga: str | Main, key: object, *, within: float | timedelta | None = None) -> Result:
        """What a saga returned, once it has ended: await it, or call ``.result()`` from a thread without a loop. Any process may.

        Args:
            saga: its name, or the decorated function. within: seconds, or a timedelta.

        Raises (when awaited):
            NotInTime: it has not ended by then. SagaFailed: it was compensated or cancelled. SagaParked: its code must be mended.
            NotFound: there is no such saga in this app, or the instance is gone after its retention.
        """
        definition = self._saga_called(saga)
        self.open()
        seconds = within.total_seconds() if isinstance(within, timedelta) else within
        asked = (definition.name, str(key))
        return Result(lambda: self._watches.on(self.store), asked, decoder_of(definition.main), seconds)

    @property
    def saga_definitions(self) -> Mapping[tuple[str, int], SagaDefinition]:
        """By name and version; for tools."""
        return self._sagas

    def _saga_called(self, saga: str | Main) -> SagaDefinition:
        """Its newest version."""
        found = [one for one in self._sagas.values() if one.name == saga or one.main is saga]
        if not found:
            names = ", ".join(sorted({name for name, _ in self._sagas})) or "none"
            name = saga if isinstance(saga, str) else getattr(saga, "__name__", saga)
            raise NotFound(f"the app {self.name!r} has no saga {name!r}; there are: {names}", name=name)
        return max((one for one in self._sagas.values() if one.name == found[0].name), key=lambda one: one.version)

    def _starting(self, name: str) -> Callable[[Any, Context], Awaitable[None]]:
        """What a saga's subscription does with the event that starts it: a row, once; doing so again is harmless."""

        async def start(event: Any, ctx: Context) -> None:
            version = max(number for saga, number in self._sagas if saga == name)
            assert self.sagas is not None  # it runs beside its subscription
            await self.sagas.begin(name, version, ctx.envelope)

        return start

    def _arriving(self, name: str) -> Callable[[Any, Context], Awaitable[None]]:
        """The same with events that it may wait for."""

        async def arrive(event: Any, ctx: Context) -> None:
            envelope, now = ctx.envelope, int(self.clock.time() * 1_000_000)
            kept = await asyncio.wrap_future(self.store.write(lambda unit: unit.sagas().deliver(name, envelope, now)))
            if not kept:
                await self._late(name, event, ctx)
            if self.sagas is not None:
                self.sagas.hurry()

        return arrive

    async def _late(self, name: str, event: Any, ctx: Context) -> None:
        """It came for an instance that is closed; or there is none, and it is nobody's business."""
        late, key = self._saga_called(name).late, ctx.envelope.key or ""
        if late == "ignore":
            return
        row = await asyncio.to_thread(self.store.query, lambda unit: unit.sagas().row(name, key))
        if row is None or row.envelope.key_name != ctx.envelope.key_name or row.state not in CLOSED:
            return
        if late == "dead":
            raise LateEvent(f"{name} {key} is {row.state} since before it came", saga=name, key=key, state=row.state)
        assert callable(late)
        if inspect.iscoroutinefunction(late):
            await late(event, ctx)
        else:
            await asyncio.to_thread(late, event, ctx)

    def operator(self, actor: str) -> Operator:
        """Somebody who acts on this app's sagas by hand: retry, skip, supply, compensate, cancel, pause, resume. ``actor`` is kept."""
        self.open()
        return Operator(self.store, actor, sagas=self._sagas, type_of=self.type_of)

    def provide(self, wanted: type[T], value: T | Callable[[], T]) -> None:
        """Handlers that ask for ``wanted`` by type get ``value``; if it is a function, what it returns at each call."""
        self._provided[wanted] = value

    def use(self, middleware: Middleware) -> Middleware:
        """Put a function around every handler of this app; the first one used is outermost. Works as a decorator."""
        self._middleware.append(middleware)
        return middleware

    def type_of(self, cls: type) -> EventType:
        """The event type of a class in this app."""
        found = self._types.get(cls)
        if found is None:
            found = self._types[cls] = EventType(cls, self.name)
        return found

    # -- running

    def open(self) -> None:
        """Connect to the store, making or migrating its tables; for publishing without a worker. Called by the first publish.

        Raises:
            StoreError
        """
        if not self._opened:
            self.store.open()
            self._opened = True

    def _open_at_first_publish(self) -> None:
        try:
            self.open()
        except StoreBusy as error:
            raise StoreBusy(
                f"{self.store.label} has no Tidings tables yet, and they can't be made while a transaction, probably your own, holds the"
                " file: call app.open() once when the program starts, or run `tidings store init`",
                path=self.store.label,
                holder=getattr(error, "holder", None),
            ) from error

    def close(self) -> None:
        """Finish what is queued for the store and let go of it. Not while a worker runs."""
        if self._opened:
            self._opened = False
            self.store.close()

    async def start(self) -> None:
        """Run this app's subscriptions in this process, until ``stop``.

        Raises:
            ConfigurationError, StoreError
        """
        if self.worker is not None:
            raise ConfigurationError(f"the app {self.name!r} runs already")
        self.bind()
        was_open = self._opened
        self.open()
        if self.broker is not None and self._relay_options is not None:
            self.relay = RunningRelay(self._relay_options, self.name, self.store, self.broker)
        if self._sagas:
            self.sagas = RunningSagas(
                self._sagas, self.name, self.store, self._transactions, self._publisher, self.type_of, self._worker_options["retention"],
                self._saga_concurrency,
            )  # fmt: skip
        worker = Worker(
            self.name,
            list(self.subscriptions.values()),
            self.store,
            self._publisher,
            self._transactions,
            clock=self.clock,
            sharers=[one for one in (self.relay, self.sagas) if one is not None],
            **self._worker_options,
        )
        if self.sagas is not None:
            self.sagas.changed = worker.settled.set
        try:
            await worker.start()
            await self._start_intake(worker)
        except BaseException:
            await worker.crash()
            if not was_open:
                self.close()
            raise
        self.worker = worker

    @property
    def relays(self) -> bool:
        """Whether what it publishes goes to a broker from where it runs."""
        return self.broker is not None and self._relay_options is not None

    async def _start_intake(self, worker: Worker) -> None:
        if self.broker is None or self._intake_options is None:
            return
        types = {name for subscription in self.subscriptions.values() for name in subscription.handlers}
        topics = self._intake_options.topics_of(self.name, self._topic, types)
        if not topics:
            return
        self.intake = intake = RunningIntake(self._intake_options, self.store, self.broker, self.name, topics, worker.id, {self.name})
        worker.beside[intake.name] = lambda: intake.trouble
        await asyncio.get_running_loop().run_in_executor(None, intake.start)

    async def stop(self) -> None:
        """End the intake, drain and end the worker, and close the store."""
        intake, self.intake = self.intake, None
        if intake is not None:
            await asyncio.get_running_loop().run_in_executor(None, intake.stop)
        worker, self.worker = self.worker, None
        if worker is not None:
            await worker.stop()
        self.relay = self.sagas = None
        if self.broker is not None and self._closes_broker:
            self.broker.close()
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    def run(self) -> None:
        """Run until SIGINT or SIGTERM, then drain. A second one stops at once."""
        asyncio.run(serve([self]))

    def bind(self) -> None:
        """Check every subscription and wrap its handlers, by what is provided and used now.

        Raises:
            HandlerDefinitionError
        """
        readers: dict[type, list[Handler]] = {}
        for subscription in self.subscriptions.values():
            if not subscription.handlers:
                raise ConfigurationError(
                    f"subscription {subscription.name!r} of app {self.name!r} has no handler; add one with"
                    f" @{subscription.name}.on(EventClass)"
                )
            for handler in set(subscription.handlers.values()):
                handler.provide(self._provided)
                handler.decoded = None
                if handler.tx is not None:
                    self._transactions.check(handler.tx, handler.name)
                layers = [*self._middleware, *subscription.options.middleware]
                handler.call = wrap(handler.call, handler.is_async, layers, handler.name)
                if handler.tx is not None:  # run where the store's own errors may come up too
                    handler.call = tell_apart(handler.call, handler.is_async)
                readers.setdefault(handler.event_type.cls, []).append(handler)
        for handlers in readers.values():
            if len(handlers) > 1 and handlers[0].event_type.shareable:  # decoded once for all of them
                decoded = Decoded()
                for handler in handlers:
                    handler.decoded = decoded

    def envelope(self, event: Any, *, headers: Mapping[str, str] | None = None) -> Envelope:
        """The row that ``publish`` would write, its position still 0; for tests and tools."""
        return self._publisher.envelope(event, headers=headers)


def _check_transactions(given: Any) -> None:
    """Raise ConfigurationError for a ``transactions=`` that is none of the known kinds."""
    for one in given if isinstance(given, (list, tuple)) else (given,):
        if one is None or callable(one) or type(one).__module__.startswith("sqlalchemy."):
            continue
        raise ConfigurationError(
            f"transactions={one!r}: give an engine, a sessionmaker, their async twins, or a callable that returns a connection"
        )


async def serve(
    apps: Sequence[App],
    *,
    ready: Callable[[], Awaitable[None] | None] | None = None,
    draining: Callable[[], None] | None = None,
) -> bool:
    """Run several apps in this process until SIGINT or SIGTERM, then drain; a second signal ends without waiting.

    Args:
        ready: called once all have started. draining: called once the signal has come.

    Returns:
        Whether everything was drained.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    again = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            again.set()
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    started: list[App] = []
    try:
        for app in apps:
            await app.start()
            started.append(app)
        if ready is not None and (waiting := ready()) is not None:
            await waiting
        await asked.wait()
        if draining is not None:
            draining()
    finally:
        workers = [app.worker for app in started if app.worker is not None]
        stopping = asyncio.gather(*(app.stop() for app in started))
        hurry = asyncio.ensure_future(again.wait())
        either: list[asyncio.Future[Any]] = [stopping, hurry]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        drained = stopping.done()
        if not drained:
            for worker in workers:
                with contextlib.suppress(Exception):  # half stopped, perhaps; nothing may keep the others
                    worker.kill()
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
        hurry.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return drained
