"""What the commands tell of transactions that hold readers back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from servers.postgres import Postgres
from tests.cli.conftest import Tidings, said
from tests.running import until
from tidings import App, Event
from tidings.cli.health import Health


class OrderPlaced(Event, key="order_id"):
    order_id: int


@contextmanager
def published_and_open(app: App) -> Iterator[psycopg.Connection[Any]]:
    """Somebody who has published and doesn't commit."""
    with psycopg.connect(app.store.url, application_name="till 7", autocommit=True) as conn:
        conn.execute("BEGIN")
        app.publish(OrderPlaced(order_id=1), tx=conn)
        yield conn


@pytest.fixture
def app(postgres_url: str) -> Iterator[App]:
    app = App("shop", store=postgres_url)
    app.open()
    yield app
    app.close()


@pytest.mark.parametrize("postgres", [15, 18], indirect=True)
async def test_status_and_check_name_who_holds_the_horizon(postgres: Postgres, app: App, tidings: Tidings) -> None:
    where = ("--store", app.store.url)
    assert said(tidings("status", "--json", *where))["horizon"] == []
    tidings("status", "--fail-if", "horizon=0", *where)
    with published_and_open(app):
        await asyncio.sleep(1.1)
        (holder,) = said(tidings("status", "--json", *where))["horizon"]
        assert holder["seconds"] > 1
        shown = tidings("status", *where).output
        for text in (holder["who"], tidings("store", "check", *where).output, " ".join(shown.split())):
            assert "of tidings (till 7), idle in transaction: INSERT INTO" in text
        told = tidings("status", "--fail-if", "horizon=1", *where, code=1)
        assert "the limit is 1 s" in told.stderr
        tidings("status", "--fail-if", "horizon=60", *where)
    assert said(tidings("status", "--json", *where))["horizon"] == []


async def test_a_prepared_transaction_is_named_with_what_ends_it(app: App, tidings: Tidings) -> None:
    with published_and_open(app) as conn:
        conn.execute("PREPARE TRANSACTION 'till seven'")
        output = tidings("status", "--fail-if", "horizon=0", "--store", app.store.url, code=1).stderr
        assert "the prepared transaction 'till seven' of tidings: COMMIT PREPARED or ROLLBACK PREPARED ends it" in output
        conn.execute("ROLLBACK PREPARED 'till seven'")


async def test_an_age_that_may_not_be_seen_is_no_reason_for_silence(app: App, tidings: Tidings) -> None:
    with psycopg.connect(app.store.url, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS looker")
        conn.execute("CREATE ROLE looker LOGIN")
        conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker")
        conn.execute("GRANT SELECT ON SEQUENCE tidings_log_position_seq TO looker")
        try:
            with published_and_open(app):
                url = app.store.url.replace("tidings@", "looker@")
                told = tidings("status", "--fail-if", "horizon=60", "--store", url, code=1).stderr
                assert "this role needs pg_read_all_stats" in told
        finally:
            conn.execute("DROP OWNED BY looker")
            conn.execute("DROP ROLE looker")


@pytest.mark.promise("nothing lost")
async def test_a_process_knows_for_how_long_it_is_held_back(postgres_url: str) -> None:
    """In /health and /metrics, without asking the server."""
    app, seen = App("shop", store=postgres_url), list[int]()

    @app.subscribe(OrderPlaced)
    async def handle(event: OrderPlaced) -> None:
        seen.append(event.order_id)

    async with app:
        health = Health([app])
        with published_and_open(app) as conn:
            await app.publish(OrderPlaced(order_id=2), tx="own")
            await until(lambda: app.store.held_back() > 0.3)
            assert health.report()["apps"][0]["horizon_held_seconds"] >= 0.3
            assert seen == []
            conn.execute("COMMIT")
        await until(lambda: len(seen) == 2)
        await until(lambda: app.store.held_back() == 0.0)
        _, body = health._metrics({})
        assert b'tidings_horizon_held_seconds{app="shop"} 0.0' in body
