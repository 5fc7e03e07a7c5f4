"""From an event to a row of the log."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from ..codec import encode_json
from ..envelope import Envelope, lane_of
from ..errors import ConfigurationError, InvalidEvent, OutsideTransaction, UnawaitedPublish
from ..event import EventType
from ..ids import new_id
from . import commits

if TYPE_CHECKING:
    from ..store.port import Store
    from ..subscribe.context import Context

log = logging.getLogger("tidings.publish")

current: ContextVar[Context | None] = ContextVar("tidings_current", default=None)
"""The context of the handler that is running, so that what it publishes in its own transactions carries correlation and causation on."""


class Receipt(NamedTuple):
    """What a publish returns. ``position`` is None for an event that is scheduled (``at=``, ``after=``)."""

    event_id: str
    lane: int
    position: int | None


class Publishing(Awaitable[Receipt]):
    """A publish under way: await it, or call ``result()`` from a thread without a loop. If nobody does and it fails, that is logged."""

    __slots__ = ("_asked", "_future")

    def __init__(self, future: Future[Receipt]) -> None:
        self._future = future
        self._asked = False

    def __await__(self) -> Generator[Any, None, Receipt]:
        self._asked = True
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> Receipt:
        """Block until the event is durable; ``timeout`` in seconds."""
        self._asked = True
        return self._future.result(timeout)

    def __del__(self) -> None:
        if not self._asked:
            self._future.add_done_callback(_log_failure)


def _log_failure(future: Future[Receipt]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("a publish that nobody awaited failed, so its event is NOT published: %s", error)


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
        self._forgotten: list[object] = []

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
        self._forgotten.append(token)
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
        if self._forgotten:
            forgotten, self._forgotten = self._forgotten, []
            self.refuse(forgotten)


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
                _traceparent(headers) or traceparent,
                _headers(headers, cause),
            ),
        )

    def publish(
        self, event: Any, tx: Any, *, at: datetime | None = None, after: timedelta | None = None, headers: Mapping[str, str] | None = None
    ) -> Receipt | Awaitable[Receipt]:
        """See ``App.publish``."""
        self._pending.refuse_forgotten()
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
            if (handling := current.get()) is not None and _is_open(handling.tx):
                raise OutsideTransaction(
                    "this handler holds the store's write lock, and tx=\"own\" would wait for it for ever: give the handler's own"
                    " transaction, or publish with ctx.publish(event)"
                )
            return Publishing(self._store.write(lambda unit: self._in_unit(unit, envelope, due)))
        if self._store.is_async(tx):
            return self._unstarted(tx, lambda: self._publish_async(tx, envelope, due), envelope.type)
        return Receipt(envelope.event_id, envelope.lane, self._store.publish(tx, envelope, due))

    async def _publish_async(self, tx: Any, envelope: Envelope, due: int | None) -> Receipt:
        return Receipt(envelope.event_id, envelope.lane, await self._store.publish_async(tx, envelope, due))

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


def _is_open(tx: Any) -> bool:
    """Whether a handler's transaction is under way; for Django and others who don't say, no."""
    try:
        given = getattr(tx, "in_transaction", False)
        return bool(given() if callable(given) else given)
    except Exception:  # closed meanwhile
        return False


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
