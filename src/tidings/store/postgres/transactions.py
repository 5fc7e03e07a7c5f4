"""The transactions that handlers run in: begun, bounded in time, guarded, and committed with the checkpoint.

A worker that is frozen inside one would hold its rows against the successor, and its lock on the log against every reader. So the server
is told, in each of them, to end it when nothing has been heard for as long as the lease lasts.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ...errors import HandlerDefinitionError, TransactionEnded
from ..port import RaisedByHandler
from ..transaction import OpenAsyncTransaction, OpenTransaction, sqlalchemy_source
from . import enlist
from .connect import command, connect, is_lost, sqlstate_of

if TYPE_CHECKING:
    from .store import PostgresStore

# Both are undone by whatever ends the transaction: the bound, and the mark by which we know that it is still the one that we began. One
# statement, since not every driver takes two at once.
BEGUN = "SELECT set_config('idle_in_transaction_session_timeout', '{milliseconds}', true), set_config('tidings.tx', '{mark}', true)"


class Guard:
    """Keeps a handler from ending a transaction that isn't its own.

    The driver's own commit and rollback are refused where it calls them. What it does by SQL is found out by the checkpoint, which asks for
    a setting that lives as long as the transaction: then nothing counts as done, though what it committed stays.
    """

    def __init__(self, idle: Callable[[], bool]) -> None:
        self._idle = idle
        self._closed = False
        self._tried = False

    @contextmanager
    def closed(self, name: str) -> Iterator[None]:
        """Around a handler's call.

        Raises:
            TransactionEnded: it tried to end the transaction, whatever error that gave it.
            RaisedByHandler: it is about a lost connection, and this one isn't lost.
        """
        self._closed, self._tried = True, False
        try:
            yield
        except BaseException as error:
            # Gone because the server went away, it is nobody's doing. An InterfaceError says that it was closed here.
            lost = is_lost(error) and type(getattr(error, "orig", error)).__name__ != "InterfaceError"
            if self._tried or (not self.alive() and sqlstate_of(error) is None and not lost):
                raise self._ended(name) from error
            if isinstance(error, Exception) and is_lost(error) and self.alive():
                raise RaisedByHandler(error) from None  # another connection was lost, or not made
            raise
        finally:
            self._closed = False
        if self._tried or not self.alive():
            raise self._ended(name)

    def refuse(self, *_: Any) -> None:
        """Called where the handler would commit or roll back."""
        if self._closed:
            self._tried = True
            raise self._ended("the handler")

    def before_commit(self, session: Any) -> None:
        """SQLAlchemy's event: the same refusal for a Session, before it lets go of its connection."""
        if not session.in_nested_transaction():
            self.refuse()

    def alive(self) -> bool:
        """Whether a transaction is open."""
        return not self._idle()

    def _ended(self, name: str) -> TransactionEnded:
        return TransactionEnded(
            f"{name} tried to end the transaction it was given (commit, rollback, close or `with tx:`): the worker commits it, with the"
            " checkpoint. Use a savepoint for a part that may be undone.",
            handler=name,
        )


class Transaction(OpenTransaction[enlist.Executor, Guard]):
    """A transaction under way. ``cancel``: ends its statement, from any thread."""

    def __init__(self, tx: Any, raw: enlist.Executor, guard: Guard, savepoint: Callable[[], Any], cancel: Callable[[], None]) -> None:
        super().__init__(tx, raw, guard, savepoint)
        self.cancel = cancel


class AsyncTransaction(OpenAsyncTransaction[Any, Guard]):
    """The same for an async handler."""


