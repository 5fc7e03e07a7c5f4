"""Somebody else's outbox table, by polling (`published` kept) and by CDC, to a real Kafka; the latter against the same work by hand.

By hand: the same stream of the same rows is decoded by the same functions and produced in transactions of as many records with the same
headers; but without marks that say how far it is, without a leader, and in one thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from servers.folder import Missing
from servers.kafka import Kafka
from servers.postgres import Postgres
from tidings.brokers.kafka import KafkaBroker
from tidings.relay.layout import SIMPLE, recorder
from tidings.relay.outbox import Options, OutboxRelay
from tidings.store.postgres.pgoutput import begin, insert
from tidings.store.postgres.replication import Replication, forget_slot

from .measure import Comparison, Cost, Row, as_rate, now, thousands

TABLE = """
    CREATE TABLE outbox (id bigserial PRIMARY KEY, aggregate_id bigint, event_type text, payload jsonb,
                         created_at timestamptz DEFAULT now(), published boolean NOT NULL DEFAULT false);
    CREATE INDEX ON outbox (id) WHERE NOT published;
    CREATE PUBLICATION byhand FOR TABLE outbox WITH (publish = 'insert')"""
FILL = """
    INSERT INTO outbox (aggregate_id, event_type, payload)
    SELECT n %% 10000, 'shop.OrderPlaced', jsonb_build_object('order_id', n, 'customer', n / 7, 'note', repeat('x', 200))
    FROM generate_series(1, %s) n"""
BATCH = 2_000
PARTITIONS = 8


def run(quick: bool) -> Iterator[Row]:
    try:
        with Postgres() as postgres, Kafka() as kafka:
            yield from _run(postgres, kafka, quick)
    except Missing as why:
        yield Row("a foreign outbox table to Kafka", f"not measured: {why}")


def _run(postgres: Postgres, kafka: Kafka, quick: bool) -> Iterator[Row]:
    count = 50_000 if quick else 200_000
    bench = _Bench(postgres, kafka)
    pairs = []
    for number in range(3 if quick else 5):
        if number % 2:
            pairs.append((bench.poll(count), bench.poll_by_hand(count)))
        else:
            hand = bench.poll_by_hand(count)
            pairs.append((bench.poll(count), hand))
    comparison = Comparison(pairs[1:])
    ratio, spread = as_rate(comparison)
    rate = count / comparison.ours("wall")
    yield Row(
        "foreign outbox, polled, `published` kept",
        f"{thousands(rate)} (by hand {thousands(count / comparison.hand('wall'))}; batches of {BATCH:,}, {PARTITIONS} partitions)",
        "≥ 25,000/s",
        rate >= 25_000,
        ratio,
        spread,
        {"cpu_us": 1e6 * comparison.ours() / count, "by_hand_cpu_us": 1e6 * comparison.hand() / count},
    )
    pairs = []
    for number in range(3 if quick else 5):
        if number % 2:
            pairs.append((bench.cdc(count), bench.by_hand(count)))
        else:
            hand = bench.by_hand(count)
            pairs.append((bench.cdc(count), hand))
    comparison = Comparison(pairs[1:])
    ratio, spread = as_rate(comparison)
    yield Row(
        "foreign outbox by CDC, own transactions",
        f"{thousands(count / comparison.ours('wall'))} (by hand {thousands(count / comparison.hand('wall'))})",
        "≥ 80 %",
        ratio >= 0.8,
        ratio,
        spread,
        {"cpu_us": 1e6 * comparison.ours() / count, "by_hand_cpu_us": 1e6 * comparison.hand() / count},
    )
    bench.close()


class _Bench:
    def __init__(self, postgres: Postgres, kafka: Kafka) -> None:
        self.kafka = kafka
        self.url = postgres.new_database()
        self.conn = psycopg.connect(self.url, autocommit=True)
        self.conn.execute(TABLE)
        self.topic = kafka.new_topic(PARTITIONS)
        self.made = 0

    def close(self) -> None:
        self.conn.close()

    def poll(self, count: int) -> Cost:
        """The table is filled before; from the lead to the last tick."""
        self.conn.execute("TRUNCATE outbox RESTART IDENTITY")
        self.conn.execute(FILL, (count,))
        self.conn.execute("VACUUM ANALYZE outbox")
        return self._relay(count, "poll", "flag", lambda: None)

    def poll_by_hand(self, count: int) -> Cost:
        """Read the next rows by their flag, produce them in a transaction, set their flags."""
        from confluent_kafka import Producer

        self.conn.execute("TRUNCATE outbox RESTART IDENTITY")
        self.conn.execute(FILL, (count,))
        self.conn.execute("VACUUM ANALYZE outbox")
        record = recorder(SIMPLE.naming([], self.topic), "bench")
        producer = Producer(
            {"bootstrap.servers": self.kafka.address, "transactional.id": "byhand", "linger.ms": 5, "partitioner": "murmur2_random"}
        )
        producer.init_transactions()
        began = now()
        while True:
            cursor = self.conn.execute(
                "SELECT id, aggregate_id, payload, event_type, created_at FROM outbox WHERE NOT published ORDER BY id LIMIT %s", (BATCH,)
            )
            result = cursor.pgresult
            assert result is not None
            if not result.ntuples:
                break
            rows = [[result.get_value(row, column) for column in range(5)] for row in range(result.ntuples)]
            producer.begin_transaction()
            for row in rows:
                made = record(row, (row[0] or b"").zfill(20), None, False)
                producer.produce(made.topic, made.value, made.key, -1, None, None, made.time, list(made.headers))
            producer.commit_transaction()
            ids = [(row[0] or b"").decode() for row in rows]
            self.conn.execute("UPDATE outbox SET published = true WHERE id = ANY(%s::text[]::bigint[])", (ids,))
        cost = now() - began
        producer.close()
        return cost

    def cdc(self, count: int) -> Cost:
        """The slot is there and the rows are written behind it; from the stream's begin to the last record."""
        self.conn.execute("TRUNCATE outbox RESTART IDENTITY")
        name = self._name()
        self._relay(0, "cdc", "nothing", lambda: None, name)
        self._fill(count)
        cost = self._relay(count, "cdc", "nothing", lambda: None, name)
        self._drop(f"tidings_{name}")
        self.conn.execute(f"DROP PUBLICATION tidings_{name}")
        return cost

    def _fill(self, count: int) -> None:
        """Ten rows in a transaction."""
        with self.conn.pipeline():
            for _ in range(count // 10):
                self.conn.execute(FILL, (10,))

    def _name(self) -> str:
        self.made += 1
        return f"bench{self.made}"

    def _relay(self, count: int, mode: str, after: str, ready: Any, name: str | None = None) -> Cost:
        name = name or self._name()
        options = Options(name, self.url, "outbox", SIMPLE.naming([], self.topic), mode=mode, after=after, batch=BATCH)
        options.slot = options.publication = f"tidings_{name}"
        options.unlimited_wal = True
        broker = KafkaBroker(self.kafka.address)
        leading = threading.Event()
        relay = OutboxRelay(options, broker, tell=lambda event, facts: leading.set() if event == "leading" else None)
        failed: list[BaseException] = []

        def main() -> None:
            try:
                relay.run()
            except BaseException as error:
                failed.append(error)
                leading.set()

        thread = threading.Thread(target=main)
        thread.start()
        leading.wait()
        began = now()
        while not failed and (relay.progress.sent < count or (not count and not relay.progress.batches)):
            time.sleep(0.002)
        cost = now() - began
        relay.stop()
        thread.join()
        broker.close()
        if failed:
            raise failed[0]
        return cost

    def by_hand(self, count: int) -> Cost:
        from confluent_kafka import Producer

        self.conn.execute("TRUNCATE outbox RESTART IDENTITY")
        record = recorder(SIMPLE.naming([], self.topic), "bench")
        with Replication(self.url) as stream:
            stream.create("byhand")
            self._fill(count)
            producer = Producer(
                {"bootstrap.servers": self.kafka.address, "transactional.id": "byhand", "linger.ms": 5, "partitioner": "murmur2_random"}
            )
            producer.init_transactions()
            began = now()
            stream.start("byhand", "byhand")
            sent = within = ordinal = lsn = 0
            while sent < count:
                for data in stream.messages():
                    if data[0] == 73:
                        _, values = insert(data)
                        ordinal += 1
                        row = [values[number] for number in (0, 1, 3, 2, 4)]
                        made = record(row, b"%020d.%010d" % (lsn, ordinal), None, False)
                        if not within:
                            producer.begin_transaction()
                        producer.produce(made.topic, made.value, made.key, -1, None, None, made.time, list(made.headers))
                        sent, within = sent + 1, within + 1
                        if within == BATCH or sent == count:
                            producer.commit_transaction()
                            within = 0
                    elif data[0] == 66:
                        (lsn, _), ordinal = begin(data), 0
                if sent < count:
                    stream.wait(0.1)
            cost = now() - began
            producer.close()
        self._drop("byhand")
        return cost

    def _drop(self, slot: str) -> None:
        until = time.monotonic() + 30
        while not forget_slot(self.conn, slot):
            if time.monotonic() > until:
                raise RuntimeError(f"somebody still reads from the slot {slot}")
            time.sleep(0.02)
