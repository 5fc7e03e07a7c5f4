"""What a parent waits for is told down to the child that waits for a person, with the command that lets it go on."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said
from tidings import App, Event, Refused, Saga
from tidings.testing import Harness


class Placed(Event, key="order_id"):
    order_id: int


class Wanted(Event, key="parcel_id"):
    parcel_id: str


class Labelled(Event, key="label_id"):
    label_id: str


async def run(path: Path) -> None:
    """Order 1 can't be undone since its parcel's label can't; 2 waits for a parcel of which nobody knows; 3 for one with a mistake; 4 for
    one that an operator has paused."""
    app = App("shop", store=f"sqlite:///{path}")

    def work(name: str) -> None: ...

    def undo(name: str) -> None:
        raise ConnectionError("no answer")

    def refuse() -> None:
        raise Refused("nobody lives there")

    begun = asyncio.Event()

    async def pay(name: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    @app.saga(Labelled)
    async def label(wanted: Labelled, saga: Saga) -> None:
        await saga.step(work, wanted.label_id, undo=undo)

    @app.saga(Wanted)
    async def parcel(wanted: Wanted, saga: Saga) -> None:
        if wanted.parcel_id == "p1":
            await saga.child(label, Labelled(label_id="l1"))
        elif wanted.parcel_id == "p2":
            await saga.step(pay, "p2", at_most_once=True)
        elif wanted.parcel_id == "p3":
            raise TypeError("a mistake")
        await saga.sleep(86_400) if wanted.parcel_id != "p1" else None

    @app.saga(Placed)
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.child(parcel, Wanted(parcel_id=f"p{order.order_id}"))
        await saga.step(refuse)

    async with Harness(app, store=f"sqlite:///{path}") as shops:
        for order in (1, 3, 4):
            await shops.publish(Placed(order_id=order))
        await shops.settle()
        app.operator("ann").pause("parcel", "p4", reason="let me look")
        await shops.advance(600)
        await shops.publish(Placed(order_id=2))
        await asyncio.wait_for(begun.wait(), 10)
        await shops.crash()
        await shops.restart()
        await shops.settle()


@pytest.fixture
def sagas(tmp_path: Path) -> Path:
    path = tmp_path / "sagas.db"
    asyncio.run(run(path))
    return path


def test_a_child_that_waits_for_a_person_is_seen_in_its_parents(sagas: Path, tidings: Tidings) -> None:
    def show(key: int) -> str:
        return re.sub(r"\s+", " ", tidings("saga", "show", "checkout", str(key), store=sagas).output)

    first = show(1)
    assert "checkout 1 is being undone" in first
    assert "waits for the child parcel p1 to be undone since" in first
    assert "child parcel p1 is being undone" in first
    assert (
        "child label l1 is stuck: undoing it fails again and again (ConnectionError: no answer); when the cause is gone:"
        " `tidings saga retry label l1 --reason …`"
    ) in first
    second = show(2)
    assert "waits for the child parcel p2 to end since" in second
    assert "pay is tried once at most and was cut off" in second
    assert "if it happened: `tidings saga skip parcel p2 pay --result … --reason …`" in second
    assert "if not: `tidings saga retry parcel p2 --not-done pay --reason …`" in second
    assert "then if it happened: `tidings saga skip" in re.sub(r"\s+", " ", tidings("saga", "show", "parcel", "p2", store=sagas).output)
    assert "a mistake" in show(3)
    assert "when that is mended: `tidings saga retry parcel p3 --reason …`" in show(3)
    assert "(an operator has paused it); when it may go on: `tidings saga resume parcel p4 --reason …`" in show(4)
    (one,) = said(tidings("saga", "show", "checkout", "1", "--json", store=sagas))
    assert [(child["key"], child["state"], child["trouble"], child["mend"]) for child in one["children"]] == [
        ("p1", "compensating", None, []), ("l1", "stuck", "ConnectionError: no answer", ["tidings saga retry label l1 --reason …"]),
    ]  # fmt: skip


def test_so_it_is_in_a_list(sagas: Path, tidings: Tidings) -> None:
    listed = tidings("saga", "list", store=sagas).output
    assert re.search(r"parcel +p1 .*the child label l1 to be undone \(stuck\)", listed)
    for key, state in ((2, "parked"), (3, "parked"), (4, "paused")):
        assert re.search(rf"checkout +{key} .*the child parcel p{key} to end \({state}\)", listed)
    rows = said(tidings("saga", "list", "parcel", "--waiting-for", "child label", "--json", store=sagas))
    assert [row["waits_for"][0]["says"] for row in rows] == ["the child label l1 to be undone (stuck)"]


def test_that_a_step_was_not_done_is_said_and_kept(sagas: Path, tidings: Tidings) -> None:
    def retry(key: str, *, code: int = 0) -> str:
        return tidings(
            "saga", "retry", "parcel", key, "--not-done", "pay", "--reason", "no booking", "--actor", "ann", store=sagas, code=code
        ).output

    assert retry("p2") == "parcel p2 is tried again now, with pay, which was not done\n"
    assert "has no step 'pay' of which nobody knows whether it happened; of each step it is known" in retry("p2", code=2)
    (one,) = said(tidings("saga", "show", "parcel", "p2", "--json", store=sagas))
    assert [(entry["step"], entry["state"], entry["error"]) for entry in one["journal"]] == [
        ("pay", "retrying", "not done, says ann: no booking"),
    ]  # fmt: skip
    assert [(action["action"], action["detail"]) for action in one["actions"]] == [("retry", "pay: not done")]


def test_whose_child_one_is_is_told(sagas: Path, tidings: Tidings) -> None:
    assert re.search(r"child of +checkout 3\b", tidings("saga", "show", "parcel", "p3", store=sagas).output)
    parents = {row["key"]: row["parent"] for row in said(tidings("saga", "list", "--json", store=sagas))}
    assert (parents["l1"], parents["1"]) == ({"saga": "parcel", "key": "p1"}, None)
