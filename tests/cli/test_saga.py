from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
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
    async def checkout(order: Placed, saga: Saga) -> str:
        payment = await saga.step(charge, order, undo=refund, retry=Retry(first=60, jitter=0))
        await saga.step(check, order)
        await saga.wait(Shipped, within=86_400)
        return f"receipt for {payment}"

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
    nothing = tidings("saga", "list", "chekcout", store=sagas)
    assert (nothing.exit_code, nothing.stdout) == (0, "no sagas\n")
    assert nothing.stderr == "no saga chekcout has an instance in this store; there are instances of checkout\n"
    assert tidings("saga", "list", "checkout", "--state", "gone", store=sagas).stderr == ""
    shown = tidings("saga", "show", "order", "1", store=sagas).output
    assert shown.startswith("checkout 1 waits\n")
    assert "by shop.Placed; version 1 of shop" in shown
    assert re.search(r"waits for +the event shop.Shipped since .*, until .* \(in 24 h\); at test_saga.py:\d+", shown)
    assert re.search(r"next timer +2\S+ \S+ \(in 24 h\)", shown)
    assert re.search(r"charge +done +1 ", shown)
    assert "checkout: handled" in shown.partition("\nEvents\n")[2]
    assert "Events" not in tidings("saga", "show", "order", "1", "--no-events", store=sagas).output
    (one,) = said(tidings("saga", "show", "checkout", "2", "--json", store=sagas))
    assert one["error"] == "Refused: nobody lives there"
    assert one["waits_for"][0]["for"] == "undo refund"
    assert [(entry["kind"], entry["step"], entry["state"]) for entry in one["journal"]] == [
        ("step", "charge", "done"), ("step", "check", "refused"), ("undo", "charge", "retrying"),
    ]  # fmt: skip
    assert one["undos"] == [
        {"step": "charge", "state": "failing", "attempts": 1, "next": one["due"], "error": "ConnectionError: bank closed"}
    ]
    assert [line["what"] for line in one["timeline"]] == ["started", "charge", "check", "undo charge"]
    shown = tidings("saga", "show", "order_id", "2", store=sagas).output
    assert shown.startswith("checkout 2 is being undone\n")
    assert "another attempt to undo charge (refund)" in shown
    assert re.search(r"last error +undoing charge failed at attempt 1: ConnectionError: bank closed", shown)
    assert re.search(r"why undone +Refused: nobody lives there", shown)


def test_list_by_what_is_waited_for_and_how_long_and_timers(sagas: Path, tidings: Tidings) -> None:
    def keys(*options: str) -> list[str]:
        return [row["key"] for row in said(tidings("saga", "list", *options, "--json", store=sagas))]

    assert keys("--waiting-for", "Shipped") == keys("--waiting-for", "shop.Shipped") == ["1"]
    assert keys("--waiting-for", "charge") == ["2", "3"]
    assert keys("--waiting-for", "refund") == ["2"]
    assert keys("--waiting-for", "Ship") == keys("--version", "2") == keys("--older-than", "1h") == []
    assert keys("--version", "1", "--older-than", "0s") == ["1", "2", "3", "4"]
    with closing(sqlite3.connect(sagas)) as conn:
        conn.execute("UPDATE tidings_sagas SET started = started - 7200000000 WHERE key IN ('1', '4')")
        conn.execute("UPDATE tidings_sagas SET since = since - 7200000000 WHERE key = '4'")  # 1 has waited since just now
        conn.commit()
    assert keys("--older-than", "1h") == ["4"]
    assert [row["key"] for row in said(tidings("saga", "timers", "--json", store=sagas))] == ["2", "3", "1"]
    assert re.search(r"in 24 h +checkout +1 +the event shop.Shipped", tidings("saga", "timers", "checkout", store=sagas).output)
    assert tidings("saga", "timers", "none", store=sagas).stdout == "no timers\n"
    assert "instances of checkout" in tidings("saga", "timers", "none", store=sagas).stderr


