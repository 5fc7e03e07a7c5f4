"""From an event to a row of the log."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..codec import encode_json
from ..envelope import LONGEST_KEY, Envelope, lane_of, lanes_of
from ..errors import ConfigurationError, InvalidEvent, OutsideTransaction, UnawaitedPublish
from ..event import EventType
from ..ids import new_id
from ..store.port import Row
from . import commits
from .publishing import OwnTransaction, Publishing, Receipt

if TYPE_CHECKING:
    from ..store.port import Store
    from ..store.writer import Writer
    from ..subscribe.context import Context

current: ContextVar[Context | None] = ContextVar("tidings_current", default=None)
"""The context of the handler that is running, so that what it publishes in its own transactions carries correlation and causation on."""


class Unstarted(Awaitable[Receipt]):
    """A publish in an asynchronous transaction, which begins when it is awaited, once.

    Forgetting the await is told: by a warning, and by an error at the transaction's commit (SQLAlchemy) or at the next publish.
    """

    __slots__ = ("_begin", "_pending", "_type", "token")

    def __init__(self, begin: Callable[[], Awaitable[Receipt]], type_name: str, pending: Pending) -> None:
        self._begin = begin
        self._type = type_name
        self._pending = pending
        self.token: object = pending.add(type_name)

    def __await__(self) -> Generator[Any, None, Receipt]:
        if self.token is None:
            raise UnawaitedPublish(f"publish({self._type}) was awaited already; call app.publish(…) again for another event")
        self._pending.remove(self.token)
        self.token = None
        return self._begin().__await__()

    def __del__(self) -> None:
        if self.token is not None and self._pending.forget(self.token):
            warnings.warn(f"publish({self._type}) was never awaited: the event was NOT published", RuntimeWarning, stacklevel=2)


class Pending:
    """Publishes of one app in asynchronous transactions that were called and not awaited yet."""

    def __init__(self) -> None:
        self._types: dict[object, str] = {}
        self.forgotten: list[object] = []

    def add(self, type_name: str) -> object:
        token = object()
        self._types[token] = type_name
        return token

    def remove(self, token: object) -> None:
        self._types.pop(token, None)

    def forget(self, token: object) -> bool:
        """Nobody can await it any more; False if that was told already."""
        if token not in self._types:
            return False
        self.forgotten.append(token)
        return True

    def among(self, tokens: Collection[object]) -> list[object]:
        """Those of the tokens that were not awaited."""
        return [token for token in tokens if token in self._types]

    def refuse(self, tokens: Collection[object]) -> None:
        """Raise UnawaitedPublish if one of these was not awaited; told once."""
        types = [self._types.pop(token) for token in self.among(tokens)]
        if types:
            raise UnawaitedPublish(
                f"an earlier publish was not awaited, so these events were not published: {', '.join(types)}. Write `await app.publish(…)`."
            )

    def refuse_forgotten(self) -> None:
        """The same for those that nobody can await any more."""
        forgotten, self.forgotten = self.forgotten, []
        self.refuse(forgotten)


_OWN = {
    "specversion", "id", "source", "type", "time", "data", "dataschemaversion", "topic", "sequence", "partitionkey", "keyname",
    "correlationid", "causationid",
}  # fmt: skip
_LATEST = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000
STATEMENTS = 64
"""At most so many event classes get a statement of their own: sqlite3 keeps 128 a connection, and the user's are among them."""


