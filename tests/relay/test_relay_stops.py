"""Where it isn't clear how far a relay has come, it stops and asks: nothing is skipped or repeated in silence."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from servers.kafka import Kafka
from tests.relay.relays import Shop, check, ids, until
from tidings import App, KafkaBroker
from tidings.cli import cli
from tidings.relay.mark import Mark


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def shop(url: str, kafka: Kafka) -> Iterator[Shop]:
    shop = Shop(url, kafka)
    yield shop
    shop.close()


def said(app: App) -> str:
    return (app.relay is not None and app.relay.trouble) or ""


def tidings(shop: Shop, *arguments: str) -> Any:
    ran = CliRunner().invoke(cli, [*arguments, "--store", shop.url, "--json"])
    return msgspec.json.decode(ran.stdout) if ran.exit_code == 0 else ran.stderr


def positions(shop: Shop, slots: int = 2) -> str:
    return f"tidings-relay-shop-{shop.store.log_id}-{slots}"


@pytest.mark.promise("nothing lost")
async def test_the_position_topic_was_deleted(shop: Shop) -> None:
    shop.publish(200)
    async with shop.app(slots=2):
        await until(shop.all_sent)
    shop.kafka.drop_topics([positions(shop)])
    async with shop.app(slots=2) as app:
        await until(lambda: "the broker keeps no position" in said(app))
        shop.publish(100)
        (row,) = tidings(shop, "relay", "list")
        await until(lambda: len(tidings(shop, "relay", "list")[0]["questions"]) == 2)
        assert row["relay"] == "relay-shop"
        check(shop.events[:200], shop.seen())  # nothing is sent meanwhile
        assert "can't be gone by" in tidings(shop, "relay", "resume", "--from", "broker")
        assert tidings(shop, "relay", "resume", "--from", "store") == {"from": "store", "slots": 2}
        await until(shop.all_sent)
        await until(lambda: said(app) == "")
        assert "no relay asks" in tidings(shop, "relay", "resume", "--from", "store")
    check(shop.events, shop.seen())
    async with shop.app(slots=2):  # and it was settled for good
        shop.publish(100)
        await until(shop.all_sent)
    check(shop.events, shop.seen())


async def test_everything_again(shop: Shop) -> None:
    shop.publish(60)
    async with shop.app(slots=2):
        await until(shop.all_sent)
    shop.kafka.drop_topics([positions(shop)])
    async with shop.app(slots=2):
        await until(lambda: len(tidings(shop, "relay", "list")[0]["questions"]) == 2)
        tidings(shop, "relay", "resume", "relay-shop", "--from", "start")
        await until(lambda: len(shop.seen()) == 120)
        shop.publish(10)
        await until(shop.all_sent)
    assert sorted(ids(shop.seen())) == sorted([event.event_id for event in shop.events] + [event.event_id for event in shop.events[:60]])


async def test_the_broker_knows_less_than_the_store(shop: Shop) -> None:
    """A cluster restored from a backup: its position is older than ours, and the events behind it are gone from there too."""
    shop.publish(100)
    async with shop.app(slots=1):
        await until(shop.all_sent)
    broker = KafkaBroker(shop.kafka.url)
    slot = broker.open_slot(f"relay-shop-{shop.store.log_id}", 0, 1)
    old = msgspec.json.decode(slot.mark or b"", type=Mark)
    row = shop.store.query(lambda unit: unit.select(after=39, limit=1))[0]
    slot.send([], msgspec.structs.replace(old, position=40, row=40, event=row.event_id).encode())
    slot.close()
    async with shop.app(slots=1) as app:
        await until(lambda: "and the store that it was" in said(app))
        assert len(shop.seen()) == 100
        tidings(shop, "relay", "resume", "--from", "broker")
        await until(lambda: len(shop.seen()) == 160)
    assert sorted(ids(shop.seen())) == sorted([event.event_id for event in shop.events] + [event.event_id for event in shop.events[40:]])
    broker.close()


async def test_the_log_went_back(tmp_path: Path, kafka: Kafka) -> None:
    """A restored backup: positions will be given out again, so those who read must hear that it is another incarnation."""
    shop = Shop(f"sqlite:///{tmp_path}/log.db", kafka)
    shop.publish(50)
    async with shop.app(slots=2):
        await until(shop.all_sent)
        shop.store.close()
    with closing(sqlite3.connect(tmp_path / "log.db")) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(tmp_path / "log.db", tmp_path / "backup.db")
    shop.store.open()
    before = list(shop.events)
    lost = shop.publish(50)
    async with shop.app(slots=2):
        await until(shop.all_sent)
        shop.store.close()
    for name in ("log.db", "log.db-wal", "log.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", tmp_path / "log.db")
    shop.store.open()
    new = shop.publish(70)  # at positions that others had, and behind them: nothing but the events tells
    async with shop.app(slots=2) as app:
        await until(lambda: "before" in said(app))
        await until(lambda: len(tidings(shop, "relay", "list")[0]["questions"]) == 2)
        check(before + lost, shop.seen())
        assert tidings(shop, "relay", "resume", "--from", "store")["slots"] == 2
        await until(shop.all_sent)
        await until(lambda: said(app) == "")
    check(before + lost + new, shop.seen())
    logs = {dict(record.headers)["ce_id"].decode(): dict(record.headers)["ce_tidingslog"] for record in shop.seen()}
    assert {logs[event.event_id] for event in lost} == {f"{shop.store.log_id}.1".encode()}
    assert {logs[event.event_id] for event in new} == {f"{shop.store.log_id}.2".encode()}
    shop.close()


async def test_a_service_moves_to_another_store(tmp_path: Path, kafka: Kafka, postgres_url: str) -> None:
    """Positions are another log's there: it begins, and nobody compares the two."""
    first = Shop(f"sqlite:///{tmp_path}/log.db", kafka)
    first.publish(100)
    async with first.app():
        await until(first.all_sent)
    second = Shop(postgres_url, kafka)
    second.topic, second._number = first.topic, 1000
    second.publish(30)
    async with second.app():
        await until(second.all_sent)
    check(first.events + second.events, first.seen())
    first.close()
    second.close()
