"""An event as it is carried: what the log holds of it, and CloudEvents 1.0 JSON."""

from __future__ import annotations

import base64
import datetime
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from .codec import encode_json
from .errors import InvalidEvent

JSON = "application/json"
_TEXTS = frozenset({"datacontenttype", "topic", "correlationid", "causationid", "partitionkey", "keyname", "traceparent"})

LANES = 64
"""Number of lanes. Part of the wire contract, as is ``lane_of``: a relay's and an intake's marks are kept per lane."""


MAX_VERSION = 2**31 - 1
LONGEST_KEY = 1024
"""Bytes of a key in UTF-8, at most. Keys stand in indexes, and PostgreSQL's take no value of more than 2,704 bytes: an event with a longer
key could be published and read, but not parked."""


def check_key(key: str) -> str:
    """A key, if it can be one in every store.

    Raises:
        InvalidEvent: it is too long, or has a zero byte, which PostgreSQL's texts can't have.
    """
    if len(key) > LONGEST_KEY // 4 and (size := len(key.encode(errors="replace"))) > LONGEST_KEY:
        raise InvalidEvent(
            f"the key {key[:20]!r}… has {size:,} bytes, and {LONGEST_KEY:,} are the most: a key names whose event it is, the rest belongs"
            " into the data",
            attribute="partitionkey",
        )
    if "\0" in key:
        raise InvalidEvent(f"the key {key[:50]!r} has a zero byte", attribute="partitionkey")
    return key


def lane_of(key_name: str | None, key: str) -> int:
    """The lane of a key, 0 to 63: CRC-32 (RFC 1952) of ``name=value`` in UTF-8, modulo 64. Order 42 is not customer 42."""
    return zlib.crc32(f"{key_name}={key}".encode()) & (LANES - 1)


def lanes_of(key_name: str | None) -> Callable[[str], int]:
    """``lane_of`` for many keys of one name: the name's part of the checksum is computed once."""
    start = zlib.crc32(f"{key_name}=".encode())
    return lambda key: zlib.crc32(key.encode(), start) & (LANES - 1)


