"""Debezium's outbox event router and Tidings' relay, each a process of its own, from the same table to the same Kafka. Only when named.

The rate is taken from the first to the last record that readers of committed records can see in the topic, with the rows written before and
the replication slot made before that; so it has no start-up in it. Latency is from the return of a commit to a plain consumer, with nothing
else going on. Memory is the most that the process had until then. Debezium writes each event at least once, Tidings once.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Protocol

import psycopg

from servers.debezium import Debezium
from servers.folder import Missing
from servers.kafka import Kafka
from servers.postgres import Postgres
from tidings.store.postgres.replication import forget_slot

from .measure import Row, percentile, thousands
from .outbox import FILL, PARTITIONS, TABLE

SECONDS = 180.0
OWN, LARGE = 1, 500
"""Rows in one transaction of the application's."""

TUNED = {"poll.interval.ms": "5"}
"""What costs Debezium most of its latency as it is shipped."""


def run(quick: bool) -> Iterator[Row]:
    try:
        with Postgres() as postgres, Kafka() as kafka:
            yield from _run(_Table(postgres, kafka), 40_000 if quick else 100_000, 1 if quick else 3, 30 if quick else 200)
    except Missing as why:
        yield Row("Debezium beside the relay of an outbox table", f"not measured: {why}")


class Peer(Protocol):
    """``hold`` and ``let_go``: in between rows are written, and it doesn't read."""

    name: str
    ours: bool

    def start(self) -> None: ...
    def hold(self) -> None: ...
    def let_go(self) -> None: ...
    def stop(self) -> None: ...
    def peak(self) -> int: ...
    def cpu(self) -> float: ...


class Found(NamedTuple):
    """Of one peer: events a second and seconds of CPU for each, by rows in a transaction; milliseconds of latency; bytes of memory."""

    rates: dict[int, list[tuple[float, float]]]
    waits: list[float]
    peak: int

    def rate(self, rows: int) -> float:
        return statistics.median(rate for rate, _ in self.rates[rows])


def _run(table: _Table, count: int, turns: int, latencies: int) -> Iterator[Row]:
    with ExitStack() as open_ones:
        cdc, poll = _Tidings(table, "cdc"), _Tidings(table, "poll")
        shipped = open_ones.enter_context(_connector(table, "shipped", {}))
        tuned = open_ones.enter_context(_connector(table, "tuned", TUNED))
        peers: tuple[Peer, ...] = (cdc, shipped, tuned, poll)
        found: dict[Peer, Found] = {}
        for peer in peers:
            found[peer] = _measure(table, peer, count, turns, latencies, (OWN,) if peer is poll else (OWN, LARGE))
    for peer, one in found.items():
        for rows in one.rates:
            rate, cpu = one.rate(rows), statistics.median(cpu for _, cpu in one.rates[rows])
            other = max(found[shipped].rate(rows), found[tuned].rate(rows))
            yield Row(
                f"{peer.name}, {'own transactions' if rows == OWN else f'{rows} rows a transaction'}",
                f"{thousands(rate)}, {cpu * 1e6:.0f} us of CPU an event",
                "> Debezium" if peer.ours else "",
                rate > other if peer.ours else None,
                rate / other if peer.ours else None,
                facts={"rate": rate, "cpu_us": cpu * 1e6, "rates": [rate for rate, _ in one.rates[rows]]},
            )
    best = min(percentile(found[peer].waits, 0.5) for peer in (shipped, tuned))
    for peer, one in found.items():
        p50, p99 = percentile(one.waits, 0.5), percentile(one.waits, 0.99)
        yield Row(
            f"{peer.name}, idle: from the return of the commit to a plain consumer",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            "below Debezium tuned" if peer.ours else "",
            p50 < best if peer.ours else None,
            facts={"p50_ms": p50, "p99_ms": p99},
        )
    for peer, one in found.items():
        mb = one.peak / 1e6
        yield Row(
            f"{peer.name}, memory", f"{mb:.0f} MB", "< 100 MB" if peer.ours else "", mb < 100 if peer.ours else None, facts={"mb": mb}
        )


def _measure(table: _Table, peer: Peer, count: int, turns: int, latencies: int, transactions: tuple[int, ...]) -> Found:
    table.empty()
    peer.start()
    try:
        table.arrives()
        waits = [table.latency() for _ in range(latencies)]
        _rate(table, peer, count, LARGE)  # Java compiles meanwhile
        rates = {rows: [_rate(table, peer, count, rows) for _ in range(turns)] for rows in transactions}
        return Found(rates, waits, peer.peak())
    finally:
        peer.stop()
        table.forget_slots()


def _rate(table: _Table, peer: Peer, count: int, rows: int) -> tuple[float, float]:
    """Events a second, and seconds of its CPU for each."""
    before = table.end()
    peer.hold()
    table.empty()
    table.fill(count, rows)
    peer.let_go()
    first, begun, spent = before, 0.0, 0.0
    until = time.monotonic() + SECONDS
    while (there := table.end()) < before + count:
        if not begun and there > before:
            first, begun, spent = there, time.perf_counter(), peer.cpu()
        if time.monotonic() > until:
            raise RuntimeError(f"{peer.name} has sent {there - before} of {count} in {SECONDS:.0f} s")
        time.sleep(0.01)
    ended, left = time.perf_counter(), max(1, before + count - first)
    return left / max(ended - begun, 1e-3), (peer.cpu() - spent) / left