def test_operators_act_and_it_is_told_who_and_why(sagas: Path, tidings: Tidings, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(*args: str, code: int = 0) -> str:
        return tidings("saga", *args, "--reason", "so it is", "--actor", "ann", store=sagas, code=code).output

    assert act("skip", "order", "3", "charge", "--result", '"p-17"') == "checkout 3 goes on without charge\n"
    assert "--result is no JSON" in act("skip", "order", "3", "charge", "--result", "p-17", code=2)
    assert act("pause", "checkout", "1") == "checkout 1 is paused\n"
    assert "checkout 1 is paused; behind that it goes on as waiting" in tidings("saga", "show", "checkout", "1", store=sagas).output
    assert act("resume", "checkout", "1") == "checkout 1 goes on\n"
    assert "is being undone already" in act("cancel", "checkout", "2", code=2)
    assert act("skip", "checkout", "2", "charge") == "checkout 2 goes on without charge\n"
    assert act("cancel", "checkout", "1") == "checkout 1 is being cancelled: what it did is undone\n"
    assert "is to be cancelled already" in act("compensate", "checkout", "1", code=2)
    assert "supply needs --app" in act("supply", "checkout", "1", "Shipped", code=2)
    (one,) = said(tidings("saga", "show", "checkout", "3", "--json", store=sagas))
    assert (one["journal"][0]["state"], one["journal"][0]["result"]) == ("skipped", '"p-17"')
    shown = tidings("saga", "show", "checkout", "3", store=sagas).output
    assert 'ann: skip charge: "p-17", because: so it is' in shown
    assert re.search(r"charge +skipped by hand", shown)


SHOP = """
from tidings import App, Event, Saga

app = App("shop", store="sqlite:///sagas.db")


class Placed(Event, key="order_id"):
    order_id: int


class Shipped(Event, key="order_id"):
    order_id: int
    parcel: str = "p0"


@app.saga(Placed, waits=[Shipped])
async def checkout(order: Placed, saga: Saga) -> None:
    await saga.wait(Shipped)
"""


def test_the_missing_event_is_supplied(sagas: Path, tidings: Tidings, monkeypatch: pytest.MonkeyPatch) -> None:
    (sagas.parent / "saga_ops_shop.py").write_text(SHOP)
    monkeypatch.chdir(sagas.parent)
    monkeypatch.syspath_prepend(str(sagas.parent))

    def supply(*args: str, code: int = 0) -> str:
        return tidings("saga", "supply", *args, "--reason", "lost", "--app", "saga_ops_shop:app", code=code).output

    assert "waits for shop.Shipped, not for Shiped" in supply("checkout", "1", "Shiped", code=2)
    assert "the data does not fit Shipped" in supply("checkout", "1", "Shipped", '{"parcel": 1}', code=2)
    assert "the event's order_id is 9, and the instance's 1" in supply("checkout", "1", "Shipped", '{"order_id": 9}', code=2)
    assert supply("order", "1", "Shipped", '{"parcel": "p9"}') == "checkout 1 has Shipped\n"
    with closing(sqlite3.connect(sagas)) as conn:
        (data,) = conn.execute("SELECT data FROM tidings_saga_events WHERE key = '1'").fetchone()
    assert json.loads(data) == {"order_id": 1, "parcel": "p9"}


def test_retry_makes_it_due_now_and_is_kept_with_its_reason(sagas: Path, tidings: Tidings) -> None:
    tidings("saga", "retry", "checkout", "3", "--reason", "the bank is up", "--actor", "ann", store=sagas)
    (one,) = said(tidings("saga", "show", "checkout", "3", "--json", store=sagas))
    assert [(action["actor"], action["action"], action["reason"]) for action in one["actions"]] == [("ann", "retry", "the bank is up")]
    assert one["due"] <= one["actions"][0]["time"]
    assert one["journal"][0]["due"] == one["due"]
    assert "ann: retry, because: the bank is up" in tidings("saga", "show", "checkout", "3", store=sagas).output


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


def test_what_it_returned_is_told(sagas: Path, tidings: Tidings) -> None:
    assert re.search(r'returned +"receipt for p1"', tidings("saga", "show", "order", "4", store=sagas).output)
    told = [said(tidings("saga", "show", "order", key, "--json", store=sagas))[0]["result"] for key in "14"]
    assert told == [None, "receipt for p1"]


def test_one_that_nobody_takes_though_it_is_due_says_so(sagas: Path, tidings: Tidings) -> None:
    """As one does whose version no worker has any more."""
    with closing(sqlite3.connect(sagas)) as conn, conn:
        conn.execute("UPDATE tidings_sagas SET due = 1000000 WHERE key = '1'")
    shown = tidings("saga", "show", "order", "1", store=sagas).output
    assert re.search(r"overdue +since 1970-01-01 .*: nobody has taken it; does a worker run that has version 1 of checkout\?", shown)
    told = [said(tidings("saga", "show", "order", key, "--json", store=sagas))[0]["overdue"] is None for key in "134"]
    assert told == [False, True, True]
