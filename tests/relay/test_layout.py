"""Rows of somebody else's outbox as records: functions of values."""

from __future__ import annotations

import pytest

from tidings.errors import ConfigurationError
from tidings.relay.layout import DEBEZIUM, SIMPLE, millis_of, recorder, rfc3339
from tidings.store.outbox import Unsendable

ROW = [b"5", b"7", b'{"n": 1}', b"shop.Placed", b"2026-01-31 12:00:00.25+00"]


def test_a_simple_row() -> None:
    record = recorder(SIMPLE.naming([], "orders"), "shop")(ROW, b"0005", None, False)
    assert (record.topic, record.key, record.value, record.time) == ("orders", b"7", b'{"n": 1}', 0)
    assert dict(record.headers)["ce_sequence"] == b"0005"
    assert "ce_tidingsoutoforder" not in dict(record.headers)


def test_what_is_out_of_order_says_so() -> None:
    record = recorder(SIMPLE.naming([], "orders"), "shop")(ROW, b"0005", None, True)
    assert dict(record.headers)["ce_tidingsoutoforder"] == b"true"


def test_columns_that_are_not_there() -> None:
    layout = SIMPLE.naming(["time=", "published=", "key = customer"], "orders")
    assert layout.columns == ["customer", "payload", "event_type"]
    record = recorder(layout, "shop")([b"5", None, None, b"shop.Placed"], None, 123, False)
    assert (record.key, record.value, record.time) == (None, None, 123)
    assert {"ce_time", "ce_partitionkey", "ce_sequence"}.isdisjoint(dict(record.headers))


def test_a_row_that_says_where_it_goes() -> None:
    layout = DEBEZIUM.naming(["header.eventType=type"])
    make = recorder(layout, "shop")
    record = make([b"a-b", b"7", None, b"Changed", b"order", b"Changed"], b"1", 5, False)
    assert (record.topic, record.key, record.value) == ("outbox.event.order", b"7", None)
    assert record.headers == [("id", b"a-b"), ("eventType", b"Changed")]
    for route in (None, b"a/b", "ü".encode(), b"x" * 250):
        with pytest.raises(Unsendable, match="no name for a topic"):
            make([b"a-b", b"7", None, b"Changed", route, None], b"1", 5, False)


def test_a_column_that_was_renamed() -> None:
    layout = SIMPLE.naming(["payload=body|payload|stuff", "header.region = region|"], "orders")
    assert layout.columns == ["aggregate_id", "body", "event_type", "created_at", "region"]
    assert dict(layout.former) == {"body": ("payload", "stuff"), "region": ("",)}


def test_a_key_that_is_no_text() -> None:
    record = recorder(SIMPLE.naming([], "orders"), "shop")([b"5", b"\xff", *ROW[2:]], None, None, False)
    assert record.key == b"\xff"
    assert "ce_partitionkey" not in dict(record.headers)


@pytest.mark.parametrize("kind", [None, b""])
def test_an_event_without_a_type(kind: bytes | None) -> None:
    with pytest.raises(Unsendable, match="event_type is empty") as raised:
        recorder(SIMPLE.naming([], "orders"), "shop")([*ROW[:3], kind, None], None, None, False)
    assert raised.value.id == "5"


@pytest.mark.parametrize("columns", [["kye=a"], ["id="], ["key"], ["header.=a"], ["header.a b=c"], ["type="], ["type=|a"], ["id=a|"]])
def test_names_that_cannot_be(columns: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        SIMPLE.naming(columns, "orders")


@pytest.mark.parametrize("topic", ["{route}", "{key}", "a{", "a}", "{}"])
def test_topics_that_cannot_be(topic: str) -> None:
    with pytest.raises(ConfigurationError):
        SIMPLE.naming([], topic)


@pytest.mark.parametrize(
    ("moment", "millis", "text"),
    [
        (b"2026-01-31 12:00:00.25+00", 1_769_860_800_250, b"2026-01-31T12:00:00.25Z"),
        (b"2026-01-31 12:00:00", 1_769_860_800_000, b"2026-01-31T12:00:00Z"),
        (b"2026-01-31 12:00:00.5+01", 1_769_857_200_500, b"2026-01-31T12:00:00.5+01"),
        (b"2026-01-31", 1_769_817_600_000, b"2026-01-31T00:00:00Z"),
        (b"infinity", None, None),
    ],
)
def test_times_as_the_server_writes_them(moment: bytes, millis: int | None, text: bytes | None) -> None:
    assert millis_of(moment) == millis
    if text is not None:
        assert rfc3339(moment) == text
