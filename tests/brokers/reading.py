"""A plain consumer of Kafka, as anybody might write it: what it sees is what counts."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, TopicPartition

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
    found: list[Received] = []
    try:
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        open_ones = len(partitions)
        while open_ones:
            for record in reader.consume(10_000, 0.05):
                if record.error() is not None:
                    open_ones -= 1
                    continue
                given: Any = record.headers() or []
                headers = [(name, value or b"") for name, value in given]
                found.append(
                    Received(
                        topic, record.partition() or 0, record.offset() or 0, record.key(), record.value(), headers, record.timestamp()[1]
                    )
                )
    finally:
        reader.close()
    return sorted(found, key=lambda one: (one.partition, one.offset))
