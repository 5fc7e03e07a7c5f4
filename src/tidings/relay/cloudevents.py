"""An event as a record of a broker, and back: CloudEvents 1.0 in binary mode (Kafka protocol binding). Functions of values.

In binary mode the value is the event's data as it was published, and every attribute is a header ``ce_…``. Where an event comes from
travels along, so that whoever reads can drop what it has: the log, its incarnation, the lane and the position there (``sequence``).

    ce_sequence           the position, 20 digits, so that texts compare as numbers do
    ce_tidingslog         <log id>.<incarnation>
    ce_tidingslane        0 to 63
    ce_tidingsoutoforder  "true" for what was sent behind later events of its key
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from ..brokers.port import Headers, Record
from ..codec import encode_json
from ..envelope import JSON, MAX_VERSION, Envelope, check_key, lane_of, micros
from ..errors import InvalidEvent

_CONTENT_TYPE = "content-type"
_STRUCTURED = "application/cloudevents"
_OURS = frozenset({
    "specversion", "id", "source", "type", "time", "datacontenttype", "dataschemaversion", "topic", "sequence", "correlationid",
    "partitionkey", "keyname", "causationid", "traceparent", "data", "tidingslog", "tidingslane", "tidingsoutoforder",
})  # fmt: skip
"""Attributes that have a place of their own; a header of the user's under such a name doesn't travel."""


class Origin(NamedTuple):
    """Where an event stands in the log that it was published to; ``in_order``: nothing later of its key was sent before it."""

    log: str
    incarnation: int
    lane: int
    sequence: int
    in_order: bool = True


def recorder(log: str, incarnation: int) -> Callable[..., Record]:
    """What makes records of rows of this log (tuples in the order of ``Envelope``'s fields). ``in_order``: False says so downstream."""
    constant = (("ce_specversion", b"1.0"), ("content-type", JSON.encode()), ("ce_tidingslog", f"{log}.{incarnation}".encode()))
    other_content = (constant[0], constant[2])
    lanes = [("ce_tidingslane", b"%d" % lane) for lane in range(64)]
    named = _Named()

    def record(row: tuple[Any, ...], in_order: bool = True) -> Record:
        position, lane, topic, type_, version, key_name, key, event_id, time, source, data, correlation, causation, trace, extra = row
        headers: list[tuple[str, bytes]] = [
            *constant,
            lanes[lane],
            ("ce_id", event_id.encode()),
            named["ce_source", source],
            named["ce_type", type_],
            ("ce_time", _time(time)),
            ("ce_sequence", b"%020d" % position),
            ("ce_correlationid", correlation.encode()),
        ]
        raw_key: bytes | None = None
        if key is not None:
            raw_key = key.encode()
            headers.append(("ce_partitionkey", raw_key))
            if key_name is not None:
                headers.append(named["ce_keyname", key_name])
        if version != 1:
            headers.append(("ce_dataschemaversion", b"%d" % version))
        if causation is not None:
            headers.append(("ce_causationid", causation.encode()))
        if trace is not None:
            headers.append(("ce_traceparent", trace.encode()))
        if extra is not None:
            texts = msgspec.json.decode(extra)
            content_type = texts.pop("datacontenttype", None)
            if content_type is not None:
                headers = [*other_content, ("content-type", content_type.encode()), *headers[3:]]
            headers += [(f"ce_{name}", str(text).encode()) for name, text in texts.items() if name not in _OURS]
        if not in_order:
            headers.append(("ce_tidingsoutoforder", b"true"))
        # Not the event's time, which ``ce_time`` tells: brokers count retention from a record's own, and would let go of what has waited
        # here for a week, or of history that is sent for the first time, before anybody could read it.
        return Record(topic, raw_key, data, headers, 0)

    return record


class _Named(dict[tuple[str, str], tuple[str, bytes]]):
    """Headers whose values are few, made once."""

    def __missing__(self, named: tuple[str, str]) -> tuple[str, bytes]:
        made = (named[0], named[1].encode())
        if len(self) < 10_000:
            self[named] = made
        return made


@lru_cache(64)
def _second(seconds: int) -> bytes:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def _time(microseconds: int) -> bytes:
    seconds, rest = divmod(microseconds, 1_000_000)
    return b"%s.%06dZ" % (_second(seconds), rest)


def from_record(topic: str, key: bytes | None, value: bytes | None, headers: Headers, time: int) -> tuple[Envelope, Origin | None]:
    """The event of a record in binary or structured mode, its position 0, and where it comes from if a Tidings log sent it.

    Args:
        time: milliseconds since 1970; for an event that has none of its own.

    Raises:
        InvalidEvent: it is no CloudEvent, or one that can't be read.
    """
    texts = _texts(headers)
    content_type = texts.get(_CONTENT_TYPE, "")
    if content_type.lower().startswith(_STRUCTURED):
        attributes, envelope = _structured(topic, content_type, value, time)
    elif "ce_specversion" in texts:
        attributes = {name[3:]: text for name, text in texts.items() if name.startswith("ce_")}
        envelope = _binary(topic, attributes, content_type, value, time)
    else:
        raise InvalidEvent(
            f"the record of {topic} is no CloudEvent: it has neither the header ce_specversion nor the content type {_STRUCTURED}+json"
        )
    if envelope.key is None and key is not None:
        envelope = _keyed(envelope, key)
    return envelope, _origin(attributes)


def _texts(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    """Headers by lower-case name; of several with one name the last, as Kafka's clients take it. One without a value is none."""
    found: dict[str, str] = {}
    for name, raw in headers:
        if raw is not None and (name.startswith("ce_") or name.lower() == _CONTENT_TYPE):
            try:
                found[name.lower()] = raw.decode()
            except UnicodeDecodeError as error:
                raise InvalidEvent(f"the header {name!r} is not UTF-8", attribute=name) from error
    return found


def _structured(topic: str, content_type: str, value: bytes | None, time: int) -> tuple[Mapping[str, Any], Envelope]:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != f"{_STRUCTURED}+json":
        raise InvalidEvent(
            f"the record of {topic} is {media_type}; {_STRUCTURED}+json and binary mode can be read", attribute="datacontenttype"
        )
    try:
        document = msgspec.json.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"the record of {topic} says {media_type} and is not JSON: {error}") from error
    envelope = Envelope.from_cloudevent(document, topic=topic)
    if not document.get("time"):
        envelope = envelope._replace(time=time * 1000)
    return document, _without_ours(envelope)


def _without_ours(envelope: Envelope) -> Envelope:
    if envelope.headers is None:
        return envelope
    kept = {name: text for name, text in msgspec.json.decode(envelope.headers).items() if name == "datacontenttype" or name not in _OURS}
    return envelope._replace(headers=encode_json(kept).decode() if kept else None)


def _binary(topic: str, attributes: Mapping[str, str], content_type: str, value: bytes | None, time: int) -> Envelope:
    for name in ("id", "source", "type"):
        if not attributes.get(name):
            raise InvalidEvent(f"the record of {topic} is no CloudEvent: the header ce_{name} is missing or empty", attribute=name)
    if attributes["specversion"] != "1.0":
        raise InvalidEvent(f"CloudEvents specversion {attributes['specversion']!r} is not known; 1.0 is", attribute="specversion")
    extensions = {name: text for name, text in attributes.items() if name not in _OURS and name.isascii() and name.isalnum()}
    if content_type and content_type != JSON:
        extensions["datacontenttype"] = content_type
    version_text = attributes.get("dataschemaversion", "1")
    version = int(version_text) if version_text.isdecimal() and len(version_text) <= 10 else 0
    if not 1 <= version <= MAX_VERSION:
        raise InvalidEvent(
            f"the header ce_dataschemaversion of {attributes['id']} is no number from 1 to {MAX_VERSION}", attribute="dataschemaversion"
        )
    key = attributes.get("partitionkey")
    if key is not None:
        check_key(key)
    key_name = attributes.get("keyname", "partitionkey") if key is not None else None
    event_id = attributes["id"]
    return Envelope(
        position=0,
        lane=lane_of(key_name, key) if key is not None else lane_of(None, event_id),
        topic=topic,
        type=attributes["type"],
        version=version,
        key_name=key_name,
        key=key,
        event_id=event_id,
        time=micros(attributes["time"]) if attributes.get("time") else time * 1000,
        source=attributes["source"],
        data=b"null" if value is None else value,
        correlation_id=attributes.get("correlationid") or event_id,
        causation_id=attributes.get("causationid"),
        traceparent=attributes.get("traceparent"),
        headers=encode_json(extensions).decode() if extensions else None,
    )


def _keyed(envelope: Envelope, key: bytes) -> Envelope:
    """An event whose record has a key of which the attributes say nothing: others' producers do that."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return envelope
    check_key(text)
    return envelope._replace(key_name="partitionkey", key=text, lane=lane_of("partitionkey", text))


def _origin(attributes: Mapping[str, Any]) -> Origin | None:
    named, lane, sequence = attributes.get("tidingslog"), attributes.get("tidingslane"), attributes.get("sequence")
    if named is None:
        return None
    try:
        log, _, incarnation = str(named).rpartition(".")
        origin = Origin(log, int(incarnation), int(lane), int(sequence), attributes.get("tidingsoutoforder") != "true")  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise InvalidEvent(
            f"the headers ce_tidingslog, ce_tidingslane and ce_sequence don't belong together: {named!r}, {lane!r}, {sequence!r}",
            attribute="tidingslog",
        ) from error
    if not log or not 0 <= origin.lane < 64 or origin.sequence < 0:
        raise InvalidEvent(f"{named!r}, {lane!r}, {sequence!r} name no place in a log", attribute="tidingslog")
    return origin
