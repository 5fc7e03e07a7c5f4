"""From an event to a row of the log."""

from __future__ import annotations

import asyncio
import sqlite3
import warnings
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ..codec import encode_json
from ..envelope import Envelope, lane_of
from ..errors import ConfigurationError, InvalidEvent, OutsideTransaction, StoreNotInitialised, UnawaitedPublish, WrongStore
from ..event import EventType
from ..ids import new_id
from ..store.sqlite.unit import APPEND_CHECKED
from . import enlist

if TYPE_CHECKING:
    from ..store.sqlite.store import SQLiteStore
    from ..subscribe.context import Context

current: ContextVar[Context | None] = ContextVar("tidings_current", default=None)
"""The context of the handler that is running, so that what it publishes in its own transactions carries correlation and causation on."""


class Receipt(NamedTuple):
    """What a publish returns. ``position`` is None for an event that is scheduled (``at=``, ``after=``)."""

    event_id: str
    lane: int
    position: int | None


class Publishing(Awaitable[Receipt]):
    """A publish under way: await it, or call ``result()`` from a thread without a loop."""

    __slots__ = ("_future",)

    def __init__(self, future: Future[Receipt]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, Receipt]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> Receipt:
        """Block until the event is durable; ``timeout`` in seconds."""
        return self._future.result(timeout)


class Unstarted(Awaitable[Receipt]):
    """A publish in an asynchronous transaction, which begins when it is awaited. Forgetting the await is told, loudly, and kept."""

    __slots__ = ("_awaited", "_begin", "_forgotten", "_type")

    def __init__(self, begin: Callable[[], Awaitable[Receipt]], type_name: str, forgotten: list[str]) -> None:
        self._begin = begin
        self._awaited = False
        self._type = type_name
        self._forgotten = forgotten

    def __await__(self) -> Generator[Any, None, Receipt]:
        self._awaited = True
        return self._begin().__await__()

    def __del__(self) -> None:
        if not self._awaited:
            self._forgotten.append(self._type)
            warnings.warn(f"publish({self._type}) was never awaited: the event was NOT published", RuntimeWarning, stacklevel=2)


