"""The intake on a real Kafka: each event once and in order, whatever happens to topics, offsets and records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from servers.kafka import Kafka
from tests.relay.sending import NOW, Sender, an_event
from tidings import PostgresStore, SQLiteStore
from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.port import Record
from tidings.envelope import Envelope
from tidings.errors import StoreFailed
from tidings.relay import intake as module
from tidings.relay.intake import Intake, RunningIntake
from tidings.store.port import Store, Unit


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        made: Store = SQLiteStore(f"sqlite:///{tmp_path}/log.db")
    else:
        made = PostgresStore(request.getfixturevalue("postgres_url"))
    made.open()
    yield made
    made.close()


class Intakes:
    """Intakes of a test: started, and stopped at its end."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        self._open = ExitStack()

    def start(self, store: Store, *topics: str, app: str = "payment", worker: str = "a", **options: Any) -> RunningIntake:
        broker = KafkaBroker(self.kafka.url)
        running = RunningIntake(Intake(**options), store, broker, app, topics, worker, {app})
        running.start()
        self._open.callback(broker.close)
        self._open.callback(running.stop)
        return running

    def sender(self, **options: Any) -> Sender:
        sender = Sender(self.kafka, **options)
        self._open.callback(sender.close)
        return sender

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def intakes(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> Iterator[Intakes]:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.2)
    made = Intakes(kafka)
    yield made
    made.close()


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def events(store: Store) -> list[Envelope]:
    return store.query(lambda unit: unit.select(limit=1_000_000))


def ids(store: Store) -> list[str]:
    return [event.event_id for event in events(store)]


def offsets(store: Store) -> Any:
    return store.query(lambda unit: unit.intake("intake").offsets())


def in_order(store: Store) -> bool:
    last: dict[tuple[str | None, str], str] = {}
    for event in events(store):
        if event.event_id <= last.get((event.key, event.source), ""):
            return False
        last[event.key, event.source] = event.event_id
    return True