class Transactions:
    """Where the transactions of one app's handlers come from.

    Args:
        given: what ``App(transactions=…)`` was given: an engine, a sessionmaker, their async twins, a callable that returns an asyncpg
            connection (or a coroutine of one) or a psycopg2 one, or several of these. Connections are kept, and closed in ``close``.
        idle: seconds after which the server ends a transaction in which nothing happens.
    """

    KINDS = frozenset(
        {"psycopg", "async psycopg", "psycopg2", "asyncpg", "session", "connection", "async session", "async connection", "django"}
    )

    def __init__(self, store: PostgresStore, given: Any, idle: float) -> None:
        self._store = store
        self._given = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
        self._idle = idle
        self._own = threading.local()
        self._made: list[Any] = []
        self._idle_async: dict[str, list[Any]] = {"async psycopg": [], "asyncpg": []}

    def check(self, kind: str, handler: str) -> None:
        """Raise HandlerDefinitionError unless transactions of this kind can be had."""
        if kind not in self.KINDS:
            raise HandlerDefinitionError(f"{handler} asks for a transaction of {kind}, and the store is on PostgreSQL", handler=handler)
        if kind in {"session", "connection", "async session", "async connection"}:
            self._source(kind, handler)
        if kind in {"psycopg2"}:
            self._callable(kind, handler)

    async def close(self) -> None:
        """Close the connections that were made for handlers; what still runs closes its own."""
        while self._made:
            self._made.pop().close()
        for idle in self._idle_async.values():
            while idle:
                await idle.pop().close()

    @contextmanager
    def begin(self, kind: str) -> Iterator[Transaction]:
        """A transaction for synchronous handlers, in the thread that runs them. Commits at the end, rolls back on an error."""
        with self._opened(kind) as transaction:
            yield transaction
        for step in transaction.after:
            step()
        if transaction.told:
            self._store.announce()

    @contextmanager
    def _opened(self, kind: str) -> Iterator[Transaction]:
        mark = secrets.token_hex(4)
        begun = BEGUN.format(milliseconds=int(self._idle * 1000), mark=mark)
        if kind == "psycopg":
            conn = self._psycopg()
            command(conn, f"BEGIN; {begun}")
            self._store.check_history(enlist.Psycopg(conn))
            guard = Guard(lambda: conn.closed or conn.info.transaction_status == TransactionStatus.IDLE)
            transaction = Transaction(conn, _marked(enlist.Psycopg(conn), mark), guard, lambda: _savepoint(conn), conn.cancel)
            with _refusing(conn, guard, ("commit", "rollback", "close")):
                try:
                    yield transaction
                except BaseException:
                    _undo(conn)
                    raise
            try:
                command(conn, "COMMIT")
            except BaseException:
                _undo(conn)
                raise
        elif kind == "django":
            import django.db

            connection = django.db.connection
            with django.db.transaction.atomic():
                raw = _marked(enlist.Django(connection), mark)
                self._store.check(raw)
                self._store.check_history(raw)
                raw.execute(begun)
                guard = Guard(lambda: not connection.in_atomic_block)
                yield Transaction(connection, raw, guard, django.db.transaction.atomic, lambda: None)
        elif kind == "psycopg2":
            conn2 = self._psycopg2()
            try:
                raw2 = _marked(enlist.Psycopg2(conn2), mark)
                self._store.check(raw2)
                self._store.check_history(raw2)
                raw2.execute(begun)
                guard = Guard(lambda: conn2.closed or conn2.info.transaction_status == TransactionStatus.IDLE)
                yield Transaction(conn2, raw2, guard, lambda: _savepoint_by(raw2), conn2.cancel)
                conn2.commit()
            except BaseException:
                with contextlib.suppress(Exception):  # of no interest beside the one that brought us here; what can't be undone is closed
                    conn2.rollback()
                raise
        else:
            import sqlalchemy.event

            source = self._source(kind, kind)
            with source() if kind == "session" else source.connect() as tx:
                raw_sa = _marked(enlist.SQLAlchemy(tx), mark)
                self._store.check(raw_sa)
                self._store.check_history(raw_sa)
                raw_sa.execute(begun)
                guard = Guard(lambda: not tx.in_transaction())
                if kind == "session":
                    sqlalchemy.event.listen(tx, "before_commit", guard.before_commit)
                cancel = getattr(raw_sa.driver, "cancel", lambda: None)
                yield Transaction(tx, raw_sa, guard, tx.begin_nested, cancel)
                tx.commit()

    @asynccontextmanager
    async def begin_async(self, kind: str) -> AsyncIterator[AsyncTransaction]:
        """A transaction for an async handler."""
        async with self._opened_async(kind) as transaction:
            yield transaction
        for step in transaction.after:
            step()
        if transaction.told:
            self._store.announce()

    @asynccontextmanager
    async def _opened_async(self, kind: str) -> AsyncIterator[AsyncTransaction]:
        mark = secrets.token_hex(4)
        begun = BEGUN.format(milliseconds=int(self._idle * 1000), mark=mark)

        async with self._connected_async(kind) as tx:
            outer = tx.transaction() if kind == "asyncpg" else tx
            if kind == "asyncpg":
                await outer.start()
                await enlist.run_async(tx, self._store.check)
                await enlist.run_async(tx, self._store.check_history)
                await tx.execute(begun)
                guard = Guard(lambda: tx.is_closed() or not tx.is_in_transaction())
            elif kind == "async psycopg":
                await tx.execute(f"BEGIN; {begun}".encode())
                await enlist.run_async(tx, self._store.check_history)
                guard = Guard(lambda: tx.closed or tx.info.transaction_status == TransactionStatus.IDLE)
            else:
                await enlist.run_async(tx, lambda raw: self._start(raw, begun))
                guard = Guard(lambda: not tx.in_transaction())
                if kind == "async session":
                    import sqlalchemy.event

                    sqlalchemy.event.listen(tx.sync_session, "before_commit", guard.before_commit)
            try:
                with _refusing(tx, guard, ("commit", "rollback", "close") if kind == "async psycopg" else ()):
                    yield AsyncTransaction(tx, lambda work: enlist.run_async(tx, work, mark), guard)
            except BaseException:
                with contextlib.suppress(Exception):  # of no interest beside the one that brought us here; closing undoes it too
                    await outer.rollback()
                raise
            await outer.commit()

    def _start(self, raw: enlist.Executor, begun: str) -> None:
        self._store.check(raw)
        self._store.check_history(raw)
        raw.execute(begun)

    @asynccontextmanager
    async def _connected_async(self, kind: str) -> AsyncIterator[Any]:
        if kind in {"async session", "async connection"}:
            source = self._source(kind, kind)
            async with source() if kind == "async session" else source.connect() as tx:
                yield tx
        elif kind == "asyncpg":
            import asyncpg

            idle = self._idle_async[kind]
            conn = idle.pop() if idle else None
            if conn is None or conn.is_closed():
                given = self._find_callable()
                cache = {"statement_cache_size": 0} if self._store.pooled else {}
                conn = given() if given is not None else asyncpg.connect(self._store.url, **cache)
                if hasattr(conn, "__await__"):
                    conn = await conn
            try:
                yield conn
            finally:
                if conn.is_closed() or conn.is_in_transaction():
                    await conn.close()
                else:
                    idle.append(conn)
        else:
            idle = self._idle_async[kind]
            conn = idle.pop() if idle else None
            if conn is None or conn.closed:
                conn = await psycopg.AsyncConnection.connect(
                    self._store.url,
                    autocommit=True,
                    application_name="tidings handler",
                    prepare_threshold=None if self._store.pooled else 5,
                )
            try:
                yield conn
            finally:
                if conn.closed or conn.info.transaction_status != TransactionStatus.IDLE:
                    await conn.close()
                else:
                    idle.append(conn)

    def abort(self, transaction: Transaction) -> bool:
        """Give up a transaction whose handler hangs in another thread: its statement is cancelled; it can commit nothing any more.

        False if it is being committed: then there is nothing to give up.
        """
        if not transaction.abort():
            return False
        with contextlib.suppress(Exception):
            transaction.cancel()
        return True

    # -- where connections come from

    def _psycopg(self) -> psycopg.Connection[Any]:
        """This thread's connection for handlers."""
        conn: psycopg.Connection[Any] | None = getattr(self._own, "conn", None)
        if conn is None or conn.closed or conn.info.transaction_status != TransactionStatus.IDLE:
            if conn is not None:
                conn.close()
                self._made.remove(conn)
            conn = self._own.conn = connect(self._store.url, name="tidings handler")
            self._made.append(conn)
        return conn

    def _psycopg2(self) -> Any:
        """The same from the function that was given."""
        conn = getattr(self._own, "conn2", None)
        if conn is None or conn.closed or conn.info.transaction_status != TransactionStatus.IDLE:
            if conn is not None:
                conn.close()
                self._made.remove(conn)
            conn = self._own.conn2 = self._callable("psycopg2", "psycopg2")()
            self._made.append(conn)
        return conn

    def _find_callable(self) -> Any:
        for given in self._given:
            if callable(given) and not type(given).__module__.startswith("sqlalchemy."):
                return given
        return None

    def _callable(self, kind: str, handler: str) -> Any:
        found = self._find_callable()
        if found is None:
            raise HandlerDefinitionError(
                f"{handler} asks for a {kind} connection: say where it comes from with App(…, transactions=a function that returns one)",
                handler=handler,
            )
        return found

    def _source(self, kind: str, handler: str) -> Any:
        return sqlalchemy_source(self._given, kind, handler)


