"""The store on a PostgreSQL database: its connections, its writer, and how the log is read."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg

from ...clock import Clock, SystemClock
from ...errors import StoreBusy, StoreError, StoreNotInitialised, WrongStore
from ...urls import label
from ..forks import OfOneProcess
from ..port import Examination, Holder, Row, holder_text, size_text
from . import enlist, history, partitions, schema
from .connect import check_url, connect, explain, is_busy, is_lost, is_open, sqlstate_of
from .cursor import PostgresCursor
from .durable import flush
from .fetch import fetch
from .horizon import Horizon, lockers
from .transactions import Transactions
from .unit import APPEND, SCHEDULE, PostgresUnit, append_with
from .waker import Notifier, Waker
from .writer import PAUSE, TRIES, ServerWriter

log = logging.getLogger("tidings.store")

T = TypeVar("T")

READ_BYTES = 8 * 1024 * 1024
"""One read stops after about this much data."""
ROWS = (16, 1024)
"""Rows asked for at a time, at least and at most; between them as many as the data seen lately lets expect to fit."""
BY_KEY = b"SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
"""What ``write_plainly`` asks goes along primary keys, whatever the tables' size, and is planned once. A server that counts on the few rows
of a new table would read all of it each time, and go on so while it grows."""
FROZEN_SECONDS = 10.0
"""A transaction of the writer's in which nothing happens is ended by the server after this time, or after the lease if that is shorter."""
OWN = 100_000
"""So many positions that this process has filled and synced are known at most, until they have been read."""


