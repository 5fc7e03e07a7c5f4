"""An application that knows nothing of Tidings: it has an outbox table, and somebody reads the topics. All of it real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition

from servers.kafka import Kafka
from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.port import Slot
from tidings.relay.layout import DEBEZIUM, SIMPLE, Layout
from tidings.relay.outbox import Options, OutboxRelay
from tidings.store.outbox import Batch

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


def wait_for(condition: Callable[[], Any], what: str = "it", seconds: float = SECONDS) -> Any:
    """What ``condition`` gives once that is true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.01)
    return found


class Seen:
    """A record as a plain consumer that reads what is committed sees it."""

    def __init__(self, record: Any) -> None:
        self.topic: str = record.topic()
        self.partition: int = record.partition()
        self.offset: int = record.offset()
        self.key: bytes | None = record.key()
        self.value: bytes | None = record.value()
        self.headers: dict[str, bytes] = dict(record.headers() or ())
        self.time: int = record.timestamp()[1]

    @property
    def id(self) -> str:
        return self.headers.get("ce_id", self.headers.get("id", b"")).decode()

    @property
    def late(self) -> bool:
        return "ce_tidingsoutoforder" in self.headers


class Killed(Exception):
    """Stands for a process that dies at this instruction."""


class DyingRelay(OutboxRelay):
    """Dies before or after a step of a batch: nothing is done after that, as if by SIGKILL."""

    def __init__(self, *args: Any, die: str, at: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._die, self._left = die, at

    def _send_batch(self, slot: Slot, batch: Batch) -> None:
        if batch.records:
            self._left -= 1
        if self._die == "before the broker" and not self._left:
            raise Killed
        super()._send_batch(slot, batch)

    def tick(self, *args: Any) -> None:
        if self._die == "after the broker" and not self._left:
            raise Killed
        super().tick(*args)
        if self._die == "after the tick" and not self._left:
            raise Killed


class Shop:
    """
    Attributes:
        conn: the application's own connection.
    """

    def __init__(self, url: str, kafka: Kafka, *, id: str = "bigserial", index: bool = True) -> None:
        self.url, self.kafka = url, kafka
        self.name = kafka.new_name("shop")
        self.topic = self.name
        self.partitions = 4
        self.conn = psycopg.connect(url, autocommit=True)
        default = " DEFAULT gen_random_uuid()" if id == "uuid" else ""
        self.conn.execute(
            f"CREATE TABLE outbox (id {id} PRIMARY KEY{default}, aggregate_id bigint, event_type text, payload jsonb,"
            " created_at timestamptz DEFAULT now(), published boolean NOT NULL DEFAULT false)"
        )
        if index:
            self.conn.execute("CREATE INDEX ON outbox (id) WHERE NOT published")

    def insert(self, count: int = 1, *, key: int = 1, conn: psycopg.Connection[Any] | None = None) -> list[str]:
        """Rows in one statement; their ids."""
        rows = (conn or self.conn).execute(
            "INSERT INTO outbox (aggregate_id, event_type, payload) SELECT %s, 'shop.Placed', jsonb_build_object('n', n)"
            " FROM generate_series(1, %s) n RETURNING id::text",
            (key, count),
        )
        return [id for (id,) in rows]

    def reconnect(self) -> None:
        """After a crash of the server's."""
        self.conn.close()
        self.conn = psycopg.connect(self.url, autocommit=True)

    def unticked(self) -> int:
        row = self.conn.execute("SELECT count(*) FROM outbox WHERE NOT published").fetchone()
        assert row is not None
        return int(row[0])

    # -- relays

    def options(self, layout: Layout = SIMPLE, **changes: Any) -> Options:
        name = self.name
        columns, topic = changes.pop("columns", ()), changes.pop("topic", self.topic if layout is SIMPLE else None)
        made = Options(name, self.url, "outbox", layout.naming(columns, topic), slot=f"tidings_{name}", publication=f"tidings_{name}")
        made.create_topics = self.partitions
        made.unlimited_wal = True
        if layout is DEBEZIUM:
            made.after = "nothing"
        for option, value in changes.items():
            assert hasattr(made, option), option
            setattr(made, option, value)
        return made

    @contextmanager
    def relay(self, **changes: Any) -> Iterator[OutboxRelay]:
        """One that runs in a thread; at the end it is drained, and what it ended with is raised."""
        told: list[tuple[str, dict[str, Any]]] = []
        broker = KafkaBroker(self.kafka.address)
        relay = OutboxRelay(self.options(**changes), broker, tell=lambda event, facts: told.append((event, facts)))
        relay.told = told  # type: ignore[attr-defined]
        failed: list[BaseException] = []

        def run() -> None:
            try:
                relay.run()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            relay.failed = failed  # type: ignore[attr-defined]
            yield relay
        except AssertionError as error:
            if failed:
                raise AssertionError("the relay had failed") from failed[0]
            raise AssertionError(f"{error}; the relay has told {told}, {relay.progress}") from error
        finally:
            relay.stop()
            thread.join(SECONDS)
            broker.close()
            assert not thread.is_alive()
        if failed:
            raise failed[0]

    def fails(self, **changes: Any) -> str:
        """What a relay that can't go on says."""
        broker = KafkaBroker(self.kafka.address)
        relay = OutboxRelay(self.options(**changes), broker)
        given_up = threading.Timer(SECONDS, relay.stop)
        given_up.start()
        try:
            relay.run()
        except Exception as error:
            return str(error)
        finally:
            given_up.cancel()
            broker.close()
        raise AssertionError("it ran")

    def dies(self, die: str, *, at: int = 1, **changes: Any) -> None:
        """A relay that runs until it dies there."""
        broker = KafkaBroker(self.kafka.address)
        try:
            DyingRelay(self.options(**changes), broker, die=die, at=at).run()
        except Killed:
            return
        finally:
            broker.close()
        raise AssertionError("it lived")

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable, "-m", "tidings", "relay", "--database", self.url, "--table", "outbox", "--broker", f"kafka://{self.kafka.address}",
            "--name", self.name, "--topic", self.topic, "--create-topics", str(self.partitions), "--json", "--unlimited-wal", *arguments,
        ]  # fmt: skip

    def process(self, *arguments: str) -> Process:
        return Process(self.command(*arguments))

    # -- whoever reads

    def seen(self, *topics: str) -> list[Seen]:
        """All that a consumer that reads what is committed sees now, by partition."""
        topics = topics or (self.topic,)
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.address,
                "group.id": "plain",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "log_level": 0,
            }
        )
        try:
            there = consumer.list_topics(timeout=20).topics
            parts = [TopicPartition(topic, part, 0) for topic in topics if topic in there for part in there[topic].partitions]
            consumer.assign(parts)
            found: list[Seen] = []
            ended: set[tuple[str, int]] = set()
            until = time.monotonic() + SECONDS
            while len(ended) < len(parts):
                assert time.monotonic() < until, "the topics have no end"
                record = consumer.poll(1.0)
                if record is None:
                    continue
                if record.error():
                    ended.add((str(record.topic()), int(record.partition() or 0)))
                else:
                    found.append(Seen(record))
            return found
        finally:
            consumer.close()

    def await_ticked(self, seconds: float = SECONDS) -> None:
        wait_for(lambda: not self.unticked(), "every row to be ticked off", seconds)

    def close(self) -> None:
        self.conn.close()


class Process:
    """``tidings relay`` as a process of its own. ``told``: what it has printed so far."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        self.told: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._readers = [threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._read_errors, daemon=True)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.told.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self.errors += list(self._process.stderr)

    def await_event(self, event: str) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            assert self._process.poll() is None or any(one["event"] == event for one in self.told), "".join(self.errors)
            return next((one for one in self.told if one["event"] == event), None)

        found: dict[str, Any] = wait_for(there, f"the relay to say {event}")
        return found

    @property
    def peak(self) -> int:
        """The most memory it had, in bytes."""
        with open(f"/proc/{self._process.pid}/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self.end()

    def stop(self) -> int:
        """Ctrl-C; its exit code."""
        self._process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        code = self._process.wait(SECONDS)
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return code

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self.end()


def by_key(records: list[Seen]) -> dict[bytes | None, list[Seen]]:
    found: dict[bytes | None, list[Seen]] = defaultdict(list)
    for record in records:
        found[record.key].append(record)
    return found


def ids(records: list[Seen]) -> list[str]:
    return [record.id for record in records]
