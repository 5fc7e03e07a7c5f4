"""Random sagas against a simple model of steps, failures and undos: workers die at random, and it ends as the model says."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tidings import App, Context, Event, Refused, Retry, Saga, StepFailed
from tidings.testing import Harness

TWICE = Retry(attempts=2, first=5, jitter=0)


class Placed(Event, key="order_id"):
    order_id: int


@dataclass(frozen=True)
class Step:
    """``outcome``: ok, refused or broken. ``dies``: the worker does, at its first attempt. ``undo_fails``: so often, before it works."""

    outcome: str
    tx: bool
    undo: bool
    dies: bool = False
    undo_fails: int = 0


@dataclass(frozen=True)
class Group:
    """Steps side by side, all of one name. ``catch``: the body goes on whatever becomes of them. ``crash``: a worker dies behind it.
    ``pivot``: the saga's pivot stands before it. ``together``: its undos are a group."""

    steps: tuple[Step, ...]
    catch: bool = False
    crash: bool = False
    pivot: bool = False
    together: bool = False


steps = st.builds(
    Step,
    outcome=st.sampled_from(["ok", "ok", "ok", "refused", "broken"]),
    tx=st.booleans(),
    undo=st.booleans(),
    dies=st.integers(0, 5).map(lambda n: n == 0),
    undo_fails=st.sampled_from([0, 0, 0, 1, 6]),
)
plans = st.lists(
    st.builds(
        Group,
        steps=st.lists(steps, min_size=1, max_size=3).map(tuple),
        catch=st.booleans(),
        crash=st.booleans(),
        pivot=st.integers(0, 4).map(lambda n: n == 0),
        together=st.booleans(),
    ),
    max_size=4,
)


def model(plan: list[Group]) -> tuple[str, list[set[str]], set[str], set[str]]:
    """State, what is undone (a set for each group, the last group first), rows that transactional steps leave, and those that they may
    leave: beside a failure that ended the body, a step whose worker died is not tried again."""
    undone: list[set[str]] = []
    rows: set[str] = set()
    maybe: set[str] = set()
    pivoted = False
    for number, group in enumerate(plan):
        pivoted = pivoted or group.pivot
        undone.insert(0, {f"{number}.{i}" for i, step in enumerate(group.steps) if step.undo and step.outcome != "refused"})
        left = {f"{number}.{i}" for i, step in enumerate(group.steps) if step.tx and step.outcome == "ok"}
        outcomes = {step.outcome for step in group.steps}
        fails = not group.catch and bool(outcomes - {"ok"})
        if pivoted and outcomes & {"refused", "broken"}:
            if "refused" not in outcomes:  # the others end, and this is tried again without end
                return "waiting", [], rows | left, maybe
            if group.catch:  # a broken sibling goes on beside what follows, and is left behind when the body ends
                fails = False
        if fails and any(step.dies for step in group.steps):
            maybe |= left
        else:
            rows |= left
        if fails and pivoted:
            return "parked", [], rows, maybe
        if fails:
            return "compensated", [names for names in undone if names], rows, maybe
    return "completed", [], rows, maybe


