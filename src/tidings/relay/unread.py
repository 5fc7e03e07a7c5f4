"""Records that could not be read: kept whole as dead letters, so that they can be tried again once it is known how to read them."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from ..brokers.port import Received
from ..codec import encode_json
from ..envelope import LANES, Envelope
from ..store.port import Parked


def dead_letter(intake: str, record: Received, topic_id: str, why: str, number: int, now: int, attempts: int = 1) -> Parked:
    """A dead letter of an intake; ``number`` stands where others have their position in the log."""
    place = f"{record.topic}/{record.partition} at offset {record.offset}"
    rest = {
        "partition": record.partition,
        "offset": record.offset,
        "topic_id": topic_id,
        "key": _text(record.key),
        "headers": [(name, _text(raw)) for name, raw in record.headers],
        "no_value": record.value is None,
        "time": record.time,
    }
    headers = dict(record.headers)
    envelope = Envelope(
        position=number,
        lane=record.partition % LANES,
        topic=record.topic,
        type=_shown(headers.get("ce_type")) or "unread",
        version=1,
        key_name=None,
        key=None,
        event_id=f"{topic_id}/{record.partition}/{record.offset}",
        time=record.time * 1000,
        source=_shown(headers.get("ce_source")) or record.topic,
        data=record.value or b"",
        correlation_id=f"{topic_id}/{record.partition}/{record.offset}",
        causation_id=None,
        traceparent=None,
        headers=encode_json({"record": encode_json(rest).decode()}).decode(),
    )
    return Parked(intake, "dead", False, attempts, now, 0, now, f"{place}: {why}".replace("\0", "\ufffd"), None, envelope)


def record_of(row: Parked) -> tuple[Received, str]:
    """The record of a dead letter, and the id of its topic."""
    envelope = row.envelope
    rest: dict[str, Any] = msgspec.json.decode(envelope.header("record") or "{}")
    record = Received(
        envelope.topic,
        rest["partition"],
        rest["offset"],
        _bytes(rest["key"]),
        None if rest["no_value"] else envelope.data,
        [(name, _bytes(text) or b"") for name, text in rest["headers"]],
        rest["time"],
    )
    return record, rest["topic_id"]


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _shown(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode(errors="replace").replace("\0", "\ufffd")
