"""What happens to the steps of sagas in a test: where a worker dies, what is refused, whose answer is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..errors import Refused
from ..sagas.attempt import Attempts
from ..sagas.journal import words
from ..sagas.step import Function, StepContext
from ..store.sagas import Entry, Hold

What = Literal["in", "after", "lost", "refused"]
"""``in``: the worker dies when the step was called and nothing of it is written; ``after``: when it is. ``lost``: an error comes in place
of its answer. ``refused``: it is refused, and not called."""


class Point(NamedTuple):
    """A step of an instance, or a step's undo: ``charge``, ``undo charge (call 2) in branch 0.1``."""

    saga: str
    key: str
    step: str

    def is_called(self, name: str) -> bool:
        """Whether ``name`` is its name, or all its words."""
        plain = self.step.split(" (call ")[0].split(" in branch ")[0]
        return name in (self.step, plain)


@dataclass(slots=True)
class Fault:
    """``times``: so often is left; None: always."""

    what: What
    meant: Callable[[Point], bool]
    name: str
    times: int | None = 1


class Lost(Exception):
    """In place of a step's answer. No error of the store's, which would be no attempt."""


class _Dies(Exception):
    """Nothing of what the step has done is written."""


@dataclass(slots=True)
class Faults:
    """Stands around the attempts of an app's sagas. ``ended``: steps and undos, each as often as it was written. ``happened``: faults."""

    planned: list[Fault] = field(default_factory=list)
    ended: list[Point] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)

    def around(self, attempts: Attempts, kill: Callable[[], None]) -> None:
        """``kill`` ends the worker at once, on its loop."""
        run = attempts.run

        async def attempt(
            function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], ctx: StepContext, hold: Hold, done: Callable[[Any], Entry],
            **how: Any,
        ) -> Entry:  # fmt: skip
            point = _point(ctx, hold)
            if not ctx.call.endswith(":undo") and function.name != ctx.call.split(":")[1]:  # a reconciliation
                return await run(function, args, kwargs, ctx, hold, done, **how)
            if self._happens("refused", point):
                raise Refused("refused by the test")
            lost = self._happens("lost", point)

            def written(value: Any) -> Entry:
                if lost:
                    raise Lost("its answer was lost by the test")
                if self._happens("in", point):
                    raise _Dies
                return done(value)

            try:
                entry = await run(function, args, kwargs, ctx, hold, written, **how)
            except _Dies:
                return await _die(kill)
            self.ended.append(point)
            return entry if not self._happens("after", point) else await _die(kill)

        attempts.run = attempt  # type: ignore[method-assign]

    def _happens(self, what: What, point: Point) -> bool:
        for fault in self.planned:
            if fault.what == what and fault.times != 0 and fault.meant(point):
                fault.times = None if fault.times is None else fault.times - 1
                self.happened.append(f"{what} {point.step}")
                return True
        return False


async def _die(kill: Callable[[], None]) -> Entry:
    kill()
    await asyncio.Event().wait()  # it is cancelled
    raise AssertionError


def _point(ctx: StepContext, hold: Hold) -> Point:
    branch, name, number, *undo = ctx.call.split(":")
    return Point(hold.saga, hold.key, f"{'undo ' if undo else ''}{words(('step', branch, name, int(number)))}")