class Publisher:
    """Publishes the events of one app.

    Args:
        source: the app's name. topic: where its events go between services. store: opened.
    """

    def __init__(self, source: str, topic: str, store: Store, type_of: Callable[[type], EventType]) -> None:
        self._source = source
        self._topic = topic
        self._store = store
        self._type_of = type_of
        self._pending = Pending()
        self._log_id = ""
        self._append = self._schedule = ""
        self._plain: dict[type, Callable[[Any], Row]] = {}
        self._watched: WeakKeyDictionary[object, list[object]] = WeakKeyDictionary()

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
                traceparent_of(headers) or traceparent,
                headers_text(headers, cause),
            ),
        )

    def publish(
        self, event: Any, tx: Any, at: datetime | None = None, after: timedelta | None = None, headers: Mapping[str, str] | None = None
    ) -> Receipt | Awaitable[Receipt]:
        """See ``App.publish``."""
        self._check(tx)
        if headers is None and at is None and after is None and current.get() is None:
            row = (self._plain.get(type(event)) or self._plain_rows(type(event)))(event)
        else:
            row = self._row(event, headers, self.due(at, after))
        return self._insert(row, tx, type(event))

    def insert(self, statement: str, values: tuple[Any, ...], envelope: Envelope, tx: Any, cls: type) -> Receipt | Awaitable[Receipt]:
        """Run another INSERT (``Store.insertion``) with an event's values, in the caller's transaction, as ``publish`` would."""
        self._check(tx)
        return self._insert((envelope.event_id, envelope.lane, self._store.insertion(statement), values, True), tx, cls)

    def _check(self, tx: Any) -> None:
        if self._pending.forgotten:
            self._pending.refuse_forgotten()
        if tx is None:
            raise OutsideTransaction(
                "publish needs the transaction that your own rows are in: app.publish(event, tx=session). If there is none,"
                ' ask for one by name: app.publish(event, tx="own").'
            )
        if self._store.log_id is not self._log_id:
            self._begin_log()

    def _insert(self, row: Row, tx: Any, cls: type) -> Receipt | Awaitable[Receipt]:
        if isinstance(tx, str):
            return self._own(row, tx)
        if self._store.is_async(tx):
            return self._unstarted(tx, lambda: self._publish_async(tx, row), self._type_of(cls).name)
        position = self._store.publish(tx, row)
        return tuple.__new__(Receipt, (row[0], row[1], None if row[4] else position))

    async def _publish_async(self, tx: Any, row: Row) -> Receipt:
        position = await self._store.publish_async(tx, row)
        return Receipt(row[0], row[1], None if row[4] else position)

    def _begin_log(self) -> None:
        """The store was opened, perhaps on another file than before."""
        self._append, self._schedule = self._store.statement(), self._store.statement(scheduled=True)
        self._plain.clear()
        self._log_id = self._store.log_id  # last: a store that refuses is asked again

    def _row(self, event: Any, headers: Mapping[str, str] | None, due: int | None) -> Row:
        envelope = self.envelope(event, headers=headers)
        if due is not None:
            return envelope.event_id, envelope.lane, self._schedule, (envelope.event_id, due, *envelope[1:]), True
        return envelope.event_id, envelope.lane, self._append, envelope[1:], False

    def _plain_rows(self, cls: type) -> Callable[[Any], Row]:
        """What makes rows of the events of one class that no handler publishes, with no headers, for now: its own statement, where only
        what differs between such events is bound."""
        event_type = self._type_of(cls)
        key_name = event_type.key_name
        same: dict[str, str | int | None] = {
            "topic": self._topic, "type": event_type.name, "version": event_type.version, "key_name": key_name, "source": self._source,
            "causation_id": None, "traceparent": None, "headers": None,
        }  # fmt: skip
        try:
            statement = self._store.statement(constants=same)
        except ValueError:
            statement = ""
        if not statement or len(self._plain) >= STATEMENTS:
            return lambda event: self._row(event, None, None)
        refuse_infinite, unusual = event_type.refuse_infinite, LONGEST_KEY // 4
        encode, decode, time, lane_of_key = event_type.encode, event_type.decode, self._store.clock.time, lanes_of(key_name)

        def row(event: Any) -> Row:
            # What to_bytes and key_of do, without their calls where there is nothing unusual.
            try:
                decode(data := encode(event))
            except Exception:
                data = event_type.to_bytes(event)
            if b"null" in data:
                refuse_infinite(event)
            key = None if key_name is None else getattr(event, key_name)
            if type(key) is int:
                key = str(key)
            elif type(key) is not str or not key or len(key) > unusual or "\0" in key:
                key = event_type.key_of(event)
            event_id = new_id()
            lane = lane_of_key(event_id if key is None else key)
            return (event_id, lane, statement, (lane, key, event_id, int(time() * 1_000_000), data, event_id), False)

        self._plain[cls] = row
        return row

    def own(self, make: Callable[[Writer], OwnTransaction]) -> Publishing:
        """Another job in a transaction of its own, as ``publish`` has one."""
        self._check("own")
        return self._put(make)

    def _own(self, row: Row, tx: str) -> Publishing:
        if tx != "own":
            raise OutsideTransaction(f'tx={tx!r}: give your transaction, or "own" for one of its own')
        return self._put(lambda writer: OwnTransaction(row, writer))

    def _put(self, make: Callable[[Writer], OwnTransaction]) -> Publishing:
        if (handling := current.get()) is not None and _is_open(handling.tx):
            raise OutsideTransaction(
                "this handler holds the store's write lock, and tx=\"own\" would wait for it for ever: give the handler's own"
                " transaction, or publish with ctx.publish(event)"
            )
        writer = self._store.writer
        job = make(writer)
        writer.put(job)
        return Publishing(job)

    def _unstarted(self, tx: Any, begin: Callable[[], Awaitable[Receipt]], type_name: str) -> Unstarted:
        """SQLAlchemy is asked not to commit a transaction with a publish that wasn't awaited; other drivers can't be."""
        publish = Unstarted(begin, type_name, self._pending)
        target = commits.committed_by(tx)
        if target is None:
            return publish
        tokens = self._watched.get(target)
        if tokens is None:
            tokens = self._watched[target] = []
            pending, watched = self._pending, tokens

            def refuse(*_: object) -> None:
                held, watched[:] = tuple(watched), ()
                pending.refuse(held)

            commits.before_commit(target, refuse)
        if len(tokens) >= 100:
            tokens[:] = self._pending.among(tokens)
        tokens.append(publish.token)
        return publish

    def due(self, at: datetime | None, after: timedelta | None) -> int | None:
        """When a scheduled event is due, in microseconds since 1970; None for now."""
        if at is None and after is None:
            return None
        if at is not None and after is not None:
            raise ConfigurationError("publish: give at= or after=, not both")
        if at is not None:
            if not isinstance(at, datetime):
                raise ConfigurationError(f"publish(at={at!r}): give a datetime with a time zone")
            if at.tzinfo is None:
                raise ConfigurationError(f"publish(at={at!r}): a time without a time zone is ambiguous; use datetime.now(UTC)")
            return int(at.timestamp() * 1_000_000)
        if not isinstance(after, timedelta):
            raise ConfigurationError(f"publish(after={after!r}): give a timedelta, as in timedelta(minutes=10)")
        due = int((self._store.clock.time() + after.total_seconds()) * 1_000_000)
        if due > _LATEST:
            raise ConfigurationError(f"publish(after={after!r}): that is behind the year 9999")
        return due


