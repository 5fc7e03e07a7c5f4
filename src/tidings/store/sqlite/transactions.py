"""The transactions that handlers run in: begun, guarded, and committed with the checkpoint.

SQLite has one writer at a time, so each begins with BEGIN IMMEDIATE in this process's turn; a deferred one could find at its first write
that its snapshot is stale, after the handler has had its effects.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import HandlerDefinitionError, TransactionEnded
from ..port import RaisedByHandler
from ..transaction import OpenAsyncTransaction, OpenTransaction, sqlalchemy_source
from . import enlist
from .connect import is_about_another_file

if TYPE_CHECKING:
    from .store import SQLiteStore


UNDO_TRIES = 100
GRACE_SECONDS = 0.25
"""A handler that was given up may end its transaction itself for so long."""


class Guard:
    """Keeps a handler from ending a transaction that isn't its own, by SQLite's authorizer: COMMIT and ROLLBACK are refused when they
    are prepared, so nothing is lost and the handler sees the error where it made the mistake. Savepoints are its own business.

    Args:
        pooled: the connection goes back to a pool as soon as its transaction ends, so a ROLLBACK is let through: refused, it would put what
            was done so far into whatever transaction the next user of the connection commits. It counts as an attempt all the same.

    Setting an authorizer makes SQLite prepare every statement anew, so it is set once a connection and switched by a flag.

    Another thread had better leave the connection alone while a statement of the handler runs or fails. sqlite3 sets an authorizer, closes,
    and fetches the text of an error with the interpreter's lock in its hands, and SQLite lets each of these wait for the statement that
    runs: so does all of the process then, and for ever if that statement asks ``_allow``. Only ``interrupt`` waits for nothing.
    """

    def __init__(self, raw: sqlite3.Connection, *, pooled: bool = False) -> None:
        self.raw = raw
        self._pooled = pooled
        self._undone = False
        self._closed = False
        self._tried = False
        self._given_up = False
        self._undone_by: int | None = None
        self._undoing = threading.Lock()
        raw.set_authorizer(self._allow)

    def remove(self) -> None:
        """In the handler's thread: take the authorizer off a connection that goes back to its owner; it is closed if it was given up."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed meanwhile
            if not self._given_up:
                self.raw.set_authorizer(None)
                return
        self.undo()
        self.raw.close()

    def give_up(self) -> None:
        """Remove it and roll back, behind SQLAlchemy's back: after a COMMIT that failed it puts the connection into the pool as it is."""
        self.remove()
        if not self._undone and self.alive():
            self.raw.rollback()

    def before_commit(self, session: Any) -> None:
        """SQLAlchemy's event: the same refusal for a Session, before it lets go of its connection."""
        if self._closed and not session.in_nested_transaction():
            self._tried = True
            raise self._ended("the handler")

    @contextmanager
    def closed(self, name: str) -> Iterator[None]:
        """Around a handler's call.

        Raises:
            TransactionEnded: it tried to end the transaction, whatever error that gave it.
            RaisedByHandler: its error can't be about this file.
        """
        self._closed, self._tried = True, False
        try:
            yield
        except BaseException as error:
            if self._tried or not self.alive():
                raise self._ended(name) from error
            if isinstance(error, Exception) and is_about_another_file(error):
                raise RaisedByHandler(error) from None
            raise
        finally:
            self._closed = False
        if self._tried or not self.alive():
            raise self._ended(name)

    def shut(self) -> None:
        """Its handler was given up: from now on every statement that it prepares is refused, and the one that runs is ended."""
        self._given_up = True
        with contextlib.suppress(sqlite3.ProgrammingError):  # it closed the connection
            self.raw.interrupt()

    def undo(self) -> None:
        """Behind ``shut``: roll back; and what the handler has prepared already can't write any more (``query_only``).

        In the handler's thread, or in another one when the handler hangs elsewhere than in a statement. As long as it has cursors open,
        SQLite ends all statements for the sake of the one that ``shut`` was to end, ours too.
        """
        with self._undoing, contextlib.suppress(sqlite3.ProgrammingError):
            self._undone_by = threading.get_ident()
            for _ in range(UNDO_TRIES):
                try:
                    self.raw.execute("PRAGMA query_only = 1")
                    self.raw.rollback()
                except sqlite3.OperationalError:
                    for cursor in gc.get_referrers(self.raw):
                        if isinstance(cursor, sqlite3.Cursor):
                            with contextlib.suppress(sqlite3.Error):
                                cursor.close()
                    time.sleep(0.01)
                else:
                    break
            self._undone_by = None

    def alive(self) -> bool:
        """Whether the transaction is still open."""
        try:
            return self.raw.in_transaction
        except sqlite3.ProgrammingError:  # it closed the connection
            return False

    def _allow(self, action: int, which: str | None, *_: str | None) -> int:
        if self._given_up:
            ours = action in (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_PRAGMA) and threading.get_ident() == self._undone_by
            return sqlite3.SQLITE_OK if ours else sqlite3.SQLITE_DENY
        if self._closed and action == sqlite3.SQLITE_TRANSACTION:
            self._tried = True
            self._undone = self._pooled and which == "ROLLBACK"
            return sqlite3.SQLITE_OK if self._undone else sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _ended(self, name: str) -> TransactionEnded:
        return TransactionEnded(
            f"{name} tried to end the transaction it was given (commit, rollback, close, `with tx:` or executescript):"
            " the worker commits it, with the checkpoint. Use a savepoint for a part that may be undone.",
            handler=name,
        )