class Run:
    def __init__(self, plan: list[Group]) -> None:
        self.plan = plan
        self.died: set[str] = set()
        self.dying = asyncio.Event()
        self.undo_calls: dict[str, int] = {}
        self.keys: dict[str, set[str]] = {}

    def app(self) -> App:
        app = App("shop", store="sqlite:///never.db")

        def end(step: Step, ctx: Context) -> None:
            if step.outcome == "refused":
                raise Refused("no")
            if step.outcome == "broken":
                raise ConnectionError("no answer")

        async def outside(name: str, ctx: Context) -> str:
            step = self.step(name)
            self.keys.setdefault(name, set()).add(ctx.idempotency_key)
            if step.dies and name not in self.died:
                self.died.add(name)
                self.dying.set()
                await asyncio.Event().wait()
            end(step, ctx)
            return name

        async def inside(name: str, tx: sqlite3.Connection, ctx: Context) -> str:
            step = self.step(name)
            await asyncio.to_thread(tx.execute, "INSERT INTO rows VALUES (?)", (name,))
            if step.dies and name not in self.died:
                self.died.add(name)
                self.dying.set()
                await asyncio.Event().wait()
            end(step, ctx)
            return name

        def undo(name: str, tx: sqlite3.Connection, ctx: Context) -> None:
            tx.execute("INSERT INTO undone VALUES (?)", (name,))
            if ctx.attempt <= self.step(name).undo_fails:
                raise ConnectionError("closed")

        outside.__name__ = inside.__name__ = "work"

        async def one(saga: Saga, name: str, step: Step, group: str | None) -> str:
            result = await saga.step(inside if step.tx else outside, name, undo=undo if step.undo else None, undo_group=group, retry=TWICE)
            assert result == name, "the result of another branch"
            return name

        @app.saga(Placed)
        async def checkout(order: Placed, saga: Saga) -> None:
            for number, group in enumerate(self.plan):
                if group.pivot:
                    await saga.pivot()
                together = str(number) if group.together else None
                try:
                    await asyncio.gather(*(one(saga, f"{number}.{i}", step, together) for i, step in enumerate(group.steps)))
                except (Refused, StepFailed):
                    if not group.catch:
                        raise
                await saga.sleep(30)

        return app

    def step(self, name: str) -> Step:
        group, _, number = name.partition(".")
        return self.plan[int(group)].steps[int(number)]

    async def settle(self, harness: Harness, seconds: float) -> None:
        """Let time pass, and crash whenever a step says so."""
        await self._through(harness, asyncio.ensure_future(harness.advance(seconds)))

    async def restart(self, harness: Harness) -> None:
        await self._through(harness, asyncio.ensure_future(harness.restart()))

    async def _through(self, harness: Harness, work: asyncio.Future[None]) -> None:
        while not work.done():
            dying = asyncio.ensure_future(self.dying.wait())
            either: list[asyncio.Future[Any]] = [work, dying]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            dying.cancel()
            if self.dying.is_set():
                self.dying.clear()
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await harness.crash()
                work = asyncio.ensure_future(harness.restart())
        await work


async def prove(plan: list[Group], state: str) -> dict[str, Any]:
    run = Run(plan)
    async with Harness(run.app()) as harness:
        with harness.transaction() as conn:
            conn.execute("CREATE TABLE rows (name)")
            conn.execute("CREATE TABLE undone (name)")
        await harness.publish(Placed(order_id=1))
        await run.settle(harness, 1)
        for group in plan:
            await run.settle(harness, 35)
            if group.crash:
                await harness.crash()
                await run.restart(harness)
        row = harness.saga("checkout", 1)
        for _ in range(40 if state != "waiting" else 3):
            row = harness.saga("checkout", 1)
            if row.state in ("completed", "compensated", "parked"):
                break
            await run.settle(harness, 300)
        with harness.transaction() as conn:
            rows = [row[0] for row in conn.execute("SELECT name FROM rows")]
            undone = [row[0] for row in conn.execute("SELECT name FROM undone ORDER BY rowid")]
        return {"state": row.state, "error": row.error, "rows": rows, "undone": undone, "keys": run.keys}


@pytest.mark.promise("effects once")
@pytest.mark.promise("death at any instruction")
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@example([Group((Step("ok", True, True), Step("ok", False, True, dies=True))), Group((Step("refused", True, True),))])
@example([Group((Step("broken", False, True, undo_fails=6),), catch=True), Group((Step("broken", True, True, dies=True),), crash=True)])
@given(plans)
def test_it_ends_as_the_model_says(plan: list[Group]) -> None:
    state, undone, rows, maybe = model(plan)
    found = asyncio.run(asyncio.wait_for(prove(plan, state), 60))
    assert found["state"] == state, found
    assert sorted(set(found["rows"])) == sorted(found["rows"]), found
    assert rows <= set(found["rows"]) <= rows | maybe, found
    assert [set(found["undone"][start : start + len(names)]) for start, names in _spans(undone)] == undone, found
    assert len(found["undone"]) == sum(map(len, undone)), found
    assert all(len(keys) == 1 for keys in found["keys"].values()), found


def _spans(groups: list[set[str]]) -> list[tuple[int, set[str]]]:
    return [(sum(len(one) for one in groups[:number]), names) for number, names in enumerate(groups)]
