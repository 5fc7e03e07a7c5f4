"""The relay against a loop by hand: read rows, produce them with the same headers and a position record, commit the transaction. Both from
a real PostgreSQL to a real Kafka, with the same slots and batches. Then how long an event takes when nothing else happens, what it takes of
memory, and how long a slot is nobody's after its owner was killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .measure import Cost, Row, as_rate, compare, now, percentile, thousands

SLOTS = 4
BATCH = 2000


def run(quick: bool) -> Iterator[Row]:
    from servers.kafka import Kafka
    from servers.postgres import Postgres

    count = 40_000 if quick else 160_000
    with Kafka() as kafka, Postgres() as postgres:
        url = postgres.new_database()
        fill(url, count)
        for partitions, goal in ((8, 80_000), (64, 50_000)):
            comparison = compare(
                lambda p=partitions: relay(kafka, url, kafka.new_topic(p), count),  # type: ignore[misc]
                lambda p=partitions: by_hand(kafka, url, kafka.new_topic(p), count),  # type: ignore[misc]
                seconds=5.0 if quick else 30.0,
                least=3,
                most=5,
            )
            ratio, spread = as_rate(comparison)
            rate = count / comparison.ours("wall")
            yield Row(
                f"relay, exactly once, {partitions} partitions, {SLOTS} slots of {BATCH:,}, against the loop by hand",
                f"{thousands(rate)} (by hand {thousands(count / comparison.hand('wall'))})",
                f"≥ {goal:,}/s and ≥ 80 %",
                rate >= goal and ratio >= 0.8,
                ratio,
                spread,
                {"cpu_ratio": comparison.ratio()},
            )
        took = asyncio.run(idle(kafka, postgres.new_database(), 100 if quick else 400))
        yield Row(
            "relay, idle: from the return of the commit to a read-committed consumer",
            f"p50 {percentile(took, 0.5) * 1000:.1f} ms, p99 {percentile(took, 0.99) * 1000:.1f} ms",
            "p50 ≤ 10 ms, p99 ≤ 30 ms",
            percentile(took, 0.5) <= 0.010 and percentile(took, 0.99) <= 0.030,
        )
        seconds, megabytes = taken_over(kafka, postgres.new_database())
        yield Row("relay, memory of its process after 20,000 events", f"{megabytes:.0f} MB", "< 100 MB", megabytes < 100)
        yield Row(
            "relay killed (lease 2 s): from the kill until the next event of its slot is seen",
            f"{seconds:.1f} s",
            "≤ lease + 1.5 s",
            seconds <= 2.0 + 1.5,
        )


def fill(url: str, count: int) -> None:
    """Events of 300 bytes of 5,000 keys; the topic is put in when they are sent."""
    from tidings import PostgresStore
    from tidings.envelope import Envelope, lane_of

    store = PostgresStore(url)
    store.open()
    began = time.time_ns() // 1000
    for first in range(0, count, 5000):
        made = []
        for number in range(first, min(count, first + 5000)):
            key = str(number * 7919 % 5000)
            event_id = f"0192f8c7-a3e7-7c41-9d55-{number:012d}"
            made.append(Envelope(0, lane_of("order_id", key), "shop", "shop.OrderPlaced", 1, "order_id", key, event_id, began + number,
                "shop", b'{"order_id":%s,"note":"%s"}' % (key.encode(), b"x" * 270), event_id, None, None, None))  # fmt: skip
        store.write(lambda unit, made=made: unit.append_many(made)).result(60)  # type: ignore[misc]
    store.close()


def relay(kafka: Any, url: str, topic: str, count: int) -> Cost:
    from tidings import App, Relay

    _rename(url, topic)

    async def work() -> Cost:
        app = App("shop", url, broker=kafka.url, relay=Relay(slots=SLOTS, rows=BATCH, name=topic), intake=False)
        app.open()
        app.store.write(lambda unit: unit.register(topic, "shop", ["*"], "key", 0, 0)).result()
        app.store.write(lambda unit: unit.set_paused(topic, True)).result()
        async with app:
            running = app.relay
            assert running is not None
            while running.open_slots < SLOTS:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            app.store.write(lambda unit: unit.set_paused(topic, False)).result()
            while running.sent == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.0002)
            since, done = now(), running.sent
            while running.sent < count:  # noqa: ASYNC110
                await asyncio.sleep(0.0005)
            cost = now() - since
            share = count / (count - done)
        app.close()
        return Cost(cost.wall * share, cost.cpu * share)

    return asyncio.run(work())


def _rename(url: str, topic: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("UPDATE tidings_log SET topic = %s", (topic,))
        conn.execute("VACUUM tidings_log")


def by_hand(kafka: Any, url: str, topic: str, count: int) -> Cost:
    """A thread for each slot: its connection, its producer."""
    import psycopg
    from confluent_kafka import Producer

    _rename(url, topic)
    positions = kafka.new_topic(SLOTS)
    ready, go = threading.Barrier(SLOTS + 1), threading.Barrier(SLOTS + 1)

    def work(slot: int) -> None:
        producer = Producer({"bootstrap.servers": kafka.address, "partitioner": "murmur2_random", "linger.ms": 2, "batch.size": 262_144,
            "queue.buffering.max.messages": 500_000, "transactional.id": f"{topic}-{slot}"})  # fmt: skip
        producer.init_transactions(20)
        lanes = [lane for lane in range(64) if lane * SLOTS // 64 == slot]
        with psycopg.connect(url, autocommit=True) as conn:
            ready.wait()
            go.wait()
            after = 0
            while True:
                with conn.cursor(binary=True) as cursor:
                    rows = cursor.execute(
                        "SELECT position, lane, topic, type, version, key_name, key, event_id, time, source, data, correlation_id,"
                        " causation_id, traceparent, headers FROM tidings_log WHERE position > %s AND lane = ANY (%s::int[])"
                        " ORDER BY position LIMIT %s",
                        (after, lanes, BATCH),
                    ).fetchall()
                if not rows:
                    break
                producer.begin_transaction()
                for row in rows:
                    seconds, rest = divmod(row[8], 1_000_000)
                    headers = [
                        ("ce_specversion", b"1.0"), ("content-type", b"application/json"), ("ce_tidingslog", b"log.1"),
                        ("ce_tidingslane", b"%d" % row[1]), ("ce_id", row[7].encode()), ("ce_source", row[9].encode()),
                        ("ce_type", row[3].encode()), ("ce_time", b"%d.%06dZ" % (seconds, rest)), ("ce_sequence", b"%020d" % row[0]),
                        ("ce_correlationid", row[11].encode()), ("ce_partitionkey", row[6].encode()), ("ce_keyname", row[5].encode()),
                    ]  # fmt: skip
                    producer.produce(topic, row[10], row[6], headers=headers, timestamp=row[8] // 1000)
                after = rows[-1][0]
                producer.produce(positions, b"%d" % after, b"%d" % slot, slot)
                producer.poll(0)
                producer.commit_transaction(30)
        producer.close()

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(SLOTS)]
    for thread in threads:
        thread.start()
    ready.wait()
    since = now()
    go.wait()
    for thread in threads:
        thread.join()
    return now() - since


def consumer(kafka: Any, topic: str) -> Any:
    from confluent_kafka import Consumer, TopicPartition

    made = Consumer({"bootstrap.servers": kafka.address, "group.id": "bench", "isolation.level": "read_committed",
        "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 100})  # fmt: skip
    made.assign([TopicPartition(topic, number, 0) for number in kafka.admin().list_topics(topic, timeout=10).topics[topic].partitions])
    return made


WATCH = """
import sys, time
from benchmarks.relay import consumer
from servers.kafka import Kafka
class There:
    address = sys.argv[1]
    admin = Kafka.admin
    _admin = None
