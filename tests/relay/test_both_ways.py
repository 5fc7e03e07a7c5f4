"""A relay and an intake together: two services that read each other, and one that moves to another database."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers.kafka import Kafka
from tests.running import until
from tidings import App, Event, Intake, Relay
from tidings.cli.health import Health
from tidings.relay import intake as module


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)


def published(app: App, source: str) -> list[str]:
    return [event.event_id for event in app.store.query(lambda unit: unit.select(limit=100_000)) if event.source == source]


def _listen(app: App, other: str, handled: dict[str, int]) -> None:
    class Heard(Event, key="number", type=f"{other}.Said"):
        number: int

    @app.subscribe(Heard)
    async def hear(event: Heard) -> None:
        handled[app.name] += 1


@pytest.mark.promise("effects once")
async def test_two_services_that_read_each_other_do_not_echo(kafka: Kafka, tmp_path: Path) -> None:
    names = [kafka.new_topic(2, name=kafka.new_name("service")) for _ in range(2)]
    apps = [App(name, store=f"sqlite:///{tmp_path}/{name}.db", broker=kafka.url, relay=Relay(slots=1)) for name in names]
    handled: dict[str, int] = dict.fromkeys(names, 0)

    class Said(Event, key="number"):
        number: int

    _listen(apps[0], names[1], handled)
    _listen(apps[1], names[0], handled)

    async with apps[0], apps[1]:
        for number in range(20):
            await apps[0].publish(Said(number=number), tx="own")
            await apps[1].publish(Said(number=100 + number), tx="own")
        await until(lambda: list(handled.values()) == [20, 20], 60)
        health = Health([apps[0]])
        told = health.report()["apps"][0]
        assert told["intake"] == {"name": "intake", "taken": 20, "dropped": 0, "unread": 0, "trouble": None}
        assert told["relay"]["sent"] == 20
        await until(lambda: health.behind()[names[0], f"relay-{names[0]}"].events == 0, 20)
        running = apps[0].intake
        assert running is not None
        await until(lambda: running.behind == 0, 20)  # ends of transactions are records too, until they are passed
        metrics = health._metrics(health.behind())[1].decode()
        assert f'tidings_events_behind{{app="{names[0]}",subscription="relay-{names[0]}"}} 0.0' in metrics
        assert f'tidings_seconds_behind{{app="{names[0]}",subscription="relay-{names[0]}"}} 0.0' in metrics
        assert f'tidings_intake_behind{{app="{names[0]}"}} 0.0' in metrics
        assert f'tidings_intake_taken_total{{app="{names[0]}"}} 20.0' in metrics
        assert f'tidings_relay_sent_total{{app="{names[0]}"}} 20.0' in metrics
        # One more behind all that came in: when it has arrived, what stood before it in the other's log has been looked at by the relay.
        for app in apps:
            await app.publish(Said(number=1000), tx="own")
        await until(lambda: list(handled.values()) == [21, 21], 60)
        for app in apps:
            for source in names:
                assert len(published(app, source)) == len(set(published(app, source))) == 21


@pytest.mark.promise("nothing lost")
async def test_a_service_that_moves_to_another_database_is_still_heard(kafka: Kafka, tmp_path: Path, postgres_url: str) -> None:
    """Its new log begins at position 1, and what read it has marks far ahead."""
    name, reader = (kafka.new_name("service") for _ in range(2))
    kafka.new_topic(2, name=name)

    class Said(Event, key="number"):
        number: int

    class Heard(Event, key="number", type=f"{name}.Said"):
        number: int

    seen: list[int] = []
    downstream = App(reader, store=f"sqlite:///{tmp_path}/reader.db", broker=kafka.url, relay=False, intake=Intake())

    @downstream.subscribe(Heard)
    async def hear(event: Heard) -> None:
        seen.append(event.number)

    async with downstream:
        for numbers, store in ((range(200), f"sqlite:///{tmp_path}/before.db"), (range(200, 260), postgres_url)):
            async with App(name, store=store, broker=kafka.url, relay=Relay(slots=1)) as service:
                for number in numbers:
                    await service.publish(Said(number=number), tx="own")
                await until(lambda numbers=numbers: len(seen) == numbers[-1] + 1, 60)  # type: ignore[misc]
    assert sorted(seen) == list(range(260))
