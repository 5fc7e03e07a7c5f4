"""A shop whose store holds a bit of everything: handled, retried, parked, dead and scheduled events."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.running import until
from tidings import App, Context, Event, Retry
from tidings.cli import cli

SHOP = """
import asyncio
import sqlite3

from tidings import App, Event

app = App("shop", store="sqlite:///shop.db", lease=2)


class OrderPlaced(Event, key="order_id"):
    order_id: int


@app.subscribe(OrderPlaced)
async def send_mail(event: OrderPlaced) -> None:
    with open("mails", "a") as file:
        file.write(f"began {event.order_id}\\n")
    await asyncio.sleep(0.6 if event.order_id < 100 else 60)
    with open("mails", "a") as file:
        file.write(f"sent {event.order_id}\\n")


@app.subscribe(OrderPlaced)
def reserve(event: OrderPlaced, tx: sqlite3.Connection) -> None: ...
"""


class OrderPlaced(Event, key="order_id"):
    order_id: int


class PaymentSucceeded(Event, key="order_id"):
    order_id: int


class Reminder(Event, key="order_id"):
    order_id: int


def shop(path: Path) -> App:
    app = App("shop", store=f"sqlite:///{path}", synchronous="NORMAL")

    @app.subscribe(OrderPlaced, retry=Retry(attempts=2, first=0.01))
    async def charge_card(event: OrderPlaced, ctx: Context) -> PaymentSucceeded:
        if event.order_id == 43 and ctx.attempt == 1:
            raise RuntimeError("the gateway timed out")
        if event.order_id == 47:
            raise ValueError("card [red]declined[/red]")
        ctx.publish(Reminder(order_id=event.order_id), after=timedelta(hours=1))
        return PaymentSucceeded(order_id=event.order_id)

    inventory = app.subscription("inventory", retry=Retry(attempts=9, first=300, most=300))

    @inventory.on(OrderPlaced)
    def reserve(event: OrderPlaced, tx: sqlite3.Connection) -> None:
        if event.order_id == 45:
            raise RuntimeError("out of stock")

    @inventory.on(PaymentSucceeded)
    def confirm(event: PaymentSucceeded, tx: sqlite3.Connection) -> None: ...

    return app


async def _fill(app: App) -> None:
    for order in (42, 43, 45, 47):
        app.publish(OrderPlaced(order_id=order), tx="own").result()

    def finished() -> bool:
        def look(unit: Any) -> bool:
            counts = [unit.count_parked(name) for name in ("charge_card", "inventory")]
            behind = sum(unit.behind(name).events for name in ("charge_card", "inventory"))
            return unit.head() == 7 and counts == [(0, 0, 1), (1, 1, 0)] and behind == 0

        return app.store.query(look)

    async with app:
        await until(finished)


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "shop.db"
    asyncio.run(_fill(shop(path)))
    return path


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    """A copy of the filled store, for tests that change it."""
    path = tmp_path / "shop.db"
    source, copy = sqlite3.connect(filled), sqlite3.connect(path)
    source.backup(copy)
    source.close()
    copy.close()
    return path


Tidings = Callable[..., Result]


@pytest.fixture
def tidings(monkeypatch: pytest.MonkeyPatch) -> Tidings:
    """Run a command and check its exit code."""
    monkeypatch.delenv("TIDINGS_STORE", raising=False)

    def run(*args: object, store: Path | None = None, code: int = 0, input: str | bytes | None = None) -> Result:
        given = [str(arg) for arg in args]
        if store is not None:
            given += ["--store", f"sqlite:///{store}"]
        result = CliRunner().invoke(cli, given, input=input)
        assert result.exit_code == code, result.output
        return result

    return run


def said(result: Result) -> Any:
    """What a command with --json printed."""
    return json.loads(result.stdout)
