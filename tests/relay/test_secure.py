"""Relays and intakes on a Kafka with users and rights: what they lack is one line, nothing is lost, and they go on when it comes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from servers.secure_kafka import SecureKafka
from tests.relay import shops
from tests.relay.relays import Shop, check, ids, store_at, until
from tidings import App, Intake, Relay
from tidings.brokers.kafka import KafkaBroker
from tidings.cli import cli


@pytest.fixture
def shop(tmp_path: Path, secure_kafka: SecureKafka) -> Iterator[Shop]:
    shop = Shop(f"sqlite:///{tmp_path}/shop.db", secure_kafka, partitions=2)
    yield shop
    shop.close()


def give_own(kafka: SecureKafka, user: str) -> None:
    """What a relay needs for what is its own."""
    kafka.allow(user, "WRITE,READ,DESCRIBE,CREATE", "TOPIC", "tidings-", prefixed=True)
    kafka.allow(user, "WRITE,DESCRIBE", "TRANSACTIONAL_ID", "tidings-", prefixed=True)


def status(url: str) -> str:
    """All that it shows, for people and for programs."""
    shown = [CliRunner().invoke(cli, ["status", "--store", url, *more]).output for more in ([], ["--json"])]
    return "".join(shown)


@pytest.mark.promise("nothing lost")
async def test_a_relay_goes_on_when_its_right_comes(
    shop: Shop, secure_kafka: SecureKafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its settings are in the environment; the topic may not be written at first, and no more in the middle."""
    caplog.set_level(logging.INFO)
    user = secure_kafka.new_name("shop")
    settings = secure_kafka.user(user)
    give_own(secure_kafka, user)
    for name, value in settings.items():
        monkeypatch.setenv(f"TIDINGS_KAFKA_{name.upper().replace('.', '_')}", value)
    app = App(
        "shop", store_at(shop.url), broker=f"kafka://{secure_kafka.secure_address}", relay=Relay(slots=2), intake=False, lease=2.0,
        topic=shop.topic,
    )  # fmt: skip
    shop.publish(200)

    def trouble() -> str:
        return (app.relay is not None and app.relay.trouble) or ""

    async with app:
        await until(lambda: f"--topic {shop.topic}" in trouble())
        await until(lambda: "lacks the right" in status(shop.url))
        assert shop.seen() == []
        secure_kafka.allow(user, "WRITE,DESCRIBE", "TOPIC", shop.topic)
        await until(shop.all_sent)
        assert trouble() == ""
        secure_kafka.forbid(user, "WRITE", "TOPIC", shop.topic)
        shop.publish(100)
        published = 300
        while "right Write" not in trouble():  # the broker may not have heard of it at once
            await until(lambda: shop.all_sent() or "right Write" in trouble())
            if shop.all_sent():
                shop.publish(10)
                published += 10
        assert "\n" not in trouble()
        assert len(shop.seen()) < published
        secure_kafka.allow(user, "WRITE", "TOPIC", shop.topic)
        await until(shop.all_sent)
        said = status(shop.url)
    check(shop.events, shop.seen())
    assert settings["sasl.password"] not in said + caplog.text
    assert "Traceback" not in caplog.text


async def test_a_wrong_password_is_one_line_in_status(shop: Shop, secure_kafka: SecureKafka, caplog: pytest.LogCaptureFixture) -> None:
    settings = {**secure_kafka.user("shop"), "sasl.password": "not-this-one"}
    shop.publish(10)

    app = App(
        "shop", store_at(shop.url), broker=KafkaBroker(secure_kafka.secure_address, settings), relay=Relay(slots=1), lease=2.0,
        topic=shop.topic, intake=Intake(topics=["payment"]),
    )  # fmt: skip

    def troubles() -> tuple[str, str]:
        assert app.relay is not None
        assert app.intake is not None
        return app.relay.trouble or "", app.intake.trouble or ""

    async with app:
        await until(lambda: all("doesn't let the user shop in" in one for one in troubles()))
        await until(lambda: "doesn't let the user shop in" in status(shop.url))
        said = status(shop.url)
    assert "not-this-one" not in said + caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.promise("nothing lost")
