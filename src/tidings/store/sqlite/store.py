"""The store on one SQLite file: its connections, its writer, and the transactions that handlers get."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

from ...clock import Clock, SystemClock
from ...errors import ConfigurationError, StoreBusy, StoreError, StoreNotInitialised, WrongStore
from ..forks import OfOneProcess
from ..port import Examination, Holder, Row, size_text
from . import enlist, schema
from .connect import BUSY_SECONDS, boot_id, connect, explain, is_busy, is_store_failure, path_of, plain, write_lock_holder
from .cursor import SQLiteCursor
from .transactions import Transactions
from .unit import APPEND, HEAD, READ, SCHEDULE, SQLiteUnit, append_with, only_in
from .waker import Waker
from .writer import FileWriter, WriteTurn

T = TypeVar("T")

READ_BYTES = 8 * 1024 * 1024
"""One read stops after this much data."""
GLANCE_ROWS = 256
GLANCE_BYTES = 512 * 1024
"""A read on the loop stops after so many rows or so much data: about half a millisecond."""

_EVENT_ID = 7
"""Its place in a row."""
_FULL = 2
"""What ``PRAGMA synchronous`` answers from FULL on."""


class Stepping:
    """Threads that step through many rows take turns. The sqlite3 module lets go of the interpreter's lock at each row, so that two of them
    would hand it to and fro and be slower together than one after the other. Only a courtesy: nobody waits for long."""

    PATIENCE = 0.03

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        taken = self._lock.acquire(timeout=self.PATIENCE)
        try:
            yield
        finally:
            if taken:
                self._lock.release()

    def begin(self) -> bool:
        """For who can't wait: whether it is his turn; then he says ``end``."""
        return self._lock.acquire(blocking=False)

    def end(self) -> None:
        self._lock.release()