reader = consumer(There(), sys.argv[2])
print("ready", flush=True)
while True:
    record = reader.poll(10)
    if record is not None and record.error() is None:
        print(time.monotonic(), flush=True)
"""


async def idle(kafka: Any, url: str, count: int) -> list[float]:
    """The consumer is a process of its own; both read one clock."""
    from tidings import App, Event, Relay

    class OrderPlaced(Event, key="order_id"):
        order_id: int

    topic = kafka.new_topic(8)
    app = App("shop", url, broker=kafka.url, topic=topic, relay=Relay(slots=SLOTS), intake=False)
    watching = await asyncio.create_subprocess_exec(sys.executable, "-c", WATCH, kafka.address, topic, stdout=asyncio.subprocess.PIPE)
    assert watching.stdout is not None
    await watching.stdout.readline()
    took: list[float] = []
    try:
        async with app:
            for number in range(count + 20):
                await app.publish(OrderPlaced(order_id=number), tx="own")
                since = time.monotonic()
                seen = float(await asyncio.wait_for(watching.stdout.readline(), 60))
                if number >= 20:
                    took.append(seen - since)
                await asyncio.sleep(0.02)
    finally:
        watching.kill()
        await watching.wait()
    app.close()
    return took


PROGRAM = """
import asyncio, sys
from tidings import App, Relay
from tidings.app import serve
asyncio.run(serve([App("shop", sys.argv[1], broker=sys.argv[2], topic=sys.argv[3], relay=Relay(slots=1), intake=False, lease=2.0)]))
"""


def taken_over(kafka: Any, url: str) -> tuple[float, float]:
    """Two processes that relay one slot; the one that has it is killed. Seconds until the other has sent on, and the first one's memory."""
    from tidings import App, Event, PostgresStore

    class OrderPlaced(Event, key="order_id"):
        order_id: int

    topic = kafka.new_topic(8)
    app = App("shop", url, topic=topic)
    app.open()
    store = PostgresStore(url)
    store.open()
    reader = consumer(kafka, topic)

    def seen(number: int) -> None:
        while True:
            record = reader.poll(10)
            if record is not None and record.error() is None and record.value() == b'{"order_id":%d}' % number:
                return

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, url, kafka.url, topic])

    one = start()
    for number in range(20_000):
        app.publish(OrderPlaced(order_id=number), tx="own")
    app.publish(OrderPlaced(order_id=-1), tx="own").result()
    seen(-1)
    with open(f"/proc/{one.pid}/status") as status:
        memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1000
    two = start()
    while len(store.query(lambda unit: unit.workers())) < 2:
        time.sleep(0.05)
    time.sleep(1.0)
    one.kill()
    since = time.perf_counter()
    one.wait()
    app.publish(OrderPlaced(order_id=-2), tx="own").result()
    seen(-2)
    took = time.perf_counter() - since
    two.terminate()
    two.wait()
    reader.close()
    store.close()
    app.close()
    return took, memory