class Publisher:
    """Publishes the events of one app.

    Args:
        source: the app's name. topic: where its events go between services. store: opened.
    """

    def __init__(self, source: str, topic: str, store: SQLiteStore, type_of: Callable[[type], EventType]) -> None:
        self._source = source
        self._topic = topic
        self._store = store
        self._type_of = type_of
        self._forgotten: list[str] = []
        self._append = ""

    def envelope(self, event: Any, *, headers: Mapping[str, str] | None = None, cause: Context | None = None) -> Envelope:
        """The row for an event, its position still 0.

        Args:
            cause: the context of the handler that publishes; its correlation id goes on, its event id becomes the causation id.

        Raises:
            InvalidEvent, EventDefinitionError
        """
        event_type = self._type_of(type(event))
        data = event_type.to_bytes(event)
        key = event_type.key_of(event)
        event_id = new_id()
        cause = cause or current.get()
        if cause is None:
            correlation_id, causation_id, traceparent = event_id, None, None
        else:
            correlation_id, causation_id, traceparent = cause.correlation_id, cause.event_id, cause.traceparent
        return tuple.__new__(
            Envelope,
            (
                0,
                lane_of(None, event_id) if key is None else lane_of(event_type.key_name, key),
                self._topic,
                event_type.name,
                event_type.version,
                None if key is None else event_type.key_name,
                key,
                event_id,
                int(self._store.clock.time() * 1_000_000),
                self._source,
                data,
                correlation_id,
                causation_id,
                _traceparent(headers) or traceparent,
                _headers(headers, cause),
            ),
        )

    def publish(
        self, event: Any, tx: Any, *, at: datetime | None = None, after: timedelta | None = None, headers: Mapping[str, str] | None = None
    ) -> Receipt | Awaitable[Receipt]:
        """See ``App.publish``."""
        if self._forgotten:
            types, self._forgotten = ", ".join(self._forgotten), []
            raise UnawaitedPublish(
                f"an earlier publish was not awaited, so these events were not published: {types}. Write `await app.publish(…)`."
            )
        if tx is None:
            raise OutsideTransaction(
                "publish needs the transaction that your own rows are in: app.publish(event, tx=session). If there is none,"
                ' ask for one by name: app.publish(event, tx="own").'
            )
        envelope = self.envelope(event, headers=headers)
        due = self.due(at, after)
        if isinstance(tx, str):
            if tx != "own":
                raise OutsideTransaction(f'tx={tx!r}: give your transaction, or "own" for one of its own')
            return Publishing(self._store.write(lambda unit: self._in_unit(unit, envelope, due)))
        if type(tx) is not sqlite3.Connection and enlist.is_async(tx):
            return Unstarted(lambda: enlist.run_async(tx, lambda conn: self.insert(conn, envelope, due)), envelope.type, self._forgotten)
        return enlist.run(tx, lambda conn: self.insert(conn, envelope, due))

    def insert(self, conn: sqlite3.Connection, envelope: Envelope, due: int | None = None) -> Receipt:
        """The one INSERT, on a driver connection.

        Raises:
            WrongStore: the connection is to another database than the app's store.
        """
        try:
            if due is not None:
                self.check(conn)
                self._store.unit(conn).schedule(envelope, due)
                return Receipt(envelope.event_id, envelope.lane, None)
            cursor = conn.execute(APPEND_CHECKED, (*envelope[1:], self._store.log_id))
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                raise self._wrong(conn) from error
            raise
        if cursor.rowcount != 1:
            raise self._wrong(conn)
        return Receipt(envelope.event_id, envelope.lane, cursor.lastrowid)

    def check(self, conn: sqlite3.Connection) -> None:
        """Raise WrongStore unless ``conn`` is to this app's store."""
        try:
            row = conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()
        except sqlite3.OperationalError as error:
            raise self._wrong(conn) from error
        if row is None or row[0] != self._store.log_id:
            raise self._wrong(conn)

    def _in_unit(self, unit: Any, envelope: Envelope, due: int | None) -> Receipt:
        if due is not None:
            unit.schedule(envelope, due)
            return Receipt(envelope.event_id, envelope.lane, None)
        return Receipt(envelope.event_id, envelope.lane, unit.append((envelope,))[0])

    def due(self, at: datetime | None, after: timedelta | None) -> int | None:
        """When a scheduled event is due, in microseconds since 1970; None for now."""
        if at is None and after is None:
            return None
        if at is not None and after is not None:
            raise ConfigurationError("publish: give at= or after=, not both")
        if at is not None:
            if at.tzinfo is None:
                raise ConfigurationError(f"publish(at={at!r}): a time without a time zone is ambiguous; use datetime.now(UTC)")
            return int(at.timestamp() * 1_000_000)
        assert after is not None
        return int((self._store.clock.time() + after.total_seconds()) * 1_000_000)

    def _wrong(self, conn: sqlite3.Connection) -> WrongStore | StoreNotInitialised:
        rows = conn.execute("PRAGMA database_list").fetchall()
        file = rows[0][2] if rows and rows[0][2] else "a database in memory"
        return WrongStore(
            f"the transaction given is on {file}, but the app's store is {self._store.path}: an event commits with your"
            " rows only in one database."
            " Open your connection on the store's file.",
            given=file,
            store=self._store.path,
        )


def _headers(headers: Mapping[Any, Any] | None, cause: Context | None) -> str | None:
    named = {} if headers is None else {name: value for name, value in headers.items() if name != "traceparent"}
    if cause is not None:
        named["subscription"] = cause.subscription
    if not named:
        return None
    for name, value in named.items():
        if not (isinstance(name, str) and name.isascii() and name.isalnum() and name == name.lower() and isinstance(value, str)):
            raise InvalidEvent(f"header {name!r}: names are lower-case letters and digits (CloudEvents), values are texts")
    return encode_json(named).decode()


def _traceparent(headers: Mapping[str, str] | None) -> str | None:
    return None if headers is None else headers.get("traceparent")
