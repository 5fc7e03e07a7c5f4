"""What becomes of an event whose handler failed, and when a subscription stops reading by itself. Functions of values."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from ..envelope import Envelope
from ..errors import WorkerDied
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
    failure = ctx.failure or FOLLOWS
    envelope = Envelope(*ctx.row)
    if failure.error is None:
        return Parked(ctx.subscription, "waiting", False, 0, now, 0, now, None, None, envelope)
    delay = 0 if failure.delay is None else int(failure.delay * 1_000_000)
    state = "dead" if failure.delay is None else "retry"
    text = describe(failure.error)
    trace = storable(_shortened("".join(traceback.format_exception(failure.error))))
    return Parked(ctx.subscription, state, holds and state == "dead", ctx.attempt, now + delay, delay, now, text, trace, envelope)


def describe(error: BaseException) -> str:
    """One line: type and text, whatever the error is."""
    try:
        text = str(error).strip().split("\n")[0]
    except Exception:
        text = "(its text can't be made)"
    return storable(f"{type(error).__name__}: {text}"[:ERROR_LIMIT]) if text else type(error).__name__


def killed_its_worker(row: Parked) -> bool:
    """Whether its last attempt ended with the process, so that the next one has to be made alone."""
    return row.error is not None and row.error.startswith(f"{WorkerDied.__name__}:")


def storable(text: str) -> str:
    """Without what a store would refuse, and its row with it: what UTF-8 can't carry (half of a surrogate pair, as in file names that
    aren't UTF-8), and the zero byte, which PostgreSQL's texts can't hold."""
    return text.encode(errors="backslashreplace").decode().replace("\x00", "\\x00")


def _shortened(text: str) -> str:
    """The beginning says where it was, the end what it was."""
    half = TRACEBACK_LIMIT // 2
    return text if len(text) <= TRACEBACK_LIMIT else f"{text[:half]}\n[…]\n{text[-half:]}"


class Health:
    """Whether a subscription should go on reading: not while too many keys are parked, nor while nearly everything fails.

    Args:
        name: whose failures they are.
        most_parked: keys.
    """

    SAMPLE = 100
    """So many ends must have been seen before a failure rate means something."""
    FAILING = 0.9

    def __init__(self, name: str, most_parked: float) -> None:
        self.name = name
        self.most_parked = most_parked
        self.reason: str | None = None
        self._succeeded = self._failed = 0.0
        self.last: BaseException | None = None

    def note(self, succeeded: int, failed: int, error: BaseException | None) -> None:
        """Take down how handlers ended. Older ends count less and less."""
        self._succeeded += succeeded
        self._failed += failed
        self.last = error or self.last
        seen = self._succeeded + self._failed
        if seen >= self.SAMPLE and self._failed >= self.FAILING * seen:
            self.reason = self.reason or self._describe()
        while self._succeeded + self._failed > 2 * self.SAMPLE:
            self._succeeded /= 2
            self._failed /= 2

    def review(self, parked: int, probe_succeeded: bool) -> str | None:
        """Why reading is held, or None. A parked event that succeeds (the probe) lifts it once there is room."""
        if parked >= self.most_parked:
            self.reason = self.reason or f"{self._describe()} ({parked} keys parked)"
        elif self.reason is not None and (parked == 0 or (probe_succeeded and parked < 0.8 * self.most_parked)):
            self.reason = None
            self._succeeded = self._failed = 0.0
        return self.reason

    def _describe(self) -> str:
        return f"{self.name} failing: {describe(self.last)}" if self.last is not None else f"{self.name} failing"