E = TypeVar("E", bound=enlist.Executor)


def _marked(raw: E, mark: str) -> E:
    raw.mark = mark
    return raw


@contextmanager
def _refusing(conn: Any, guard: Guard, names: tuple[str, ...]) -> Iterator[None]:
    """Have the guard asked before a connection's own methods run. On the object, so that every way to them leads here."""
    for name in names:
        setattr(conn, name, _asking(getattr(conn, name), guard))
    try:
        yield
    finally:
        for name in names:
            delattr(conn, name)


def _asking(method: Callable[..., Any], guard: Guard) -> Callable[..., Any]:
    def asking(*args: Any, **kwargs: Any) -> Any:
        guard.refuse()
        return method(*args, **kwargs)

    return asking


def _undo(conn: psycopg.Connection[Any]) -> None:
    """Roll back, or close what can't be."""
    try:
        if not conn.closed:
            command(conn, "ROLLBACK")
    except psycopg.Error:
        conn.close()


@contextmanager
def _savepoint(conn: psycopg.Connection[Any]) -> Iterator[None]:
    command(conn, "SAVEPOINT tidings")
    try:
        yield
    except BaseException:
        if not conn.closed and conn.info.transaction_status != TransactionStatus.IDLE:
            command(conn, "ROLLBACK TO tidings; RELEASE tidings")
        raise
    command(conn, "RELEASE tidings")


@contextmanager
def _savepoint_by(raw: enlist.Executor) -> Iterator[None]:
    raw.execute("SAVEPOINT tidings")
    try:
        yield
    except BaseException:
        raw.execute("ROLLBACK TO tidings")
        raw.execute("RELEASE tidings")
        raise
    raw.execute("RELEASE tidings")