def _is_open(tx: Any) -> bool:
    """Whether a handler's transaction is under way; for Django and others who don't say, no."""
    try:
        given = getattr(tx, "in_transaction", False)
        return bool(given() if callable(given) else given)
    except Exception:  # closed meanwhile
        return False


def headers_text(headers: Mapping[Any, Any] | None, cause: Context | None = None) -> str | None:
    """What an envelope says of headers. Raises InvalidEvent for such as can't be."""
    if headers is not None and not isinstance(headers, Mapping):
        raise InvalidEvent(f"headers={headers!r}: give a dictionary of texts")
    named = {} if headers is None else {name: value for name, value in headers.items() if name != "traceparent"}
    if cause is not None:
        named["subscription"] = cause.subscription
    if not named:
        return None
    for name, value in named.items():
        if not (isinstance(name, str) and name.isascii() and name.isalnum() and name == name.lower() and isinstance(value, str)):
            raise InvalidEvent(f"header {name!r}: names are lower-case letters and digits (CloudEvents), values are texts")
        if name in _OWN:
            raise InvalidEvent(f"header {name!r}: this is an attribute of every CloudEvent, and Tidings says it; choose another name")
    return encode_json(named).decode()


def traceparent_of(headers: Mapping[str, str] | None) -> str | None:
    return headers.get("traceparent") if isinstance(headers, Mapping) else None
