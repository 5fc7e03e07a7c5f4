"""Random sagas against a simple model of steps, children, failures, other ways and undos: workers die at random, and it ends as the model
says."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tidings import App, ChildFailed, Context, Event, Refused, Retry, Saga, StepFailed
from tidings.store.sagas import CLOSED, SagaRow
from tidings.testing import Harness

TWICE = Retry(attempts=2, first=5, jitter=0)


class Placed(Event, key="order_id"):
    order_id: int


class Wanted(Event, key="name"):
    name: str


@dataclass(frozen=True)
class Step:
    """``outcome``: ok, refused or broken. ``dies``: the worker does, at its first attempt. ``undo_fails``: so often, before it works."""

    outcome: str
    tx: bool
    undo: bool
    dies: bool = False
    undo_fails: int = 0


@dataclass(frozen=True)
class Child:
    """A saga of steps, one after another."""

    steps: tuple[Step, ...]

    @property
    def reached(self) -> int:
        """So many of them are called: the last one is the first that fails."""
        return next((number for number, step in enumerate(self.steps, 1) if step.outcome != "ok"), len(self.steps))

    @property
    def fails(self) -> bool:
        return any(step.outcome != "ok" for step in self.steps)


@dataclass(frozen=True)
class Group:
    """Steps and children side by side, all steps of one name. ``catch``: the body goes on whatever becomes of them; ``otherwise``: by this
    step. ``crash``: a worker dies behind it. ``pivot``: the saga's pivot stands before it. ``together``: its steps' undos are a group."""

    steps: tuple[Step | Child, ...]
    catch: bool = False
    crash: bool = False
    pivot: bool = False
    together: bool = False
    otherwise: Step | None = None


steps = st.builds(
    Step,
    outcome=st.sampled_from(["ok", "ok", "ok", "refused", "broken"]),
    tx=st.booleans(),
    undo=st.booleans(),
    dies=st.integers(0, 5).map(lambda n: n == 0),
    undo_fails=st.sampled_from([0, 0, 0, 1, 6]),
)
children = st.builds(Child, steps=st.lists(steps, min_size=1, max_size=3).map(tuple))
plans = st.lists(
    st.builds(
        Group,
        steps=st.lists(st.one_of(steps, steps, children), min_size=1, max_size=3).map(tuple),
        catch=st.booleans(),
        crash=st.booleans(),
        pivot=st.integers(0, 4).map(lambda n: n == 0),
        together=st.booleans(),
        otherwise=st.none() | steps,
    ),
    max_size=4,
)


@dataclass
class Expected:
    """How it ends. ``undone`` is, and ``unsure`` may be: a child that is turned back at some step. ``alone``: by children that failed.
    ``rows`` are left by transactional steps, and ``unsure_rows`` may be: beside a failure that ended the body, a step whose worker died is
    not tried again."""

    state: str = "completed"
    undone: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)
    rows: set[str] = field(default_factory=set)
    unsure_rows: set[str] = field(default_factory=set)

    def ended(self, state: str) -> Expected:
        self.state = state
        if state != "compensated":
            self.undone.clear()
        return self


def undoable(steps: dict[str, Step]) -> set[str]:
    return {name for name, step in steps.items() if step.undo and step.outcome != "refused"}


def written(steps: dict[str, Step]) -> set[str]:
    return {name for name, step in steps.items() if step.tx and step.outcome == "ok"}


def model(plan: list[Group]) -> Expected:
    found, pivoted = Expected(), False
    for number, group in enumerate(plan):
        pivoted = pivoted or group.pivot
        mine = {f"{number}.{i}": one for i, one in enumerate(group.steps) if isinstance(one, Step)}
        kids = {f"{number}.{i}": one for i, one in enumerate(group.steps) if isinstance(one, Child)}
        theirs = {name: {f"{name}.{j}": kid.steps[j] for j in range(kid.reached)} for name, kid in kids.items()}
        failing = [*(name for name, step in mine.items() if step.outcome != "ok"), *(name for name, kid in kids.items() if kid.fails)]
        refused = [name for name in failing if name in kids or mine[name].outcome == "refused"]

        def children_end(*, surely: bool, only: str | None = None) -> None:
            """Each by itself; unless ``surely`` they may be turned back before, but for one."""
            for name, reached in theirs.items():  # noqa: B023
                if surely or name == only:
                    (found.alone if kids[name].fails else found.undone).update(undoable(reached))  # noqa: B023
                    found.rows.update(written(reached))
                else:  # one that was called for and not begun may have been, for all that anybody knows
                    found.unsure.update(name for name, step in reached.items() if step.undo)
                    found.unsure_rows.update(written(reached))

        found.undone |= undoable(mine)
        if not failing:
            found.rows |= written(mine)
            children_end(surely=True)
            continue
        if pivoted and not refused:  # the others end, and this is tried again without end
            found.rows |= written(mine)
            children_end(surely=True)
            return found.ended("waiting")
        last = group.otherwise if group.catch else None
        if group.catch and (last is None or last.outcome == "ok" or (pivoted and last.outcome == "broken")):
            # Behind the pivot a broken sibling goes on beside what follows, and is left behind when the body ends.
            found.rows |= written(mine)
            children_end(surely=True)
            if last is not None:
                found.undone |= undoable({f"{number}.else": last})
                found.rows |= written({f"{number}.else": last})
            if last is not None and last.outcome == "broken":
                return found.ended("waiting")
            continue
        if last is not None:
            found.undone |= undoable({f"{number}.else": last})
        dying = any(step.dies for part in group.steps for step in (part.steps if isinstance(part, Child) else (part,)))
        (found.unsure_rows if dying else found.rows).update(written(mine))
        if dying:  # nobody may know of one that refused
            found.unsure |= {name for name, step in mine.items() if step.undo and step.outcome == "refused"}
        children_end(surely=False, only=failing[0] if len(failing) == 1 else None)
        return found.ended("parked" if pivoted else "compensated")
    return found.ended("completed")


def part_of(plan: list[Group], name: str) -> Step:
    """A step by its name: ``1.0``, ``1.else``, ``1.0.2`` of a child."""
    group, number, *within = name.split(".")
    found = plan[int(group)].otherwise if number == "else" else plan[int(group)].steps[int(number)]
    if isinstance(found, Child):
        found = found.steps[int(within[0])]
    assert found is not None
    return found


class Run:
    def __init__(self, plan: list[Group]) -> None:
        self.plan = plan
        self.died: set[str] = set()
        self.dying = asyncio.Event()
        self.undo_calls: dict[str, int] = {}
        self.keys: dict[str, set[str]] = {}
        self.called: set[str] = set()

    def app(self) -> App:
        app = App("shop", store="sqlite:///never.db")

        def end(step: Step, ctx: Context) -> None:
            if step.outcome == "refused":
                raise Refused("no")
            if step.outcome == "broken":
                raise ConnectionError("no answer")

        async def outside(name: str, ctx: Context) -> str:
            step = self.step(name)
            self.called.add(name)
            self.keys.setdefault(name, set()).add(ctx.idempotency_key)
            if step.dies and name not in self.died:
                self.died.add(name)
                self.dying.set()
                await asyncio.Event().wait()
            end(step, ctx)
            return name

        async def inside(name: str, tx: sqlite3.Connection, ctx: Context) -> str:
            step = self.step(name)
            self.called.add(name)
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

        @app.saga(Wanted)
        async def parcel(wanted: Wanted, saga: Saga) -> str:
            group, _, place = wanted.name.partition(".")
            child = self.plan[int(group)].steps[int(place)]
            assert isinstance(child, Child)
            for number, step in enumerate(child.steps):
                await one(saga, f"{wanted.name}.{number}", step, None)
            return wanted.name

        async def part(saga: Saga, name: str, what: Step | Child, group: str | None) -> None:
            if isinstance(what, Step):
                await one(saga, name, what, group)
            else:
                assert await saga.child(parcel, Wanted(name=name)) == name, "the result of another child"

        @app.saga(Placed)
        async def checkout(order: Placed, saga: Saga) -> None:
            for number, group in enumerate(self.plan):
                if group.pivot:
                    await saga.pivot()
                together = str(number) if group.together else None
                try:
                    await asyncio.gather(*(part(saga, f"{number}.{i}", what, together) for i, what in enumerate(group.steps)))
                except (Refused, StepFailed, ChildFailed):
                    if not group.catch:
                        raise
                    if group.otherwise is not None:
                        await one(saga, f"{number}.else", group.otherwise, None)
                await saga.sleep(30)

        return app

    def step(self, name: str) -> Step:
        return part_of(self.plan, name)

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
                if harness.apps[0].worker is not None:  # else it died while it was being started
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
        row, children = harness.saga("checkout", 1), list[SagaRow]()
        for _ in range(40 if state != "waiting" else 4):
            row = harness.saga("checkout", 1)
            children = harness.store.query(lambda unit: unit.sagas().rows("parcel", (), 100))
            if row.state in (*CLOSED, "parked") and all(child.state in CLOSED for child in children):
                break
            await run.settle(harness, 300)
        with harness.transaction() as conn:
            rows = [row[0] for row in conn.execute("SELECT name FROM rows")]
            undone = [row[0] for row in conn.execute("SELECT name FROM undone ORDER BY rowid")]
        found = {"state": row.state, "error": row.error, "rows": rows, "undone": undone, "keys": run.keys, "called": run.called}
        return found | {"children": {child.key: child.state for child in children}}


def rightly_ordered(undone: list[str], alone: set[str]) -> bool:
    """What was done later is undone before, but by children that failed, which did it at their time; so are the steps of a child."""
    for number, first in enumerate(undone):
        for then in undone[number + 1 :]:
            if int(then.split(".")[0]) > int(first.split(".")[0]) and first not in alone:
                return False
            if first.rpartition(".")[0] == then.rpartition(".")[0] and first.count(".") == 2 and then > first:
                return False
    return True


OK, REFUSED = Step("ok", True, True), Step("refused", True, True)
FAILING = Child((OK, Step("broken", True, True, dies=True)))


@pytest.mark.promise("effects once")
@pytest.mark.promise("death at any instruction")
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@example([Group((Step("ok", True, True), Step("ok", False, True, dies=True))), Group((Step("refused", True, True),))])
@example([Group((Step("broken", False, True, undo_fails=6),), catch=True), Group((Step("broken", True, True, dies=True),), crash=True)])
@example([Group((Child((Step("ok", True, True, undo_fails=6), Step("ok", False, True))),), crash=True), Group((REFUSED,))])
@example([Group((FAILING, Step("ok", True, True)), catch=True, crash=True, otherwise=OK), Group((OK,)), Group((REFUSED,))])
@given(plans)
def test_it_ends_as_the_model_says(plan: list[Group]) -> None:
    expected = model(plan)
    found = asyncio.run(asyncio.wait_for(prove(plan, expected.state), 60))
    assert found["state"] == expected.state, (expected, found)
    assert sorted(set(found["rows"])) == sorted(found["rows"]), found
    assert expected.rows <= set(found["rows"]) <= expected.rows | expected.unsure_rows, (expected, found)
    undone, surely = found["undone"], expected.undone | expected.alone
    assert sorted(set(undone)) == sorted(undone), found
    assert surely <= set(undone) <= surely | expected.unsure, (expected, found)
    assert rightly_ordered(undone, expected.alone), (expected, found)
    if found["state"] == "compensated":
        assert set(found["children"].values()) <= {"compensated"}, found
        ran = {name for name in expected.unsure & found["called"] if part_of(plan, name).outcome != "refused"}
        assert ran <= set(undone), (expected, found)
    assert all(len(keys) == 1 for keys in found["keys"].values()), found
