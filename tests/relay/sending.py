"""Events on a real Kafka, as a relay sends them and as others do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from servers.kafka import Kafka
from tidings.brokers.port import Record
from tidings.envelope import Envelope, lane_of
from tidings.relay.cloudevents import recorder

NOW = time.time_ns() // 1000
"""Of today: by default Kafka deletes records whose own time is more than a week ago."""


def an_event(number: int, key: str | None = None, *, topic: str = "shop", source: str = "shop", **fields: Any) -> Envelope:
    """The event at this position of its log."""
    key = str(number % 10) if key is None else key
    event_id = f"{source}-{number:08d}"
    values = {
        "position": number, "lane": lane_of("order_id", key), "topic": topic, "type": f"{source}.Placed", "version": 1,
        "key_name": "order_id",
        "key": key, "event_id": event_id, "time": NOW + number, "source": source, "data": b'{"order_id":%d}' % number,
        "correlation_id": event_id, "causation_id": None, "traceparent": None, "headers": None,
    }  # fmt: skip
    return Envelope(**{**values, **fields})


class Sender:
    """A producer; ``transactional``: every ``send`` is a transaction of its own."""

    def __init__(self, kafka: Kafka, *, transactional: bool = False, log: str = "log-a", incarnation: int = 1) -> None:
        from confluent_kafka import Producer

        settings: dict[str, Any] = {
            "bootstrap.servers": kafka.address,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "log_level": 0,
        }
        if transactional:
            settings["transactional.id"] = kafka.new_name("sender")
        self._transactional = transactional
        self._producer = Producer(settings)
        if transactional:
            self._producer.init_transactions(20)
        self._record = recorder(log, incarnation)

    def send(self, topic: str, events: Iterable[Envelope], *, in_order: bool = True, partition: int = -1, commit: bool = True) -> None:
        records = [self._record(tuple(event), in_order)._replace(topic=topic) for event in events]
        self.send_records(records, partition=partition, commit=commit)

    def send_records(self, records: Sequence[Record], *, partition: int = -1, commit: bool = True) -> None:
        if self._transactional:
            self._producer.begin_transaction()
        for record in records:
            while True:
                try:
                    self._producer.produce(
                        record.topic, record.value, record.key, partition, timestamp=record.time, headers=list(record.headers)
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
        if self._transactional and commit:
            self._producer.commit_transaction(30)
        elif self._transactional:
            self._producer.flush(30)
            self._producer.abort_transaction(30)
        elif self._producer.flush(30):
            raise RuntimeError("the broker did not take everything")

    def close(self) -> None:
        self._producer.close()
