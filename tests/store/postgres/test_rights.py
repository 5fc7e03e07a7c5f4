"""What a role needs, as docs/guides/postgresql.md says, and one line that says what to do where something is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from servers.folder import free_port
from servers.postgres import Postgres
from tests.promises import ROOT
from tests.running import settled, until
from tidings import App, Context, Event, PostgresStore, Retry
from tidings.cli import cli
from tidings.store.postgres import connect


class Placed(Event, key="order"):
    order: int


class Paid(Event, key="order"):
    order: int


@pytest.fixture
def clerk(postgres: Postgres, postgres_url: str) -> Iterator[str]:
    """The URL of a role that has what the guide's table says for running, and no more."""
    guide = (ROOT / "docs/guides/postgresql.md").read_text()
    found = re.search(r"To run: `(.*)` on the `tidings_` tables; `(.*)` on `(\w+)`", guide)
    assert found is not None
    PostgresStore(postgres_url).open()
    postgres.new_role("clerk")
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        tables = conn.execute("SELECT relname FROM pg_class WHERE relname LIKE 'tidings%' AND relkind IN ('r', 'p') AND NOT relispartition")
        for (table,) in tables.fetchall():
            conn.execute(f"GRANT {found[1]} ON {table} TO clerk")
        conn.execute(f"GRANT {found[2]} ON SEQUENCE {found[3]} TO clerk")
        conn.execute("CREATE TABLE done (number int)")
        conn.execute("GRANT SELECT, INSERT ON done TO clerk")
    yield postgres_url.replace("tidings@", "clerk@")
    postgres.drop_role("clerk", postgres_url)


@pytest.fixture
def granted(postgres: Postgres, postgres_url: str) -> Iterator[dict[str, str]]:
    """URLs of the roles to which the guide's SQL grants what they need, by their names there."""
    guide = (ROOT / "docs/guides/postgresql.md").read_text()
    found = re.search(r"```sql\n(-- runs workers.*?)```", guide, re.DOTALL)
    assert found is not None
    PostgresStore(postgres_url).open()
    roles = ("worker", "web", "monitor")
    for role in roles:
        postgres.new_role(role)
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(found[1].encode())
    yield {role: postgres_url.replace("tidings@", f"{role}@") for role in roles}
    for role in roles:
        postgres.drop_role(role, postgres_url)


async def test_what_the_guides_grants_are_enough_for(granted: dict[str, str], postgres_url: str) -> None:
    publishing = App("shop", store=granted["web"])
    publishing.open()
    with psycopg.connect(granted["web"]) as conn:
        assert publishing.publish(Placed(order=1), tx=conn).position == 1
    with psycopg.connect(granted["web"]) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT data FROM tidings_log")
    publishing.close()
    app, seen = App("shop", store=granted["worker"]), list[int]()

    @app.subscribe(Placed)
    def note(event: Placed, tx: psycopg.Connection[Any]) -> None:
        seen.append(event.order)

    async with app:
        await until(lambda: seen == [1])
    for command in (["status"], ["store", "check"], ["log"], ["trace", "order", "1"], ["dead", "list"]):
        result = CliRunner().invoke(cli, [*command, "--store", granted["monitor"]])
        assert result.exit_code == 0, result.output
    assert (
        CliRunner().invoke(cli, ["dead", "drop", "note", "--all", "--yes", "--store", granted["monitor"]]).exit_code == 0
    )  # nothing to drop
    refused = CliRunner().invoke(cli, ["subscription", "pause", "note", "--store", granted["monitor"]])
    assert refused.exit_code == 2
    assert "lacks a right" in refused.stderr


@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
async def test_the_rights_in_the_guide_are_enough_to_run(postgres: Postgres, clerk: str) -> None:
    """Publishing, handling with and without a transaction, retries, dead letters, scheduled events, trimming, what operators ask."""
    app, seen = App("shop", store=clerk, lease=1.0, retention=timedelta(days=1)), list[int]()

    @app.subscribe(Placed, name="pay", retry=Retry(attempts=2, first=0.01))
    def pay(event: Placed, ctx: Context, tx: psycopg.Connection[Any]) -> Paid:
        tx.execute("INSERT INTO done VALUES (%s)", (event.order,))
        if event.order == 3 or (event.order == 2 and ctx.attempt == 1):
            raise RuntimeError("the gateway said no")
        return Paid(order=event.order)

    @app.subscribe(Paid, name="note")
    async def note(event: Paid) -> None:
        seen.append(event.order)

    async with app:
        for order in range(5):
            await app.publish(Placed(order=order), tx="own")
        await app.publish(Placed(order=5), tx="own", after=timedelta(seconds=0.1))
        with psycopg.connect(clerk) as conn:
            app.publish(Placed(order=6), tx=conn)
        await until(lambda: sorted(seen) == [0, 1, 2, 4, 5, 6])
        await settled(app)
        app.store.upkeep(3)
        app.store.write(lambda unit: unit.trim(3, 100)).result(5)
    for command in ("status", "store check", "store trim --upto 5 --yes", "dead list", "log", "trace order 2"):
        ran = CliRunner().invoke(cli, [*command.split(), "--store", clerk])
        assert ran.exit_code == 0, (command, ran.output)


