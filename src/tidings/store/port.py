"""What Tidings asks of a store.

A store keeps one log and its readers' progress in a database that the user's own rows live in as well. Everything that changes
goes through a ``Unit``: the statements of one transaction. Where that transaction comes from is not the unit's business:
the store's own (``write``), a handler's, or the publisher's in the user's code. What an implementation must keep:

- *Order.* ``read`` returns rows in ascending position, and never a row with a later, lower neighbour: once a position was seen,
  no smaller one appears.
- *Atomicity.* What a unit writes appears together or not at all, with everything else in its transaction.
- *Fencing.* ``Unit.advance`` changes a lane only for its owner at its epoch, and names the lanes that weren't changed.
- *Durability.* When the future of ``write`` has its result, it survives a crash of the machine (``durable`` for what others wrote).
- *Threads.* ``read``, ``query`` and ``durable`` block and may be called from any thread; ``write`` doesn't block. ``close`` ends
  what was begun.
- *One word at a time.* Jobs given to ``write`` run and commit in the order in which they were given. Handlers' own transactions may
  commit beside them, so how a key of parked events stands is only ever asked in a job (``Unit.key_state``, ``Unit.parked_keys``).

``SomeTransactions`` is where handlers' transactions come from, and the last part of ``Store`` finds out whose transaction a publisher
was given: both are about drivers, of which each store knows its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ..clock import Clock
from ..envelope import Envelope
from .intakes import IntakeRow, IntakeUnit
from .sagas import SagaUnit
from .writer import Writer

T = TypeVar("T")


Row = tuple[str, int, str, tuple[Any, ...], bool]
"""An event as the one INSERT that publishes it: event id, lane, the statement, its values, whether it is scheduled."""


EVERYTHING = "*"
"""Among the types of a subscription: whatever its own app published."""


@dataclass(slots=True)
class Lane:
    """Progress of one subscription in one lane: done up to ``position`` but for ``open``; held by ``worker`` under ``epoch``.

    ``begun``: the text of ``Unit.note_begun``. ``died``: it was just taken from a worker whose lease ran out.
    """

    subscription: str
    lane: int
    position: int
    open: tuple[int, ...]
    worker: str | None
    epoch: int
    begun: str | None = None
    died: bool = False


@dataclass(slots=True)
class WorkerRow:
    """A process that runs subscriptions. ``alive``: its lease has not run out; ``seconds_left`` of it."""

    worker: str
    app: str
    host: str
    pid: int
    started: int
    subscriptions: tuple[str, ...]
    alive: bool
    seconds_left: float
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class SubscriptionRow:
    """A subscription as the store knows it. ``types``: the type names it reads, or ``EVERYTHING``, which is what its app published itself;
    times are microseconds since 1970."""

    name: str
    app: str
    types: tuple[str, ...]
    ordering: str
    created: int
    paused: bool
    held: str | None
    held_since: int | None
    start: int = 0
    """It was never given what is at or below this position."""
    lapse: str | None = None
    """The limit past which it lapses by itself, ``Backlog.text``; None: never."""
    lapsed: tuple[int, int] | None = None
    """When that happened, microseconds since 1970, and the position that it had reached; then it has no lanes."""


@dataclass(slots=True)
class Behind:
    """Events that a subscription has not ended yet, parked ones aside. ``oldest``: time of the first of them, microseconds since 1970.

    ``exact``: False if it is so far behind that the count is an estimate.
    """

    events: int
    oldest: int | None
    exact: bool


@dataclass(slots=True)
class Parked:
    """An event that waits (``retry``: for its due time, ``waiting``: behind an earlier one of its key) or is a dead letter (``dead``).

    ``due`` and ``since`` are microseconds since 1970; ``delay`` is the whole wait before the next attempt, in microseconds.
    """

    subscription: str
    state: str
    holds: bool
    attempts: int
    due: int
    delay: int
    since: int
    error: str | None
    traceback: str | None
    envelope: Envelope


@dataclass(slots=True)
class KeyState:
    """What a key's parked rows say after a transaction: ``free``, ``held`` (by a dead letter), or ``retry`` with the head to run.

    ``due_in`` is in seconds from now, never more than the delay that was chosen: a wall clock that jumps can't stretch it.
    """

    lane: int
    key: tuple[str | None, str] | int | None
    state: str
    position: int = 0
    attempts: int = 0
    due_in: float = 0.0


@dataclass(slots=True)
class FailedAttempt:
    """One attempt that failed: ``time`` in microseconds since 1970; outcome ``retry``, ``dead``, or ``dropped`` by an operator."""

    subscription: str
    position: int
    attempt: int
    time: int
    worker: str
    outcome: str
    error: str | None


@dataclass(slots=True)
class Scheduled:
    """An event that will be published at ``due`` (microseconds since 1970)."""

    due: int
    envelope: Envelope


@dataclass(slots=True)
class Holder:
    """A transaction under way that has written to the log, so that nobody may read past it yet.

    ``seconds``: since it began, None if this role may not see it; ``who``: which one it is, in words.
    """

    seconds: float | None
    who: str


@dataclass(slots=True)
class Examination:
    """What ``tidings store check`` finds: damage and what to do about it, and what is worth knowing of this kind of store, for programs
    (``figures``) and for people (``lines``)."""

    events: int
    problems: list[str]
    advice: str
    figures: dict[str, Any]
    lines: list[str]


def holder_text(holder: Holder) -> str:
    """One line about it."""
    age = "" if holder.seconds is None else f" for {holder.seconds:.1f} s"
    return f"readers are held back{age} by {holder.who}"


def size_text(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.0f} GB" if size >= 10 else f"{size:.1f} GB"


class Unit(Protocol):
    """The statements of one transaction. Methods raise the driver's errors; the owner of the transaction rolls back."""

    # -- the log
    def append(self, envelopes: Iterable[Envelope]) -> list[int]:
        """Write events to the end of the log; their positions."""
        ...

    def append_many(self, envelopes: Sequence[Envelope]) -> None:
        """``append`` in bulk, on a connection of the store's own: in this order, and their positions are not told."""
        ...

    def insert(self, statement: str, values: Sequence[Any]) -> int:
        """Run the INSERT of a ``Row``; the position, or any number if it is scheduled."""
        ...

    def head(self) -> int:
        """The last position given out; 0 for an empty log."""
        ...

    def first_position_at(self, time: int) -> int:
        """The position before the first event published at ``time`` (microseconds) or later; the head if there is none."""
        ...

    def select(
        self, *, after: int = 0, limit: int, types: Sequence[str] = (), key: tuple[str | None, str] | None = None, since: int | None = None,
        until: int | None = None, event_ids: Sequence[str] = (), correlation_ids: Sequence[str] = (), newest: bool = False,
    ) -> list[Envelope]:  # fmt: skip
        """Rows of the log that fit everything given, ascending; with ``newest`` the last ``limit`` of them."""
        ...

    def retained(self) -> int:
        """Rows up to here may be gone; what is behind it is all there."""
        ...

    def trimmable(self) -> int:
        """The highest position that every subscription has passed, open positions included."""
        ...

    def next_block(self) -> Any:
        """A part of the log to be prepared for ``select``, for ``add_block`` in any later transaction; None if there is nothing to do."""
        ...

    def add_block(self, block: Any) -> None: ...
    def searched_plainly(self) -> int:
        """How many positions ``select`` has to look at one by one."""
        ...

    def trim(self, upto: int, limit: int) -> int:
        """Delete at most ``limit`` of the rows up to ``upto``, the oldest first; how many. 0: nothing is left but for ``Store.upkeep``."""
        ...

    # -- scheduled events
    def schedule(self, envelope: Envelope, due: int) -> None: ...
    def release_due(self, now: int, limit: int) -> int:
        """Move what is due to the log, its time being the time at which it was due; how many."""
        ...

    def scheduled(self, limit: int = 1000) -> list[Scheduled]: ...
    def next_due(self) -> int | None: ...
    def cancel(self, event_id: str) -> bool: ...

    # -- subscriptions
    def register(self, name: str, app: str, types: Sequence[str], ordering: str, start: int, now: int, lapse: str | None = None) -> None:
        """Make it known; a new one gets its lanes at ``start``. Raises SubscriptionNameTaken for another app's name."""
        ...

    def subscriptions(self) -> list[SubscriptionRow]: ...
    def behind(self, name: str, most: int = 50_000) -> Behind:
        """How far behind it is; looks at ``most`` positions and estimates the rest from them."""
        ...

    def set_paused(self, name: str, paused: bool) -> bool: ...
    def set_held(self, name: str, reason: str | None, now: int) -> None: ...
    def rewind(self, name: str, position: int) -> int:
        """Put every lane to ``position``, fence whoever holds it, drop parked rows above it; how many rows. One that has lapsed goes on."""
        ...

    def lapse(self, name: str, reached: int, now: int) -> bool:
        """Take its lanes away until somebody rewinds it, if nothing below ``reached`` or at it is open and nothing above it is passed by
        all of them; whether that was so. Nothing is trimmed on the way."""
        ...

    def remove(self, name: str) -> bool: ...

    # -- workers and lanes
    def enrol(self, row: WorkerRow, until: float) -> None: ...
    def renew(self, worker: str, until: float, info: dict[str, Any] | None) -> bool:
        """False if the row is gone: somebody else took the lanes."""
        ...

    def workers(self) -> list[WorkerRow]: ...
    def leave(self, worker: str) -> None: ...
    def lanes(self, subscription: str | None = None) -> list[Lane]: ...
    def claim(self, subscription: str, worker: str, groups: int, share: int) -> list[Lane]:
        """Take free lanes (nobody's, or a dead worker's) in whole groups until ``share`` groups are held; the lanes taken."""
        ...

    def pulse(self, worker: str, until: float, info: dict[str, Any] | None) -> tuple[str, int | None] | None:
        """``renew`` in one statement that can stand alone (``Store.at_once``), if the lease is not over yet: then every lane that the
        worker held is still its own, unless an operator took it. A text that differs whenever ``control``, the living workers or who holds
        which lane have changed since another pulse, and ``next_due``. None: nothing was done, so ``renew`` and look."""
        ...

    def bury(self) -> None:
        """Forget workers whose lease ran out and whose lanes all went to others."""
        ...

    def advance(self, subscription: str, worker: str, rows: Sequence[tuple[int, int, int, str | None]]) -> list[tuple[int, int]]:
        """Write checkpoints ``(lane, epoch, position, open)``; lane and epoch of those where they no longer fit (fenced).

        Transactions of one worker that advance the same lane at the same time take turns here, and each may know only of its own ends:
        whatever one of them has finished stays finished."""
        ...

    def note_begun(self, subscription: str, worker: str, rows: Sequence[tuple[int, int, str | None]]) -> list[tuple[int, int]]:
        """Write ``(lane, epoch, text)``: what is in handlers' hands there, for whoever takes the lane if this worker dies.

        It stays with the lane until it is written anew. Returns lane and epoch of those that are somebody else's by now."""
        ...

    def release(self, subscription: str, worker: str, lanes: Iterable[int]) -> None: ...

    # -- parked events and dead letters
    def park(self, row: Parked) -> None: ...
    def unpark(self, subscription: str, position: int) -> None: ...
    def key_state(self, subscription: str, lane: int, key: tuple[str | None, str] | int | None, now: int) -> KeyState:
        """Promote the next row of the key if nothing of it is due or held, and say how the key stands."""
        ...

    def parked_keys(self, subscription: str, lanes: Sequence[int], now: int) -> list[KeyState]: ...
    def parked_row(self, subscription: str, position: int) -> Parked | None: ...
    def parked(
        self, subscription: str | None = None, states: Sequence[str] = (), limit: int = 1000, *, positions: Sequence[int] = (),
        key: tuple[str | None, str] | None = None, after: int = 0, type: str | None = None, error: str | None = None,
    ) -> list[Parked]:  # fmt: skip
        """Rows that fit everything given, ascending by subscription and position. error: a part of the last one's text."""
        ...

    def count_parked(self, subscription: str) -> tuple[int, int, int]:
        """Keys (or keyless events) that wait for a retry, events behind them, dead letters."""
        ...

    def record_attempt(self, row: FailedAttempt) -> None: ...
    def attempts(self, positions: Sequence[int]) -> list[FailedAttempt]: ...
    def retry_dead(self, subscription: str, position: int, now: int) -> bool: ...
    def drop_dead(self, subscription: str, position: int, now: int) -> bool:
        """Delete a dead letter; an attempt with the outcome ``dropped`` says that somebody did."""
        ...

    # -- what comes in from a broker
    def intake(self, name: str) -> IntakeUnit: ...
    def intakes(self) -> list[IntakeRow]: ...
    # -- long processes
    def sagas(self) -> SagaUnit: ...
    # -- a log that went back in time
    def passed(self) -> int:
        """The highest position that any subscription has seen."""
        ...

    def acknowledge(self, upto: int) -> int:
        """Let positions go on behind ``upto``, so that none that somebody has seen is given out again, and raise the incarnation; it."""
        ...

    # -- operators' commands
    def control(self) -> int:
        """Raised by every operator's command, so that workers see it by reading one row."""
        ...

    def facts(self) -> dict[str, str]:
        """What the store knows about itself: schema, log_id, incarnation, retained, control; and what was noted."""
        ...

    def note(self, name: str, value: str | None) -> None:
        """Remember a fact under a name of the caller's, or forget it; workers are told that something has changed."""
        ...

    def free(self, subscription: str) -> None:
        """Take every lane of it from whoever holds it: he is fenced."""
        ...

    def raise_incarnation(self) -> int:
        """The log went back in time and somebody knows it: what is published from now on is of another series. The new one."""
        ...