class SQLiteStore(OfOneProcess):
    """A log on a SQLite file (WAL mode).

    Args:
        url: ``sqlite:///shop.db``.
        synchronous: ``FULL`` (a commit survives a power cut) or ``NORMAL`` (the last commits before a power cut may be undone; what leaves
            the machine is made durable first).
        clock: for due times and leases; tests give a ManualClock.
        busy: seconds to wait for the file's write lock before StoreBusy.

    Raises:
        ConfigurationError: the URL or ``synchronous`` isn't understood.
    """

    one_writer = True
    reads_aside = False
    history = ""

    def __init__(self, url: str, *, synchronous: str = "FULL", clock: Clock | None = None, busy: float = BUSY_SECONDS) -> None:
        if synchronous not in {"FULL", "NORMAL"}:
            raise ConfigurationError(f'synchronous={synchronous!r}: choose "FULL" (the default) or "NORMAL"')
        self.url = self.label = url
        self.path = path_of(url)
        self.clock: Clock = clock or SystemClock()
        self.log_id = ""
        self.turn = WriteTurn()
        self.stepping = Stepping()
        self._synchronous = synchronous
        self._busy = busy
        self._boot = boot_id()
        self._writer: FileWriter | None = None
        self._readers = threading.local()
        self._reading: list[sqlite3.Connection] = []
        self._wal: int | None = None
        self._open_lock = threading.Lock()
        self._reading_now = 0
        self._nobody_reads = threading.Condition()
        self._committed: list[Callable[[], None]] = []
        self._opened = 0
        self._read_only = False
        self._idle_readers = 0
        self._syncing = (0, "")

    def open(self) -> None:
        """Make or migrate the tables if need be, and start the writer. Each ``open`` wants its ``close``.

        Raises:
            StoreFailed, StoreBusy, StoreNewer
        """
        self._refuse_if_forked()
        with self._open_lock:
            self._opened += 1
            if self._writer is not None:
                return
            try:
                conn = self.connect(create=True)
                try:
                    if schema.version_of(conn) != schema.NEWEST or schema.log_id_of(conn) is None:
                        schema.migrate(conn, self.path)
                    self.log_id = conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()[0]
                except BaseException:
                    conn.close()
                    raise
            except sqlite3.Error as error:
                self._opened -= 1
                raise explain(error, self.path) from error
            except BaseException:
                self._opened -= 1
                raise
            self._writer = FileWriter(conn, self.path, self.turn, self.unit, self.announce, syncs=self._synchronous == "FULL")
            self._opened_here()

    def open_to_read(self) -> None:
        """For ``query`` and ``read`` only: makes and migrates nothing, and needs no right to write. Wants its ``close`` too.

        Raises:
            StoreNotInitialised, StoreNewer, StoreFailed
        """
        with self._open_lock:
            if not os.path.exists(self.path):
                raise StoreNotInitialised(f"there is no {self.path}; `tidings store init --store {self.url}` makes it", path=self.path)
            try:
                with closing(self.connect(read_only=True)) as conn:
                    schema.require(conn, self.path)
                    self.log_id = conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()[0]
            except sqlite3.Error as error:
                raise explain(error, self.path) from error
            self._read_only = self._writer is None
            self._opened += 1
            self._opened_here()

    def close(self) -> None:
        with self._open_lock:
            self._opened -= 1
            if self._opened > 0 or (self._writer is None and not self._read_only):
                return
            self._closed_here()
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._read_only = False
            with self._nobody_reads:  # closed under a thread that steps through it, a connection brings the process down
                self._nobody_reads.wait_for(lambda: not self._reading_now)
            for conn in self._reading:
                conn.close()
            self._reading.clear()
            self._readers = threading.local()
            if self._wal is not None:
                os.close(self._wal)
                self._wal = None

    def leave_behind(self) -> object:
        # SQLite's connections may neither be used nor closed there (https://sqlite.org/howtocorrupt.html, 2.6).
        left = (self._writer, self._readers, self._reading, self._committed)
        self._writer, self._opened, self.log_id = None, 0, ""
        self._readers, self._reading, self._committed, self._open_lock = threading.local(), [], [], threading.Lock()
        self._reading_now, self._nobody_reads = 0, threading.Condition()
        return left

    @contextmanager
    def _keeping_open(self) -> Iterator[None]:
        """Whoever closes the store waits for this."""
        with self._nobody_reads:
            self._reading_now += 1
        try:
            yield
        finally:
            with self._nobody_reads:
                self._reading_now -= 1
                self._nobody_reads.notify_all()

    def connect(self, *, create: bool = False, read_only: bool = False) -> sqlite3.Connection:
        """A new connection with the store's settings; the caller closes it."""
        return connect(self.path, synchronous=self._synchronous, create=create, read_only=read_only, busy=self._busy)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` (from any thread) after each commit of this process's writer."""
        self._committed.append(callback)

    def off_commit(self, callback: Callable[[], None]) -> None:
        """Undo ``on_commit``."""
        if callback in self._committed:
            self._committed.remove(callback)

    def write(self, job: Callable[[SQLiteUnit], T], after: Callable[[T], None] | None = None) -> Future[T]:
        return self.writer.submit(job, after)

    def write_plainly(self, job: Callable[[SQLiteUnit], T]) -> Future[T]:
        return self.write(job)

    @property
    def writer(self) -> FileWriter:
        """For ``write``, and for who has many jobs that need no future each.

        Raises:
            StoreError: the store is not open.
        """
        self._refuse_if_forked()
        if self._writer is None:
            raise StoreError("the store is not open; use `async with app:` or app.open() first", path=self.path)
        return self._writer

    def at_once(self, job: Callable[[SQLiteUnit], T]) -> T:
        return self.query(job)

    def query(self, job: Callable[[SQLiteUnit], T]) -> T:
        with self._keeping_open():
            conn = self.reader()
            try:
                conn.execute("BEGIN")
                try:
                    return job(self.unit(conn))
                finally:
                    conn.rollback()
            except sqlite3.Error as error:
                raise explain(error, self.path) from error

    def read(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        with self._keeping_open():
            conn = self.reader()
            try:
                # The head first, the rows in a later snapshot: positions are given out in commit order, so all up to that head are there.
                head = conn.execute(HEAD).fetchone()
                safe = min(upto, head[0] if head else 0)
                if safe <= after:
                    return [], after
                with self.stepping():
                    return self._step(conn.execute(READ, (after, safe)), safe)
            except sqlite3.Error as error:
                raise explain(error, self.path) from error

    @staticmethod
    def _step(cursor: sqlite3.Cursor, safe: int) -> tuple[list[tuple[Any, ...]], int]:
        rows: list[tuple[Any, ...]] = []
        size = 0
        while part := cursor.fetchmany(256):
            rows += part
            size += sum([len(row[10]) for row in part])
            if size > READ_BYTES:
                cursor.close()
                return rows, rows[-1][0]
        return rows, safe

    def cursor(self, source: str) -> SQLiteCursor:
        return SQLiteCursor(self.connect, self.path, source)

    def glance(self, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int] | None:
        if not self.stepping.begin():
            return None
        try:
            conn: sqlite3.Connection | None = getattr(self._readers, "glancing", None)
            if conn is None:
                conn = self._readers.glancing = connect(self.path, synchronous=self._synchronous, read_only=self._read_only, busy=0)
                self._reading.append(conn)
            head = conn.execute(HEAD).fetchone()
            safe = min(upto, head[0] if head else 0)
            if safe <= after:
                return [], after
            rows, size = [], 0
            cursor = conn.execute(READ, (after, safe))
            while part := cursor.fetchmany(64):
                rows += part
                size += sum([len(row[10]) for row in part])
                if len(rows) >= GLANCE_ROWS or size > GLANCE_BYTES:
                    cursor.close()
                    return rows, rows[-1][0]
            return rows, safe
        except (sqlite3.Error, StoreError):
            return None  # ``read`` waits, or tells what is wrong
        finally:
            self.stepping.end()

    def durable(self) -> int:
        """Sync the -wal file: what was readable then is in it, or in the database file that a checkpoint has synced."""
        with self._keeping_open():
            head = self.reader().execute(HEAD).fetchone()
            if self._wal is None:
                self._wal = os.open(self.path + "-wal", os.O_RDONLY)
            os.fdatasync(self._wal) if hasattr(os, "fdatasync") else os.fsync(self._wal)
            return head[0] if head else 0

    def lasts(self, upto: int, last: tuple[Any, ...] | None) -> bool:
        if self._writer is not None and upto <= self._writer.lasting:
            return True
        # A row that can be seen was synced before if its transaction syncs, and with it all that came before. By its id, since the position
        # of a transaction that was rolled back is given to somebody else's.
        return last is not None and (upto, last[_EVENT_ID]) == self._syncing

    def unit(self, connection: sqlite3.Connection) -> SQLiteUnit:
        return SQLiteUnit(plain(connection), self.clock, self._boot)

    def holders(self) -> list[Holder]:
        """Nobody: what is committed can be read."""
        return []

    def held_back(self) -> float:
        """Never."""
        return 0.0

    def upkeep(self, upto: int) -> int:
        """Nothing: the file grows as it must, and is trimmed in chunks."""
        return 0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection of this thread's with BEGIN IMMEDIATE done, in this process's turn.

        Raises:
            StoreBusy: the file's write lock was held by somebody else for longer than ``busy``.
        """
        with self.turn:
            conn = self.handling_connection()
            try:
                conn.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise explain(error, self.path) from error
            began = time.monotonic()
            try:
                yield conn
                conn.commit()
            except BaseException:
                if conn.in_transaction:
                    conn.rollback()
                raise
            self.announce()
            time.sleep(self.turn.rest(time.monotonic() - began))

    def handling_connection(self) -> sqlite3.Connection:
        """This thread's connection for handlers' transactions."""
        conn: sqlite3.Connection | None = getattr(self._readers, "handling", None)
        if conn is None or not _usable(conn):
            conn = self._readers.handling = self.connect()
            self._reading.append(conn)
        return conn

    def forget(self, conn: sqlite3.Connection) -> None:
        """Whoever uses this connection closes it."""
        with suppress(ValueError):
            self._reading.remove(conn)

    def reader(self) -> sqlite3.Connection:
        """This thread's connection for reading."""
        conn: sqlite3.Connection | None = getattr(self._readers, "reading", None)
        if conn is None:
            self._refuse_if_forked()
            conn = self._readers.reading = self.connect(read_only=self._read_only)
            self._reading.append(conn)
        return conn

    def is_busy(self, error: BaseException) -> bool:
        """Whether an error means that the store was busy or failed (a full disk), so that the same work is simply run again.

        Looks through what SQLAlchemy (``orig``) and Django (``__cause__``) make of the driver's errors.
        """
        cause = getattr(error, "orig", None) or error.__cause__
        return isinstance(error, StoreBusy) or any(is_busy(one) or is_store_failure(one) for one in (error, cause) if one is not None)

    def is_refusal(self, error: BaseException) -> bool:
        """Text that is no UTF-8, numbers beyond 64 bits, values that are too large."""
        return isinstance(error, (sqlite3.DataError, UnicodeEncodeError, OverflowError))

    def is_lost(self, error: BaseException) -> bool:
        """Never: a commit that failed was rolled back."""
        return False

    def size(self) -> int:
        return os.path.getsize(self.path)

    def examine(self, full: bool) -> Examination:
        """SQLite's own check of the file; ``full``: of the indexes against the tables too."""
        with closing(self.connect(read_only=True)) as conn:
            problems = [row[0] for row in conn.execute(f"PRAGMA {'integrity' if full else 'quick'}_check(20)") if row[0] != "ok"]
            events = conn.execute("SELECT count(*) FROM tidings_log").fetchone()[0]
        wal = os.path.getsize(self.path + "-wal") if os.path.exists(self.path + "-wal") else 0
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(self.path))).free
        holder = write_lock_holder(self.path)
        lines = [f"{size_text(self.size())}, {size_text(wal)} of write-ahead log, {size_text(free)} free on the disk"]
        if holder is not None:
            lines.append(f"process {holder[0]} ({holder[1]}) holds the write lock")
        figures = {
            "path": self.path,
            "store_bytes": self.size(),
            "wal_bytes": wal,
            "free_bytes": free,
            "write_lock": None if holder is None else {"pid": holder[0], "name": holder[1]},
        }
        return Examination(events, problems, "Restore a backup, or look at it with `sqlite3 FILE .recover`.", figures, lines)

    def watch(self, woken: Callable[[], None]) -> Waker:
        """What calls ``woken`` on the running loop when somebody has committed; it is closed by whoever asked."""
        return Waker(self.path, self.connect(), woken, armed=self._on_armed)

    def _on_armed(self, armed: bool) -> None:
        self._idle_readers += 1 if armed else -1

    def transactions(self, given: Any, idle: float) -> Transactions:
        """``idle`` is not used: a process that is frozen in a transaction holds the file, and nothing can end that from outside."""
        return Transactions(self, given)

    # -- publishing in the user's own transaction

    def statement(self, *, scheduled: bool = False, constants: Mapping[str, str | int | None] | None = None) -> str:
        self._refuse_if_forked()
        return only_in(self.log_id, append_with(constants) if constants is not None else SCHEDULE if scheduled else APPEND)

    def insertion(self, statement: str) -> str:
        return only_in(self.log_id, statement)

    def is_async(self, tx: Any) -> bool:
        return type(tx) is not sqlite3.Connection and enlist.is_async(tx)

    def publish(self, tx: Any, row: Row) -> int:
        if type(tx) is sqlite3.Connection and tx.in_transaction:
            return self._insert(tx, row)
        return enlist.run(tx, lambda conn: self._insert(conn, row))

    def publish_async(self, tx: Any, row: Row) -> Awaitable[int]:
        return enlist.run_async(tx, lambda conn: self._insert(conn, row))

    def _insert(self, conn: sqlite3.Connection, row: Row) -> int:
        """The one INSERT, on a driver connection."""
        try:
            position = conn.execute(row[2], row[3]).lastrowid or 0
        except sqlite3.OperationalError as error:
            if "no such table: main.tidings_" in str(error):
                raise self._wrong(conn) from error
            raise
        if self._idle_readers and not row[4]:  # somebody here waits for it and would have to sync
            self._note_syncing(conn, position, row[0])
        return position

    def _note_syncing(self, conn: sqlite3.Connection, position: int, event_id: str) -> None:
        """See whether the transaction will be synced to disk before it can be seen; that can't change any more (SQLite refuses)."""
        if plain(conn).execute("PRAGMA synchronous").fetchone()[0] >= _FULL:
            self._syncing = (position, event_id)

    def check(self, conn: sqlite3.Connection) -> None:
        """Raise WrongStore unless ``conn`` is to this store."""
        try:
            row = conn.execute("SELECT 1 FROM main.tidings_meta WHERE name = 'log_id' AND value = ?", (self.log_id,)).fetchone()
        except sqlite3.OperationalError as error:
            raise self._wrong(conn) from error
        if row is None:
            raise self._wrong(conn)

    def _wrong(self, conn: sqlite3.Connection) -> WrongStore:
        rows = plain(conn).execute("PRAGMA database_list").fetchall()
        file = rows[0][2] if rows and rows[0][2] else "a database in memory"
        if os.path.exists(file) and os.path.samefile(file, self.path):
            schema.require(plain(conn), file)  # the right file, but put back to what it was before
        return WrongStore(
            f"the transaction given is on {file}, but the app's store is {self.path}: an event commits with your"
            " rows only in one database."
            " Open your connection on the store's file.",
            given=file,
            store=self.path,
        )

    def announce(self) -> None:
        """Tell this process's readers that something was committed."""
        for callback in self._committed:
            callback()


def _usable(conn: sqlite3.Connection) -> bool:
    """Whether a connection is still open: a handler may have closed the one it was given."""
    try:
        return conn.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False
