"""For tests of the relay: an app with a store, a topic of its own on a real Kafka, and what a plain consumer must see in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from servers.kafka import Kafka
from tests.brokers import reading
from tidings import App, PostgresStore, Relay, SQLiteStore
from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.port import Received
from tidings.envelope import Envelope, lane_of
from tidings.store.port import Store, Unit

KEYS = 40


def an_event(number: int, topic: str, *, key: str | None = None, source: str = "shop", **fields: Any) -> Envelope:
    key = str(number % KEYS) if key is None else key
    event_id = f"00000000-0000-7000-8000-{number:012d}"
    now = time.time_ns() // 1000
    values = {
        "position": 0, "lane": lane_of("order_id", key), "topic": topic, "type": "shop.Placed", "version": 1, "key_name": "order_id",
        "key": key, "event_id": event_id, "time": now, "source": source, "data": b'{"order_id":%d}' % number,
        "correlation_id": event_id, "causation_id": None, "traceparent": None, "headers": None,
    }  # fmt: skip
    return Envelope(**{**values, **fields})


def store_at(url: str) -> Store:
    return PostgresStore(url) if url.startswith("postgres") else SQLiteStore(url)


class Shop:
    """Apps named shop on one database, as processes have them, and one topic.

    Attributes:
        events: all that was published by ``publish``, in order.
    """

    def __init__(self, url: str, kafka: Kafka, partitions: int = 8) -> None:
        self.url, self.kafka = url, kafka
        self.topic = kafka.new_topic(partitions)
        self.store = store_at(url)
        self.store.open()
        self.events: list[Envelope] = []
        self._number = 0

    def publish(self, count: int, *, topic: str | None = None, **fields: Any) -> list[Envelope]:
        made = [an_event(self._number + n + 1, topic or self.topic, **fields) for n in range(count)]
        self._number += count
        for first in range(0, count, 500):
            part = made[first : first + 500]
            self.store.write(lambda unit, part=part: unit.append(part)).result(30)  # type: ignore[misc]
        self.events += made
        return made

    def app(self, *, lease: float = 2.0, broker: KafkaBroker | None = None, intake: bool = False, **relay: Any) -> App:
        """One more process's; not started."""
        return App(
            "shop", store_at(self.url), broker=broker or KafkaBroker(self.kafka.url), relay=Relay(**relay), intake=intake, lease=lease,
            topic=self.topic,
        )  # fmt: skip

    def seen(self, topic: str | None = None) -> list[Received]:
        return reading.everything(self.kafka, topic or self.topic)

    def close(self) -> None:
        self.store.close()

    def lanes(self, name: str = "relay-shop") -> list[int]:
        return [lane.position for lane in self.store.query(lambda unit: unit.lanes(name))]

    def head(self) -> int:
        return self.store.query(lambda unit: unit.head())

    def facts(self) -> dict[str, str]:
        return self.store.query(lambda unit: unit.facts())

    def all_sent(self) -> bool:
        """By what the store says: nothing is left for the relay."""

        def behind(unit: Unit) -> int:
            return unit.behind("relay-shop").events

        return self.store.query(behind) == 0


def ids(records: Iterable[Received]) -> list[str]:
    return [dict(record.headers)["ce_id"].decode() for record in records]


def check(events: Sequence[Envelope], records: Sequence[Received]) -> None:
    """Each event once, those of a key in one partition and in order, nothing else."""
    assert sorted(ids(records)) == sorted(event.event_id for event in events)
    wanted: dict[str | None, list[str]] = {}
    for event in events:
        wanted.setdefault(event.key, []).append(event.event_id)
    found: dict[str | None, list[str]] = {}
    places: dict[str | None, set[int]] = {}
    for record in records:
        key = None if record.key is None else record.key.decode()
        found.setdefault(key, []).append(dict(record.headers)["ce_id"].decode())
        places.setdefault(key, set()).add(record.partition)
    assert found == wanted
    assert all(len(partitions) == 1 for key, partitions in places.items() if key is not None)


async def until(condition: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not await asyncio.get_running_loop().run_in_executor(None, condition):
        assert time.monotonic() < end, f"it did not happen in time {what}"
        await asyncio.sleep(0.03)
