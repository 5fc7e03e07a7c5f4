"""The relay on a real Kafka, from both stores: a plain read-committed consumer sees each event once and in order, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.relay.relays import Shop, check, ids, until
from tidings import ConfigurationError, Relay
from tidings.cli.status import gather


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def shop(url: str, kafka: Kafka) -> Iterator[Shop]:
    shop = Shop(url, kafka)
    yield shop
    shop.close()


@pytest.mark.promise("effects once")
async def test_what_was_published_before_and_while_it_runs(shop: Shop) -> None:
    shop.publish(3000)
    async with shop.app(rows=500):
        await until(shop.all_sent)
        for _ in range(20):
            shop.publish(10)
        await until(shop.all_sent)
    check(shop.events, shop.seen())
    async with shop.app():  # it knows where it was
        shop.publish(100)
        await until(shop.all_sent)
    check(shop.events, shop.seen())
    assert min(shop.lanes()) == shop.head()


@pytest.mark.promise("death at any instruction")
async def test_a_position_that_the_store_never_heard_of_is_told_it_though_nothing_new_comes(shop: Shop) -> None:
    """A relay that died between the broker's commit and the store's: all is sent, and without more events nothing would say so."""
    shop.publish(300)
    async with shop.app(slots=2):
        await until(shop.all_sent)
    shop.store.write(lambda unit: unit.rewind("relay-shop", 100)).result(30)
    async with shop.app(slots=2):
        await until(shop.all_sent, 20)
    async with shop.app(slots=3):
        await until(shop.all_sent, 20)
    check(shop.events, shop.seen())


async def test_only_what_its_own_app_published(shop: Shop) -> None:
    ours = shop.publish(50)
    shop.publish(50, source="payment")
    async with shop.app():
        await until(lambda: min(shop.lanes()) >= shop.head())  # the mark goes past what isn't ours
    check(ours, shop.seen())


async def test_several_processes_share_the_slots(shop: Shop) -> None:
    shop.publish(500)
    async with shop.app() as one, shop.app() as two, shop.app() as three:
        await until(lambda: all(app.relay is not None and len(app.relay.held_lanes()) in (16, 32) for app in (one, two, three)))
        shop.publish(500)
        await until(shop.all_sent)
        await two.stop()
        shop.publish(500)
        await until(shop.all_sent)
        await two.start()
    check(shop.events, shop.seen())


@pytest.mark.parametrize("numbers", [[4, 8, 4, 1], [1, 12], [3, 5]])
async def test_the_number_of_slots_changes(shop: Shop, numbers: list[int]) -> None:
    for number in numbers:
        shop.publish(400)
        async with shop.app(slots=number, rows=50):
            await until(shop.all_sent)
    check(shop.events, shop.seen())


async def test_the_number_of_slots_changes_under_who_runs(shop: Shop) -> None:
    shop.publish(300)
    async with shop.app(slots=4, rows=20) as old:
        await until(lambda: len(shop.seen()) > 0)
        async with shop.app(slots=6, rows=20):
            shop.publish(300)
            await until(lambda: old.relay is not None and old.relay.groups == 6)
            await until(shop.all_sent)
        shop.publish(300)
        await until(shop.all_sent)
    check(shop.events, shop.seen())


async def test_a_topic_that_is_missing_is_told_or_made(shop: Shop) -> None:
    name = shop.kafka.new_name()
    made = shop.publish(20, topic=name)
    async with shop.app() as app:
        await until(lambda: app.relay is not None and name in (app.relay.trouble or ""))
    async with shop.app(partitions=3):
        await until(shop.all_sent)
    check(made, shop.seen(name))
    assert {one.partition for one in shop.seen(name)} <= {0, 1, 2}


async def test_one_by_one(shop: Shop) -> None:
    shop.publish(1000)
    async with shop.app(exactly_once=False):
        await until(shop.all_sent)
    async with shop.app(exactly_once=False):
        shop.publish(100)
        await until(shop.all_sent)
    check(shop.events, shop.seen())


@pytest.mark.promise("nothing vanishes")
async def test_too_large_is_a_dead_letter_and_its_retry_says_that_it_is_late(shop: Shop) -> None:
    shop.publish(10, key="k")
    (large,) = shop.publish(1, key="k", data=b'"' + b"x" * 1_500_000 + b'"')
    shop.publish(1000, key="k")
    async with shop.app():
        await until(shop.all_sent)
        others = [event for event in shop.events if event is not large]
        check(others, shop.seen())
        (dead,) = shop.store.query(lambda unit: unit.parked("relay-shop"))
        assert (dead.state, dead.envelope.event_id) == ("dead", large.event_id)
        assert "topic" in (dead.error or "")
        # Tried again as it is, it is dead again; nothing else of it is seen.
        shop.store.write(lambda unit: unit.retry_dead("relay-shop", dead.envelope.position, 0)).result()
        await until(lambda: shop.store.query(lambda unit: unit.parked("relay-shop"))[0].attempts == 2)
        await shop_takes_more(shop, 3_000_000)
        shop.store.write(lambda unit: unit.retry_dead("relay-shop", dead.envelope.position, 0)).result()
        app_limit = 3_000_000
    from tidings.brokers.kafka import KafkaBroker

    async with shop.app(broker=KafkaBroker(shop.kafka.url, {"message.max.bytes": app_limit})):
        await until(lambda: shop.store.query(lambda unit: unit.parked("relay-shop")) == [])
    records = shop.seen()
    assert sorted(ids(records)) == sorted(event.event_id for event in shop.events)
    (late,) = [record for record in records if dict(record.headers)["ce_id"].decode() == large.event_id]
    assert dict(late.headers)["ce_tidingsoutoforder"] == b"true"
    assert late.value == large.data


async def shop_takes_more(shop: Shop, size: int) -> None:
    from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource

    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, shop.topic, incremental_configs=[entry])
    shop.kafka.admin().incremental_alter_configs([resource])[resource].result(20)


@pytest.mark.parametrize("options", [
    {"slots": 0}, {"slots": 65}, {"slots": "4"}, {"rows": 0}, {"partitions": 0}, {"partitions": "8"}, {"name": ""}, {"exactly_once": "no"},
])  # fmt: skip
def test_options_that_can_not_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Relay\({next(iter(options))}="):
        Relay(**options)


@pytest.mark.promise("publishing never waits")
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_broker_that_is_away_is_waited_for_and_nothing_is_skipped(shop: Shop) -> None:
    shop.publish(100)
    async with shop.app(rows=10) as app:
        await until(shop.all_sent)
        shop.kafka.kill()
        shop.publish(200)  # nobody waits
        await until(lambda: not shop.all_sent())
        shop.kafka.start()
        shop.publish(50)
        await until(shop.all_sent)
        await until(lambda: app.relay is not None and app.relay.trouble is None)
    check(shop.events, shop.seen())


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_stopping_does_not_wait_for_a_broker_that_does_not_answer(shop: Shop) -> None:
    shop.publish(100)
    app = shop.app(rows=10)
    async with app:
        await until(shop.all_sent)
        shop.kafka.freeze()
        shop.publish(100)
    shop.kafka.thaw()
    async with shop.app(rows=10):
        await until(shop.all_sent)
    check(shop.events, shop.seen())


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_database_that_crashes_under_it(shop: Shop, postgres: Postgres) -> None:
    shop.publish(300)
    async with shop.app(rows=10):
        await until(lambda: len(shop.seen()) > 20)
        postgres.restart("immediate")
        shop.publish(100)
        await until(shop.all_sent)
    check(shop.events, shop.seen())


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_pausing_and_status(shop: Shop) -> None:
    async with shop.app(slots=2):
        shop.publish(10)
        await until(shop.all_sent)
        shop.store.write(lambda unit: unit.set_paused("relay-shop", True)).result()
        await until(lambda: shop.store.query(lambda unit: unit.subscriptions())[0].paused)
        shop.store.write(lambda unit: unit.set_paused("relay-shop", False)).result()
        shop.publish(10)
        await until(shop.all_sent)
        (row,) = gather(shop.store)["subscriptions"]
        assert (row["name"], row["types"], row["behind"], sum(row["lanes"].values())) == ("relay-shop", ("*",), 0, 64)
    check(shop.events, shop.seen())