@pytest.mark.parametrize(
    ("take", "from_what"),
    [("INSERT", "tidings_log"), ("SELECT", "tidings_lanes"), ("UPDATE", "tidings_lanes"), ("SELECT", "SEQUENCE tidings_log_position_seq"),
     ("INSERT", "tidings_writers"), ("SELECT", "tidings_meta")],
)  # fmt: skip
def test_a_right_that_is_missing_is_named(postgres_url: str, clerk: str, take: str, from_what: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(f"REVOKE {take} ON {from_what} FROM clerk".encode())
    said = failing(clerk, "publish", "shop.Placed", "{}", "--source", "shop") or failing(clerk, "status") or reading(clerk)
    assert from_what.rpartition(" ")[2] in said
    assert "this user lacks a right" in said or "GRANT USAGE, SELECT ON SEQUENCE" in said


def reading(url: str) -> str:
    store = PostgresStore(url)
    try:
        store.open()
        store.write(lambda unit: unit.rewind("nobody", 0)).result(5)
        store.read(0, 10)
        store.close()
    except Exception as error:
        return str(error)
    return ""


def failing(url: str, *command: str) -> str:
    """What a command says that fails: one line, with exit code 2. Empty if it doesn't fail."""
    ran = CliRunner().invoke(cli, [*command, "--store", url])
    if ran.exit_code == 0:
        return ""
    assert ran.exit_code == 2, ran.output
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_wrong_password_and_none(postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    PostgresStore(postgres_url).open()
    postgres.new_role("ada", "lovelace")
    try:
        for url in (postgres_url.replace("tidings@", "ada:babbage@"), postgres_url.replace("tidings@", "ada@")):
            said = failing(url, "status")
            assert "set PGPASSWORD or write it into the URL" in said
            assert "babbage" not in said
        right = failing(postgres_url.replace("tidings@", "ada:lovelace@"), "status")
        assert "this user lacks a right" in right, "let in, and that is another matter"
        assert "lovelace" not in right
        assert "may not log in" in failing(postgres_url.replace("tidings@", "nobody_here@"), "status")
    finally:
        postgres.drop_role("ada", postgres_url)


def test_wrong_urls(postgres_url: str, tmp_path: Path) -> None:
    assert "postgresql://user@host:5432/database" in failing("postgresql://", "status")
    assert "see that it runs and listens there" in failing(f"postgresql://ada@127.0.0.1:{free_port()}/shop", "status")
    assert "create it with `createdb`" in failing(postgres_url + "_gone", "status")
    assert "tidings store init" in failing(postgres_url, "status")
    assert "write sqlite:///shop.db for a file, or postgresql://" in failing("mysql://ada@127.0.0.1/shop", "status")
    assert "port" in failing("postgresql://ada@127.0.0.1:many/shop", "status")


def test_a_server_that_is_too_old(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "OLDEST", 990000)
    assert "Tidings needs 99 or newer" in failing(postgres_url, "status")


def test_a_schema_of_another_version(postgres_url: str) -> None:
    PostgresStore(postgres_url).open()
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute("UPDATE tidings_meta SET value = '99' WHERE name = 'schema'")
        assert "upgrade tidings in this environment" in failing(postgres_url, "status")
        assert "upgrade tidings in this environment" in failing(postgres_url, "publish", "shop.Placed", "{}", "--source", "shop")
        conn.execute("UPDATE tidings_meta SET value = '1' WHERE name = 'schema'")
        assert "bring it up to date with `tidings store init" in failing(postgres_url, "status")


def test_a_standby_is_refused_for_writing(postgres_url: str) -> None:
    """A server that is read-only says so at the first write, with the fix."""
    PostgresStore(postgres_url).open()
    url = f"{postgres_url}?options=-cdefault_transaction_read_only%3Don"
    assert "give the primary's address" in failing(url, "publish", "shop.Placed", "{}", "--source", "shop")
