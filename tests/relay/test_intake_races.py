"""Two who believe that a partition is theirs; members that come and go; servers that die: each event once and in order."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.relay.sending import an_event
from tests.relay.test_intake import Intakes, events, ids, in_order, offsets, until
from tests.relay.test_intake import intakes as intakes
from tests.relay.test_intake import store as store
from tidings import PartitionTaken, PostgresStore
from tidings.brokers.kafka import KafkaBroker
from tidings.relay.intake import Intake, RunningIntake
from tidings.store.port import Store


class Stopped(RunningIntake):
    """Stands still before it writes, once, until it is told to go on: what SIGSTOP does, at a known place."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stands, self.go_on = threading.Event(), threading.Event()
        self.refused: list[str] = []

    def _write(self, batch: Any) -> None:
        if not self.stands.is_set():
            self.stands.set()
            assert self.go_on.wait(60)
        try:
            super()._write(batch)
        except PartitionTaken as error:
            self.refused.append(str(error))
            raise


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
def test_a_zombie_that_wakes_up_writes_nothing(store: Store, intakes: Intakes, kafka: Kafka) -> None:
    """It had the records in hand; another one took them, and more, meanwhile."""
    topic = kafka.new_topic(4)
    sender = intakes.sender()
    sender.send(topic, [an_event(number) for number in range(1, 201)])
    broker = KafkaBroker(kafka.url)
    zombie = Stopped(Intake(), store, broker, "payment", [topic], "zombie", {"payment"})
    zombie.start()
    try:
        assert zombie.stands.wait(30)
        # Not of its group, so that nobody waits for the session to end: the partitions are read by both at the same time.
        with closing(KafkaBroker(kafka.url)) as other_broker:
            other = RunningIntake(Intake(), store, other_broker, "payment", [topic], "other", {"payment"})
            other.group = "another"
            other.start()
            until(lambda: other.taken == 200)
            sender.send(topic, [an_event(number) for number in range(201, 301)])
            until(lambda: other.taken == 300)
            other.stop()
        zombie.go_on.set()
        until(lambda: zombie.refused)
        assert "was read on by another process" in zombie.refused[0]
        sender.send(topic, [an_event(number) for number in range(301, 401)])
        until(lambda: zombie.taken == 100)  # it went on from where the other one stood
    finally:
        zombie.go_on.set()
        zombie.stop()
        broker.close()
    assert sorted(ids(store)) == [an_event(number).event_id for number in range(1, 401)]
    assert in_order(store)


@pytest.mark.promise("effects once")
@pytest.mark.promise("order per key")
@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_members_come_and_go_under_load(postgres_url: str, kafka: Kafka, intakes: Intakes, protocol: str) -> None:
    """Two, sometimes three, sometimes one: partitions move to and fro while a relay sends."""
    topic = kafka.new_topic(6)
    rng = random.Random(7)
    stores = [PostgresStore(postgres_url) for _ in range(3)]
    for one in stores:
        one.open()
    done = threading.Event()
    sender = intakes.sender(transactional=True)

    def send() -> None:
        for first in range(1, 20_001, 200):
            sender.send(topic, [an_event(number, str(number % 97)) for number in range(first, first + 200)])
        done.set()

    settings = {"group.protocol": protocol} if protocol == "classic" else {}
    members: dict[int, tuple[RunningIntake, KafkaBroker]] = {}

    def change(number: int) -> None:
        if number in members:
            running, broker = members.pop(number)
            running.stop()
            broker.close()
        else:
            broker = KafkaBroker(kafka.url, settings)
            members[number] = (
                RunningIntake(Intake(batch=300), stores[number], broker, "payment", [topic], f"m{number}", {"payment"}),
                broker,
            )
            members[number][0].start()

    sending = threading.Thread(target=send)
    sending.start()
    try:
        change(0)
        while not done.wait(0.7):
            change(rng.randrange(3))
        if not members:
            change(0)
        until(lambda: stores[0].query(lambda unit: unit.head()) >= 20_000 and len(ids(stores[0])) >= 20_000, 60)
    finally:
        sending.join()
        for number in list(members):
            change(number)
    found = events(stores[0])
    assert len(found) == len({event.event_id for event in found}) == 20_000
    assert in_order(stores[0])
    for one in stores:
        one.close()


@pytest.fixture
def restarted(kafka: Kafka) -> Iterator[Kafka]:
    yield kafka
    kafka.start()


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("nothing lost")
def test_a_broker_that_is_killed_and_a_database_that_is_restarted(
    postgres: Postgres, postgres_url: str, restarted: Kafka, intakes: Intakes
) -> None:
    kafka = restarted
    topic = kafka.new_topic(3)
    store = PostgresStore(postgres_url)
    store.open()
    sender = intakes.sender()
    running = intakes.start(store, topic, batch=50)
    rounds = 4
    for turn in range(rounds):
        numbers: Sequence[int] = range(turn * 1000 + 1, turn * 1000 + 1001)
        sender.send(topic, [an_event(number, str(number % 13)) for number in numbers])
        if turn % 2:
            kafka.kill()
            kafka.start()
        else:
            postgres.restart("immediate")
    until(lambda: len(_ids_or_none(store)) == rounds * 1000, 90)
    running.stop()
    assert sorted(ids(store)) == [an_event(number).event_id for number in range(1, rounds * 1000 + 1)]
    assert in_order(store)
    assert sum(row.next for row in offsets(store)) == rounds * 1000
    store.close()


def _ids_or_none(store: Store) -> list[str]:
    try:
        return ids(store)
    except Exception:  # it is being restarted
        return []