class Transaction(OpenTransaction[sqlite3.Connection, Guard]):
    """A transaction under way. ``turn``: the process's, which it holds. ``over``: its thread has done with it."""

    turn: _Turn | None = None
    over = False


class AsyncTransaction(OpenAsyncTransaction[sqlite3.Connection, Guard]):
    """The same for an async handler."""


class Transactions:
    """Where the transactions of one app's handlers come from.

    Args:
        given: what ``App(transactions=…)`` was given: an engine, a sessionmaker, their async twins, a callable that returns an
            aiosqlite connection, or several of these.
    """

    def __init__(self, store: SQLiteStore, given: Any) -> None:
        self._store = store
        self._given = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
        self._guards = threading.local()
        self._open: set[Transaction] = set()

    def check(self, kind: str, handler: str) -> None:
        """Raise HandlerDefinitionError unless transactions of this kind can be had."""
        if kind in {"sqlite3", "aiosqlite", "django"}:
            return
        if kind not in {"session", "connection", "async session", "async connection"}:
            raise HandlerDefinitionError(f"{handler} asks for a transaction of {kind}, and the store is on SQLite", handler=handler)
        self._source(kind, handler)

    async def close(self) -> None:
        """Give up what still runs; the connections are the store's."""
        for transaction in list(self._open):
            self.abort(transaction)
        given_up = [transaction for transaction in list(self._open) if transaction.aborted]
        until = time.monotonic() + 4 * GRACE_SECONDS
        while given_up and time.monotonic() < until:
            await asyncio.sleep(0.01)
            given_up = [transaction for transaction in given_up if not transaction.over and transaction.guard.alive()]

    @contextmanager
    def begin(self, kind: str) -> Iterator[Transaction]:
        """A transaction for synchronous handlers, in the thread that runs them. Commits at the end, rolls back on an error.

        Raises:
            sqlite3.OperationalError, and what the driver makes of it: somebody else held the write lock for too long.
        """
        turn = _Turn(self._store)
        began = time.monotonic()
        mine: Transaction | None = None
        try:
            with self._opened(kind) as transaction:
                transaction.turn = turn
                began = time.monotonic()
                self._open.add(transaction)
                mine = transaction
                yield transaction
            for step in transaction.after:
                step()
            self._store.announce()
            time.sleep(self._store.turn.rest(time.monotonic() - began))
        finally:
            turn.release()
            if mine is not None:
                mine.over = True
                self._open.discard(mine)

    @contextmanager
    def _opened(self, kind: str) -> Iterator[Transaction]:
        if kind == "sqlite3":
            raw = self._store.handling_connection()
            raw.row_factory, raw.text_factory = None, str  # an earlier handler may have wanted them otherwise
            guard = getattr(self._guards, "guard", None)
            if guard is None or guard.raw is not raw:
                guard = self._guards.guard = Guard(raw)
            raw.execute("BEGIN IMMEDIATE")
            transaction = Transaction(raw, raw, guard, lambda: _savepoint(raw))
            try:
                yield transaction
                raw.commit()
            except BaseException:
                if transaction.aborted:
                    guard.remove()
                elif guard.alive():
                    raw.rollback()
                raise
        elif kind == "django":
            import django.db

            connection = django.db.connection
            with django.db.transaction.atomic():
                raw = connection.connection
                self._store.check(raw)
                raw.execute(_TAKE_WRITE_LOCK)
                with _guarded(raw) as guard:
                    yield Transaction(connection, raw, guard, django.db.transaction.atomic)
        else:
            import sqlalchemy.event

            source = self._source(kind, kind)
            with source() if kind == "session" else source.connect() as tx:
                connection = tx.connection() if kind == "session" else tx
                if not connection.in_transaction():
                    connection.begin()
                raw = connection.connection.driver_connection
                self._store.check(raw)
                if not raw.in_transaction:
                    raw.execute("BEGIN IMMEDIATE")
                with _guarded(raw, pooled=True) as guard:
                    if kind == "session":
                        sqlalchemy.event.listen(tx, "before_commit", guard.before_commit)
                    yield Transaction(tx, raw, guard, tx.begin_nested)
                tx.commit()

    @asynccontextmanager
    async def begin_async(self, kind: str) -> AsyncIterator[AsyncTransaction]:
        """A transaction for an async handler."""
        loop = asyncio.get_running_loop()
        turn = _Turn(self._store, acquire=False)
        await turn.take_async()
        began = time.monotonic()
        try:
            if kind == "sqlite3":
                raw = self._store.connect()
                guard = Guard(raw)
                try:
                    await loop.run_in_executor(None, raw.execute, "BEGIN IMMEDIATE")
                    transaction = AsyncTransaction(raw, lambda work: loop.run_in_executor(None, work, raw), guard)
                    yield transaction
                    await loop.run_in_executor(None, raw.commit)
                except asyncio.CancelledError:  # the handler may go on in a thread of its own
                    guard.shut()
                    await asyncio.sleep(GRACE_SECONDS / 5)
                    await loop.run_in_executor(None, guard.undo)
                    raise
                except BaseException:
                    raw.close()  # rolls back
                    raise
                raw.close()
            else:
                async with self._opened_async(kind) as tx:
                    driver = await enlist.driver_of(tx)
                    guard = await enlist.in_thread(driver, lambda: self._begin_guarded(driver._conn, pooled=kind != "aiosqlite"))
                    transaction = AsyncTransaction(tx, lambda work: enlist.run_async(tx, work), guard)
                    if kind == "async session":
                        import sqlalchemy.event

                        sqlalchemy.event.listen(tx.sync_session, "before_commit", guard.before_commit)
                    try:
                        yield transaction
                        await enlist.in_thread(driver, guard.remove)
                        await tx.commit()
                    except BaseException:
                        with contextlib.suppress(Exception):  # of no interest beside the one that brought us here; closing undoes it too
                            await enlist.in_thread(driver, guard.give_up)
                            await tx.rollback()
                        raise
            for step in transaction.after:
                step()
            self._store.announce()
            await asyncio.sleep(self._store.turn.rest(time.monotonic() - began))
        finally:
            turn.release()

    def _begin_guarded(self, raw: sqlite3.Connection, pooled: bool) -> Guard:
        """In the driver's thread."""
        self._store.check(raw)
        if not raw.in_transaction:
            raw.execute("BEGIN IMMEDIATE")
        return Guard(raw, pooled=pooled)

    def _opened_async(self, kind: str) -> Any:
        if kind == "aiosqlite":
            for given in self._given:
                if callable(given) and not hasattr(given, "connect") and not hasattr(given, "kw"):
                    return given()
            import aiosqlite

            return aiosqlite.connect(self._store.path)
        source = self._source(kind, kind)
        return source() if kind == "async session" else source.connect()

    def _source(self, kind: str, handler: str) -> Any:
        return sqlalchemy_source(self._given, kind, handler)

    def abort(self, transaction: Transaction) -> bool:
        """Give up a transaction whose handler hangs in another thread: it is rolled back, which frees the file. Its connection is closed
        when the handler's thread has ended.

        False if it is being committed: then there is nothing to give up.
        """
        if not transaction.abort():
            return False
        self._store.forget(transaction.raw)
        transaction.guard.shut()
        threading.Thread(target=self._undo, args=(transaction,), name="tidings-undo", daemon=True).start()
        return True

    def _undo(self, transaction: Transaction) -> None:
        """By name: closing alone would leave the transaction, and the lock, to the last cursor that the handler holds."""
        until = time.monotonic() + GRACE_SECONDS
        while not transaction.over and time.monotonic() < until:  # one whose statement was ended has an error, and ends
            time.sleep(0.002)
        if not transaction.over:
            transaction.guard.undo()
        if transaction.turn is not None:
            transaction.turn.release()