@pytest.mark.promise("nothing lost")
def test_events_come_in_as_they_were(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    topic = kafka.new_topic(4)
    odd = an_event(5, "ключ", traceparent="00-a-b-01", causation_id="x", headers='{"a":"b"}', data=b'{"\\u0000":1}', version=3)
    sent = [*(an_event(number) for number in range(1, 5)), odd, *(an_event(number) for number in range(6, 500))]
    intakes.sender(transactional=True).send(topic, sent)
    running = intakes.start(store, topic, batch=100)
    until(lambda: running.taken == len(sent))
    found = sorted(events(store), key=lambda event: event.event_id)
    assert [event._replace(position=0, topic="shop") for event in found] == [event._replace(position=0) for event in sent]
    assert in_order(store)
    assert store.query(lambda unit: unit.parked()) == []
    until(lambda: all(row.behind == 0 and row.owner == "a" for row in offsets(store)))
    assert running.trouble is None


@pytest.mark.promise("effects once")
def test_what_was_sent_twice_is_taken_once(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    topic = kafka.new_topic(2)
    sender = intakes.sender()
    sender.send(topic, [an_event(number) for number in range(1, 101)])
    running = intakes.start(store, topic)
    until(lambda: running.taken == 100)
    sender.send(topic, [an_event(number) for number in range(51, 151)])  # a relay that didn't know that it had sent them
    until(lambda: running.taken == 150)
    running.stop()
    again = intakes.start(store, topic)
    sender.send(topic, [an_event(number) for number in range(140, 161)])
    until(lambda: again.taken == 10)
    assert (running.dropped, again.dropped) == (50, 11)
    assert sorted(ids(store)) == [an_event(number).event_id for number in range(1, 161)]
    assert in_order(store)


@pytest.mark.promise("nothing lost")
def test_what_is_read_while_a_batch_is_written_is_not_taken_for_written(
    store: Store, intakes: Intakes, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch is committed after the next one was read, and that one is never written: it has to come again."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 60.0)  # a look waits for what is being written
    topic = kafka.new_topic(1)
    intakes.sender().send(topic, [an_event(number) for number in range(1, 21)])
    sift, write, sifted = RunningIntake._sift, RunningIntake._write_down, threading.Semaphore(0)
    wrote: list[list[int]] = []
    waited: list[bool] = []

    def slowly(self: RunningIntake, batch: Any) -> None:
        wrote.append([record.offset for record in batch.records])
        if len(wrote) == 2:
            waited.extend(sifted.acquire(timeout=20) for _ in range(3))
        if len(wrote) == 3:
            raise StoreFailed("the server is gone")
        write(self, batch)

    def counted(self: RunningIntake, records: Any) -> Any:
        batch = sift(self, records)
        sifted.release()
        return batch

    monkeypatch.setattr(RunningIntake, "_write_down", slowly)
    monkeypatch.setattr(RunningIntake, "_sift", counted)
    running = intakes.start(store, topic, batch=3)
    until(lambda: running.taken == 20)
    assert waited == [True] * 3, "the third was read while the second was written"
    assert wrote[2][0] == wrote[3][0], "and came again"
    assert ids(store) == [an_event(number).event_id for number in range(1, 21)]
    assert running.dropped == 0


@pytest.mark.promise("effects once")
def test_what_is_out_of_order_or_others_is_told_by_its_id(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    """A straggler below the mark comes in, once; so does what no Tidings log has sent."""
    topic = kafka.new_topic(2)
    sender = intakes.sender()
    sender.send(topic, [an_event(number) for number in range(10, 20)])
    for _ in range(2):
        sender.send(topic, [an_event(number) for number in range(1, 4)], in_order=False)
    foreign = [
        Record(topic, b"7", b'{"n":%d}' % number, [("ce_specversion", b"1.0"), ("ce_id", b"x%d" % number), ("ce_source", b"java"),
            ("ce_type", b"java.Done")], NOW // 1000)
        for number in (1, 2, 1, 3, 3)
    ]  # fmt: skip
    for _ in range(2):
        sender.send_records(foreign)
    running = intakes.start(store, topic, batch=7)
    until(lambda: running.taken == 16 and running.dropped == 10)
    assert sorted(ids(store)) == sorted([*(an_event(n).event_id for n in (*range(10, 20), 1, 2, 3)), "x1", "x2", "x3"])


@pytest.mark.promise("nothing lost")
def test_another_log_or_incarnation_of_the_same_app_begins_its_own_marks(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    """A service that moved to another database, or was restored, publishes at low positions; marks far ahead must not swallow that."""
    topic = kafka.new_topic(2)
    intakes.sender(log="on-sqlite").send(topic, [an_event(number) for number in range(10_001, 10_051)])
    intakes.sender(log="on-postgres").send(topic, [an_event(number) for number in range(1, 51)])
    intakes.sender(log="on-postgres", incarnation=2).send(topic, [an_event(number, event_id=f"again-{number}") for number in range(40, 61)])
    running = intakes.start(store, topic)
    until(lambda: running.taken == 121)
    assert running.dropped == 0


@pytest.mark.promise("effects once")
def test_nothing_of_ones_own_comes_back(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    topic = kafka.new_topic(1)
    intakes.sender().send(topic, [an_event(1, source="payment")])  # by an earlier log of this app
    intakes.sender(log=store.log_id).send(topic, [an_event(2)])  # from this log, by whatever app
    intakes.sender().send(topic, [an_event(3)])
    running = intakes.start(store, topic)
    until(lambda: running.taken == 1)
    assert ids(store) == [an_event(3).event_id]


def test_what_was_aborted_is_not_seen_and_ends_of_transactions_are_passed(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    topic = kafka.new_topic(1)
    sender = intakes.sender(transactional=True)
    sender.send(topic, [an_event(1)])
    sender.send(topic, [an_event(2)], commit=False)
    sender.send(topic, [an_event(3)])
    running = intakes.start(store, topic)
    until(lambda: running.taken == 2)
    until(lambda: offsets(store)[0].next == 6)  # three events, three ends
    running.stop()
    # Retention takes everything that was read, the end of the last transaction too: nothing is missing.
    kafka.admin().delete_records([TopicPartition(topic, 0, 6)])[TopicPartition(topic, 0, 6)].result(10)
    again = intakes.start(store, topic)
    sender.send(topic, [an_event(4)])
    until(lambda: again.taken == 1)
    assert ids(store) == [an_event(number).event_id for number in (1, 3, 4)]


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize(("where", "then"), [("first", [8, 9, 10]), ("end", []), ("9", [10])])
def test_a_range_that_retention_took_is_named_and_waits_for_an_operator(
    store: Store, intakes: Intakes, kafka: Kafka, where: str, then: list[int]
) -> None:
    topic = kafka.new_topic(2)
    sender = intakes.sender()
    sender.send(topic, [an_event(number) for number in range(1, 6)], partition=0)
    running = intakes.start(store, topic)
    until(lambda: running.taken == 5)
    running.stop()
    sender.send(topic, [an_event(number) for number in range(6, 11)], partition=0)
    gone = TopicPartition(topic, 0, 7)
    kafka.admin().delete_records([gone])[gone].result(10)
    again = intakes.start(store, topic)
    until(lambda: offsets(store)[0].trouble)
    assert f"{topic}/0: offsets 5 to 6 went before they were read" in offsets(store)[0].trouble
    sender.send(topic, [an_event(50)], partition=1)
    until(lambda: again.taken == 1)  # the other partition goes on
    store.write(lambda unit: unit.intake("intake").resume(topic, 0, where)).result()
    until(lambda: offsets(store)[0].trouble is None and offsets(store)[0].resume is None)
    sender.send(topic, [an_event(11)], partition=0)
    until(lambda: an_event(11).event_id in ids(store))
    assert ids(store) == [an_event(number).event_id for number in (*range(1, 6), 50, *then, 11)]


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("running", [True, False], ids=["while it is read", "while nobody reads"])
def test_a_topic_made_anew_with_more_records_than_before_is_not_read_on(
    store: Store, intakes: Intakes, kafka: Kafka, running: bool
) -> None:
    topic = kafka.new_topic(1)
    sender = intakes.sender()
    sender.send(topic, [an_event(number) for number in range(1, 11)])
    first = intakes.start(store, topic)
    until(lambda: first.taken == 10)
    if not running:
        first.stop()
    kafka.drop_topics([topic])
    kafka.new_topic(1, name=topic)
    sender.send(topic, [an_event(number) for number in range(11, 41)])
    if not running:
        first = intakes.start(store, topic)
    until(lambda: offsets(store)[0].trouble)
    assert "the topic was deleted and made anew" in offsets(store)[0].trouble
    assert "up to offset 10" in offsets(store)[0].trouble
    assert len(ids(store)) == 10
    store.write(lambda unit: unit.intake("intake").resume(topic, None, "first")).result()
    until(lambda: len(ids(store)) == 40)
    assert in_order(store)


def test_a_record_that_cannot_be_read_is_kept_and_tried_again(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    topic = kafka.new_topic(1)
    sender = intakes.sender()
    bad = [
        Record(topic, b"\xff", b"no event", [("a", b"\xff")], NOW // 1000),
        Record(topic, None, None, [], NOW // 1000),
        Record(topic, b"k", b"{", [("content-type", b"application/cloudevents+json")], NOW // 1000),
        Record(topic, b"k", b"{}", [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"j"), ("ce_type", b"a\0b")], NOW // 1000),
        Record(topic, b"k", b"{}", [("ce_specversion", b"1.0"), ("ce_id", b"2"), ("ce_source", b"j"), ("ce_type", b"j.A"),
            ("ce_dataschemaversion", b"99999999999999999999")], NOW // 1000),
        Record(topic, b"k" * 1025, b"{}", [("ce_specversion", b"1.0"), ("ce_id", b"3"), ("ce_source", b"j"),
            ("ce_type", b"j.A")], NOW // 1000),
    ]  # fmt: skip
    sender.send(topic, [an_event(1)])
    sender.send_records(bad)
    sender.send(topic, [an_event(2)])
    running = intakes.start(store, topic)
    until(lambda: an_event(2).event_id in ids(store))
    dead = store.query(lambda unit: unit.parked("intake", ["dead"]))
    assert len(dead) == (5 if store.one_writer else 6), [row.error for row in dead]  # a zero byte is a text like any other to SQLite
    assert dead[0].error is not None
    assert dead[0].error.startswith(f"{topic}/0 at offset 1: the record of {topic} is no CloudEvent")
    assert dead[0].envelope.data == b"no event"
    assert dead[-2].error == f"{topic}/0 at offset 5: the header ce_dataschemaversion of 2 is no number from 1 to 2147483647"
    assert dead[-1].error is not None
    assert "has 1,025 bytes, and 1,024 are the most" in dead[-1].error
    until(lambda: all(row.behind == 0 for row in offsets(store)))
    running.stop()

    class Whatever:
        def read(self, record: Any, topic_id: str) -> Any:
            from tidings.relay.formats import Arrival

            return Arrival(an_event(900 + record.offset, event_id=f"mended-{record.offset}", data=record.value or b"null"), None)

    intakes.start(store, topic, formats={topic: Whatever()})
    for row in dead[:2]:
        assert store.write(partial(_retry, position=row.envelope.position)).result()
    until(lambda: {"mended-1", "mended-2"} <= set(ids(store)))
    assert [row.envelope.position for row in store.query(lambda unit: unit.parked("intake"))] == [row.envelope.position for row in dead[2:]]
    assert len(ids(store)) == len(set(ids(store)))


def _retry(unit: Unit, position: int) -> bool:
    return unit.retry_dead("intake", position, 0)
