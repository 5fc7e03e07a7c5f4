"""What becomes of an event whose handler failed, and when a subscription stops reading by itself. Functions of values."""

from __future__ import annotations

import traceback
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..envelope import Envelope
from ..store.port import Parked
from .context import Context

ERROR_LIMIT = 2_000
TRACEBACK_LIMIT = 20_000
"""Characters kept of an error and its traceback."""


@dataclass(slots=True)
class Failure:
    """``delay`` in seconds before the next attempt; None: a dead letter. ``error`` None: a follower, which waits behind its key's head."""

    error: BaseException | None
    delay: float | None


FOLLOWS = Failure(None, None)
"""The handler was not called: an earlier event of the key is parked."""


def parked_row(ctx: Context, now: int, holds: bool) -> Parked:
    """The row for an event that failed or follows one that did. ``now`` in microseconds."""
    failure: Failure = ctx.failure
    envelope = Envelope(*ctx.row)
    if failure.error is None:
        return Parked(ctx.subscription, "waiting", False, 0, now, 0, now, None, None, envelope)
    delay = 0 if failure.delay is None else int(failure.delay * 1_000_000)
    state = "dead" if failure.delay is None else "retry"
    text = describe(failure.error)
    trace = "".join(traceback.format_exception(failure.error))[-TRACEBACK_LIMIT:]
    return Parked(ctx.subscription, state, holds and state == "dead", ctx.attempt, now + delay, delay, now, text, trace, envelope)


def describe(error: BaseException) -> str:
    """One line: type and text."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:ERROR_LIMIT] if text else type(error).__name__


class Health:
    """Whether a subscription should go on reading: not while too many keys are parked, nor while nearly everything fails.

    Args:
        most_parked: keys.
        sample: of this many last first attempts ...
        failing: ... this part failed.
    """

    def __init__(self, most_parked: float, sample: int = 100, failing: float = 0.9) -> None:
        self.most_parked = most_parked
        self._outcomes: deque[bool] = deque(maxlen=sample)
        self._failed = 0
        self._failing = failing
        self.reason: str | None = None

    def note(self, ok: bool, name: str, error: Any = None) -> None:
        """Take down one outcome of a handler."""
        outcomes = self._outcomes
        if len(outcomes) == outcomes.maxlen and not outcomes[0]:
            self._failed -= 1
        outcomes.append(ok)
        if not ok:
            self._failed += 1
            if self.reason is None and len(outcomes) == outcomes.maxlen and self._failed >= self._failing * len(outcomes):
                self.reason = f"{name} failing: {describe(error)}"

    def review(self, parked: int, name: str, probe_succeeded: bool) -> str | None:
        """Why reading is held, or None. A success of a parked event (the probe) lifts it once there is room."""
        if parked >= self.most_parked:
            self.reason = self.reason or f"{name} failing: {parked} keys parked"
        elif self.reason is not None and (parked == 0 or (probe_succeeded and parked < 0.8 * self.most_parked)):
            self.reason = None
            self._outcomes.clear()
            self._failed = 0
        return self.reason