async def test_an_intake_goes_on_when_its_right_comes(shop: Shop, secure_kafka: SecureKafka, tmp_path: Path) -> None:
    user = secure_kafka.new_name("payment")
    settings = secure_kafka.user(user)
    shop.publish(100)
    async with shop.app(slots=1):  # by the way in for the admin
        await until(shop.all_sent)
    other = App(
        "payment", f"sqlite:///{tmp_path}/payment.db", broker=KafkaBroker(secure_kafka.secure_address, settings), relay=False,
        intake=Intake(topics=[shop.topic]), lease=2.0,
    )  # fmt: skip

    def trouble() -> str:
        return (other.intake is not None and other.intake.trouble) or ""

    def taken() -> int:
        return other.store.query(lambda unit: unit.head())

    async with other:
        assert other.intake is not None
        await until(lambda: f"--group {other.intake.group}" in trouble())  # type: ignore[union-attr]
        secure_kafka.allow(user, "READ", "GROUP", "tidings.", prefixed=True)
        await until(lambda: f"--topic {shop.topic}" in trouble())
        assert "\n" not in trouble()
        secure_kafka.allow(user, "READ", "TOPIC", shop.topic)
        await until(lambda: taken() == 100)
        secure_kafka.forbid(user, "READ", "TOPIC", shop.topic)
        await until(lambda: f"--topic {shop.topic}" in trouble())
        shop.publish(100)
        async with shop.app(slots=1):
            await until(shop.all_sent)
        secure_kafka.allow(user, "READ", "TOPIC", shop.topic)
        await until(lambda: taken() == 200)
        found = other.store.query(lambda unit: unit.select(limit=1000))
    assert sorted(one.event_id for one in found) == sorted(one.event_id for one in shop.events)
    assert sorted(ids(shop.seen())) == sorted(one.event_id for one in found)


# -- a foreign outbox, by the command line


@pytest.fixture
def outbox(postgres_url: str, secure_kafka: SecureKafka) -> Iterator[shops.Shop]:
    made = shops.Shop(postgres_url, secure_kafka)
    yield made
    made.close()


def command(outbox: shops.Shop, kafka: SecureKafka, file: Path, settings: dict[str, Any]) -> shops.Process:
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    given = outbox.command("--broker-settings", str(file))
    given[given.index(f"kafka://{kafka.address}")] = f"kafka://{kafka.secure_address}"
    return shops.Process(given)


@pytest.mark.parametrize("wrong", ["password", "certificate", "transactional id", "file"])
def test_a_foreign_outboxs_relay_that_may_not_ends_with_one_line(
    outbox: shops.Shop, secure_kafka: SecureKafka, tmp_path: Path, wrong: str
) -> None:
    user = secure_kafka.new_name("outbox")
    settings = secure_kafka.user(user)
    secret = settings["sasl.password"]
    secure_kafka.allow(user, "WRITE,READ,DESCRIBE,CREATE", "TOPIC", "tidings-", prefixed=True)
    words = {
        "password": "doesn't let the user",
        "certificate": "ssl.ca.location",
        "transactional id": "lacks the right Write, Describe on the transactional id",
        "file": "line 1: write a setting",
    }[wrong]
    if wrong == "password":
        secret = settings["sasl.password"] = "not-this-one"
    elif wrong == "certificate":
        del settings["ssl.ca.location"]
    elif wrong == "file":
        settings = {"Sasl Password": secret}
    outbox.insert(5)
    with command(outbox, secure_kafka, tmp_path / "kafka", settings) as relay:
        assert relay.end() == 2
    (line,) = relay.errors
    assert words in line
    assert secret not in line
    assert outbox.unticked() == 5


@pytest.mark.promise("nothing lost")
def test_a_foreign_outboxs_relay_goes_on_when_its_right_comes(outbox: shops.Shop, secure_kafka: SecureKafka, tmp_path: Path) -> None:
    user = secure_kafka.new_name("outbox")
    settings = secure_kafka.user(user)
    give_own(secure_kafka, user)
    secure_kafka.new_topic(4, name=outbox.topic)
    secure_kafka.allow(user, "DESCRIBE", "TOPIC", outbox.topic)
    wanted = outbox.insert(50)
    with command(outbox, secure_kafka, tmp_path / "kafka", settings) as relay:
        trouble = relay.await_event("trouble")
        assert f"right Write on the topic {outbox.topic}" in trouble["error"]
        assert outbox.unticked() == 50
        secure_kafka.allow(user, "WRITE", "TOPIC", outbox.topic)
        outbox.await_ticked()
        assert relay.stop() == 0
    assert shops.ids(outbox.seen()) == wanted
    assert settings["sasl.password"] not in msgspec.json.encode(relay.told).decode() + "".join(relay.errors)
