"""An app that takes in what others publish: what it reads, who may run it, and what the command line tells."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition

from servers.kafka import Kafka
from tests.relay.sending import NOW, Sender, an_event
from tests.running import until
from tidings import App, ConfigurationError, Event, Intake, PlainJSON
from tidings.brokers.port import Record
from tidings.cli import cli
from tidings.relay import intake as module


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)


def tidings(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.promise("independence")
async def test_events_of_another_app_are_handled_as_ones_own(kafka: Kafka, tmp_path: Path) -> None:
    topic = kafka.new_topic(2)
    url = f"sqlite:///{tmp_path}/payment.db"
    app = App("payment", store=url, broker=kafka.url)
    seen: list[int] = []

    class Placed(Event, key="order_id", type=f"{topic}.Placed"):
        order_id: int

    class Paid(Event, key="order_id"):
        order_id: int

    @app.subscribe(Placed)
    async def charge(event: Placed) -> Paid:
        seen.append(event.order_id)
        return Paid(order_id=event.order_id)

    @app.subscribe(Paid)
    async def ship(event: Paid) -> None: ...

    sender = Sender(kafka)
    sender.send(topic, [an_event(number, source=topic) for number in range(1, 51)])
    async with app:
        assert app.intake is not None
        assert app.intake.topics == (topic,)  # not its own
        await until(lambda: len(seen) == 50, 30)
        await until(lambda: sum(row["behind"] for row in json.loads(tidings("intake", "list", "--json", "--store", url))) == 0)

        def told() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = json.loads(tidings("status", "--json", "--store", url))["intake"]
            return found

        assert {row["topic"] for row in told()} == {topic}
        await until(lambda: all(row["owner"] and row["trouble"] is None for row in told()), 30)  # a busy group may have met again
        assert topic in tidings("status", "--store", url)
    assert sorted(seen) == list(range(1, 51))
    assert "nobody reads it" in tidings("intake", "list", "--store", url)
    sender.close()


@pytest.mark.promise("nothing vanishes")
async def test_an_operator_finds_what_could_not_be_read_and_what_is_lost(kafka: Kafka, tmp_path: Path) -> None:
    topic = kafka.new_topic(1)
    url = f"sqlite:///{tmp_path}/payment.db"
    sender = Sender(kafka)
    sender.send_records([Record(topic, b"7", b'{"seats": 2}', [], NOW // 1000)])

    def made(intake: Intake) -> App:
        app = App("payment", store=url, broker=kafka.url, intake=intake)

        class Booked(Event, key="seats", type="legacy.Booked"):
            seats: int

        @app.subscribe(Booked)
        async def book(event: Booked) -> None: ...

        return app

    async with made(Intake(topics=[topic])) as app:
        await until(lambda: app.store.query(lambda unit: unit.count_parked("intake"))[2] == 1, 30)
        assert f"{topic}/0 at offset 0" in " ".join(tidings("dead", "list", "intake", "--json", "--store", url).split())
        assert '{"seats": 2}' in tidings("dead", "show", "intake", "1", "--store", url)
    async with made(Intake(formats={topic: PlainJSON(type="legacy.Booked")})) as app:
        assert "1 dead letter of intake will be tried again" in tidings("dead", "retry", "intake", "--all", "--store", url)
        await until(lambda: app.store.query(lambda unit: unit.head()) == 1, 30)
        assert app.store.query(lambda unit: unit.select(limit=1))[0].key == "7"
        await until(lambda: json.loads(tidings("intake", "list", "--json", "--store", url))[0]["next"] == 1)
    sender.send_records([Record(topic, b"7", b'{"seats": %d}' % number, [], NOW // 1000) for number in range(5)])
    gone = TopicPartition(topic, 0, 3)
    kafka.admin().delete_records([gone])[gone].result(10)
    async with made(Intake(formats={topic: PlainJSON(type="legacy.Booked")})) as app:
        await until(lambda: json.loads(tidings("intake", "list", "--json", "--store", url))[0]["trouble"], 30)
        failed = CliRunner().invoke(cli, ["status", "--store", url, "--fail-if", "trouble"])
        assert failed.exit_code == 1
        assert f"topic {topic}: trouble" in failed.output
        assert "will go on from first" in tidings("intake", "resume", topic, "--from", "first", "--store", url)
        await until(lambda: app.store.query(lambda unit: unit.head()) == 4, 30)
    sender.close()


def test_resuming_what_nobody_knows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/payment.db"
    tidings("store", "init", "--store", url)
    assert "nothing comes in from a broker" in tidings("intake", "list", "--store", url)
    result = CliRunner().invoke(cli, ["intake", "resume", "orders", "--from", "first", "--store", url])
    assert result.exit_code != 0
    assert "no partition of the topic 'orders' is known to the intake 'intake'; none was read yet" in str(result.output)
    assert CliRunner().invoke(cli, ["intake", "resume", "orders", "--from", "yesterday", "--store", url]).exit_code == 2


async def test_a_broker_that_is_not_there_is_told_and_waited_for(tmp_path: Path) -> None:
    app = App("payment", store=f"sqlite:///{tmp_path}/payment.db", broker="kafka://127.0.0.1:9")

    class Placed(Event, key="order_id", type="shop.Placed"):
        order_id: int

    @app.subscribe(Placed)
    async def charge(event: Placed) -> None: ...

    async with app:
        running = app.intake
        assert running is not None
        await until(lambda: running.trouble, 30)
        await asyncio.to_thread(running.stop)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: App("payment", store="sqlite:///x.db", broker="amqp://x"), "write kafka://host:9092"),
        (lambda: Intake(start="yesterday"), 'write "first" or "now"'),  # type: ignore[arg-type]
        (lambda: Intake(batch=0), "at least 1 of each"),
        (lambda: Intake(window="many"), "at least 1 of each"),  # type: ignore[arg-type]
        (lambda: Intake(topics="shop"), r"a list of names, as in \['shop'\]"),
        (lambda: Intake(topics=[""]), "names of topics"),
        (lambda: Intake(name=""), "a name"),
        (lambda: Intake(formats={"shop": PlainJSON}), "is no format"),  # type: ignore[dict-item]
        (lambda: App("payment", store="sqlite:///x.db", broker=1), "or a KafkaBroker"),  # type: ignore[arg-type]
        (lambda: App("payment", store="sqlite:///x.db", relay="yes"), "True or False"),  # type: ignore[arg-type]
        (lambda: App("payment", store="sqlite:///x.db", intake={"topics": []}), "True or False"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_work_is_said_at_once(wrong: object, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        wrong()  # type: ignore[operator]


def test_which_topics() -> None:
    assert Intake().topics_of("payment", "payment", {"shop.OrderPlaced", "payment.Paid", "stock.Reserved", "Plain"}) == ["shop", "stock"]
    assert Intake().topics_of("payment", "money", {"money.Paid", "shop.A"}) == ["shop"]
    assert Intake(formats={"legacy": PlainJSON(type="x.Y")}).topics_of("payment", "payment", {"shop.A"}) == ["legacy", "shop"]
    assert Intake(topics=["b", "a"]).topics_of("payment", "payment", {"shop.A"}) == ["a", "b"]
