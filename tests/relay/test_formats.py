"""What others write, as events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.brokers.port import Received
from tidings.envelope import lane_of
from tidings.errors import InvalidEvent
from tidings.relay.cloudevents import Origin
from tidings.relay.formats import CloudEvents, DebeziumOutbox, Format, PlainJSON
from tidings.relay.unread import dead_letter, record_of

TIME = 1_700_000_000_123


def a_record(value: Any, key: bytes | None = b"42", **headers: str) -> Received:
    raw = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
    return Received("outbox.event.order", 3, 17, key, raw, [(name, text.encode()) for name, text in headers.items()], TIME)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'{"total": 5}', b"42"),  # StringConverter, ByteArrayConverter
        (json.dumps('{"total": 5}').encode(), b'"42"'),  # JsonConverter without schemas
        ({"schema": {"type": "string"}, "payload": '{"total": 5}'}, b'{"schema":{"type":"string"},"payload":"42"}'),  # with them
        ({"schema": {"type": "struct"}, "payload": {"total": 5}}, b'"42"'),  # with expand.json.payload
    ],
)
def test_debezium_outbox_whatever_its_converter(value: Any, key: bytes) -> None:
    read = DebeziumOutbox(prefix="orders.", key_name="order_id", source="orders").read(
        a_record(value, key, id="8f14", eventType="Placed"), "t"
    )
    assert read is not None
    event = read.envelope
    assert (event.type, event.key_name, event.key, event.event_id, event.source) == ("orders.Placed", "order_id", "42", "8f14", "orders")
    assert (event.topic, event.time, event.lane) == ("outbox.event.order", TIME * 1000, lane_of("order_id", "42"))
    assert json.loads(event.data) == {"total": 5}
    assert read.origin is None  # told from others by its id


def test_debezium_types_and_tombstones() -> None:
    format_ = DebeziumOutbox(type="type", types={"OrderCreated": "orders.OrderPlaced"})
    read = format_.read(a_record({}, id="1", type="OrderCreated"), "t")
    assert read is not None
    assert read.envelope.type == "orders.OrderPlaced"
    assert read.envelope.source == "outbox.event.order"
    assert format_.read(a_record(None, id="1", type="OrderCreated"), "t") is None


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (a_record({}, eventType="A"), "the header 'id' is missing; there are eventType"),
        (a_record({}, id="1"), "the header 'eventType' is missing; there are id"),
        (a_record(b"{", id="1", eventType="A"), "its value is no JSON"),
        (a_record({}, b"\xff", id="1", eventType="A"), "its key is not UTF-8"),
    ],
)
def test_debezium_that_cannot_be_read(record: Received, why: str) -> None:
    with pytest.raises(InvalidEvent, match=why):
        DebeziumOutbox().read(record, "t")


def test_plain_json_by_names() -> None:
    format_ = PlainJSON(type="legacy.Booked", key="booking.id", id="uid", time="at", data="booking", source="legacy")
    read = format_.read(a_record({"uid": "u1", "at": "2026-01-31T12:00:00Z", "booking": {"id": 7, "seats": 2}}), "t")
    assert read is not None
    event = read.envelope
    assert (event.type, event.key_name, event.key, event.event_id, event.source) == ("legacy.Booked", "id", "7", "u1", "legacy")
    assert json.loads(event.data) == {"id": 7, "seats": 2}
    assert event.time == 1_769_860_800_000_000
    assert read.origin is None


def test_plain_json_without_an_id_is_told_by_its_place() -> None:
    format_ = PlainJSON(type=lambda value: value.get("kind"), key_name="customer_id")
    one, same, other = (format_.read(a_record({"kind": "x.A"}), topic) for topic in ("topic-1", "topic-1", "topic-2"))
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.envelope.event_id == same.envelope.event_id != other.envelope.event_id
    assert one.origin == Origin("topic topic-1", 0, 0, 17)
    assert (one.envelope.key_name, one.envelope.key) == ("customer_id", "42")
    assert format_.read(a_record({"other": 1}), "t") is None  # its function says that it is no event
    assert format_.read(a_record(None), "t") is None


@pytest.mark.parametrize(
    ("format_", "record", "why"),
    [
        (PlainJSON(type="a.B", key="x.y"), a_record({"x": {}}), "its key was not found: KeyError"),
        (PlainJSON(type="a.B", key="x"), a_record({"x": None}), r"its key \(x\) is null"),
        (PlainJSON(type="a.B", key="x"), a_record({"x": "k" * 1025}), "1,025 bytes, and 1,024 are the most"),
        (PlainJSON(type="a.B", time="t"), a_record({"t": 1e300}), "is neither RFC 3339 nor milliseconds"),
        (PlainJSON(type="a.B", time="t"), a_record({"t": True}), "is neither RFC 3339 nor milliseconds"),
        (PlainJSON(type="a.B", id=lambda value: value["a"] / 0), a_record({"a": 1}), "its id was not found: ZeroDivisionError"),
        (PlainJSON(type="a.B", time="t"), a_record({"t": "yesterday"}), "is no RFC 3339 time"),
        (PlainJSON(type="a.B", time="t"), a_record({"t": [1]}), "its time"),
        (PlainJSON(type="a.B"), a_record(b"\xff\xfe"), "its value is no JSON"),
        (CloudEvents(), a_record({}), "is no CloudEvent"),
    ],
)
def test_what_cannot_be_read_says_why(format_: Format, record: Received, why: str) -> None:
    with pytest.raises(InvalidEvent, match=why):
        format_.read(record, "t")


records = st.builds(
    Received,
    st.sampled_from(["shop", "orders.v1"]),
    st.integers(0, 500),
    st.integers(0, 2**60),
    st.none() | st.binary(),
    st.none() | st.binary(),
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), min_size=1), st.binary())),
    st.integers(0, 4_000_000_000_000),
)


@given(records, st.text())
def test_a_record_that_could_not_be_read_is_kept_whole(record: Received, why: str) -> None:
    row = dead_letter("intake", record, "topic-1", why, 5, 6)
    assert record_of(row) == (record, "topic-1")
    assert f"{record.topic}/{record.partition} at offset {record.offset}" in (row.error or "")
    for text in (row.error, row.envelope.type, row.envelope.source, row.envelope.headers, row.envelope.key):
        assert "\0" not in (text or "")  # no text of PostgreSQL's may have one