class Envelope(NamedTuple):
    """One row of the log.

    Attributes:
        position: place in the log, ascending in commit order; 0 before it is written.
        lane: 0 to 63, from the key.
        topic: where it goes between services; the app's name unless given.
        type: type name. version: of its schema.
        key_name, key: whose event it is; both None for events without a key.
        event_id: UUIDv7 as text.
        time: when it was published, microseconds since 1970 (UTC).
        source: the name of the app that published it.
        data: the event as published, JSON bytes.
        correlation_id: id of the event that began the whole story. causation_id: id of the event whose handler published this one.
        traceparent: W3C Trace Context, if any.
        headers: JSON object of further texts, or None.
    """

    position: int
    lane: int
    topic: str
    type: str
    version: int
    key_name: str | None
    key: str | None
    event_id: str
    time: int
    source: str
    data: bytes
    correlation_id: str
    causation_id: str | None
    traceparent: str | None
    headers: str | None

    def header(self, name: str) -> str | None:
        """One header, or None."""
        return None if self.headers is None else msgspec.json.decode(self.headers).get(name)

    def to_cloudevent(self) -> dict[str, Any]:
        """The event in CloudEvents 1.0 JSON format, with the extensions that Tidings uses.

        ``data`` is the JSON value itself, or the text of an event that came with another content type; bytes that are neither go to
        ``data_base64``.
        """
        result: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.event_id,
            "source": self.source,
            "type": self.type,
            "time": iso_time(self.time),
            "datacontenttype": JSON,
            "dataschemaversion": str(self.version),
            "topic": self.topic,
            "sequence": f"{self.position:020d}",
            "correlationid": self.correlation_id,
        }
        if self.key is not None:
            result["partitionkey"] = self.key
            result["keyname"] = self.key_name
        if self.causation_id is not None:
            result["causationid"] = self.causation_id
        if self.traceparent is not None:
            result["traceparent"] = self.traceparent
        if self.headers is not None:
            headers = msgspec.json.decode(self.headers)
            result["datacontenttype"] = headers.pop("datacontenttype", JSON)
            for name, value in headers.items():
                result.setdefault(name, value)
        try:
            result["data"] = msgspec.json.decode(self.data) if _is_json(result["datacontenttype"]) else self.data.decode()
        except (msgspec.DecodeError, UnicodeDecodeError):
            if _is_json(result["datacontenttype"]):
                result["datacontenttype"] = "application/octet-stream"
            result["data_base64"] = base64.b64encode(self.data).decode()
        return result

    @classmethod
    def from_cloudevent(cls, value: Any, *, topic: str | None = None) -> Envelope:
        """An envelope from CloudEvents 1.0 JSON, its position 0.

        Raises:
            InvalidEvent: a required attribute is missing or has the wrong form.
        """
        if not isinstance(value, dict):
            raise InvalidEvent(f"not a CloudEvent: a JSON object is needed, not {type(value).__name__}")
        for name in ("specversion", "id", "source", "type"):
            if not isinstance(value.get(name), str) or not value[name]:
                raise InvalidEvent(f"not a CloudEvent: the attribute {name!r} is missing or not a text", attribute=name)
        if value["specversion"] != "1.0":
            raise InvalidEvent(f"CloudEvents specversion {value['specversion']!r} is not known; 1.0 is", attribute="specversion")
        for name, given in value.items():
            if name in {"data", "data_base64"} or given is None:
                continue
            if not (name.isascii() and name.isalnum() and name == name.lower()):
                raise InvalidEvent(f"CloudEvents attribute {name!r}: names are lower-case letters and digits", attribute=name)
            if not isinstance(given, (str, int, bool)):
                raise InvalidEvent(f"CloudEvents attribute {name!r} must be a text, a number or a boolean, not {given!r}", attribute=name)
            if name in _TEXTS and not isinstance(given, str):
                raise InvalidEvent(f"CloudEvents attribute {name!r} must be a text, not {given!r}", attribute=name)
        if "data" in value and "data_base64" in value:
            raise InvalidEvent("a CloudEvent has data or data_base64, not both", attribute="data")
        content_type = value.get("datacontenttype") or JSON
        try:
            data = _data(value, content_type)
            version = int(value.get("dataschemaversion", 1))
        except (ValueError, TypeError) as error:
            raise InvalidEvent(f"CloudEvent {value['id']}: {error}", attribute="data") from error
        if not 1 <= version <= MAX_VERSION:
            raise InvalidEvent(
                f"CloudEvent {value['id']}: dataschemaversion is no number from 1 to {MAX_VERSION}", attribute="dataschemaversion"
            )
        key = value.get("partitionkey")
        if key is not None:
            check_key(key)
        key_name = value.get("keyname", "partitionkey") if key is not None else None
        known = {
            "specversion", "id", "source", "type", "time", "datacontenttype", "dataschemaversion", "topic", "sequence", "correlationid",
            "partitionkey", "keyname", "causationid", "traceparent", "data", "data_base64",
        }  # fmt: skip
        extensions = {name: given for name, given in value.items() if name not in known and given is not None}
        if content_type != JSON:
            extensions["datacontenttype"] = content_type
        return cls(
            position=0,
            lane=lane_of(key_name, key) if key is not None else lane_of(None, value["id"]),
            topic=topic or value.get("topic") or value["source"],
            type=value["type"],
            version=version,
            key_name=key_name,
            key=key,
            event_id=value["id"],
            time=micros(value["time"]) if value.get("time") else time.time_ns() // 1000,
            source=value["source"],
            data=data,
            correlation_id=value.get("correlationid") or value["id"],
            causation_id=value.get("causationid"),
            traceparent=value.get("traceparent"),
            headers=encode_json(extensions).decode() if extensions else None,
        )


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.endswith(("/json", "+json"))


def _data(value: dict[str, Any], content_type: str) -> bytes:
    """The content itself: a JSON value as JSON, a text of another content type as it is (CloudEvents JSON format, section 3.1)."""
    if "data_base64" in value:
        return base64.b64decode(value["data_base64"], validate=True)
    data = value.get("data")
    return data.encode() if isinstance(data, str) and not _is_json(content_type) else encode_json(data)


def iso_time(microseconds: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC."""
    moment = datetime.datetime.fromtimestamp(microseconds // 1_000_000, datetime.UTC).replace(microsecond=microseconds % 1_000_000)
    return moment.isoformat().replace("+00:00", "Z")


def micros(text: str) -> int:
    """RFC 3339 to microseconds since 1970.

    Raises:
        InvalidEvent: the text is no time with an offset.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise InvalidEvent(f"{text!r} is no RFC 3339 time", attribute="time") from error
    if moment.tzinfo is None:
        raise InvalidEvent(f"{text!r} has no offset; write a Z or +00:00 behind it", attribute="time")
    delta = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
