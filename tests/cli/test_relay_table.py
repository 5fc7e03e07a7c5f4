"""``tidings relay --database``: what it prints, how it ends, and what it says when it can't."""

from __future__ import annotations

import subprocess

import pytest
from click.testing import CliRunner

from servers.kafka import Kafka
from tests.relay.shops import Shop, ids
from tidings.cli import cli


def _said(*arguments: str) -> str:
    ran = CliRunner().invoke(cli, ["relay", *arguments])
    assert ran.exit_code == 2
    return ran.output


@pytest.mark.processes
def test_it_relays_says_so_and_drains(postgres_url: str, kafka: Kafka) -> None:
    shop = Shop(postgres_url, kafka, index=False)
    try:
        written = shop.insert(5)
        with shop.process() as relay:
            leading = relay.await_event("leading")
            assert leading["table"] == "public.outbox"
            assert leading["advice"] == 'CREATE INDEX CONCURRENTLY ON public.outbox ("id") WHERE NOT "published"'
            shop.await_ticked()
            assert relay.stop() == 0
        assert relay.told[-1] == {"event": "drained", "sent": 5, "late": 0, "skipped": 0}
        assert ids(shop.seen()) == written
        shop.conn.execute(leading["advice"])
        with shop.process() as relay:
            assert relay.await_event("leading")["advice"] is None
            assert relay.stop() == 0
    finally:
        shop.close()


def test_without_a_json_option_it_speaks(postgres_url: str, kafka: Kafka) -> None:
    shop = Shop(postgres_url, kafka)
    try:
        command = [word for word in shop.command() if word != "--json"]
        ran = subprocess.run([*command, "--table", "nothing"], capture_output=True, text=True)
        assert ran.returncode == 2
        assert ran.stderr == "Error: there is no table nothing; there are outbox\n"
    finally:
        shop.close()


DATABASE = ("--database", "postgresql://nobody@127.0.0.1:1/none")
BROKER = ("--broker", "kafka://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--database", "mysql://127.0.0.1/x", *BROKER), "write postgresql://"),
        ((*DATABASE, "--broker", "amqp://127.0.0.1"), "write kafka://host:9092"),
        ((*DATABASE, *BROKER, "--columns", "kye=a"), "did you mean key=…?"),
        ((*DATABASE, *BROKER, "--columns", "id="), "there must be such a column"),
        ((*DATABASE, *BROKER, "--columns", "header.x y=a"), "a header's name has letters"),
        ((*DATABASE, *BROKER, "--topic", "shop.{route}"), "{route} has no column"),
        ((*DATABASE, *BROKER, "--topic", "shop.{"), "a brace that isn't"),
        ((*DATABASE, *BROKER, "--columns", "type="), "a CloudEvent needs a type"),
        ((*DATABASE, *BROKER, "--columns", "published=", "--after", "flag"), "needs a boolean or timestamp column"),
        ((*DATABASE, *BROKER), "the server can't be reached"),
    ],
)
def test_what_it_says_when_it_cannot(arguments: tuple[str, ...], said: str) -> None:
    told = _said(*arguments)
    assert said in told
    assert told.startswith("Error: ")
    assert told.count("\n") == 1


def test_help_has_an_example() -> None:
    told = CliRunner().invoke(cli, ["relay", "table", "--help"]).output
    assert "Example: tidings relay table --database postgresql://" in " ".join(told.split())
    assert "table" in CliRunner().invoke(cli, ["relay", "--help"]).output
