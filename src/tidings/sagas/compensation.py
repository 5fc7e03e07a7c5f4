"""What is to be undone, in which order, and when: functions of values."""

from __future__ import annotations

import random
from collections.abc import Iterable

from ..errors import ChildFailed, NotInTime, Refused, StepFailed
from ..retry import Retry
from .body import AGAIN, Call

OUTCOMES = (Refused, StepFailed, NotInTime, ChildFailed)
"""What a body may let pass to be compensated; and what its declaration says (``failures=``). Anything else is a mistake in the code."""

STUCK_AFTER = 5
"""An undo that has failed so often is shown as ``stuck``. It is tried again all the same."""


def is_outcome(error: BaseException, failures: tuple[type[Exception], ...]) -> bool:
    """Whether a body that ended with this is to be undone. A group of errors is, if each of them is."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_outcome(one, failures) for one in error.exceptions)
    return isinstance(error, (*OUTCOMES, *failures))


def due(calls: Iterable[Call]) -> list[Call]:
    """Steps to be undone, the last first: those that succeeded, and those of which nobody knows (no attempts left, or no word of it).

    A refusal alone says that nothing happened. Steps that were under way in parallel go by when they ended; unknown ones were the last.
    """
    found = [
        (call.entry.seq if call.entry is not None and call.entry.seq is not None else 2**62, number, call)
        for number, call in enumerate(calls)
        if (_step_is_due(call) if call.key[0] == "step" else call.key[0] == "child" and _child_is_due(call))
    ]
    return [call for _, _, call in sorted(found, key=lambda one: one[:2], reverse=True)]


def _step_is_due(call: Call) -> bool:
    return call.undo is not None and not (call.entry is not None and call.entry.state == "refused")


def _child_is_due(call: Call) -> bool:
    """It was begun, and has not been undone by itself."""
    return call.entry is not None and call.entry.state in ("begun", "done")


def rounds(calls: Iterable[Call]) -> list[list[Call]]:
    """What is due, one round after another: alone, or with all of its group."""
    found: list[list[Call]] = []
    groups: dict[str, list[Call]] = {}
    for call in due(calls):
        group = [] if call.undo_group is None else groups.setdefault(call.undo_group, [])
        if not group:
            found.append(group)
        group.append(call)
    return found


def state_after(attempts: int, *, given_up: bool = False) -> str:
    """Of a saga whose undo has failed so often; ``given_up``: it isn't tried again by itself."""
    return "stuck" if given_up or attempts >= STUCK_AFTER else "compensating"


def delay(attempts: int, error: BaseException, rng: random.Random) -> float:
    """Seconds until what must end is tried again."""
    found = AGAIN.delay(attempts, error, rng)
    return AGAIN.most if found is None else found


def undo_delay(policy: Retry, attempts: int, error: BaseException, rng: random.Random) -> float | None:
    """Seconds until an undo is tried again; None: not before somebody says so."""
    return delay(attempts, error, rng) if policy is AGAIN else policy.delay(attempts, error, rng)
