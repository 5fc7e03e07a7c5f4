"""``tidings saga check`` and ``migrate``, on instances that wait in a store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said
from tests.running import until
from tidings.cli.applications import load

SHOP = """
from tidings import App, Event, Saga

app = App("shop", store="sqlite:///sagas.db")


class Placed(Event, key="order_id"):
    order_id: int


class Shipped(Event, key="order_id"):
    order_id: int


def charge(order_id: int) -> None: ...
def bill(order_id: int) -> None: ...
def reserve(order_id: int) -> None: ...


@app.saga(Placed, name="checkout", waits=[Shipped])
async def first(order: Placed, saga: Saga) -> None:
    await saga.step(CHARGE, order.order_id)
    await saga.step(reserve, order.order_id)
    await saga.wait(Shipped)
"""

SECOND = """

@app.saga(Placed, name="checkout", version=2, waits=[Shipped])
async def second(order: Placed, saga: Saga) -> None:
    await saga.step(CHARGE, order.order_id)
    await saga.step(reserve, order.order_id)
    await saga.wait(Shipped, within=60)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Orders 1 and 2 wait for their shipment, 3 is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("saga_old", "saga_new", "saga_two", "saga_bad")
    for name, code in zip(
        names, (SHOP, SHOP.replace("CHARGE", "bill"), SHOP + SECOND, SHOP + SECOND.replace("CHARGE", "bill")), strict=True
    ):
        (tmp_path / f"{name}.py").write_text(code.replace("CHARGE", "charge"))
    asyncio.run(run())
    return tmp_path


async def run() -> None:
    app = load("saga_old:app")
    from saga_old import Placed, Shipped  # type: ignore[import-not-found]

    def states() -> list[str]:
        return [row.state for row in app.store.query(lambda unit: unit.sagas().rows(None, (), 10))]

    async with app:
        for key in (1, 2, 3):
            await app.publish(Placed(order_id=key), tx="own")
        await app.publish(Shipped(order_id=3), tx="own")
        await until(lambda: sorted(states()) == ["completed", "waiting", "waiting"])


def test_check_lists_who_can_not_go_on_and_exits_with_1(shop: Path, tidings: Tidings) -> None:
    good = tidings("saga", "check", "saga_old:app", store=None).output
    assert "2 instances under way, none that can't go on" in good
    assert "charge has no undo, and reserve (line" in good
    bad = tidings("saga", "check", "saga_new:app", store=None, code=1).output
    assert "checkout 1 (version 1): the journal says that the body called charge here, and now it calls bill" in bad
    assert "2 instances under way, 2 that can't go on" in bad
    found = said(tidings("saga", "check", "saga_new:app", "--json", store=None, code=1))
    assert [(one["key"], one["step"], "saga_new.py:" in one["line"]) for one in found["problems"]] == [
        ("1", "charge", True),
        ("2", "charge", True),
    ]


def test_check_fails_for_a_text_that_can_not_be_right(shop: Path, tidings: Tidings) -> None:
    (shop / "saga_text.py").write_text(SHOP.replace("CHARGE", "charge") + "    await saga.step(reserve, order.order_id, 5)\n")
    told = tidings("saga", "check", "saga_text:app", store=None, code=1).output
    assert "none that can't go on" in told  # yet
    assert "saga_text.py:25: reserve can't be called with what the step is given: too many positional arguments" in told
    (mistake,) = said(tidings("saga", "check", "saga_text:app", "--json", store=None, code=1))["mistakes"]
    assert mistake.startswith("checkout (version 1): ")


def test_migrate_moves_those_that_fit(shop: Path, tidings: Tidings) -> None:
    bad = tidings("saga", "migrate", "saga_bad:app", "checkout", "--to", "2", "--reason", "carrier", store=None, code=1).output
    assert "checkout 1 (version 1) is left: the journal says that the body called charge" in bad
    assert "0 instances of checkout go on with version 2, 2 left" in bad
    done = tidings("saga", "migrate", "saga_two:app", "checkout", "--to", "2", "--reason", "carrier", "--actor", "ann", store=None).output
    assert "2 instances of checkout go on with version 2, none left" in done
    (shown,) = said(tidings("saga", "show", "checkout", "1", "--json", store=shop / "sagas.db"))
    assert shown["version"] == 2
    assert [(one["action"], one["actor"]) for one in shown["actions"]] == [("migrate to version 2", "ann")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("check nothing:app", "there is no module 'nothing'"),
        ("migrate saga_old:app checkout --to 7 --reason x", "saga_old:app has no saga 'checkout' of version 7"),
        ("migrate saga_old:app checkout --to 1", "Missing option '--reason'"),
    ],
)
def test_bad_input(args: str, words: str, shop: Path, tidings: Tidings) -> None:
    assert words in tidings("saga", *args.split(), store=None, code=2).output
