"""What records of a broker look like, and how they become events. Functions of values.

A format reads one record: the event and where it comes from, or None for a record that is none. ``CloudEvents`` is what relays write and
what is expected unless a topic is given another one:

    Intake(formats={"outbox.event.order": DebeziumOutbox(), "legacy": PlainJSON(type="legacy.Booked", key="booking_id")})
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from ..brokers.port import Received
from ..codec import encode_json
from ..envelope import Envelope, check_key, lane_of, micros
from ..errors import InvalidEvent
from ..spelling import spelled_options
from .cloudevents import Origin, from_record
from .own_records import own_records


class Arrival(NamedTuple):
    """``origin``: None for an event that only its source and id tell from others."""

    envelope: Envelope
    origin: Origin | None


class Format(Protocol):
    def read(self, record: Received, topic_id: str) -> Arrival | None:
        """The event, its position 0; None if this record stands for none.

        Raises:
            InvalidEvent: it can't be read; with what is wrong in one line.
        """
        ...


class CloudEvents:
    """CloudEvents 1.0 in binary or structured mode."""

    def __init__(self) -> None:
        self._own = own_records()

    def read(self, record: Received, topic_id: str) -> Arrival | None:
        if (found := self._own(record)) is not None:
            return Arrival(*found)
        return Arrival(*from_record(record.topic, record.key, record.value, record.headers, record.time))


@spelled_options
@dataclass(frozen=True)
class DebeziumOutbox:
    """What Debezium's outbox event router writes: the payload as value, the aggregate's id as key, the event's id in the header ``id``.

    Args:
        type: the header that has the event's type (``table.fields.additional.placement=type:header:eventType``).
        prefix: what is put before that to make a type name, for example ``orders.``.
        types: type names for what the header says, where a prefix isn't enough.
        key_name: the name of the key. source: of the events; the topic unless given.
    """

    type: str = "eventType"
    prefix: str = ""
    types: Mapping[str, str] = field(default_factory=dict)
    key_name: str = "aggregateid"
    source: str | None = None

    def read(self, record: Received, topic_id: str) -> Arrival | None:
        if record.value is None:  # route.tombstone.on.empty.payload
            return None
        headers = dict(record.headers)
        event_id = _plain(_text(headers, "id"))
        said = _plain(_text(headers, self.type))
        payload = record.value
        if payload[:1] == b'"':  # JsonConverter writes the JSON column as a text, unless expand.json.payload is set
            payload = _inner(payload)
        elif payload[:10].replace(b" ", b"") == b'{"schema":':  # … and says a schema, unless schemas.enable is off
            payload = _inner(encode_json(_json(record, payload).get("payload")))
        _json(record, payload)
        key = None if record.key is None else _plain(_decoded(record.key, "key"))
        if key is not None and key.startswith('{"schema":'):
            key = str(msgspec.json.decode(key).get("payload"))
        return Arrival(
            _envelope(record, self.types.get(said, self.prefix + said), self.key_name, key, event_id, None, self.source, payload), None
        )


Path = str | Callable[[Any], Any]
"""Where a value stands in the JSON: names with points between them, or a function of the whole."""


@spelled_options
@dataclass(frozen=True)
class PlainJSON:
    """JSON of somebody else's making.

    Args:
        type: the type name; or a function of the JSON that gives it, None for records that are no events.
        key: where the key stands; the record's own key unless given. key_name: its name; ``key`` unless that is a function.
        id: where the event's id stands. Without one, the record's place in its topic is its id.
        time: where its time stands (RFC 3339, or milliseconds since 1970); the record's own unless given.
        data: what the event's data is; the whole JSON unless given.
        source: of the events; the topic unless given.
    """

    type: str | Callable[[Any], str | None]
    key: Path | None = None
    key_name: str | None = None
    id: Path | None = None
    time: Path | None = None
    data: Path | None = None
    source: str | None = None

    def read(self, record: Received, topic_id: str) -> Arrival | None:
        if record.value is None:
            return None
        value = _json(record, record.value)
        type_ = self.type if isinstance(self.type, str) else self._ask(record, "type", self.type, value)
        if type_ is None:
            return None
        key = (
            self._ask(record, "key", self.key, value)
            if self.key is not None
            else None
            if record.key is None
            else _decoded(record.key, "key")
        )
        key_name = self.key_name or (self.key.rpartition(".")[2] if isinstance(self.key, str) else "key")
        time = self._ask(record, "time", self.time, value) if self.time is not None else None
        data = record.value if self.data is None else encode_json(self._ask(record, "data", self.data, value))
        if self.id is not None:
            event_id, origin = str(self._ask(record, "id", self.id, value)), None
        else:
            place = f"{topic_id}/{record.partition}/{record.offset}"
            event_id, origin = str(uuid.uuid5(uuid.NAMESPACE_OID, place)), Origin(f"topic {topic_id}", 0, 0, record.offset)
        key_text = None if key is None else key if isinstance(key, str) else encode_json(key).decode()
        return Arrival(_envelope(record, str(type_), key_name, key_text, event_id, time, self.source, data), origin)

    def _ask(self, record: Received, what: str, where: Path | Callable[[Any], Any], value: Any) -> Any:
        try:
            if callable(where):
                return where(value)
            for name in where.split("."):
                value = value[name]
        except Exception as error:
            raise InvalidEvent(f"its {what} was not found: {type(error).__name__}: {error}", attribute=what) from error
        if value is None:
            raise InvalidEvent(f"its {what} ({where}) is null", attribute=what)
        return value


def _envelope(
    record: Received, type_: str, key_name: str, key: str | None, event_id: str, time: Any, source: str | None, data: bytes
) -> Envelope:
    if key is not None:
        check_key(key)
    return Envelope(
        position=0,
        lane=lane_of(key_name, key) if key is not None else lane_of(None, event_id),
        topic=record.topic,
        type=type_,
        version=1,
        key_name=None if key is None else key_name,
        key=key,
        event_id=event_id,
        time=record.time * 1000 if time is None else _micros(time),
        source=source or record.topic,
        data=data,
        correlation_id=event_id,
        causation_id=None,
        traceparent=None,
        headers=None,
    )


_LATEST = 253_402_300_800_000
"""The end of the year 9999."""


def _micros(time: Any) -> int:
    if isinstance(time, str):
        return micros(time)
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not abs(time) < _LATEST:
        raise InvalidEvent(f"its time ({time!r}) is neither RFC 3339 nor milliseconds since 1970", attribute="time")
    return int(time * 1000)


def _json(record: Received, raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"its value is no JSON: {error}", attribute="data") from error


def _inner(raw: bytes) -> bytes:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"its value is no JSON: {error}", attribute="data") from error
    return value.encode() if isinstance(value, str) else encode_json(value)


def _decoded(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(f"its {what} is not UTF-8", attribute=what) from error


def _text(headers: Mapping[str, bytes], name: str) -> str:
    if not headers.get(name):
        raise InvalidEvent(f"the header {name!r} is missing; there are {', '.join(sorted(headers)) or 'none'}", attribute=name)
    return _decoded(headers[name], f"header {name!r}")


def _plain(text: str) -> str:
    """A text that a JSON converter wrote, or as it is."""
    if text[:1] == '"':
        try:
            return str(msgspec.json.decode(text))
        except msgspec.DecodeError:
            pass
    return text