class RaisedByHandler(Exception):
    """An error that looks like the store's trouble and came out of a handler, about something else: its failure, and an attempt."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Guard(Protocol):
    """Keeps a handler from ending a transaction that isn't its own."""

    def closed(self, name: str) -> AbstractContextManager[None]:
        """Around a handler's call. Raises TransactionEnded if it tried to end the transaction, whatever error that gave it, and
        RaisedByHandler for an error that ``Store.is_busy`` would take for the store's although this transaction is well."""
        ...

    def alive(self) -> bool:
        """Whether a transaction is open."""
        ...


class Transaction(Protocol):
    """A handler's transaction under way.

    Attributes:
        tx: for the handler. raw: for ``Store.unit``. guard: around the handler.
        flushes: ``tx`` may hold what isn't written yet, so ``flush`` must be called behind the handler.
        after: called behind the commit. told: something was published in it. aborted: given up.
    """

    tx: Any
    raw: Any
    flushes: bool
    after: list[Callable[[], None]]
    told: bool
    aborted: bool

    @property
    def guard(self) -> Guard: ...
    def savepoint(self) -> Any:
        """A context manager: an error inside undoes what was done inside."""
        ...

    def flush(self) -> None: ...
    def settle(self) -> None:
        """The handlers are done, the commit follows: too late for ``abort``. Raises HandlerTimeout if abort was first."""
        ...


