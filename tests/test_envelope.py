from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.promises import shared_data
from tidings import App, Envelope, Event, InvalidEvent
from tidings.envelope import LANES, iso_time, lane_of, lanes_of, micros

MINIMAL = {"specversion": "1.0", "id": "1", "source": "/here", "type": "a.b"}


# -- lanes


@given(st.none() | st.text(), st.text())
def test_a_lane_is_one_of_64_and_never_another(name: str | None, key: str) -> None:
    assert 0 <= lane_of(name, key) < LANES == 64
    assert lane_of(name, key) == lane_of(name, key)


def test_lanes_are_part_of_the_wire_contract() -> None:
    """Marks of relays and intakes are kept by lane, in stores and topics of others: these figures must never change."""
    keys = [("order", "42"), ("customer", "42"), ("order", "ключ"), (None, "00000000-0000-7000-8000-000000000001"), ("", "")]
    assert [lane_of(*key) for key in keys] == [46, 37, 9, 45, 28]


def test_lanes_are_about_even() -> None:
    counts = [0] * LANES
    for number in range(64_000):
        counts[lane_of("order", str(number))] += 1
    assert 800 < min(counts) <= max(counts) < 1_200


# -- times


@given(st.integers(0, 4_000_000_000_000_000))
def test_times_there_and_back(microseconds: int) -> None:
    text = iso_time(microseconds)
    assert text.endswith("Z")
    assert micros(text) == microseconds


@pytest.mark.parametrize(
    ("text", "second"),
    [("1970-01-01T00:00:01Z", 1), ("1970-01-01T01:00:01+01:00", 1), ("1969-12-31T23:59:59Z", -1), ("1970-01-01T00:00:01.000Z", 1)],
)
def test_times_of_others(text: str, second: int) -> None:
    assert micros(text) == second * 1_000_000


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidEvent, match=r"is no RFC 3339 time|has no offset"):
        micros(text)


# -- CloudEvents

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    key = draw(st.none() | texts)
    key_name = None if key is None else draw(texts)
    event_id = draw(texts)
    known = {"specversion", "id", "source", "type", "time", "datacontenttype", "dataschemaversion", "topic", "sequence", "correlationid"}
    known |= {"partitionkey", "keyname", "causationid", "traceparent", "data", "database64"}
    headers = draw(st.dictionaries(names.filter(lambda name: name not in known), texts, max_size=3))
    return Envelope(
        position=0,
        lane=lane_of(key_name, key) if key is not None else lane_of(None, event_id),
        topic=draw(texts),
        type=draw(texts),
        version=draw(st.integers(1, 1000)),
        key_name=key_name,
        key=key,
        event_id=event_id,
        time=draw(st.integers(0, 4_000_000_000_000_000)),
        source=draw(texts),
        data=msgspec.json.encode(draw(json_values)),
        correlation_id=draw(texts),
        causation_id=draw(st.none() | texts),
        traceparent=draw(st.none() | texts),
        headers=msgspec.json.encode(headers).decode() if headers else None,
    )


@given(envelopes())
def test_there_and_back_through_json(envelope: Envelope) -> None:
    value = json.loads(json.dumps(envelope.to_cloudevent()))
    back = Envelope.from_cloudevent(value)
    assert back._replace(data=b"", headers=None) == envelope._replace(data=b"", headers=None)
    assert json.loads(back.data) == json.loads(envelope.data)
    assert json.loads(back.headers or "{}") == json.loads(envelope.headers or "{}")


@given(st.binary())
def test_bytes_that_are_no_json_survive(data: bytes) -> None:
    envelope = Envelope.from_cloudevent(MINIMAL)._replace(data=data)
    back = Envelope.from_cloudevent(json.loads(json.dumps(envelope.to_cloudevent())))
    try:
        expected = json.loads(data)
    except ValueError:
        assert back.data == data
    else:
        assert json.loads(back.data) == expected


def test_what_a_published_event_looks_like_to_others() -> None:
    class Placed(Event, key="order", version=2):
        order: int
        total: Decimal

    app = App("shop", store="sqlite:///unused.db", topic="orders")
    value = app.envelope(Placed(order=42, total=Decimal("9.90")))._replace(position=7, time=1_700_000_000_000_001).to_cloudevent()
    event_id = value["id"]
    assert value == {
        "specversion": "1.0",
        "id": event_id,
        "source": "shop",
        "type": "shop.Placed",
        "time": "2023-11-14T22:13:20.000001Z",
        "datacontenttype": "application/json",
        "dataschemaversion": "2",
        "topic": "orders",
        "sequence": "00000000000000000007",
        "correlationid": event_id,
        "partitionkey": "42",
        "keyname": "order",
        "data": {"order": 42, "total": "9.90"},
    }


def test_a_header_never_hides_an_attribute() -> None:
    envelope = Envelope.from_cloudevent(MINIMAL)._replace(headers='{"id": "forged", "tenant": "a"}')
    value = envelope.to_cloudevent()
    assert (value["id"], value["tenant"]) == ("1", "a")
    assert (envelope.header("tenant"), envelope.header("absent")) == ("a", None)
    assert envelope._replace(headers=None).header("tenant") is None


