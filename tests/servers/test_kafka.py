"""The Kafka that everything else is tested on: a real one, that dies and comes back with what it had acknowledged, and leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from servers import kafka as module
from servers import maven
from servers.folder import Missing, within
from servers.kafka import Kafka
from tests.promises import ROOT


def everything(kafka: Kafka, topic: str, partition: int = 0) -> list[bytes | None]:
    """What a plain read-committed consumer sees of a partition."""
    reader = Consumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": "nobody",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
    )
    try:
        reader.assign([TopicPartition(topic, partition, 0)])
        seen = []
        while (record := reader.poll(10)) is not None and record.error() is None:
            seen.append(record.value())
        return seen
    finally:
        reader.close()


def producer(kafka: Kafka, **settings: Any) -> Producer:
    return Producer({"bootstrap.servers": kafka.address, "reconnect.backoff.max.ms": 200, **settings})


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_what_was_acknowledged_survives_in_the_same_place(kafka, way):
    topic = kafka.new_topic(1)
    with_it = producer(kafka, **{"transactional.id": topic})
    try:
        with_it.init_transactions(20)
        with_it.begin_transaction()
        for n in range(100):
            with_it.produce(topic, b"%d" % n, partition=0)
        with_it.commit_transaction(20)
        port = kafka.port
        kafka.stop() if way == "stop" else kafka.kill()
        assert not kafka.running
        kafka.start()
        assert kafka.port == port
        assert everything(kafka, topic) == [b"%d" % n for n in range(100)]
        with_it.begin_transaction()  # and a client goes on
        with_it.produce(topic, b"behind", partition=0)
        with_it.commit_transaction(20)
        assert everything(kafka, topic)[-1] == b"behind"
    finally:
        with_it.close()


def test_a_topic_is_deleted_when_it_is_said_to_be(kafka):
    topic = kafka.new_topic(3)
    kafka.drop_topics([topic])
    assert topic not in kafka.admin().list_topics(timeout=10).topics
    assert kafka.new_topic(1, name=topic) == topic


def test_a_server_that_a_test_froze_or_killed_runs_for_the_next_one(kafka):
    kafka.freeze()


def test_so_it_does(kafka):
    assert kafka.admin().list_topics(timeout=10).brokers.keys() == {1}
    kafka.kill()


def test_an_unfinished_transaction_is_given_up_soon(kafka):
    topic = kafka.new_topic(1)
    left = producer(kafka, **{"transactional.id": topic, "transaction.timeout.ms": 1000})
    try:
        left.init_transactions(20)
        left.begin_transaction()
        left.produce(topic, b"never", partition=0)
        left.flush(10)
        plain = producer(kafka)
        plain.produce(topic, b"plain", partition=0)
        plain.flush(10)
        plain.close()
        assert everything(kafka, topic) == []  # it stands behind the open one
        until = time.monotonic() + 20
        while (seen := everything(kafka, topic)) == [] and time.monotonic() < until:
            time.sleep(0.01)
        assert seen == [b"plain"]
    finally:
        with pytest.raises(KafkaException, match="fenced"):
            left.close()


def test_nothing_is_left_when_the_owner_is_killed():
    if not shutil.which("java"):
        pytest.skip("no Java")  # the tests above have said so
    program = "from servers.kafka import Kafka; s = Kafka(); print(s.data, flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip()).parent
        assert within(folder)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    until = time.monotonic() + 20
    while (within(folder) or folder.exists()) and time.monotonic() < until:
        time.sleep(0.01)
    assert within(folder) == []
    assert not folder.exists()


def test_a_program_in_a_private_folder(kafka, tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("only root runs servers as somebody else")  # who is not root runs them as himself, and can reach what is his
    hidden = tmp_path / "private" / "kafka"
    shutil.copytree(maven.COPIED, hidden)
    hidden.parent.chmod(0o700)
    monkeypatch.setattr(module, "COPIED", hidden)
    with Kafka() as server:
        assert server.new_topic(1)


def test_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Missing, match="Java 17"):
        Kafka()


def test_without_kafka(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "java", lambda: Path("java"))
    monkeypatch.setattr(module, "COPIED", tmp_path)
    with pytest.raises(Missing, match="scripts/setup"):
        Kafka()


def test_without_maven_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "no java" in (maven.fetch(tmp_path / "kafka") or "")
    assert list(tmp_path.iterdir()) == []
