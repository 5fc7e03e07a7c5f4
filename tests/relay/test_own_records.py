"""The quick way reads what the whole way reads, or leaves it to that."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.relay.test_cloudevents import envelopes
from tidings.brokers.port import Received, Record
from tidings.envelope import Envelope
from tidings.errors import InvalidEvent
from tidings.relay.cloudevents import from_record, recorder
from tidings.relay.own_records import own_records

read = own_records()


def received(record: Record) -> Received:
    return Received(record.topic, 0, 0, record.key, record.value, record.headers, record.time)


@given(envelopes(), st.booleans())
def test_the_same_comes_of_it(envelope: Envelope, in_order: bool) -> None:
    record = recorder("0192-aaaa.b", 3)(tuple(envelope), in_order)
    quick = read(received(record))
    assert quick is None or quick == from_record(*record)
    plain = in_order and envelope.version == 1 and not (envelope.causation_id or envelope.traceparent or envelope.headers)
    assert (quick is not None) == plain


@given(envelopes(), st.data())
def test_whatever_is_done_to_the_headers(envelope: Envelope, data: st.DataObject) -> None:
    plain = envelope._replace(version=1, causation_id=None, traceparent=None, headers=None)
    record = recorder("log-a", 1)(tuple(plain))
    headers = list(record.headers)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(headers) - 1))
        name, raw = headers[at]
        other = data.draw(
            st.sampled_from([b"", b"1", b"-1", b"64", b"\xff", b"2026-01-31T12:00:00.00000xZ", b"2026-02-31T12:00:00.000000Z", raw + b"0"])
        )
        match data.draw(st.sampled_from(["change", "twice", "gone", "more"])):
            case "change":
                headers[at] = (name, other)
            case "twice":
                headers.append((name, other))
            case "gone" if len(headers) > 1:
                del headers[at]
            case "more":
                headers.append((data.draw(st.sampled_from(["ce_other", "trace", "ce_ID"])), other))
    record = record._replace(headers=headers, key=data.draw(st.sampled_from([record.key, None, b"other"])))
    quick = read(received(record))
    if quick is None:
        return
    try:
        whole = from_record(*record)
    except InvalidEvent as error:
        raise AssertionError(f"read quickly, though {error}") from error
    assert quick == whole
