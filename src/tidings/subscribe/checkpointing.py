"""How ends become durable: checkpoints, parked rows and follow-up events, together, in one transaction.

A plain success (no transaction, nothing published) is taken out of its lane's ``open`` set at once and is written with whatever
checkpoint comes next. Everything else stays open until the transaction that carries its consequences has committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from ..store.port import FailedAttempt, KeyState
from .context import LANE, POSITION, Context
from .lanes import LaneState
from .parking import parked_row

if TYPE_CHECKING:
    from ..clock import Clock
    from ..store.port import Store
    from .feed import Feed

log = logging.getLogger("tidings.subscribe")

FLUSH_SIZE = 5000
"""Ends that are written at once; fewer at the latest after the subscription's ``checkpoint_age``."""
QUIET_SECONDS = 0.05
"""A reader with nothing in flight writes at once, but not again sooner than this: a trickle would hold the file half of the time."""
QUIET_TIMES = 10
"""Nor sooner than so many times what the last one took, whichever reader's of this process, by its age at the latest: so fifty readers at
rest write together, and leave the file alone most of the time."""
AGAIN_SECONDS = 0.5
"""After a store that failed (a full disk, a locked file), the same is written again."""


@dataclass(slots=True)
class Quiet:
    """One for a process: when one of its readers last began to write, on the loop's clock, and how long it took."""

    began: float = 0.0
    took: float = 0.0


@dataclass(slots=True)
class Committed:
    """What one checkpoint's transaction did.

    Attributes:
        touched: keys whose parked rows it changed. keys: how they stand since, if the transaction was the writer's.
    """

    batch: list[Context]
    finished: list[tuple[LaneState, set[int]]] = field(default_factory=list)
    fenced: list[LaneState] = field(default_factory=list)
    touched: dict[Any, Context] = field(default_factory=dict)
    keys: list[tuple[LaneState, Any, KeyState]] = field(default_factory=list)
    published: int = 0

    def apply(self) -> None:
        """The lanes learn it, before any other transaction of this process begins."""
        for lane, finished in self.finished:
            if finished:
                lane.committed(finished)


