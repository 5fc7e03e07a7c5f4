"""A plain consumer and a plain producer of Kafka, as anybody might write them: what it sees is what counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from servers.kafka import Kafka
from tidings.brokers.port import Received


def everything(kafka: Kafka, topic: str, *, isolation: str = "read_committed") -> list[Received]:
    """All that a reader sees of a topic now, partition by partition, in order."""
    partitions = kafka.admin().list_topics(topic, timeout=20).topics[topic].partitions
    reader = Consumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": "nobody",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "log_level": 0,
        }
    )
    until = time.monotonic() + 60
    found: dict[tuple[int, int], Received] = {}
    try:
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        left = set(partitions)
        quiet = time.monotonic()
        while left:
            records = reader.consume(10_000, 0.05)
            for record in records:
                error = record.error()
                if error is not None:
                    assert error.code() != KafkaError._AUTO_OFFSET_RESET, f"what was first in {topic} is gone: {error}"
                    if error.code() == KafkaError._PARTITION_EOF:
                        left.discard(record.partition())
                    continue
                given: Any = record.headers() or []
                headers = [(name, value or b"") for name, value in given]
                place = (record.partition() or 0, record.offset() or 0)
                found[place] = Received(topic, *place, record.key(), record.value(), headers, record.timestamp()[1])
            if records:
                quiet = time.monotonic()
            elif left and time.monotonic() - quiet > 3:  # a reader that lost a partition's leader may never hear of it again
                assert time.monotonic() < until, _complaint(kafka, reader, topic, left, found)
                reader.assign([TopicPartition(topic, number, 0) for number in partitions])
                left, quiet = set(partitions), time.monotonic()
    finally:
        reader.close()
    return [found[place] for place in sorted(found)]


def _complaint(kafka: Kafka, reader: Consumer, topic: str, left: set[int], found: dict[tuple[int, int], Received]) -> str:
    """All that may tell why nothing comes."""
    lines = [f"the partitions {left} of {topic} could not be read; {len(found)} records came"]
    for number in sorted(left):
        part = kafka.admin().list_topics(topic, timeout=20).topics[topic].partitions[number]
        try:
            bounds: Any = reader.get_watermark_offsets(TopicPartition(topic, number), timeout=5)
        except KafkaException as error:
            bounds = error
        position = reader.position([TopicPartition(topic, number)])[0].offset
        lines.append(f"{number}: leader {part.leader}, error {part.error}, bounds {bounds}, position {position}")
    return "\n".join([*lines, kafka.log()[-4000:]])


def write(kafka: Kafka, topic: str, partition: int, values: Sequence[bytes]) -> None:
    producer = Producer({"bootstrap.servers": kafka.address, "enable.idempotence": True, "log_level": 0})
    try:
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert producer.flush(30) == 0
    finally:
        producer.close()


def write_open(kafka: Kafka, topic: str, partition: int, values: Sequence[bytes]) -> Callable[[bool], None]:
    """In a transaction; what ends it."""
    producer = Producer({"bootstrap.servers": kafka.address, "transactional.id": kafka.new_name("writer"), "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=partition)
    producer.flush(30)

    def end(commit: bool) -> None:
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
        producer.close()

    return end


class WithKafka:
    """What the contract asks for, of a Kafka that a test class has as ``kafka``."""

    kafka: Kafka

    def make_topic(self, partitions: int) -> str:
        return self.kafka.new_topic(partitions)

    def remake_topic(self, topic: str, partitions: int) -> None:
        self.kafka.drop_topics([topic])
        self.kafka.new_topic(partitions, name=topic)

    def trim(self, topic: str, partition: int, first: int) -> None:
        for future in self.kafka.admin().delete_records([TopicPartition(topic, partition, first)]).values():
            future.result(30)

    def everything(self, topic: str) -> list[Received]:
        return everything(self.kafka, topic)

    def write(self, topic: str, partition: int, values: Sequence[bytes]) -> None:
        write(self.kafka, topic, partition, values)

    def write_open(self, topic: str, partition: int, values: Sequence[bytes]) -> Callable[[bool], None]:
        return write_open(self.kafka, topic, partition, values)
