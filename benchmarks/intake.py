"""The intake against a loop by hand: consume, make columns of the headers, COPY, write the offsets down, commit.

Both read the same topic of a real Kafka into a real PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .measure import Cost, Row, as_rate, compare, now, thousands

BATCH = 2000
PARTITIONS = 8


def run(quick: bool) -> Iterator[Row]:
    from servers.kafka import Kafka
    from servers.postgres import Postgres

    count = 60_000 if quick else 200_000
    with Kafka() as kafka, Postgres() as postgres:
        topic = kafka.new_topic(PARTITIONS)
        _fill(kafka, topic, count)
        comparison = compare(
            lambda: take(kafka, postgres, topic, count),
            lambda: by_hand(kafka, postgres, topic, count),
            seconds=5.0 if quick else 20.0,
            least=3,
        )
    ratio, spread = as_rate(comparison)
    rate = count / comparison.ours("wall")
    yield Row(
        f"intake, {PARTITIONS} partitions, batches of {BATCH:,}, against consume + COPY + commit",
        f"{thousands(rate)} (by hand {thousands(count / comparison.hand('wall'))})",
        "≥ 50,000/s and ≥ 60 %",
        rate >= 50_000 and ratio >= 0.6,
        ratio,
        spread,
        {"cpu_ratio": comparison.ratio()},
    )


def _fill(kafka: Any, topic: str, count: int) -> None:
    """Events of 300 bytes as a relay sends them, of 5,000 keys."""
    from confluent_kafka import Producer

    from tidings.envelope import Envelope, lane_of
    from tidings.relay.cloudevents import recorder

    record = recorder("0192f8c7-a3e7-4c41-9d55-0c2f3b1a7e10", 1)
    producer = Producer({"bootstrap.servers": kafka.address, "partitioner": "murmur2_random", "linger.ms": 20, "transactional.id": "fill"})
    producer.init_transactions(20)
    began = time.time_ns() // 1000
    for first in range(0, count, 10_000):
        producer.begin_transaction()
        for number in range(first, min(count, first + 10_000)):
            key = str(number * 7919 % 5000)
            event_id = f"0192f8c7-a3e7-7c41-9d55-{number:012d}"
            event = Envelope(number + 1, lane_of("order_id", key), topic, "shop.OrderPlaced", 1, "order_id", key, event_id, began + number,
                "shop", b'{"order_id":%s,"note":"%s"}' % (key.encode(), b"x" * 270), event_id, None, None, None)  # fmt: skip
            made = record(tuple(event))
            while True:
                try:
                    producer.produce(topic, made.value, made.key, timestamp=made.time, headers=list(made.headers))
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.commit_transaction(60)
    producer.close()


def take(kafka: Any, postgres: Any, topic: str, count: int) -> Cost:
    """From the moment that partitions are assigned; joining the group is not counted, on either side."""
    from tidings import Intake, PostgresStore
    from tidings.brokers.kafka import KafkaBroker
    from tidings.relay.intake import RunningIntake

    url = postgres.new_database()
    store = PostgresStore(url)
    store.open()
    began: list[Cost] = []

    class Timed(RunningIntake):
        def _assigned(self, partitions: Any) -> Any:
            began.append(now())
            return super()._assigned(partitions)

    broker = KafkaBroker(kafka.url)
    intake = Timed(Intake(batch=BATCH), store, broker, "bench", [topic], "bench", {"bench"})
    try:
        intake.start()
        while intake.taken < count:
            time.sleep(0.002)
        cost = now() - began[0]
    finally:
        intake.stop()
        broker.close()
    assert store.query(lambda unit: unit.head()) >= count
    store.close()
    postgres.drop_database(url)
    return cost


def by_hand(kafka: Any, postgres: Any, topic: str, count: int) -> Cost:
    import datetime

    import psycopg
    from confluent_kafka import Consumer, TopicPartition

    from tidings import PostgresStore

    url = postgres.new_database()
    store = PostgresStore(url)  # the same table
    store.open()
    store.close()
    conn = psycopg.connect(url, autocommit=True)
    conn.execute("CREATE TABLE offsets (part int PRIMARY KEY, next bigint NOT NULL)")
    consumer: Any = Consumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": kafka.new_name("by-hand"),
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 16_384,
        }
    )
    began = now()
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    types = ["int4", "text", "text", "int4", "text", "text", "text", "int8", "text", "bytea", "text"]
    columns = "lane, topic, type, version, key_name, key, event_id, time, source, data, correlation_id"
    done = 0
    while done < count:
        first = consumer.poll(1.0)
        if first is None:
            continue
        offsets: dict[int, int] = {}
        conn.execute("BEGIN")
        with conn.cursor() as cursor, cursor.copy(f"COPY tidings_log ({columns}) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(types)
            for record in [first, *consumer.consume(BATCH - 1, 0)]:
                if record.error() is not None:
                    continue
                said = {name: value.decode() for name, value in record.headers()}
                moment = int(datetime.datetime.fromisoformat(said["ce_time"]).timestamp() * 1_000_000)
                copy.write_row((int(said["ce_tidingslane"]), topic, said["ce_type"], 1, said["ce_keyname"], said["ce_partitionkey"],
                    said["ce_id"], moment, said["ce_source"], record.value(), said["ce_correlationid"]))  # fmt: skip
                offsets[record.partition()] = record.offset() + 1
                done += 1
        conn.cursor().executemany(
            "INSERT INTO offsets VALUES (%s, %s) ON CONFLICT (part) DO UPDATE SET next = excluded.next", list(offsets.items())
        )
        conn.execute("COMMIT")
    cost = now() - began
    consumer.close()
    conn.close()
    postgres.drop_database(url)
    return cost