class PostgresStore(OfOneProcess):
    """A log on a PostgreSQL database (15 or newer), read behind the lockers' horizon.

    Args:
        url: ``postgresql://user@host:5432/database``, as libpq takes it; the tables are found by its ``search_path``.
        clock: for due times; leases are on the server's clock unless tests give a ManualClock.
        listen: a direct URL of the same database, where ``url`` leads through a pooler: for LISTEN, which needs a connection of its own.
            Without it workers behind a pooler poll twice a second.

    Raises:
        ConfigurationError: the URL isn't understood.
    """

    one_writer = False
    reads_aside = True

    def __init__(self, url: str, *, clock: Clock | None = None, listen: str | None = None) -> None:
        self.url = check_url(url)
        self.pooled = False
        self._listen = self.url if listen is None else check_url(listen)
        self.label = label(url)
        self.clock: Clock = clock or SystemClock()
        self.log_id = ""
        self._writer: ServerWriter | None = None
        self._notifier: Notifier | None = None
        self._plain: ThreadPoolExecutor | None = None
        self._open_lock = threading.Lock()
        self._opened = 0
        self._committed: list[Callable[[], None]] = []
        self._idle: list[psycopg.Connection[Any]] = []
        self._idle_plain: list[psycopg.Connection[Any]] = []
        self._idle_lock = threading.Lock()
        self._reading_lock = threading.Lock()
        self._reading: psycopg.Connection[Any] | None = None
        self._horizon = Horizon()
        self._held_back = False
        self._moved = time.monotonic()  # when what may be read last grew, or was all there is
        self._may_keep_up = True
        self._durable = 0
        self._synced: set[int] = set()
        self._frozen = FROZEN_SECONDS
        self._rows = 256
        self._ours: WeakSet[Any] = WeakSet()
        self._cursors: WeakSet[PostgresCursor] = WeakSet()
        self._cursors_lock = threading.Lock()
        self._placed: WeakSet[Any] = WeakSet()
        self.history = ""

    # -- lifecycle

    def open(self) -> None:
        """Make or migrate the tables if need be, and start the writer. Each ``open`` wants its ``close``.

        Raises:
            StoreFailed, StoreNewer
        """
        with self._open_lock, self._opening():
            if self._writer is None:
                self._look(schema.migrate)
                self._writer = ServerWriter(self.url, self.unit, self._on_written, lambda: self._frozen, self._place)
                self._notifier = Notifier(self.url, self._channel)
                self._plain = ThreadPoolExecutor(2, thread_name_prefix="tidings-plain")

    def open_to_read(self) -> None:
        """For ``query`` and ``read`` only: makes and migrates nothing, and needs no right to write. Wants its ``close`` too.

        Raises:
            StoreNotInitialised, StoreNewer, StoreFailed
        """
        with self._open_lock, self._opening():
            self._look(schema.require)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        self._refuse_if_forked()
        self._opened += 1
        try:
            yield
            self._opened_here()
        except BaseException as error:
            self._opened -= 1
            if not self._opened:
                self._end()
            if isinstance(error, psycopg.Error):  # the server went away in the middle
                raise explain(error, self.url) from error
            raise

    def close(self) -> None:
        with self._open_lock:
            self._opened -= 1
            if self._opened > 0:
                return
            self._opened = 0
            self._closed_here()
            self._end()

    def leave_behind(self) -> object:
        # Closed there, its connections would end the parent's sessions; psycopg leaves them alone.
        left = (self._writer, self._notifier, self._plain, self._committed, self._idle, self._idle_plain, self._reading, self._cursors)
        self._writer, self._notifier, self._plain, self._reading, self._opened, self.log_id = None, None, None, None, 0, ""
        self._committed, self._idle, self._idle_plain, self._cursors = [], [], [], WeakSet()
        self._open_lock, self._idle_lock, self._reading_lock = threading.Lock(), threading.Lock(), threading.Lock()
        return left

    def _end(self) -> None:
        if self._plain is not None:
            self._plain.shutdown()
            self._plain = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None
        with self._reading_lock:
            self._stop_reading()
        self._close_idle()

    def _close_idle(self) -> None:
        with self._idle_lock:
            for idle in (self._idle, self._idle_plain):
                while idle:
                    idle.pop().close()

    def _look(self, check: Callable[[psycopg.Connection[Any], str], object]) -> None:
        """See that the tables are there, and which log this is."""
        try:
            with self._connection() as conn:
                check(conn, self.url)
                self.pooled = conn.prepare_threshold is None
                row = conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()
        except psycopg.Error as error:
            raise explain(error, self.url) from error
        except BaseException:
            self._close_idle()
            raise
        assert row is not None
        self.log_id = str(row[0])
        self._channel = f"tidings_{self.log_id}"

    # -- writing

    def write(self, job: Callable[[PostgresUnit], T], after: Callable[[T], None] | None = None) -> Future[T]:
        return self.writer.submit(job, after)

    def write_plainly(self, job: Callable[[PostgresUnit], T]) -> Future[T]:
        self._refuse_if_forked()
        with self._open_lock:  # not behind its end
            if self._plain is None:
                raise StoreError("the store is not open", url=self.label)
            return self._plain.submit(self._plainly, job)

    def _plainly(self, job: Callable[[PostgresUnit], T]) -> T:
        """What gave way to somebody else (a deadlock) is done again: nothing of it stands."""
        for tries in range(1, TRIES):
            try:
                return self._at_once(job, plain=True)
            except StoreBusy:
                time.sleep(PAUSE[0] * tries)
        return self._at_once(job, plain=True)

    @property
    def writer(self) -> ServerWriter:
        """For ``write``, and for who has many jobs that need no future each.

        Raises:
            StoreError: the store is not open.
        """
        self._refuse_if_forked()
        if self._writer is None:
            raise StoreError("the store is not open; use `async with app:` or app.open() first", url=self.label)
        return self._writer

    def upkeep(self, upto: int) -> int:
        """Room in the log for what comes, and whole parts of it dropped that end at or below ``upto``; how many. A role that doesn't own
        the tables leaves both: what comes has a place anyway, and what is old is deleted row by row."""
        dropped = 0
        try:
            with self._connection() as conn:
                partitions.patiently(partitions.make_room, conn)
                while partitions.patiently(lambda conn: partitions.drop_passed(conn, upto), conn):
                    dropped += 1
        except psycopg.errors.InsufficientPrivilege as error:
            if self._may_keep_up:
                self._may_keep_up = False
                log.info("%s: old events are deleted row by row, since this role doesn't own the tables: %s", self.label, error)
        except psycopg.Error as error:
            raise explain(error, self.url) from error
        return dropped

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """A psycopg connection with a transaction open: commits at the end, rolls back on an error. The server ends it if nothing
        happens in it for too long, so that a process that is frozen holds nobody up."""
        with self._connection() as conn:
            conn.execute(f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = {int(self._frozen * 1000)}".encode())
            try:
                yield conn
                conn.execute("COMMIT")
            except BaseException:
                if is_open(conn):
                    conn.execute("ROLLBACK")
                raise
            self.announce()

    def unit(self, connection: Any) -> PostgresUnit:
        return PostgresUnit(connection, self.clock)

    # -- reading

    def query(self, job: Callable[[PostgresUnit], T]) -> T:
        try:
            with self._connection() as conn:
                conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                try:
                    return job(self.unit(conn))
                finally:
                    if is_open(conn):
                        conn.execute("ROLLBACK")
        except psycopg.Error as error:
            raise explain(error, self.url) from error

    def at_once(self, job: Callable[[PostgresUnit], T]) -> T:
        return self._at_once(job)

    def _at_once(self, job: Callable[[PostgresUnit], T], *, plain: bool = False) -> T:
        try:
            with self._connection(plain) as conn:
                unit = self.unit(conn)
                result = job(unit)
        except psycopg.Error as error:
            raise explain(error, self.url) from error
        self._on_committed(unit)
        return result

    def read(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        self._refuse_if_forked()
        with self._reading_lock:
            try:
                conn = self._reading
                if conn is None or not is_open(conn):
                    self._stop_reading()
                    conn = self._reading = connect(self.url, name="tidings reader")
                    self._notice(conn)
                elif self.pooled:
                    self._notice(conn)
                return self._read(conn, after, upto)
            except psycopg.Error as error:
                self._stop_reading()
                raise explain(error, self.url) from error
            except StoreError:  # a standby, perhaps: what it is later must be asked anew
                self._stop_reading()
                raise

    def _read(self, conn: psycopg.Connection[Any], after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        safe = self._horizon.safe
        if safe < upto:
            before, safe = safe, self._horizon.observe(conn)
            self._held_back = self._horizon.held_back
            if safe > before or not self._held_back:
                self._moved = time.monotonic()
        safe = min(safe, upto)
        if safe <= after:
            return [], after
        begun = after
        rows: list[tuple[Any, ...]] = []
        size = 0
        while after < safe:
            asked = self._rows
            part = fetch(conn, after, safe, asked)
            rows += part
            got = sum([len(row[10]) for row in part])
            size += got
            if part:
                fitting = READ_BYTES // (4 * (got // len(part) + 1))
                self._rows = max(ROWS[0], min(ROWS[1], fitting))
            if len(part) < asked:
                break
            after = part[-1][0]
            if size > READ_BYTES:
                safe = after
                break
        # Nobody may act on a row, or pass a position, that a crash of the server would take back and give to another event: this process
        # would not notice. The horizon was looked at before; what it covers is durable once the server has flushed up to here.
        if self._durable == begun and rows and rows[-1][0] == safe and self._synced.issuperset([row[0] for row in rows]):
            self._durable = safe  # all of it is this process's own, which was synced when its commit returned
        elif self._durable < safe:
            reached = self._horizon.safe
            flush(conn)
            self._durable = reached
        return rows, safe

    def _notice(self, conn: psycopg.Connection[Any]) -> None:
        """Learn the name of the history that is read from now on; another one's rows and positions count for nothing."""
        row = conn.execute(history.LOOK).fetchone()
        if row is not None and row[0] is not None and row[0] != self.history:
            self.history = row[0]
            self._horizon.reset()
            self._durable, self._synced = 0, set()

    def _place(self, conn: psycopg.Connection[Any]) -> None:
        """See that no progress from another history is written through this connection (history.py)."""
        self.history, fenced = history.settle(conn)
        if fenced:
            log.warning(
                "%s: this is another server, or another line of its history, than the log was last used on (a promoted standby, a restored"
                " backup): every subscription goes on from where this database says, and what it no longer has is lost or done again",
                self.label,
            )

    def check_history(self, raw: enlist.Executor) -> None:
        """The same for a connection that handlers are run on; the fencing is done beside its transaction."""
        if raw.driver in self._placed and not self.pooled:
            return
        row = raw.execute(history.LOOK).fetchone()
        if row is not None and row[0] is not None and row[0] != row[1]:
            with self._connection() as conn:
                self._place(conn)
        self._placed.add(raw.driver)

    def _stop_reading(self) -> None:
        """A new connection may find other transactions under the old names, so what was seen of them counts for nothing."""
        self._horizon.reset()
        self._durable = 0
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def cursor(self, source: str) -> PostgresCursor:
        cursor = PostgresCursor(self.url, source)
        with self._cursors_lock:
            self._cursors.add(cursor)
        return cursor

    def glance(self, after: int, upto: int) -> None:
        """Never without waiting for the server."""

    def durable(self) -> int:
        """Nothing to do: the server may crash while this process lives, so ``read`` never gives out what such a crash would take back."""
        return self._durable

    def lasts(self, upto: int, last: tuple[Any, ...] | None) -> bool:
        return upto <= self._durable

    # -- waking up

    def watch(self, woken: Callable[[], None]) -> Waker:
        """What calls ``woken`` on the running loop when there may be something new; it is closed by whoever asked."""
        return Waker(self._listen, self._channel, woken, self._anything_held_back, self._told_by)

    def _told_by(self) -> int:
        return 0 if self._notifier is None else self._notifier.pid

    def _anything_held_back(self) -> bool:
        with self._cursors_lock:
            return self._held_back or any(cursor.held_back for cursor in self._cursors)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` (from any thread) after commits of this process that readers want to know of."""
        self._committed.append(callback)

    def off_commit(self, callback: Callable[[], None]) -> None:
        """Undo ``on_commit``."""
        if callback in self._committed:
            self._committed.remove(callback)

    def _on_written(self, unit: PostgresUnit, synced: bool) -> None:
        if synced:
            if len(self._synced) > OWN:
                self._synced = set()
            self._synced.update(unit.positions)
        self._on_committed(unit)

    def _on_committed(self, unit: PostgresUnit) -> None:
        if unit.told:
            self.announce()

    def announce(self) -> None:
        """Tell readers, of this process and others, that something was committed."""
        for callback in self._committed:
            callback()
        if self._notifier is not None:
            self._notifier.hint(committed=True)

    def hint(self) -> None:
        """Something will be committed soon, by a transaction that isn't ours."""
        if self._notifier is not None:
            self._notifier.hint()

    # -- handling

    def transactions(self, given: Any, idle: float) -> Transactions:
        """``idle``: seconds after which the server ends a transaction in which nothing happens, a handler's or the writer's."""
        self._frozen = min(self._frozen, idle)
        return Transactions(self, given, idle)

    def is_busy(self, error: BaseException) -> bool:
        return is_busy(error)

    def is_refusal(self, error: BaseException) -> bool:
        """A zero byte in a text, numbers beyond their column, values that are too large."""
        return (sqlstate_of(error) or "").startswith(("22", "54")) or isinstance(error, (UnicodeEncodeError, OverflowError, struct.error))

    def is_lost(self, error: BaseException) -> bool:
        return is_lost(error)

    def stepping(self) -> AbstractContextManager[None]:
        """Nothing to take turns for: the driver fetches without giving up the interpreter at each row."""
        return nullcontext()

    # -- publishing in the user's own transaction

    def is_async(self, tx: Any) -> bool:
        return type(tx) is not psycopg.Connection and enlist.is_async(tx)

    def statement(self, *, scheduled: bool = False, constants: Mapping[str, str | int | None] | None = None) -> str:
        self._refuse_if_forked()
        return append_with(constants) if constants is not None else SCHEDULE if scheduled else APPEND

    def insertion(self, statement: str) -> str:
        return f"WITH made AS ({statement.replace('?', '%s')} RETURNING 1) SELECT count(*) FROM made"

    def publish(self, tx: Any, row: Row) -> int:
        raw = enlist.executor(tx)
        if raw.driver not in self._ours:
            self.check(raw)
        position = enlist.first(raw.execute(row[2], row[3]))
        self.hint()
        return position

    async def publish_async(self, tx: Any, row: Row) -> int:
        position = await enlist.insert_async(tx, row[2], row[3], self.check, self._ours)
        self.hint()
        return position

    def check(self, raw: enlist.Executor) -> None:
        """Raise WrongStore unless the connection is to this store. Each is asked once."""
        if raw.driver in self._ours:
            return
        # In two steps: a statement that fails would take the caller's transaction with it.
        row = raw.execute("SELECT current_database(), to_regclass('tidings_meta') IS NOT NULL").fetchone()
        assert row is not None
        if not row[1]:
            raise StoreNotInitialised(
                f"the transaction given is on the database {row[0]!r}, where no tidings_meta is found (the app's store is {self.label}):"
                " open your connection on the store's database, with its search_path",
                given=row[0],
                store=self.label,
            )
        found = raw.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()
        if found is None or found[0] != self.log_id:
            raise WrongStore(
                f"the transaction given is on the database {row[0]!r}, which holds another log than the app's store {self.label}: an event"
                " commits with your rows only in one database. Open your connection on the store's database.",
                given=row[0],
                store=self.label,
            )
        self._ours.add(raw.driver)

    # -- what operators ask

    def size(self) -> int:
        return int(self.query(lambda unit: unit.bytes()))

    def examine(self, full: bool) -> Examination:
        """The server checks its own pages; this tells how much there is and what holds readers back."""

        def look(unit: PostgresUnit) -> tuple[int, int, int]:
            return unit.count(), unit.bytes(), unit.count_parts()

        events, size, parts = self.query(look)
        holders = self.holders()
        figures = {"store_bytes": size, "parts": parts, "horizon": [asdict(holder) for holder in holders]}
        lines = [f"{size_text(size)} in the tables and their indexes; the log is in {parts} parts"]
        lines += [holder_text(holder) for holder in holders]
        return Examination(events, [], "", figures, lines)

    def holders(self) -> list[Holder]:
        try:
            with self._connection() as conn:
                return [Holder(locker.seconds, locker.words()) for locker in lockers(conn)]
        except psycopg.Error as error:
            raise explain(error, self.url) from error

    def held_back(self) -> float:
        return time.monotonic() - self._moved if self._held_back else 0.0

    @contextmanager
    def _connection(self, plain: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """One of the store's own, idle or new; ``plain``: of those for ``write_plainly``."""
        self._refuse_if_forked()
        idle = self._idle_plain if plain else self._idle
        with self._idle_lock:
            conn = idle.pop() if idle else None
        fresh = conn is None or not is_open(conn)
        if conn is None or fresh:
            conn = connect(self.url)
        try:
            if plain and fresh and conn.prepare_threshold is not None:
                conn.execute(BY_KEY)
            yield conn
        except psycopg.Error as error:
            conn.close()
            if is_lost(error):  # then the others are too
                self._close_idle()
            raise
        finally:
            with self._idle_lock:
                # Who was reading while the store was closed would leave it a connection that nobody closes.
                keep = self._opened > 0 and len(idle) < 4 and is_open(conn)
                keep = keep and conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                if keep:
                    idle.append(conn)
            if not keep:
                conn.close()
