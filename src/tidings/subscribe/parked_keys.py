"""The parked keys of one subscription in one process: which they are, and when the head of each is due."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

from ..errors import TidingsError
from ..store.port import KeyState
from .context import Context
from .feed import Feed
from .lanes import LaneState
from .parking import describe, killed_its_worker

if TYPE_CHECKING:
    from ..clock import Clock
    from ..store.port import Store
    from .handler import Handler

log = logging.getLogger("tidings.subscribe")

LOAD = 100
"""Parked events fetched at a time."""
AGAIN_SECONDS = 1.0
"""After a store that failed."""


class ParkedKeys:
    """The store has the rows; this has what must be known of them at each event: is its key parked?

    Attributes:
        keys: parked ones, and the lane of each. An event of such a key is not handled but put behind the others.
        running: whose head is in a handler's hands, or on the way there, and under which hold of its lane.
        unsettled: ends that are not committed yet, by key; a key with one can't become free.
        stuck: keys with a thread that ran past its time-out and goes on.
    """

    def __init__(
        self, name: str, order: Literal["key", "none", "log"], handlers: dict[str, Handler], store: Store, feed: Feed, clock: Clock
    ) -> None:
        self._name = name
        self._order = order
        self._handlers = handlers
        self._store = store
        self._feed = feed
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.keys: dict[Any, int] = {}
        self.running: dict[Any, LaneState] = {}
        self.unsettled: Counter[Any] = Counter()
        self.stuck: dict[Any, tuple[float, Context]] = {}
        self.paused = False
        self.loaded: Callable[[], None] = lambda: None
        self._heads: dict[Any, KeyState] = {}
        self._due: list[tuple[float, int, Any, KeyState]] = []
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loading: set[asyncio.Task[None]] = set()
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._loading:
            task.cancel()

    def apply(self, key: Any, state: KeyState) -> None:
        """A transaction has told how a key stands."""
        if self._feed.lanes[state.lane] is None:
            return
        if state.state == "free":
            self._heads.pop(key, None)
            if not self.unsettled.get(key):
                self.keys.pop(key, None)
            return
        self.keys[key] = state.lane
        # With an end that isn't committed this may be the head that has just ended: the commit of that end will tell.
        if state.state == "retry" and key not in self.running and not self.unsettled.get(key):
            self._heads[key] = state
            self._sequence += 1
            heapq.heappush(self._due, (self._clock.monotonic() + state.due_in, self._sequence, key, state))
            self._arm()

    def refresh(self, states: Sequence[KeyState], lanes: set[int]) -> None:
        """All parked rows of these lanes, ascending, as the store has them now."""
        seen: set[Any] = set()
        for state in states:
            key = self._key_of(state)
            if key in seen or self._feed.lanes[state.lane] is None:
                continue
            seen.add(key)
            if key in self.running or self.unsettled.get(key):
                self.keys[key] = state.lane  # a commit that is on its way will tell more
                continue
            if state.state == "waiting":  # its head was dropped by an operator
                self.keys[key] = state.lane
                self._promote(key, state)
            else:
                self.apply(key, state)
        for key in [key for key, lane in self.keys.items() if lane in lanes and key not in seen]:
            if key not in self.running and not self.unsettled.get(key):
                self._heads.pop(key, None)
                del self.keys[key]

    def settled(self, key: Any) -> None:
        """One end of this key is committed."""
        if self.unsettled[key] > 1:
            self.unsettled[key] -= 1
        else:
            self.unsettled.pop(key, None)

    def forget_lost(self) -> None:
        """Lanes went away: their keys are others' now, and what still runs or is written for them says nothing about them any more."""
        for key in [key for key, lane in self.keys.items() if self._feed.lanes[lane] is None]:
            self._heads.pop(key, None)
            self.unsettled.pop(key, None)
            del self.keys[key]
        for key in [key for key, lane in self.running.items() if self._feed.lanes[lane.lane] is not lane]:
            del self.running[key]

    def ended(self, ctx: Context) -> None:
        """A head's handler has ended, or it was given up."""
        if self.running.get(ctx.key_id) is ctx.lane:
            del self.running[ctx.key_id]

    def stick(self, ctx: Context, since: float) -> Callable[[], None]:
        """Its thread goes on past its time-out; call what is returned when it has ended."""
        key = ctx.key_id
        self.stuck[key] = (since, ctx)

        def ended() -> None:
            self.stuck.pop(key, None)
            self.check()

        return ended

    def _post(self, step: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(step)
        except RuntimeError:  # the loop is closed
            return

    def due_now(self) -> int:
        """Heads whose time has come."""
        now = self._clock.monotonic()
        return sum(1 for at, _, key, state in self._due if at <= now and self._heads.get(key) is state)

    def check(self) -> None:
        """Fetch the parked rows whose time has come."""
        now = self._clock.monotonic()
        due: list[tuple[Any, KeyState]] = []
        later: list[tuple[float, int, Any, KeyState]] = []
        while self._due and self._due[0][0] <= now and len(due) < LOAD:
            entry = heapq.heappop(self._due)
            _, sequence, key, state = entry
            if self._heads.get(key) is not state:
                continue
            if key in self.stuck or self.paused:
                later.append((now + 0.5, sequence, key, state))
                continue
            self._heads.pop(key)
            lane = self._feed.lanes[state.lane]
            if lane is not None:
                self.running[key] = lane
                due.append((key, state))
        for entry in later:
            heapq.heappush(self._due, entry)
        self._arm()
        if due and not self._closed:
            task = self._loop.create_task(self._load(due))
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and not self._closed:
            self._timer = self._loop.call_later(max(0.0, self._due[0][0] - self._clock.monotonic()), self.check)

    async def _load(self, due: list[tuple[Any, KeyState]]) -> None:
        try:
            rows = await self._loop.run_in_executor(
                None, self._store.query, lambda unit: [unit.parked_row(self._name, state.position) for _, state in due]
            )
        except TidingsError as error:
            log.warning("%s: parked events can't be read: %s", self._name, describe(error))
            for key, state in due:
                if self.running.pop(key, None) is not None:
                    state.due_in = 1.0
                    self.apply(key, state)
            return
        for (key, state), row in zip(due, rows, strict=True):
            lane = self.running.get(key)
            if lane is None or self._feed.lanes[state.lane] is not lane:
                continue  # the lane went away meanwhile
            handler = None if row is None else self._handlers.get(row.envelope.type)
            if row is None or row.state != "retry" or handler is None:
                del self.running[key]
                if handler is not None or row is None:  # changed since, by an operator; without a handler it stays parked
                    self._promote(key, state)
                continue
            ctx = Context(tuple(row.envelope), self._name, handler, lane, key)
            ctx.parked = ctx.taken = True
            ctx.attempt = row.attempts + 1
            ctx.suspect = killed_its_worker(row)
            if lane.suspects is not None or ctx.suspect:
                self._feed.hold_back(ctx)
            else:
                self._feed.urgent.append(ctx)
        self.loaded()

    def _promote(self, key: Any, state: KeyState) -> None:
        lane = self._feed.lanes[state.lane]
        if self._closed or lane is None:
            return
        now = int(self._clock.time() * 1_000_000)

        def told(done: Future[KeyState]) -> None:
            if self._feed.lanes[state.lane] is not lane:
                return
            if (error := done.exception()) is None:
                self.apply(key, done.result())
            else:  # nobody else would think of this key again
                log.warning("%s: a parked key can't go on: %s", self._name, describe(error))
                self._loop.call_later(AGAIN_SECONDS, self._promote, key, state)

        future = self._store.write(lambda unit: unit.key_state(self._name, state.lane, key, now))
        future.add_done_callback(lambda done: self._post(lambda: told(done)))

    def _key_of(self, state: KeyState) -> Any:
        if self._order == "log":
            return None
        return state.key if self._order == "key" else state.position
