"""Events as records and back: nothing is lost on the way, others' are read as the CloudEvents project says, hostile ones refused."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.promises import shared_data
from tidings.brokers.port import Record, size
from tidings.envelope import Envelope, lane_of
from tidings.errors import InvalidEvent
from tidings.relay.cloudevents import Origin, from_record, recorder

PROMISE = "CloudEvents conformance"

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(lambda name: name not in {"datacontenttype", "topic", "data"})


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    key = draw(st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")))
    key_name = None if key is None else draw(words)
    event_id = draw(words)
    texts = draw(st.dictionaries(names, words, max_size=3))
    return Envelope(
        draw(st.integers(1, 2**63 - 1)),
        lane_of(key_name, event_id if key is None else key),
        draw(words),
        draw(words),
        draw(st.integers(1, 9)),
        key_name,
        key,
        event_id,
        draw(st.integers(0, 4_000_000_000_000_000)),
        draw(words),
        draw(st.binary()),
        draw(words),
        draw(st.none() | words),
        draw(st.none() | words),
        msgspec.json.encode(texts).decode() if texts else None,
    )


def read(record: Record) -> tuple[Envelope, Origin | None]:
    return from_record(record.topic, record.key, record.value, record.headers, record.time)


@given(envelopes(), st.booleans())
def test_there_and_back(envelope: Envelope, in_order: bool) -> None:
    record = recorder("0192-aaaa.b", 3)(tuple(envelope), in_order)
    back, origin = read(record)
    assert origin == Origin("0192-aaaa.b", 3, envelope.lane, envelope.position, in_order)
    ours = {"specversion", "id", "source", "type", "time", "dataschemaversion", "sequence", "correlationid", "partitionkey", "keyname"}
    ours |= {"causationid", "traceparent", "tidingslog", "tidingslane", "tidingsoutoforder"}
    texts = {name: text for name, text in json.loads(envelope.headers or "{}").items() if name not in ours}
    assert json.loads(back.headers or "{}") == texts
    assert back._replace(headers=None) == envelope._replace(position=0, headers=None)
    assert record.key == (None if envelope.key is None else envelope.key.encode())
    assert size(record) >= len(record.value or b"") + sum(len(name) + len(raw) for name, raw in record.headers)


def test_another_content_type_travels_as_kafka_says() -> None:
    envelope = Envelope(7, 1, "t", "a.B", 1, None, None, "e", 5, "a", b"<x/>", "e", None, None, '{"datacontenttype":"text/xml","x":"y"}')
    record = recorder("log", 1)(tuple(envelope))
    assert [raw for name, raw in record.headers if name == "content-type"] == [b"text/xml"]
    assert read(record)[0].to_cloudevent()["data"] == "<x/>"


def test_headers_have_the_names_that_others_look_for() -> None:
    envelope = Envelope(7, 1, "t", "a.B", 2, "id", "42", "e", 1_700_000_000_000_005, "a", b"{}", "c", "p", "00-1-2-01", None)
    record = recorder("log", 1)(tuple(envelope))
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "content-type": b"application/json",
        "ce_id": b"e",
        "ce_source": b"a",
        "ce_type": b"a.B",
        "ce_time": b"2023-11-14T22:13:20.000005Z",
        "ce_sequence": b"00000000000000000007",
        "ce_partitionkey": b"42",
        "ce_keyname": b"id",
        "ce_dataschemaversion": b"2",
        "ce_correlationid": b"c",
        "ce_causationid": b"p",
        "ce_traceparent": b"00-1-2-01",
        "ce_tidingslog": b"log.1",
        "ce_tidingslane": b"1",
    }
    assert record.time == 0


def scenarios() -> list[tuple[list[tuple[str, bytes]], bytes, dict[str, str], Any]]:
    """Headers, value, expected attributes, expected data of each scenario of the conformance suite."""
    text = shared_data("cloudevents-kafka-protocol-binding.feature", PROMISE).read_text()
    found = []
    for scenario in re.split(r"\n +Scenario", text)[1:]:
        payload, data = re.findall(r'"""(.*?)"""', scenario, re.DOTALL)
        before, after = scenario.split("Then the attributes are:")
        rows = re.compile(r"^ +\| +(\S+) +\| (.*?) +\|$", re.MULTILINE)
        headers = [(name, value) for name, value in rows.findall(before) if name != "key"]
        expected = {name: value for name, value in rows.findall(after) if name != "key"}
        types = re.findall(r"^ +\| (application/\S.*?) +\|$", after, re.MULTILINE) if "<contentType>" in scenario else [""]
        for content_type in types:
            named = [(name, value.replace("<contentType>", content_type).encode()) for name, value in headers]
            found.append((named, payload.strip().encode(), expected, json.loads(data)))
    return found


@pytest.mark.parametrize("number", range(3))
def test_the_conformance_suite(number: int) -> None:
    headers, value, expected, data = scenarios()[number]
    envelope, origin = from_record("t", None, value, headers, 5)
    back = envelope.to_cloudevent()
    assert {name: back[name] for name in expected} == expected
    assert back["data"] == data
    assert origin is None
    assert envelope.topic == "t"


def test_every_scenario_of_it_is_run() -> None:
    assert len(scenarios()) == 3


BINARY = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t")]


def test_what_others_leave_out() -> None:
    envelope, origin = from_record("orders", b"42", None, [*BINARY, ("CE_LATER", b"x"), ("unrelated", b"\xff")], 1234)
    assert origin is None
    assert (envelope.key_name, envelope.key, envelope.lane) == ("partitionkey", "42", lane_of("partitionkey", "42"))
    assert (envelope.time, envelope.data, envelope.topic) == (1_234_000, b"null", "orders")
    assert from_record("orders", b"\xff\xfe", b"1", BINARY, 0)[0].key is None  # a key that is no text orders nothing here


OURS = [("ce_tidingslane", b"3"), ("ce_sequence", b"00000000000000000009")]


@pytest.mark.parametrize(
    ("headers", "value", "words"),
    [
        ([], b"{}", "is no CloudEvent"),
        ([("content-type", b"application/json")], b"{}", "is no CloudEvent"),
        (BINARY[:3], b"{}", "ce_type is missing"),
        ([("ce_specversion", b"0.3"), *BINARY[1:]], b"{}", "specversion '0.3'"),
        ([*BINARY, ("ce_subject", b"\xff")], b"{}", "not UTF-8"),
        ([*BINARY, ("ce_time", b"yesterday")], b"{}", "no RFC 3339 time"),
        ([*BINARY, ("ce_dataschemaversion", b"two")], b"{}", "no number"),
        ([*BINARY, ("ce_tidingslog", b"log"), *OURS], b"{}", "tidingslog"),
        ([*BINARY, ("ce_tidingslog", b".1"), *OURS], b"{}", "no place in a log"),
        ([*BINARY, ("ce_tidingslog", b"log.1"), ("ce_tidingslane", b"64"), OURS[1]], b"{}", "no place in a log"),
        ([*BINARY, ("ce_tidingslog", b"log.1"), ("ce_tidingslane", b"3"), ("ce_sequence", b"-1")], b"{}", "no place in a log"),
        ([*BINARY, ("ce_tidingslog", b"log.1")], b"{}", "don't belong together"),
        ([("content-type", b"application/cloudevents-batch+json")], b"[]", "can be read"),
        ([("content-type", b"application/cloudevents+avro")], b"{}", "can be read"),
        ([("content-type", b"application/cloudevents+json")], b"{", "not JSON"),
        ([("content-type", b"application/cloudevents+json")], None, "not JSON"),
        ([("content-type", b"application/cloudevents+json")], b"[]", "not a CloudEvent"),
    ],
)
def test_what_is_no_event_is_refused_by_name(headers: list[tuple[str, bytes]], value: bytes | None, words: str) -> None:
    with pytest.raises(InvalidEvent, match=re.escape(words)):
        from_record("t", None, value, headers, 0)


def test_headers_without_a_value_are_as_if_they_were_not_there() -> None:
    """Kafka has them, and so have others' producers."""
    headers: list[Any] = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"j"), ("ce_type", b"j.A"), ("ce_x", None)]
    envelope, _ = from_record("j", None, b"{}", headers, 5)
    assert envelope.headers is None
    with pytest.raises(InvalidEvent, match="the header ce_type is missing"):
        from_record("j", None, b"{}", [*headers[:3], *headers[4:]], 5)


def test_a_structured_event_of_a_tidings_log_says_where_it_comes_from() -> None:
    envelope = Envelope(7, lane_of("id", "42"), "t", "a.B", 1, "id", "42", "e", 5, "a", b"{}", "e", None, None, '{"x":"y"}')
    document = {**envelope.to_cloudevent(), "tidingslog": "log.2", "tidingslane": str(envelope.lane)}
    back, origin = from_record("t", b"42", json.dumps(document).encode(), [("content-type", b"application/cloudevents+json")], 0)
    assert origin == Origin("log", 2, envelope.lane, 7)
    assert back == envelope._replace(position=0)
