"""From rows of the log to events that a handler may take now.

A row is offered when somebody is free to handle it. Who can't end it before anything else happens takes it: from then on it is *open*
until its end is committed, and further rows of its key wait in that key's chain. Rows that nobody has taken are not open: the cursor has
not passed them.
"""

from __future__ import annotations

import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..envelope import LANES
from ..store.port import Lane
from .context import DATA, KEY, KEY_NAME, LANE, POSITION, TYPE, Context
from .lanes import Begun, LaneState
from .tail import Block

if TYPE_CHECKING:
    from .handler import Handler

WINDOW = 4096
"""Events that wait in chains, at most ..."""
WINDOW_BYTES = 32 * 1024 * 1024
"""... and their data."""


class Feed:
    """Rows in, contexts out, in the order that the subscription promises.

    Args:
        chained: events of one key are handled side by side with others, so they must be kept apart.

    Attributes:
        lanes: what this process holds. changes: how often that has changed.
        cursor: rows up to here were taken or are not ours. fetched: rows up to here have been put in.
        until: end of the worker's lease on ``now``; behind it nothing is taken, since others may have the lanes, and ``expired`` is called.
        ready: released by their key, or handed back. urgent: parked events whose time has come. closed: only urgent ones may be taken.
        ended: those neither.
        held_back, held_back_parked: taken, but not before caution.py lets them through, which ``cautious`` tells to.
    """

    def __init__(self, name: str, handlers: dict[str, Handler], order: Literal["key", "none", "log"], *, chained: bool) -> None:
        self._name = name
        self._handlers = handlers
        self._keyed = order == "key"
        self._whole = order == "log"
        self.chained = chained and order == "key"
        self.lanes: list[LaneState | None] = [None] * LANES
        self.changes = 0
        self.cursor = 0
        self.fetched = 0
        self.closed = False
        self.ended = False
        self.until = float("inf")
        self.now: Callable[[], float] = time.monotonic
        self.expired: Callable[[], None] = lambda: None
        self.ready: deque[Context] = deque()
        self.urgent: deque[Context] = deque()
        self.held_back: deque[Context] = deque()
        self.held_back_parked: deque[Context] = deque()
        self.cautious: Callable[[], None] = lambda: None
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self._upto = 0
        self._next: tuple[list[tuple[Any, ...]], int, int] | None = None
        """Rows, index of the first that is wanted, and how far they are complete: of a block as it was then, for it may grow."""
        self._busy: dict[Any, Context | deque[Context]] = {}
        """Keys in somebody's hands: the event, or (once there were any) what waits behind it."""
        self._waiting = 0
        self._waiting_bytes = 0
        self.given_up: Callable[[Context], None] = lambda ctx: None
        """Called with a parked event that will not be handled here."""
        self.wanted: Callable[[], None] = lambda: None
        """Called when there is room for a block again."""
        self.offer: Callable[[], Context | None] = self._offers().__next__
        """The next event that may be handled now; None if there is none. Unless it is ``taken`` already, ``register`` follows before
        anything else may happen on the loop; or it has ended by then, with ``pass_by`` or the next ``offer``."""

    # -- lanes

    def held(self) -> list[LaneState]:
        return [lane for lane in self.lanes if lane is not None]

    def add(self, rows: Sequence[Lane]) -> None:
        """Lanes that were just claimed; reading goes back to the first thing that isn't done there."""
        self.changes += 1
        for lane in self.held():
            lane.start = max(lane.start, self.cursor)
            if lane.suspects is None:
                lane.gate = lane.start
        for row in rows:
            self.lanes[row.lane] = LaneState(row)
        if self._whole and any(lane.suspects is not None for lane in self.held()):  # what is held back must not be overtaken
            for lane in self.held():
                if lane.suspects is None:
                    lane.suspects, lane.gate = Begun(), float("inf")
        self.cursor = min(lane.first for lane in self.held())
        self.rewind()

    def remove(self, number: int) -> None:
        """Take no more of this lane. What was taken of it may still end and be written, and no cursor may carry it over what was not."""
        lane = self.lanes[number]
        if lane is not None:
            self.changes += 1
            lane.left = self.cursor
            self.lanes[number] = None

    def rewind(self) -> None:
        """Forget rows that were put in and not taken; they are read again."""
        self._rows = iter(())
        self._next = None
        self._upto = self.fetched = self.cursor

    def discard(self, which: Callable[[Context], bool]) -> None:
        """Take back what waits; it stays open, so whoever has the lane next reads it again."""
        for chain in self._busy.values():
            if type(chain) is deque:
                for ctx in [ctx for ctx in chain if which(ctx)]:
                    chain.remove(ctx)
                    self._left(ctx)
        for queue in (self.ready, self.urgent, self.held_back, self.held_back_parked):
            waiting = list(queue)
            queue.clear()
            for ctx in waiting:
                if which(ctx):
                    if queue is self.held_back:
                        self._left(ctx)
                    self.release(ctx)
                else:
                    queue.append(ctx)

    # -- rows in

    def wants_rows(self) -> bool:
        """Whether there is room for a block."""
        return self._next is None and not self._full()

    def put(self, block: Block, index: int) -> None:
        """Rows from ``index`` on come next."""
        self.fetched = block.upto
        self._next = block.rows, index, block.upto

    def exhausted(self) -> bool:
        """Nothing is left to take but what waits in chains."""
        return self._next is None and not operator.length_hint(self._rows) and not self.ready and not self.urgent

    def waiting(self) -> int:
        """Events taken or put in that wait: in chains, in queues, or not looked at."""
        rows = operator.length_hint(self._rows) + (len(self._next[0]) - self._next[1] if self._next is not None else 0)
        return rows + self._waiting + len(self.ready)

    # -- events out

    def take(self) -> Context | None:
        """The next event that may be handled now; None if there is none."""
        ctx = self.offer()
        if ctx is not None and not ctx.taken:
            self.register(ctx)
        return ctx

    def take_many(self, batch: list[Context], most: int) -> None:
        """Take until ``batch`` holds ``most``, or there is none."""
        offer, register, append = self.offer, self.register, batch.append
        for _ in range(most - len(batch)):
            ctx = offer()
            if ctx is None:
                return
            if not ctx.taken:
                register(ctx)
            append(ctx)

    def register(self, ctx: Context) -> None:
        """Take what was offered."""
        ctx.taken = True
        position = ctx.row[POSITION]
        # In this order: a checkpoint is made in another thread, and whatever the cursor has passed must be open or done.
        ctx.lane.open.add(position)
        self.cursor = position
        if self.chained and ctx.row[KEY] is not None:
            self._busy[ctx.key_id] = ctx

    def pass_by(self, ctx: Context) -> None:
        """What was offered has ended already, and nobody could have seen it begin."""
        ctx.taken = True
        lane, position = ctx.lane, ctx.row[POSITION]
        if lane.open:  # by a former holder of the lane
            lane.open.discard(position)
        if position > lane.high:
            lane.high = position
        self.cursor = position

    def _offers(self) -> Iterator[Context | None]:
        """What ``offer`` gives, without end. A generator, which costs half as much as a method that finds its place again each time."""
        name, handlers, lanes, busy = self._name, self._handlers, self.lanes, self._busy
        urgent, ready = self.urgent, self.ready
        keyed, whole, chained = self._keyed, self._whole, self.chained
        while True:
            if self.ended:
                yield None
                continue
            if self.now() > self.until:  # frozen, or the store could not be written
                self.expired()
                yield None
                continue
            if urgent:
                yield urgent.popleft()
                continue
            if ready and not self.closed:
                yield ready.popleft()
                continue
            if self.closed or self._full():
                yield None
                continue
            rows = self._rows
            for row in rows:
                handler, lane, position = handlers.get(row[TYPE]), lanes[row[LANE]], row[POSITION]
                if handler is None or lane is None:
                    continue
                if position <= lane.gate:
                    if position <= lane.start:
                        if position not in lane.recovered:
                            continue
                        lane.recovered.discard(position)
                    if lane.suspects is not None:
                        self._take_with_caution(row, handler, lane)
                        if self._full():
                            break
                        continue
                key = row[KEY]
                if not keyed or key is None:
                    ctx = Context(row, name, handler, lane, None if whole else position)
                else:
                    key_id = (row[KEY_NAME], key)
                    ctx = Context(row, name, handler, lane, key_id)
                    if chained and busy and (chain := busy.get(key_id)) is not None:
                        self._wait(ctx, chain)
                        if self._full():
                            break
                        continue
                yield ctx
                if not ctx.taken:  # as in `pass_by`, which would cost a call
                    if lane.open:
                        lane.open.discard(position)
                    if position > lane.high:
                        lane.high = position
                    self.cursor = position
                if self.now() > self.until or urgent or ready or self.closed or self._rows is not rows:  # type: ignore[redundant-expr]
                    break
            else:
                self.cursor = max(self.cursor, self._upto)
                if self._next is None:
                    yield None
                else:
                    block, index, self._upto = self._next
                    self._rows = iter(block[index:] if index else block)
                    self._next = None
                    self.wanted()

    def _wait(self, ctx: Context, chain: Context | deque[Context]) -> None:
        """Its key is in somebody's hands."""
        ctx.taken = True
        ctx.lane.open.add(ctx.row[POSITION])
        self.cursor = ctx.row[POSITION]
        if type(chain) is deque:
            chain.append(ctx)
        else:
            self._busy[ctx.key_id] = deque((ctx,))
        self._waiting += 1
        self._waiting_bytes += len(ctx.row[DATA])

    def _full(self) -> bool:
        """No more rows may wait in chains."""
        return self._waiting >= WINDOW or self._waiting_bytes >= WINDOW_BYTES

    def release(self, ctx: Context) -> None:
        """An event has ended or is given up: the next of its key may be taken."""
        if ctx.parked:
            self.given_up(ctx)
        elif self.chained:
            chain = self._busy.pop(ctx.key_id, None)
            if type(chain) is deque and chain:
                self._busy[ctx.key_id] = chain
                follower = chain.popleft()
                self._left(follower)
                if follower.lane.suspects is None:
                    self.ready.append(follower)
                else:
                    self.hold_back(follower)

    def again(self, batch: Sequence[Context]) -> None:
        """Back to the front, as if they had never been taken."""
        for ctx in reversed(batch):
            ctx.reset()
            if not ctx.lane.kept or self.lanes[ctx.lane.lane] is not ctx.lane:
                self.release(ctx)
            elif ctx.parked:
                self.urgent.appendleft(ctx)
            else:
                self.ready.appendleft(ctx)

    # -- events of lanes whose last holder died

    def _take_with_caution(self, row: tuple[Any, ...], handler: Handler, lane: LaneState) -> None:
        """It waits in ``held_back``, or in its key's chain."""
        position, key = row[POSITION], row[KEY]
        key_id = None if self._whole else position if not self._keyed or key is None else (row[KEY_NAME], key)
        ctx = Context(row, self._name, handler, lane, key_id)
        if self.chained and key is not None and (chain := self._busy.get(key_id)) is not None:
            self._wait(ctx, chain)
        else:
            self.register(ctx)
            self.hold_back(ctx)

    def hold_back(self, ctx: Context) -> None:
        """Until ``let_through``."""
        if ctx.parked:
            self.held_back_parked.append(ctx)
        else:
            self.held_back.append(ctx)
            self._waiting += 1
            self._waiting_bytes += len(ctx.row[DATA])
        self.cautious()

    def next_held_back(self) -> Context | None:
        """The one to be let through next; None if there is none that may be handled now."""
        if self.held_back_parked:
            return self.held_back_parked[0]
        return self.held_back[0] if self.held_back and not self.closed else None

    def take_held_back(self) -> Context:
        """It is in the caller's hands."""
        if self.held_back_parked:
            return self.held_back_parked.popleft()
        ctx = self.held_back.popleft()
        self._left(ctx)
        return ctx

    def let_through(self, batch: Sequence[Context]) -> None:
        """They may be handled."""
        for ctx in batch:
            (self.urgent if ctx.parked else self.ready).append(ctx)

    def _left(self, ctx: Context) -> None:
        full = self._full()
        self._waiting -= 1
        self._waiting_bytes -= len(ctx.row[DATA])
        if full:
            self.wanted()
