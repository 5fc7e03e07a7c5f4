"""``tidings relay lag``: what it prints, and when it exits with 1."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import psycopg
import pytest
from click.testing import CliRunner, Result

from servers.kafka import Kafka
from tests.relay.shops import Shop
from tidings.cli import cli


@pytest.fixture
def shop(postgres_url: str, kafka: Kafka) -> Iterator[Shop]:
    shop = Shop(postgres_url, kafka)
    yield shop
    shop.close()


def _lag(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["relay", "lag", "--database", url, *arguments])


def test_for_people_and_for_programs(shop: Shop) -> None:
    shop.insert(2)
    shop.conn.execute("UPDATE outbox SET created_at = now() - interval '90 seconds'")
    ran = _lag(shop.url)
    assert ran.exit_code == 0, ran.output
    first, second = ran.output.splitlines()
    assert first == "outbox: public.outbox by poll, nobody relays it"
    assert second.startswith("  2 rows to be sent, the oldest written 9")
    assert msgspec.json.decode(_lag(shop.url, "--json").output)["behind"] == 2


def test_alarms(shop: Shop) -> None:
    shop.insert(2)
    shop.conn.execute("UPDATE outbox SET created_at = now() - interval '90 seconds'")
    assert _lag(shop.url, "--fail-if", "behind=3", "--fail-if", "seconds=600", "--fail-if", "horizon=0").exit_code == 0
    for condition, said in (
        ("behind=2", "outbox: behind 2, the limit is 2"),
        ("seconds=60", "the limit is 60"),
        ("alone", "outbox: alone"),
    ):
        ran = _lag(shop.url, "--fail-if", condition)
        assert ran.exit_code == 1
        assert said in ran.stderr
    with psycopg.connect(shop.url) as slow:
        shop.insert(1, conn=slow)
        assert "readers are held back" in _lag(shop.url).output
        assert _lag(shop.url, "--fail-if", "horizon=0").exit_code == 1


def test_what_a_slot_keeps(shop: Shop) -> None:
    shop.conn.execute("SELECT pg_create_logical_replication_slot('tidings_outbox', 'pgoutput')")
    shop.insert(20_000)
    arguments = ("--mode", "cdc", "--after", "nothing", "--fail-if")
    ran = _lag(shop.url, *arguments, "retained=1000")
    assert ran.exit_code == 0
    assert "slot tidings_outbox: nobody streams from it" in ran.output
    assert _lag(shop.url, *arguments, "retained=1").exit_code == 1
    assert _lag(shop.url, *arguments, "lost").exit_code == 0


def test_bad_input(shop: Shop) -> None:
    ran = _lag(shop.url, "--fail-if", "behnid=3")
    assert ran.exit_code == 2
    assert "write one of behind, seconds, retained, horizon with a number" in " ".join(ran.output.split())
    ran = _lag(shop.url, "--table", "outbix")
    assert ran.exit_code == 2
    assert "there is no table outbix; did you mean outbox?" in ran.output
    assert "no replication slot tidings_outbox" in _lag(shop.url, "--mode", "cdc").output