def test_the_least_that_a_cloudevent_has() -> None:
    before = datetime.datetime.now(datetime.UTC).timestamp()
    envelope = Envelope.from_cloudevent(MINIMAL)
    assert (envelope.event_id, envelope.source, envelope.type, envelope.version) == ("1", "/here", "a.b", 1)
    assert (envelope.key, envelope.key_name, envelope.topic, envelope.correlation_id) == (None, None, "/here", "1")
    assert json.loads(envelope.data) is None
    assert envelope.time / 1e6 >= before
    assert Envelope.from_cloudevent(MINIMAL, topic="mine").topic == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: None}, f"the attribute '{name}' is missing or not a text") for name in MINIMAL),
        *(({name: ""}, f"the attribute '{name}' is missing or not a text") for name in MINIMAL),
        ({"id": 1}, "the attribute 'id' is missing or not a text"),
        ({"specversion": "0.3"}, "specversion '0.3' is not known; 1.0 is"),
        ({"Tenant": "a"}, "attribute 'Tenant': names are lower-case letters and digits"),
        ({"ten_ant": "a"}, "attribute 'ten_ant': names are"),
        ({"tenant": {"a": 1}}, "attribute 'tenant' must be a text, a number or a boolean"),
        ({"tenant": 1.5}, "attribute 'tenant' must be"),
        ({"data": 1, "data_base64": "AA=="}, "has data or data_base64, not both"),
        ({"data_base64": "!"}, "CloudEvent 1: "),
        ({"data_base64": 1}, "CloudEvent 1: "),
        ({"time": "yesterday"}, "'yesterday' is no RFC 3339 time"),
        ({"time": 5}, "5 is no RFC 3339 time"),
        ({"dataschemaversion": "two"}, "CloudEvent 1: "),
        ({"partitionkey": 5}, "'partitionkey' must be a text"),
        ({"keyname": 5, "partitionkey": "5"}, "'keyname' must be a text"),
        ({"correlationid": 5}, "'correlationid' must be a text"),
        ({"topic": 5}, "'topic' must be a text"),
    ],
)
def test_what_is_no_cloudevent(changes: dict[str, Any], message: str) -> None:
    value = {name: given for name, given in {**MINIMAL, **changes}.items() if given is not None}
    with pytest.raises(InvalidEvent) as caught:
        Envelope.from_cloudevent(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_what_is_no_object(value: Any) -> None:
    with pytest.raises(InvalidEvent, match="not a CloudEvent: a JSON object is needed"):
        Envelope.from_cloudevent(value)


# -- the conformance files of the CloudEvents project, where they are about JSON

PROMISE = "CloudEvents conformance"


def documents(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Attributes and data of each event in the file; it uses so little of YAML that no parser is needed."""
    for document in path.read_text().split("\n---\n"):
        attributes = dict(re.findall(r"^  (\w+): (.*)$", document, re.MULTILINE))
        yield attributes, "\n".join(line.strip() for line in document.split("Data: |\n")[1].rstrip().splitlines())


def test_the_minimal_events_of_the_conformance_suite() -> None:
    found = 0
    for attributes, data in documents(shared_data("cloudevents-v1_minimum.yaml", PROMISE)):
        found += 1
        is_json = attributes["datacontenttype"].startswith("application/json")
        value = {**attributes, "data": json.loads(data) if is_json else data}
        envelope = Envelope.from_cloudevent(value)
        back = envelope.to_cloudevent()
        for name in ("specversion", "type", "id", "source"):
            assert back[name] == attributes[name]
        assert back["datacontenttype"] == attributes["datacontenttype"]
        assert back["data"] == value["data"]
    assert found == 6


@pytest.mark.parametrize("name", ["cloudevents-http-protocol-binding.feature", "cloudevents-kafka-protocol-binding.feature"])
def test_structured_mode_of_the_conformance_suite(name: str) -> None:
    """The JSON documents of "Structured content mode" have the attributes and the data that the scenario lists."""
    text = shared_data(name, PROMISE).read_text()
    scenario = text[text.index("Structured content mode") :]
    value = json.loads(re.findall(r'"""(.*?)"""', scenario, re.DOTALL)[0].split("\n\n")[-1])
    table = scenario[scenario.index("Then the attributes are:") :]
    expected = {key: given for key, given in re.findall(r"^ +\| +(\w+) +\| (\S.*?) +\|$", table, re.MULTILINE) if key != "key"}
    assert {"id", "specversion", "type", "source", "time", "datacontenttype"} <= expected.keys()
    back = Envelope.from_cloudevent(value).to_cloudevent()
    assert {key: back[key] for key in expected} == expected
    assert back["data"] == json.loads(re.findall(r'"""(.*?)"""', table, re.DOTALL)[0])


@pytest.mark.parametrize("key_name", [None, "order_id", "größe"])
@pytest.mark.parametrize("key", ["42", "", "ümläut 🙂", "a=b", "\0"])
def test_lanes_of_many_keys(key_name: str | None, key: str) -> None:
    assert lanes_of(key_name)(key) == lane_of(key_name, key)