class _Turn:
    """The process's turn, released once, by whoever is first."""

    def __init__(self, store: SQLiteStore, acquire: bool = True) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._held = False
        if acquire:
            self.take()

    def take(self) -> None:
        self._store.turn.acquire()
        self._held = True

    async def take_async(self) -> None:
        """Wait without a thread: waiting handlers would fill any pool, and the one they wait for needs a thread to commit."""
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[None] = loop.create_future()

        def grant() -> None:
            if mine.cancelled():
                self.release()
            else:
                mine.set_result(None)

        def granted() -> None:
            self._held = True
            try:
                loop.call_soon_threadsafe(grant)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                self.release()

        self._store.turn.request(granted)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.release()
            raise

    def release(self) -> None:
        with self._lock:
            held, self._held = self._held, False
        if held:
            self._store.turn.release()


_TAKE_WRITE_LOCK = "UPDATE tidings_meta SET value = value WHERE 0"
"""Changes nothing; as the first statement it makes a deferred transaction a writing one, waiting for its turn."""


@contextmanager
def _guarded(raw: sqlite3.Connection, *, pooled: bool = False) -> Iterator[Guard]:
    guard = Guard(raw, pooled=pooled)
    try:
        yield guard
    except BaseException:
        if pooled:
            guard.give_up()
        else:
            guard.remove()
        raise
    guard.remove()


@contextmanager
def _savepoint(raw: sqlite3.Connection) -> Iterator[None]:
    raw.execute("SAVEPOINT tidings")
    raw.row_factory, raw.text_factory = None, str  # an earlier handler may have wanted them otherwise
    try:
        yield
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK TO tidings")
            raw.execute("RELEASE tidings")
        raise
    raw.execute("RELEASE tidings")