class _Table:
    """An application's outbox, and the topic that all send to."""

    def __init__(self, postgres: Postgres, kafka: Kafka) -> None:
        from confluent_kafka import Consumer, TopicPartition

        self.url, self.kafka = postgres.new_database(), kafka
        self.topic = kafka.new_topic(PARTITIONS)
        self._parts = [TopicPartition(self.topic, n) for n in range(PARTITIONS)]
        self._conn = psycopg.connect(self.url, autocommit=True)
        self._conn.execute(TABLE)
        self._await_leaders()
        self._consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": "bench", "enable.auto.commit": False, "log_level": 0})

    def _await_leaders(self) -> None:
        from confluent_kafka import KafkaException

        until = time.monotonic() + 30
        while True:
            try:
                self.end()
                return
            except KafkaException:  # the topic has just been made
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def empty(self) -> None:
        self._conn.execute("TRUNCATE outbox RESTART IDENTITY")

    def forget_slots(self) -> None:
        until = time.monotonic() + SECONDS
        for (slot,) in self._conn.execute("SELECT slot_name FROM pg_replication_slots").fetchall():
            while not forget_slot(self._conn, slot):
                if time.monotonic() > until:
                    raise RuntimeError(f"somebody still reads from the slot {slot}")
                time.sleep(0.05)

    def fill(self, count: int, rows: int) -> None:
        with self._conn.pipeline():
            for _ in range(count // rows):
                self._conn.execute(FILL, (rows,))
        self._conn.execute("ANALYZE outbox")

    def end(self) -> int:
        """How many records there are, of what is committed (and the marks of transactions, a few in a thousand)."""
        from confluent_kafka import IsolationLevel
        from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

        asked = self.kafka.admin().list_offsets(
            dict.fromkeys(self._parts, OffsetSpec.latest()),  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_COMMITTED,
        )
        return sum(future.result(20).offset for future in asked.values())

    def arrives(self) -> None:
        """Wait until a row that is written comes out; write others until one does."""
        before = self.end()
        until = time.monotonic() + SECONDS
        while self.end() == before:
            if time.monotonic() > until:
                raise RuntimeError("nothing comes out of the relay")
            self._conn.execute(FILL, (1,))
            time.sleep(0.3)
        while (last := self.end()) != before:  # until it is quiet
            before = last
            time.sleep(0.8)
        self._consumer.assign([type(one)(one.topic, one.partition, -1) for one in self._parts])
        self._consumer.poll(1.0)

    def latency(self) -> float:
        """In milliseconds."""
        time.sleep(random.uniform(0.02, 0.06))
        self._conn.execute(FILL, (1,))
        committed = time.perf_counter()
        while (record := self._consumer.poll(10.0)) is None or record.error() is not None:
            if time.perf_counter() - committed > SECONDS:
                raise RuntimeError("a row did not come out")
        return (time.perf_counter() - committed) * 1000


class _Tidings:
    """``tidings relay``, as anybody would run it."""

    def __init__(self, table: _Table, mode: str) -> None:
        self.ours = True
        self._peak = 0
        self.name = f"Tidings, {'CDC' if mode == 'cdc' else 'polled, `published` kept'}"
        more = ["--mode", "cdc", "--after", "nothing", "--unlimited-wal"] if mode == "cdc" else []
        self._command = [
            sys.executable, "-m", "tidings", "relay", "--database", table.url, "--broker", table.kafka.url, "--topic", table.topic,
            "--name", f"bench_{mode}", "--json", *more,
        ]  # fmt: skip

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if '"leading"' in line:
                return
        raise RuntimeError("the relay ended")

    def hold(self) -> None:
        """By ending it: a leader that is frozen would lose the lead."""
        self._peak = max(self._peak, peak(self._process.pid))
        self.stop()

    def let_go(self) -> None:
        self.start()

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.stdout is not None
        self._process.stdout.read()
        self._process.stdout.close()
        self._process.wait(60)

    def peak(self) -> int:
        return max(self._peak, peak(self._process.pid))

    def cpu(self) -> float:
        return cpu(self._process.pid)


class _Connector:
    def __init__(self, name: str, debezium: Debezium) -> None:
        self.ours = False
        self.name = f"Debezium 3.3, {name}"
        self._debezium = debezium

    def start(self) -> None:
        self._debezium.start()

    def hold(self) -> None:
        """Frozen, so that it needs no start-up and its compiler's work isn't lost."""
        os.kill(self._debezium.pid, signal.SIGSTOP)

    def let_go(self) -> None:
        os.kill(self._debezium.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.let_go()
        self._debezium.stop()

    def peak(self) -> int:
        return peak(self._debezium.pid)

    def cpu(self) -> float:
        return cpu(self._debezium.pid)


@contextmanager
def _connector(table: _Table, name: str, settings: dict[str, str]) -> Iterator[_Connector]:
    router = "transforms.outbox"
    of_the_table = {
        "topic.prefix": f"debezium_{name}",
        "slot.name": f"debezium_{name}",
        "publication.name": f"debezium_{name}",
        "table.include.list": "public.outbox",
        f"{router}.table.field.event.key": "aggregate_id",
        f"{router}.table.field.event.type": "event_type",
        f"{router}.table.fields.additional.placement": "event_type:header:eventType",
        f"{router}.route.by.field": "event_type",
        f"{router}.route.topic.regex": ".*",
        f"{router}.route.topic.replacement": table.topic,
    }
    with Debezium(table.kafka.address, table.url, {**of_the_table, **settings}) as debezium:
        yield _Connector(name, debezium)


def peak(pid: int) -> int:
    """The most memory that a process had, in bytes."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, all its threads."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