class AsyncTransaction(Protocol):
    """The same for an async handler: ``await run(work)`` runs ``work(raw)`` in it, ``raw`` being for ``Store.unit``."""

    tx: Any
    after: list[Callable[[], None]]
    told: bool

    @property
    def guard(self) -> Guard: ...
    def run(self, work: Callable[[Any], T]) -> Awaitable[T]: ...


class SomeTransactions(Protocol):
    """Where the transactions of one app's handlers come from. ``kind`` is one of ``subscribe.handler.TRANSACTION_TYPES``."""

    def check(self, kind: str, handler: str) -> None:
        """Raise HandlerDefinitionError unless transactions of this kind can be had."""
        ...

    def begin(self, kind: str) -> AbstractContextManager[Transaction]:
        """For synchronous handlers, in the thread that runs them. Commits at the end, rolls back on an error."""
        ...

    def begin_async(self, kind: str) -> AbstractAsyncContextManager[AsyncTransaction]: ...
    def abort(self, transaction: Any) -> bool:
        """Give up a transaction whose handler hangs in another thread; False if it is being committed, or was given up before."""
        ...

    async def close(self) -> None:
        """Let go of idle connections; behind the last handler."""
        ...


class SomeWaker(Protocol):
    """Calls back on the loop when there may be something new; armed by whoever goes idle, so that a busy worker pays nothing for it."""

    def arm(self) -> None:
        """Begin to watch. What came between the last read and now is not missed."""
        ...

    def disarm(self) -> None: ...
    def hint(self) -> None:
        """Somebody has published in this process, and will commit soon."""
        ...

    polled: bool
    """The last call came of the clock alone: nothing was heard."""
    precaution: bool
    """Nor is there anything that it may have missed but what a process left unsaid that died."""

    def close(self) -> None:
        """Behind ``disarm``, perhaps from another thread than the loop's; may block."""
        ...


