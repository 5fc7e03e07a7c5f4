from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said
from tests.running import until
from tidings import App, Context, Event, Refused, Retry, Saga


class Placed(Event, key="order_id"):
    order_id: int


class Shipped(Event, key="order_id"):
    order_id: int


def charge(order: Placed, ctx: Context) -> str:
    if order.order_id == 3:
        raise ConnectionError("no answer")
    return "p1"


def refund(order: Placed) -> None:
    raise ConnectionError("bank closed")


def check(order: Placed) -> None:
    if order.order_id == 2:
        raise Refused("nobody lives there")


async def run(path: Path) -> None:
    """Order 1 waits for its shipment, 2 can't be undone, 3 waits for its next attempt, 4 is done."""
    app = App("shop", store=f"sqlite:///{path}")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order, undo=refund, retry=Retry(first=60, jitter=0))
        await saga.step(check, order)
        await saga.wait(Shipped, within=86_400)

    def state(key: int) -> str:
        row = app.store.query(lambda unit: unit.sagas().row("checkout", str(key)))
        return "none" if row is None else row.state

    async with app:
        for key in (1, 2, 3, 4):
            await app.publish(Placed(order_id=key), tx="own")
        await app.publish(Shipped(order_id=4), tx="own")
        await until(lambda: [state(key) for key in (1, 2, 3, 4)] == ["waiting", "compensating", "waiting", "completed"])


@pytest.fixture
def sagas(tmp_path: Path) -> Path:
    path = tmp_path / "sagas.db"
    asyncio.run(run(path))
    return path


def test_list_and_show(sagas: Path, tidings: Tidings) -> None:
    rows = said(tidings("saga", "list", "--json", store=sagas))
    assert [(row["key"], row["state"]) for row in rows] == [("1", "waiting"), ("2", "compensating"), ("3", "waiting"), ("4", "completed")]
    assert said(tidings("saga", "list", "checkout", "--state", "completed", "--json", store=sagas))[0]["key"] == "4"
    assert "another attempt at charge" in tidings("saga", "list", store=sagas).output
    assert tidings("saga", "list", "none", store=sagas).output == "no sagas\n"
    shown = tidings("saga", "show", "order", "1", store=sagas).output
    assert "checkout 1 (version 1) is waiting since" in shown
    assert "waits for shop.Shipped since" in shown
    assert " until " in shown
    assert "charge  done" in shown
    (one,) = said(tidings("saga", "show", "checkout", "2", "--json", store=sagas))
    assert one["error"] == "Refused: nobody lives there"
    assert one["waits_for"][0]["for"] == "undo refund"
    assert [(entry["kind"], entry["step"], entry["state"]) for entry in one["journal"]] == [
        ("step", "charge", "done"), ("step", "check", "refused"), ("undo", "charge", "retrying"),
    ]  # fmt: skip
    assert "is being undone" in tidings("saga", "show", "order_id", "2", store=sagas).output


def test_retry_makes_it_due_now_and_is_kept_with_its_reason(sagas: Path, tidings: Tidings) -> None:
    tidings("saga", "retry", "checkout", "3", "--reason", "the bank is up", "--actor", "ann", store=sagas)
    (one,) = said(tidings("saga", "show", "checkout", "3", "--json", store=sagas))
    assert [(action["actor"], action["action"], action["reason"]) for action in one["actions"]] == [("ann", "retry", "the bank is up")]
    assert one["due"] <= one["actions"][0]["time"]
    assert one["journal"][0]["due"] == one["due"]
    assert "retry by ann: the bank is up" in tidings("saga", "show", "checkout", "3", store=sagas).output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("show checkout 99", "there is no saga 'checkout' of key '99'"),
        ("show chekout 1", "there are checkout"),
        ("retry checkout 4 --reason because", "checkout 4 is completed: nothing is left to be tried"),
        ("retry checkout 3", "Missing option '--reason'"),
    ],
)
def test_bad_input(args: str, words: str, sagas: Path, tidings: Tidings) -> None:
    assert words in tidings("saga", *args.split(), store=sagas, code=2).output


def test_status_tells_of_those_that_wait_for_a_person(sagas: Path, tidings: Tidings) -> None:
    assert "stuck" not in tidings("status", store=sagas).output
    tidings("status", "--fail-if", "sagas=1", store=sagas)
    with sqlite3.connect(sagas) as conn:
        conn.execute("UPDATE tidings_sagas SET state = 'stuck' WHERE key = '2'")
    conn.close()
    assert "checkout: 1 stuck; see tidings saga list checkout --state stuck" in tidings("status", store=sagas).output
    failed = tidings("status", "--fail-if", "sagas=1", store=sagas, code=1)
    assert "sagas: 1 stuck or parked, the limit is 1" in failed.output
