"""The compensation proof for a saga of yours: killed at each of its steps and undos, and with each of them failing, it ends as it must."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ..app import App
from ..errors import NotFound
from ..sagas.journal import key_of, words
from ..sagas.operating import unknown, waits
from ..store.sagas import CLOSED, Entry, SagaRow
from .faults import Fault, Point, What
from .harness import AFTER, Harness

_WORDS: dict[What, str] = {
    "in": "its worker killed in {}, before anything was written",
    "after": "its worker killed after {}",
    "lost": "{} without an answer",
    "refused": "{} refused",
}
Planned = tuple[What, Point]


@dataclass(slots=True)
class Proof:
    """What was tried. ``runs``: in words, each with its end. ``kills``: workers that died. ``left``: steps that had succeeded, or of which
    nobody knew, in a run that was compensated, and that have no undo; for you to judge."""

    runs: list[str] = field(default_factory=list)
    kills: int = 0
    left: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Run:
    """How one ended: instances with their journals, by saga and key."""

    rows: dict[tuple[str, str], tuple[SagaRow, list[Entry]]]
    ended: list[Point]

    def behind_a_pivot(self, point: Point) -> bool:
        _, journal = self.rows[point.saga, point.key]
        pivot = min((entry.seq or 0 for entry in journal if entry.kind == "pivot"), default=None)
        return pivot is not None and any(
            words(key_of(entry)) == point.step and (entry.seq or 0) > pivot for entry in journal if entry.kind == "step"
        )


async def prove(
    app: App, event: object, *, then: Sequence[object] = (), within: timedelta = timedelta(days=60), most: int = 200, seed: int = 0,
    prepare: Callable[[Harness], Any] | None = None, check: Callable[[Harness], Any] | None = None, **options: Any,
) -> Proof:  # fmt: skip
    """Run the saga that ``event`` starts again and again, each time in a harness of its own:

    - undisturbed; then with its worker killed in and after each step, each undo, and each of its children's;
    - with each step failing in turn: refused, or its answer lost at each attempt (its transaction, if it has one, rolled back);
    - and in each of those that are compensated, with a worker killed in and after each undo.

    It must end whatever happens, with all its children, and never be stuck or parked; but a step that is tried once at most may leave it
    parked until a person says what became of it. Killed, it must end as it ends undisturbed, with the same lines in its journals.

    Args:
        then: events that are published behind it, one after another, whenever nothing is left to do. within: so long it may take, by the
            test's clock. A takeover takes the app's ``lease`` of it, so deadlines shorter than that may pass.
        most: so many runs; of more, some are drawn by ``seed``.
        prepare: called with each harness before the event is published, to make tables, or to begin again what a test double remembers.
            check: called at the end of each run, with an ``assert`` of what must hold in your tables. Both may be async.
        options: as ``Harness`` takes them; ``store``, which must be empty for each run: a function that returns one.

    Raises:
        AssertionError: it doesn't hold. The text says in which run.
    """
    tried = Proof()

    async def run(*planned: Planned) -> _Run:
        what = ", ".join(_words(one) for one in planned) or "undisturbed"
        try:
            async with Harness(app, **options) as harness:
                for kind, point in planned:
                    harness.faults.planned.append(Fault(kind, point.__eq__, point.step, None if kind in ("lost", "refused") else 1))
                found = await _story(harness, app, event, then, within, prepare)
                _judge(found)
                if check is not None:
                    await _called(check, harness)
                for fault in harness.faults.planned:  # nobody need be killed where the body goes another way
                    fault.times = 0
                tried.kills += sum(one.startswith(("in ", "after ")) for one in harness.faults.happened)
        except AssertionError as error:
            error.args = (f"{what}: {error}",)
            raise
        tried.runs.append(f"{what}: {', '.join(row.state for row, _ in found.rows.values())}")
        tried.left |= _left(found)
        return found

    async def killed(before: tuple[Planned, ...], whole: _Run, points: Sequence[Point]) -> None:
        kills: list[Planned] = [(kind, point) for point in points for kind in ("in", "after")]
        for plan in _some(kills, most - len(tried.runs), rng):
            found = await run(*before, plan)
            if (difference := _difference(found, whole)) is not None:
                raise AssertionError(f"{', '.join(_words(one) for one in (*before, plan))}: {difference}")

    rng = random.Random(seed)
    whole = await run()
    points = list(dict.fromkeys(whole.ended))
    steps = [point for point in points if not point.step.startswith("undo ") and not whole.behind_a_pivot(point)]
    await killed((), whole, points)
    failing: list[Planned] = [(kind, point) for point in steps for kind in ("lost", "refused")]
    for plan in _some(failing, most - len(tried.runs), rng):
        failed = await run(plan)
        await killed((plan,), failed, [point for point in dict.fromkeys(failed.ended) if point.step.startswith("undo ")])
    return tried


async def _story(
    harness: Harness, app: App, event: object, then: Sequence[object], within: timedelta, prepare: Callable[[Harness], Any] | None
) -> _Run:
    if prepare is not None:
        await _called(prepare, harness)
    until = harness.clock.time() + within.total_seconds()
    await harness.publish(event, app=app)
    await harness.settle()
    for one in then:
        await harness.publish(one, app=app)
        await harness.settle()
    while True:
        rows = harness.store.query(lambda unit: unit.sagas().rows(None, (), 10_000))
        if all(row.state in (*CLOSED, "parked", "stuck", "paused") for row in rows):
            break
        due, now = harness.next_due(), harness.clock.time()
        if due is None or due > until:
            break
        await harness.advance(max(0.0, due - now) + AFTER)
    if not rows:
        raise NotFound(f"{type(event).__name__} starts no saga of the app {app.name!r}")
    found = {}
    for row in rows:
        journal = harness.store.query(lambda unit, row=row: unit.sagas().journal(row.saga, row.key))  # type: ignore[misc]
        found[row.saga, row.key] = (row, journal)
    return _Run(found, list(harness.faults.ended))


def _judge(run: _Run) -> None:
    """Each has ended."""
    for (saga, key), (row, journal) in run.rows.items():
        if row.state in CLOSED or _may_be_parked(row, journal):
            continue
        there = ", ".join(str(wait["for"]) + (f" ({wait['error']})" if wait.get("error") else "") for wait in waits(row))
        raise AssertionError(f"{saga} {key} is {row.state}" + (f", it waits for {there}" if there else f": {row.error}"))


def _may_be_parked(row: SagaRow, journal: Sequence[Entry]) -> bool:
    """Until a person says what became of a step that is tried once at most; or it waits for such a child."""
    return (row.state == "parked" and bool(unknown(row, journal))) or any("child" in wait for wait in waits(row))


def _difference(found: _Run, whole: _Run) -> str | None:
    """How a run ended otherwise than it should have, since a worker died."""
    if any(row.state not in CLOSED for row, _ in found.rows.values()):
        return None  # judged already
    for name, (row, journal) in whole.rows.items():
        saga_key = " ".join(name)
        if name not in found.rows or found.rows[name][0].state != row.state:
            there = found.rows[name][0].state if name in found.rows else "not there"
            return f"{saga_key} is {there}, and without that it is {row.state}"
        lines, expected = _lines(found.rows[name][1]), _lines(journal)
        # Of a step that was cut off beside one that failed nobody knows, so more may be undone.
        missing = expected - lines if row.state == "completed" else {line for line in expected if line[0] == "undo"} - lines
        if missing:
            return f"{saga_key} has no line in its journal for {', '.join(sorted(words(line[:4]) for line in missing))}"
    return None


def _lines(journal: Sequence[Entry]) -> set[tuple[Any, ...]]:
    return {(*key_of(entry), entry.state) for entry in journal}


def _left(run: _Run) -> set[str]:
    found = set[str]()
    for row, journal in run.rows.values():
        if row.state in ("compensated", "cancelled"):
            undone = {key_of(entry)[1:] for entry in journal if entry.kind == "undo"}
            ran = (entry for entry in journal if entry.kind == "step" and entry.state in ("done", "failed", "skipped"))
            found |= {entry.step for entry in ran if key_of(entry)[1:] not in undone}
    return found


def _words(planned: Planned) -> str:
    return _WORDS[planned[0]].format(planned[1].step)


def _some(plans: Sequence[Planned], most: int, rng: random.Random) -> list[Planned]:
    return list(plans) if len(plans) <= most else sorted(rng.sample(plans, max(0, most)), key=plans.index)


async def _called(fn: Callable[[Harness], Any], harness: Harness) -> None:
    result = fn(harness)
    if inspect.isawaitable(result):
        await result