class Cursor(Protocol):
    """Reads a part of the log through a connection of its own, for whoever takes events out of this machine. It belongs to one thread.

    Attributes:
        unsynced: the last reading stopped before positions of others only because they aren't on disk yet: somebody's next commit will
            take them there, and without one the next reading does. Look again in a moment.
    """

    unsynced: bool

    def read(
        self, lanes: Sequence[int], after: int, rows: int, known: tuple[int, str] | None = None
    ) -> tuple[list[tuple[Any, ...]], int]:  # fmt: skip
        """Rows of these lanes and of the cursor's source behind ``after``, ascending, in the order of ``Envelope``'s fields, and how far
        that is complete. ``rows`` of them at most, and bounded in bytes: it may stop early. What is returned survives a crash of the
        machine, and no other row up to there will come, whatever the writers' settings are.

        Args:
            known: position and event id of a row that was read before: it must still be there, unless it was trimmed.

        Raises:
            LogWentBack: another event is at that position, or the log ends before it or before ``after``.
            StoreError
        """
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """A log, its readers' progress, and where transactions come from.

    Attributes:
        label: the URL as it may be shown. one_writer: transactions that write run one after another, all of them.
        reads_aside: a thread that reads takes nothing from those that compute, so what comes next is better read before it is asked for.
        history: changes when the database turns out to be another one, or at another point of its history, than what was read before:
            then rows and positions that are remembered count for nothing.
    """

    url: str
    label: str
    log_id: str
    clock: Clock
    one_writer: bool
    reads_aside: bool
    history: str

    def open(self) -> None:
        """Connect, and make or migrate the tables. Raises StoreError. May be called again."""
        ...

    def close(self) -> None: ...

    def write(self, job: Callable[[Unit], T], after: Callable[[T], None] | None = None) -> Future[T]:
        """Run a job in a transaction of the store's own, committed together with others (group commit). The job may run more than
        once if its neighbour fails, so it keeps its effects to the unit. ``after`` runs once, behind the commit, before any other
        transaction of this process begins."""
        ...

    def write_plainly(self, job: Callable[[Unit], T]) -> Future[T]:
        """``write`` for a job of one statement which may be done twice: if the future has an error, nobody knows whether it was done. On a
        server the statement is its own commit, in one round trip, and two such jobs may be under way at the same time."""
        ...

    @property
    def writer(self) -> Writer:
        """What ``write`` hands its jobs to, for who has many that need no future each. Raises StoreError if the store is not open."""
        ...

    def query(self, job: Callable[[Unit], T]) -> T:
        """Run a reading job in one snapshot."""
        ...

    def at_once(self, job: Callable[[Unit], T]) -> T:
        """Run a job of one statement, which needs neither a transaction nor a snapshot around it. Blocks. If it raises, nobody knows
        whether it was done: for what may be done twice."""
        ...

    def read(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        """Rows with ``after < position <= upto``, ascending, in the order of ``Envelope``'s fields, and how far that is complete: no row up
        to there is missing or will come. Bounded in bytes: it may stop early. For the hot path."""
        ...

    def cursor(self, source: str) -> Cursor:
        """A reader of its own of what ``source`` published."""
        ...

    def glance(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int] | None:
        """``read`` on the event loop: few rows, and None rather than waiting for anything. A store across a network: always None."""
        ...

    def durable(self) -> int:
        """Return when everything that can be read now survives a crash of the machine, whatever its writer's setting was; up to which
        position that is."""
        ...

    def lasts(self, upto: int, last: tuple[Any, ...] | None) -> bool:
        """Whether everything up to ``upto`` is known to survive such a crash, without asking the disk: ``durable`` for nothing.
        ``last``: the row at ``upto``, if one was read there."""
        ...

    def unit(self, connection: Any) -> Unit:
        """The statements on a driver connection that is the user's."""
        ...

    def upkeep(self, upto: int) -> int:
        """See that there is room for what comes, and let go of whole parts of the log that end at or below ``upto`` and that everyone has
        passed; how many. What ``Unit.trim`` leaves for a whole part to go is let go here. Called now and then by each worker; blocks."""
        ...

    def transaction(self) -> AbstractContextManager[Any]:
        """A driver connection with a write transaction open: commits at the end, rolls back on an error."""
        ...

    def open_to_read(self) -> None:
        """For ``query`` and ``read`` only: makes and migrates nothing, and needs no right to write. Wants its ``close`` too."""
        ...

    def size(self) -> int:
        """Bytes that it takes."""
        ...

    def examine(self, full: bool) -> Examination: ...
    def holders(self) -> list[Holder]:
        """Who keeps readers now from what was published after them, the oldest first. Nobody where transactions write one after another."""
        ...

    def held_back(self) -> float:
        """For how many seconds this process has seen what it may read stand still before such a transaction; 0 if it doesn't. At once."""
        ...

    # -- waking up

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` (from any thread) after commits of this process that readers want to know of."""
        ...

    def off_commit(self, callback: Callable[[], None]) -> None: ...
    def watch(self, woken: Callable[[], None]) -> SomeWaker:
        """On a running loop."""
        ...

    # -- handling

    def transactions(self, given: Any, idle: float) -> SomeTransactions:
        """Args: what ``App(transactions=…)`` was given; after how many seconds a frozen one must not hold up others any more."""
        ...

    def is_busy(self, error: BaseException) -> bool:
        """Whether an error means that the store was busy or failed, so that the same work is simply run again. Looks through what
        SQLAlchemy and Django make of their driver's errors."""
        ...

    def is_refusal(self, error: BaseException) -> bool:
        """Whether an error means that a value can't be kept by this kind of database, now or ever."""
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Whether nobody knows if what was being committed is."""
        ...

    def stepping(self) -> AbstractContextManager[None]:
        """Around work on many rows, if threads that do so had better take turns."""
        ...

    # -- publishing in the user's own transaction

    def statement(self, *, scheduled: bool = False, constants: Mapping[str, str | int | None] | None = None) -> str:
        """The INSERT for a ``Row``: into the log, its values all columns of an event but the position; or into the scheduled events, with
        event id and due time before these. ``constants``: into the log, with these columns' values written into it and the others bound,
        in their order. Good while ``log_id`` is the same. Raises ValueError if a value can't stand in a statement."""
        ...

    def insertion(self, statement: str) -> str:
        """Any other INSERT into a table of the store's, for a ``Row`` that counts as scheduled: ``INSERT INTO … VALUES (?, …) …``. The
        first value is never NULL."""
        ...

    def is_async(self, tx: Any) -> bool:
        """Whether publishing in it must be awaited. Raises UnsupportedTransaction."""
        ...

    def publish(self, tx: Any, row: Row) -> int:
        """Insert it in ``tx``; the position. Raises OutsideTransaction, WrongStore, StoreNotInitialised."""
        ...

    def publish_async(self, tx: Any, row: Row) -> Awaitable[int]: ...
