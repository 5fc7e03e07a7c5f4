"""What Kafka's transactions make difficult: fenced producers with records in transit, others' open transactions, a broker that is away."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from servers.kafka import Kafka
from tests.brokers.reading import everything
from tests.promises import ROOT
from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.kafka_slot import Transactional
from tidings.brokers.port import Record
from tidings.errors import BrokerError, BrokerUnavailable, SlotFenced

NOW = int(time.time() * 1000)


def records(topic: str, count: int, start: int = 0) -> list[Record]:
    return [Record(topic, b"%d" % (n % 9), b"%d" % n, [("h", b"v")], NOW) for n in range(start, start + count)]


FENCED = """
import gc, sys, threading, time
import confluent_kafka
left = []
class Watched(confluent_kafka.Producer):
    def close(self):
        left.append(len(self))
        return super().close()
confluent_kafka.Producer = Watched
from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.port import Record
from tidings.errors import BrokerError
address, topic, relay = sys.argv[1:]
told = 0
for turn in range(10):
    old = KafkaBroker(address).open_slot(relay, 0, 1)
    rows = [Record(topic, b"%d" % n, b"x" * 500, [], int(time.time() * 1000)) for n in range(3000)]
    begun = threading.Event()
    def send():
        global told
        begun.set()
        try:
            for _ in range(50):
                old.send(rows, b"m")
        except BrokerError:
            told += 1
    thread = threading.Thread(target=send)
    thread.start()
    begun.wait()
    new = KafkaBroker(address).open_slot(relay, 0, 1)
    thread.join()
    new.close()
    del old, new
    gc.collect()
print("alive", told, max(left), len(left))
"""


@pytest.mark.promise("death at any instruction")
def test_no_process_dies_of_a_fenced_producer_with_records_in_transit(kafka: Kafka) -> None:
    topic, relay = kafka.new_topic(4), kafka.new_name("relay")
    ran = subprocess.run(
        [sys.executable, "-c", FENCED, kafka.address, topic, relay], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    # each was told, and none had a record in it when it was closed
    assert ran.stdout == "alive 10 0 20\n", ran.stderr[-2000:]
    assert ran.returncode == 0


def test_another_slots_open_transaction_hides_no_mark(kafka: Kafka) -> None:
    """Of the same relay: its owner is frozen in the middle, with its own record of the position sent."""
    broker, topic, relay = KafkaBroker(kafka.address), kafka.new_topic(4), kafka.new_name("relay")
    mine = broker.open_slot(relay, 0, 2)
    mine.send(records(topic, 10), b"ten")
    frozen = broker.open_slot(relay, 1, 2, patience=60)
    assert isinstance(frozen, Transactional)
    frozen._producer.begin_transaction()
    frozen._fill(frozen._producer, records(topic, 10, 10), b"never")
    frozen._producer.flush(10)
    mine.send([], b"eleven")
    again = KafkaBroker(kafka.address).open_slot(relay, 0, 2)
    assert again.mark == b"eleven"
    again.close()
    taken = KafkaBroker(kafka.address).open_slot(relay, 1, 2)  # and who takes it over ends its transaction
    assert taken.mark is None
    assert sorted(int(one.value or b"") for one in everything(kafka, topic)) == list(range(10))
    taken.close()
    frozen.close()
    mine.close()


def test_who_is_away_for_longer_than_its_patience_is_given_up(kafka: Kafka) -> None:
    """Its transaction doesn't hold readers for ever, and what it then sends does not appear."""
    broker, topic, relay = KafkaBroker(kafka.address), kafka.new_topic(1), kafka.new_name("relay")
    slot = broker.open_slot(relay, 0, 1, patience=1.0)
    assert isinstance(slot, Transactional)
    slot._producer.begin_transaction()
    slot._fill(slot._producer, records(topic, 5), b"no")
    slot._producer.flush(10)
    other = broker.open_slot(kafka.new_name("relay"), 0, 1)
    other.send(records(topic, 1, 100), b"m")
    until = time.monotonic() + 30
    while (seen := [one.value for one in everything(kafka, topic)]) == [] and time.monotonic() < until:
        time.sleep(0.05)
    assert seen == [b"100"]
    with pytest.raises(SlotFenced):
        slot._commit(slot._producer)
    slot.close()
    other.close()
    assert [one.value for one in everything(kafka, topic)] == [b"100"]


@pytest.mark.parametrize("way", ["kill", "freeze"])
def test_a_broker_that_is_away_is_waited_for(kafka: Kafka, way: str) -> None:
    broker, topic, relay = KafkaBroker(kafka.address), kafka.new_topic(2), kafka.new_name("relay")
    slot = broker.open_slot(relay, 0, 1, patience=60)
    slot.send(records(topic, 10), b"10")
    kafka.kill() if way == "kill" else kafka.freeze()
    ended: list[object] = []

    def send() -> None:
        try:
            slot.send(records(topic, 10, 10), b"20")
            ended.append(None)
        except BrokerError as error:
            ended.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join(3)
    assert thread.is_alive()
    kafka.start() if way == "kill" else kafka.thaw()
    thread.join(60)
    again = KafkaBroker(kafka.address).open_slot(relay, 0, 1)
    slot.close()
    done = int(again.mark or b"0")
    assert done in (10, 20)
    assert (ended == [None]) <= (done == 20)  # what was said to have been sent was
    assert sorted(int(one.value or b"") for one in everything(kafka, topic)) == list(range(done))
    again.close()


def test_who_is_to_stop_does_not_wait_for_a_broker_that_is_away(kafka: Kafka) -> None:
    broker, topic, relay = KafkaBroker(kafka.address), kafka.new_topic(2), kafka.new_name("relay")
    slot = broker.open_slot(relay, 0, 1)
    slot.send(records(topic, 1), b"1")
    kafka.freeze()
    slot.give_up()
    since = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        slot.send(records(topic, 10), b"2")
    slot.close()
    assert time.monotonic() - since < 8


def test_a_topic_with_a_small_limit(kafka: Kafka) -> None:
    """Batches are no larger than the topic takes, which is seen when the slot is opened anew."""
    topic, relay = kafka.new_topic(1, settings={"max.message.bytes": "10000"}), kafka.new_name("relay")
    broker = KafkaBroker(kafka.address)
    many = [Record(topic, b"k", b"x" * 1000, [], NOW) for _ in range(100)]
    slot = broker.open_slot(relay, 0, 1)
    with pytest.raises(SlotFenced, match="smaller batches"):
        slot.send(many, b"m")
    slot.close()
    slot = broker.open_slot(relay, 0, 1)
    slot.send(many, b"m")
    slot.close()
    assert len(everything(kafka, topic)) == 100
