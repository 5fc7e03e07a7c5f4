"""Two senders that believe that a slot is theirs: one stands still at a known place, as SIGSTOP would have it, and wakes up when another
has taken over and sent. Also where the other one came with another number of slots."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from servers.kafka import Kafka
from tests.relay.relays import Shop, check
from tidings import KafkaBroker, Relay
from tidings.brokers.port import Record, Slot
from tidings.relay.relay import RunningRelay
from tidings.relay.sender import Sender
from tidings.store.port import Unit, WorkerRow
from tidings.subscribe.sharing import group_of

NAME = "relay-shop"
LEASE = 1.0
PLACES = [
    "between the lease and the fence",
    "between the mark and the first record",
    "in a transaction, before its end",
    "behind the commit",
]


class StandingSlot:
    """Whoever sends by it may stand still."""

    def __init__(self, slot: Any, broker: StandingBroker) -> None:
        self._slot, self._broker = slot, broker
        fill = slot._fill

        def filled(*arguments: Any) -> None:
            fill(*arguments)
            slot._producer.flush(10)  # all of it is at the broker, and no end
            broker.stand(PLACES[2])

        slot._fill = filled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slot, name)

    def send(self, records: Sequence[Record], mark: bytes) -> None:
        self._broker.stand(PLACES[1])
        self._slot.send(records, mark)
        self._broker.stand(PLACES[3])


class StandingBroker(KafkaBroker):
    """Stands still at ``place``, once, until it is told to go on."""

    def __init__(self, url: str, place: str) -> None:
        super().__init__(url)
        self.place = place
        self.stands, self.go_on = threading.Event(), threading.Event()

    def stand(self, place: str) -> None:
        if place == self.place and not self.stands.is_set():
            self.stands.set()
            assert self.go_on.wait(60)

    def open_slot(self, *arguments: Any, **options: Any) -> Slot:
        self.stand(PLACES[0])
        return StandingSlot(super().open_slot(*arguments, **options), self)


class Relaying:
    """A worker whose lease is not renewed, and the senders of its slots."""

    def __init__(self, shop: Shop, worker: str, broker: KafkaBroker, slots: int, *, lease: float) -> None:
        self.lost: list[bool] = []
        store = shop.store
        running = RunningRelay(Relay(slots=slots, rows=20), "shop", store, broker)

        def claim(unit: Unit) -> Any:
            now = int(store.clock.time() * 1e6)
            running.register(unit, "shop", now)
            unit.enrol(WorkerRow(worker, "shop", "here", 1, now, (NAME,), True, lease, {}), store.clock.monotonic() + lease)
            return unit.claim(NAME, worker, slots, slots)

        until = time.monotonic() + 30
        while len(lanes := store.write(claim).result(30)) < 64:
            assert time.monotonic() < until, "the lanes are still somebody's"
            time.sleep(0.05)
        self.senders = [
            Sender(
                relay=NAME,
                app="shop",
                worker=worker,
                slot=slot,
                slots=slots,
                lanes={lane.lane: lane.epoch for lane in lanes if group_of(lane.lane, slots) == slot},
                store=store,
                broker=broker,
                together=True,
                rows=20,
                partitions=None,
                patience=60.0,  # the broker gives up on nobody: what shuts out is the other sender
                changed=lambda: None,
                ended=lambda sender, lost: self.lost.append(lost),
                idle=lambda: None,
            )
            for slot in range(slots)
        ]
        for sender in self.senders:
            sender.start()

    def wake(self) -> None:
        for sender in self.senders:
            sender.wake()

    def end(self) -> None:
        for sender in self.senders:
            sender.finish()
        for sender in self.senders:
            sender.thread.join(60)
            assert not sender.thread.is_alive()


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, kafka: Kafka) -> Iterator[Shop]:
    url = f"sqlite:///{tmp_path}/log.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    shop = Shop(url, kafka)
    yield shop
    shop.close()


@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
@pytest.mark.promise("order per key")
@pytest.mark.parametrize("slots", [1, 3], ids=["same slots", "other slots"])
@pytest.mark.parametrize("place", PLACES)
def test_a_sender_that_stood_still_sends_nothing_when_another_has_taken_over(shop: Shop, place: str, slots: int) -> None:
    standing, other = StandingBroker(shop.kafka.url, place), KafkaBroker(shop.kafka.url)
    shop.publish(100)
    first = Relaying(shop, "first", standing, 1, lease=LEASE)
    second: Relaying | None = None
    try:
        assert standing.stands.wait(30)
        second = Relaying(shop, "second", other, slots, lease=60.0)
        wait_until(shop.all_sent)
        shop.publish(50)
        second.wake()
        wait_until(shop.all_sent)
        standing.go_on.set()
        wait_until(lambda: not first.senders[0].thread.is_alive())
        assert first.lost == [True]
        shop.publish(50)
        second.wake()
        wait_until(shop.all_sent)
        assert second.lost == []
    finally:
        standing.go_on.set()
        first.end()
        if second is not None:
            second.end()
        standing.close()
        other.close()
    check(shop.events, shop.seen())


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
