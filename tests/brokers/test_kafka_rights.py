"""A Kafka with users and rights: the contract holds with the rights that the guide lists, and each that is missing is one line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from servers.secure_kafka import SecureKafka
from tests.brokers import reading
from tests.brokers.reading import WithKafka
from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.port import Broker, Record
from tidings.errors import NotAllowed
from tidings.testing.contracts.broker import BrokerContract


def give_all(kafka: SecureKafka, user: str) -> None:
    """What docs/guides/kafka.md lists for a relay that makes topics."""
    kafka.allow(user, "WRITE,READ,DESCRIBE,CREATE", "TOPIC", "tidings-", prefixed=True)
    kafka.allow(user, "WRITE,DESCRIBE", "TRANSACTIONAL_ID", "tidings-", prefixed=True)
    for names in ("topic", "made-", "missing-", "later-"):
        kafka.allow(user, "WRITE,DESCRIBE,CREATE", "TOPIC", names, prefixed=True)


def give_reading(kafka: SecureKafka, user: str) -> None:
    """What it lists for an intake."""
    for names in ("topic", "later-"):
        kafka.allow(user, "READ", "TOPIC", names, prefixed=True)
    kafka.allow(user, "READ", "GROUP", "group-", prefixed=True)


class TestSecureKafka(WithKafka, BrokerContract):
    """No more rights than the guide says, on a connection of SASL_SSL."""

    kafka: SecureKafka

    @pytest.fixture(autouse=True)
    def _server(self, secure_kafka: SecureKafka) -> None:
        self.kafka = secure_kafka
        self.settings = secure_kafka.user("contract")
        give_all(secure_kafka, "contract")
        give_reading(secure_kafka, "contract")

    def make_broker(self) -> Broker:
        return KafkaBroker(self.kafka.secure_address, self.settings)


def refused(work: Callable[[], Any], settings: dict[str, Any]) -> str:
    """What is said instead: one line, and no secret in it."""
    with pytest.raises(NotAllowed) as raised:
        work()
    said = str(raised.value)
    assert "\n" not in said
    assert settings["sasl.password"] not in said
    return said


def allowed(work: Callable[[], Any]) -> Any:
    """What comes of it once brokers have heard that it is allowed."""
    until = time.monotonic() + 20
    while True:
        try:
            return work()
        except NotAllowed:
            assert time.monotonic() < until, "it was allowed, and is refused"
            time.sleep(0.02)


def read(broker: KafkaBroker, group: str, topic: str) -> Any:
    reader = broker.reader(group, [topic], lambda given: dict.fromkeys(given, 0), lambda taken: None)
    try:
        until = time.monotonic() + 20
        while not (found := reader.poll(10, 0.1)):
            if reader.trouble is not None and " -- " in reader.trouble:
                raise NotAllowed(reader.trouble)
            assert time.monotonic() < until, reader.trouble
        return found
    finally:
        reader.close()


@pytest.mark.parametrize("what", ["topics", "slot", "reader"])
@pytest.mark.parametrize("way", ["password", "certificate"])
def test_who_is_not_let_in_is_told_why_and_soon(secure_kafka: SecureKafka, what: str, way: str) -> None:
    topic = secure_kafka.new_topic(1)
    settings = secure_kafka.user("stranger")
    if way == "password":
        settings["sasl.password"] = "not-this-one"
        wanted = "doesn't let the user stranger in: .*invalid credentials.* -- look at sasl.username, sasl.password"
    else:
        del settings["ssl.ca.location"]
        wanted = "no TLS connection: .*certificate verify failed.* -- name the file .* in ssl.ca.location"
    broker = KafkaBroker(secure_kafka.secure_address, settings)
    begun = time.monotonic()
    said = refused(
        {
            "topics": lambda: broker.topics([topic]),
            "slot": lambda: broker.open_slot("relay", 0, 1),
            "reader": lambda: read(broker, "group", topic),
        }[what],
        settings,
    )
    assert re.search(wanted, said), said
    assert time.monotonic() - begun < 8  # a request itself would wait for ten seconds
    broker.close()


def test_each_right_that_a_relay_lacks_is_named_with_the_command_that_gives_it(secure_kafka: SecureKafka) -> None:
    kafka, user = secure_kafka, "newcomer"
    settings, topic, relay = kafka.user(user), kafka.new_topic(2), kafka.new_name("relay")
    broker = KafkaBroker(kafka.secure_address, settings)
    records = [Record(topic, b"%d" % n, b"%d" % n, [], 0) for n in range(10)]
    begins = f"kafka-acls --bootstrap-server {kafka.secure_address} --add --allow-principal User:{user}"

    def send() -> None:
        slot = broker.open_slot(relay, 0, 1)
        try:
            slot.send(records, b"mark")
        finally:
            slot.close()

    own = f"tidings-{relay}-1"
    said = refused(send, settings)
    assert f"on the topic {own}; let an administrator run: {begins}" in said
    for operation in ("Create", "Describe", "Read", "Write"):
        assert f"--operation {operation} " in said
    assert said.endswith("--topic tidings- --resource-pattern-type prefixed")

    kafka.allow(user, "CREATE,DESCRIBE,WRITE", "TOPIC", "tidings-", prefixed=True)
    said = until_it_says(lambda: refused(send, settings), "transactional id")
    assert said.endswith(f"{begins} --operation Write --operation Describe --transactional-id tidings- --resource-pattern-type prefixed")

    kafka.allow(user, "WRITE,DESCRIBE", "TRANSACTIONAL_ID", "tidings-", prefixed=True)
    said = until_it_says(lambda: refused(send, settings), f"the topic {topic}")
    assert said.endswith(f"{begins} --operation Describe --topic {topic}")

    kafka.allow(user, "DESCRIBE", "TOPIC", topic)
    said = until_it_says(lambda: refused(send, settings), "right Write")
    assert said.endswith(f"{begins} --operation Write --topic {topic}")
    assert reading.everything(kafka, topic) == []

    kafka.allow(user, "WRITE", "TOPIC", topic)
    allowed(send)
    assert len(reading.everything(kafka, topic)) == 10

    said = refused(lambda: broker.open_slot(relay, 0, 1), settings)  # there is a mark to be read now
    assert "the right Create, Describe, Read, Write on the topic " + own in said
    kafka.allow(user, "READ", "TOPIC", "tidings-", prefixed=True)
    slot = allowed(lambda: broker.open_slot(relay, 0, 1))
    assert slot.mark == b"mark"  # without any right on a group
    slot.close()

    said = refused(lambda: broker.create("elsewhere", 1), settings)
    assert said.endswith(f"{begins} --operation Create --topic elsewhere")
    broker.close()


def until_it_says(ask: Callable[[], str], words: str) -> str:
    until = time.monotonic() + 20
    while words not in (said := ask()):
        assert time.monotonic() < until, said
        time.sleep(0.02)
    return said


def test_each_right_that_a_reader_lacks(secure_kafka: SecureKafka) -> None:
    kafka, user = secure_kafka, "reader"
    settings, topic, group = kafka.user(user), kafka.new_topic(1), kafka.new_name("reader")
    writer = KafkaBroker(kafka.address)
    slot = writer.open_slot(kafka.new_name("relay"), 0, 1)
    slot.send([Record(topic, b"k", b"v", [], 0)], b"m")
    slot.close()
    broker = KafkaBroker(kafka.secure_address, settings)
    begins = f"kafka-acls --bootstrap-server {kafka.secure_address} --add --allow-principal User:{user}"
    said = refused(lambda: read(broker, group, topic), settings)
    assert said.endswith(f"{begins} --operation Read --group {group}")
    said = refused(lambda: broker.topics([topic]), settings)
    assert said.endswith(f"{begins} --operation Describe --topic {topic}")
    kafka.allow(user, "READ", "GROUP", "reader", prefixed=True)
    said = until_it_says(lambda: refused(lambda: read(broker, group, topic), settings), "topic")
    assert said.endswith(f"{begins} --operation Read --topic {topic}")
    kafka.allow(user, "READ", "TOPIC", topic)
    (record,) = allowed(lambda: read(broker, group, topic))
    assert record.value == b"v"
    broker.close()
    writer.close()


def test_a_right_that_went_while_it_was_used(secure_kafka: SecureKafka) -> None:
    """What is refused is not there, and the mark neither; with the right it goes on behind the mark."""
    kafka, user = secure_kafka, "leaver"
    settings, topic, relay = kafka.user(user), kafka.new_topic(1), kafka.new_name("relay")
    give_all(kafka, user)
    broker = KafkaBroker(kafka.secure_address, settings)
    slot = allowed(lambda: broker.open_slot(relay, 0, 1))
    allowed(lambda: slot.send([Record(topic, b"k", b"1", [], 0)], b"1"))
    kafka.forbid(user, "WRITE,DESCRIBE,CREATE", "TOPIC", "topic", prefixed=True)

    turn = 1
    with pytest.raises(NotAllowed, match=f"right Write on the topic {topic}"):
        while turn < 1000:  # until the broker has heard of it
            turn += 1
            slot.send([Record(topic, b"k", b"%d" % turn, [], 0)], b"%d" % turn)
    slot.close()
    kafka.allow(user, "WRITE,DESCRIBE,CREATE", "TOPIC", "topic", prefixed=True)
    again = allowed(lambda: broker.open_slot(relay, 0, 1))
    assert again.mark == b"%d" % (turn - 1)
    again.send([Record(topic, b"k", b"%d" % turn, [], 0)], b"%d" % turn)
    again.close()
    assert [one.value for one in reading.everything(kafka, topic)] == [b"%d" % (n + 1) for n in range(turn)]
    broker.close()


def test_one_by_one_says_it_too(secure_kafka: SecureKafka) -> None:
    kafka, user = secure_kafka, "plainly"
    settings, topic = kafka.user(user), kafka.new_topic(1)
    kafka.allow(user, "DESCRIBE", "TOPIC", topic)
    broker = KafkaBroker(kafka.secure_address, settings)

    def send() -> None:
        slot = broker.open_slot("relay", 0, 1, together=False)
        try:
            slot.send([Record(topic, b"k", b"v", [], 0)], b"")
        finally:
            slot.close()

    said = until_it_says(lambda: refused(send, settings), "Write")
    assert said.endswith(f"--operation Write --topic {topic}")
    kafka.allow(user, "WRITE", "TOPIC", topic)
    allowed(send)
    assert len(reading.everything(kafka, topic)) == 1
    broker.close()