class Checkpointing:
    """Gathers ends and writes them; one transaction at a time, and meanwhile the next gathers.

    Attributes:
        dirty: lanes with plain successes that are not written. plain: how many.
        ended: contexts whose end has consequences that are not written. writing: those on their way.
    """

    def __init__(
        self,
        name: str,
        worker: str,
        store: Store,
        feed: Feed,
        clock: Clock,
        quiet: Quiet,
        *,
        age: float,
        holds: bool,
        settle: Callable[[Committed], None],
        trouble: Callable[[BaseException | None], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._name = name
        self._worker = worker
        self._store = store
        self._feed = feed
        self._clock = clock
        self._quiet = quiet
        self._began = 0.0
        self._age = age
        self._holds = holds
        self._settle = settle
        self._trouble = trouble
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._resting = False
        self._busy = False
        self.dirty: set[LaneState] = set()
        self.plain = 0
        self.ended: list[Context] = []
        self.writing: list[Context] = []

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def outstanding(self) -> int:
        """Ends that are not written."""
        return len(self.ended) + len(self.writing) + len(self.dirty) + self._busy

    @property
    def writes(self) -> bool:
        """A flush is on its way."""
        return self._busy

    def begin_age(self) -> None:
        """The first end since the last flush: it is written within ``age`` seconds."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._age, self.flush)

    def ended_plainly(self, count: int) -> None:
        """So many have ended whose lanes are ``dirty`` now: written with whatever comes next, by size or by age."""
        self.plain += count
        if self.plain >= FLUSH_SIZE:
            self.flush()
        elif count and self.plain == count:
            self.begin_age()

    def rest(self) -> None:
        """Nothing else is in flight."""
        if not (self.ended or self.dirty):
            return
        quiet = self._quiet
        wait = quiet.began + min(max(QUIET_SECONDS, QUIET_TIMES * quiet.took), self._age) - self._loop.time()
        if wait <= 0 or self.ended:
            self.flush()
        elif not self._resting and not self._busy:
            self._resting = True
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(wait, self.flush)

    def end(self, ctx: Context) -> None:
        """An end with consequences: written at once."""
        self.ended.append(ctx)
        if not self._busy:
            self.flush()

    def flush(self) -> None:
        """Hand what has ended to the store's writer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._resting = False
        if self._busy or not (self.ended or self.dirty):
            return
        self._began = self._quiet.began = self._loop.time()
        batch, self.ended = self.ended, []
        lanes, self.dirty = self.dirty, set()
        self.plain = 0
        self._busy, self.writing = True, batch
        try:
            future = self._store.write(lambda unit: self._commit_and_ask(unit, batch, lanes), Committed.apply)
        except StoreError as error:  # closed under us: nothing can be written any more
            self._busy, self.writing = False, []
            log.error("%s: %s", self._name, error)
            return
        future.add_done_callback(lambda done: self._post(lambda: self._flushed(batch, lanes, done)))

    def _flushed(self, batch: list[Context], lanes: set[LaneState], future: Future[Committed]) -> None:
        self._busy, self.writing = False, []
        error = future.exception()
        if error is not None:
            self.ended = batch + self.ended
            self.dirty |= lanes
            self._trouble(error)
            if self._timer is None:
                self._timer = self._loop.call_later(AGAIN_SECONDS, self.flush)
            return
        self._quiet.took = self._loop.time() - self._began
        self._trouble(None)
        self._settle(future.result())
        if self.ended or self.plain >= FLUSH_SIZE:
            self.flush()
        elif self.dirty:
            self.begin_age()

    def _commit_and_ask(self, unit: Any, batch: list[Context], lanes: Iterable[LaneState]) -> Committed:
        result = self.commit(unit, batch, lanes)
        result.keys = self.ask(unit, result.touched)
        return result

    def ask(self, unit: Any, touched: dict[Any, Context]) -> list[tuple[LaneState, Any, KeyState]]:
        """How keys stand, their next events promoted. In the writer's transactions alone: those of handlers may commit beside each other,
        and what two of them say of one key could come in the wrong order."""
        now = int(self._clock.time() * 1_000_000)
        return [(ctx.lane, key, unit.key_state(self._name, ctx.row[LANE], key, now)) for key, ctx in touched.items()]

    def commit(self, unit: Any, batch: list[Context], lanes: Iterable[LaneState] = ()) -> Committed:
        """Write it all in the transaction of ``unit``. Runs in that transaction's thread, and may run twice for one batch."""
        result = Committed(batch)
        by_lane: dict[LaneState, set[int]] = {lane: set() for lane in lanes}
        special: list[Context] = []
        for ctx in batch:
            lane = ctx.lane
            if lane not in by_lane:
                by_lane[lane] = set()
            if not ctx.parked:
                by_lane[lane].add(ctx.row[POSITION])
            if ctx.parked or ctx.failure is not None or ctx.outputs is not None:
                special.append(ctx)
        cursor = self._feed.cursor
        fenced = unit.advance(self._name, self._worker, [lane.checkpoint(finished, cursor) for lane, finished in by_lane.items()])
        if fenced:
            result.fenced = [lane for lane in by_lane if (lane.lane, lane.epoch) in fenced]
            special = [ctx for ctx in special if ctx.lane not in result.fenced]
        result.finished = [(lane, finished) for lane, finished in by_lane.items() if lane not in result.fenced]
        if special:
            self._commit_special(unit, special, result)
        return result

    def _commit_special(self, unit: Any, batch: list[Context], result: Committed) -> None:
        now = int(self._clock.time() * 1_000_000)
        touched = result.touched
        for ctx in batch:
            failure = ctx.failure
            if failure is not None:
                row = parked_row(ctx, now, self._holds)
                unit.park(row)
                touched[ctx.key_id] = ctx
                if failure.error is not None:
                    outcome = "dead" if failure.delay is None else "retry"
                    unit.record_attempt(FailedAttempt(self._name, ctx.row[POSITION], ctx.attempt, now, self._worker, outcome, row.error))
            elif ctx.parked:
                unit.unpark(self._name, ctx.row[POSITION])
                touched[ctx.key_id] = ctx
        # Last: on other stores an INSERT into the log holds its readers back until the commit.
        outputs = [output for ctx in batch if ctx.failure is None for output in ctx.outputs or ()]
        unit.append([envelope for envelope, due in outputs if due is None])
        for envelope, due in outputs:
            if due is not None:
                unit.schedule(envelope, due)
        result.published = len(outputs)
