"""Reading on where a worker died: which event was it?

Nothing is written down before a handler is called, since that would cost a commit for each event. So whoever takes lanes from a worker that
died, or stood still past its lease, doesn't know what it had in hand. For a while it reads these lanes with caution: before events go to
handlers, the lane's row says which (``Unit.note_begun``), and their ends are written before the next ones begin. If this worker dies too,

    the first death   tells nothing; what comes next is noted, up to BATCH at a time
    the second        leaves those as suspects, and each of them is handled alone
    any further one   while one event was handled alone is a failed attempt of that event, by WorkerDied

so an event that kills its process becomes a dead letter after its attempts and two deaths more, and one that was only beside it ends when
its turn comes. One that was parked by WorkerDied is alone in all its later attempts.

*Alone* means: among what is handled with caution, over all subscriptions of the process, which take turns. Who is slow does not hold up
the others for longer than ALONE_SECONDS, doubled with each death in a row; then it is not alone any more, and a death says nothing of it.
Lanes that this worker held before are none of this, and go on. An event that nothing is wrong with loses an attempt only if its worker is
killed while it is alone, and after two deaths in the same place: once for each further one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import StoreError, WorkerDied
from .context import POSITION, Context
from .lanes import Begun, LaneState

if TYPE_CHECKING:
    from .runner import Runner

log = logging.getLogger("tidings.subscribe")

BATCH = 64
SECONDS = 1.0
"""Lanes are read with caution for so long: what a worker had begun since its last checkpoint is less work than that."""
ALONE_SECONDS = 1.0
MOST_DOUBLINGS = 6
POLL_SECONDS = 0.25


class Turn:
    """One for a process; what is handled with caution takes it.

    Attributes:
        wanted: how many wait for it. unfinished: whose events run on although others have the turn.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.wanted = 0
        self.unfinished: set[Caution] = set()

    async def take(self) -> None:
        self.wanted += 1
        try:
            await self._lock.acquire()
        finally:
            self.wanted -= 1

    def give_back(self) -> None:
        self._lock.release()


class Caution:
    """Lets events of one runner through that the feed holds back. Its task lives as long as there is reason for caution."""

    def __init__(self, runner: Runner, turn: Turn) -> None:
        self._runner = runner
        self._feed = runner.feed
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._until = 0.0
        self._more = asyncio.Event()
        self._ended = asyncio.Event()
        self._noted: set[LaneState] = set()
        self._task: asyncio.Task[None] | None = None
        self.running: set[Context] = set()
        self._feed.cautious = self._wake

    def taken(self) -> None:
        """Lanes were added to the feed."""
        if self._lanes():
            self._until = self._loop.time() + SECONDS
            self._wake()

    def ended(self, batch: Iterable[Context]) -> None:
        """The ends of these are committed."""
        self.running.difference_update(batch)
        self._look()

    def parting(self, numbers: Iterable[int]) -> list[tuple[int, int, str | None]]:
        """For ``Unit.note_begun``, with lanes that are given back: whoever has them next goes on with what is still to be found out."""
        lanes = [lane for lane in self._feed.held() if lane.lane in numbers and (lane.suspects is not None or lane in self._noted)]
        return [(lane.lane, lane.epoch, None if lane.suspects is None else lane.suspects.text()) for lane in lanes]

    def kill(self) -> None:
        self._turn.unfinished.discard(self)
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        self.kill()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _lanes(self) -> list[LaneState]:
        return [lane for lane in self._feed.held() if lane.suspects is not None]

    def _wake(self) -> None:
        self._more.set()
        if self._task is None and not self._runner.stopping:
            self._task = self._loop.create_task(self._run(), name=f"tidings-{self._runner.name}-caution")

    def _look(self) -> None:
        """Whether what was let through has ended."""
        self.running = {ctx for ctx in self.running if self._runner.holds(ctx.lane)}
        if not self.running:
            self._turn.unfinished.discard(self)
            self._ended.set()

    async def _run(self) -> None:
        while not self._runner.stopping:
            try:
                if await self._step():
                    break
            except Exception as error:  # whatever it is: what is held back would wait for ever
                await self._runner.in_trouble(error)
        self._task = None

    async def _step(self) -> bool:
        """Whether there is no reason for caution any more."""
        self._more.clear()
        if self._loop.time() >= self._until and not self._feed.closed:
            self._trust()
        batch, alone = self._next()
        if batch:
            await self._let_through(batch, alone)
            return False
        self._look()
        if not self.running and not self._lanes():
            await self._note([lane for lane in self._noted if self._runner.holds(lane)], alone=False)
            self._noted.clear()
            if not self._more.is_set():
                return True
        await _wait(self._more, POLL_SECONDS)
        return False

    def _trust(self) -> None:
        """The time is over: what is no suspect is simply handled again. All lanes or none, since with order="log" they are one."""
        feed = self._feed
        if any(_is_suspect(ctx) for ctx in (*feed.held_back, *feed.held_back_parked)):
            return
        for lane in self._lanes():
            self._noted.add(lane)
            lane.trust()
        while feed.held_back or feed.held_back_parked:
            feed.let_through([feed.take_held_back()])
        self._runner.crew.sleepers.wake()

    def _next(self) -> tuple[list[Context], bool]:
        """What is to be handled next, and whether alone; counts the attempt of what killed its worker."""
        batch: list[Context] = []
        while len(batch) < BATCH and (ctx := self._feed.next_held_back()) is not None:
            suspects, suspect = ctx.lane.suspects, _is_suspect(ctx)
            if batch and suspect:
                break
            self._feed.take_held_back()
            if suspects is not None and suspects.attempts.get(ctx.row[POSITION]) == ctx.attempt:
                del suspects.attempts[ctx.row[POSITION]]
                if suspects.alone:
                    self._count(ctx, suspects.deaths)
                    continue
            batch.append(ctx)
            if suspect:
                break
        return batch, len(batch) == 1

    def _count(self, ctx: Context, deaths: int) -> None:
        error = WorkerDied(
            f"the process died while {ctx.handler.name} handled this event, and nothing else that could have been the cause",
            handler=ctx.handler.name,
            position=ctx.row[POSITION],
        )
        log.warning("%s: event %d ended its worker at attempt %d", self._runner.name, ctx.row[POSITION], ctx.attempt)
        self._runner.fail(ctx, error)
        self._runner.finish(ctx)

    async def _let_through(self, batch: list[Context], alone: bool) -> None:
        runner, feed, turn = self._runner, self._feed, self._turn
        await turn.take()
        try:
            self._look()
            alone = alone and not self.running and not turn.unfinished
            self.running.update(batch)
            self._ended.clear()
            turn.unfinished.add(self)
            for ctx in batch:
                ctx.noted = True
                ctx.reset()
            runner.checkpointing.flush()
            try:
                await self._note({ctx.lane for ctx in batch}, alone=alone)
            finally:
                begun = [ctx for ctx in batch if not runner.unbegun(ctx)]  # its lane may be somebody else's by now
                feed.let_through(begun)
                runner.crew.sleepers.wake()
            self.running.difference_update(set(batch).difference(begun))
            worst = max(ctx.lane.suspects.deaths if ctx.lane.suspects is not None else ctx.attempt for ctx in batch)
            await self._wait(ALONE_SECONDS * 2 ** min(worst - 1, MOST_DOUBLINGS), alone)
        finally:
            turn.give_back()

    async def _wait(self, seconds: float, alone: bool) -> None:
        """Until it has ended, or others have waited for so long."""
        until = self._loop.time() + seconds
        while True:
            self._look()
            if not self.running or self._runner.stopping:
                return
            left = until - self._loop.time()
            if left <= 0 and (self._turn.wanted or self._feed.next_held_back() is not None):
                break
            await _wait(self._ended, min(POLL_SECONDS, left) if left > 0 else POLL_SECONDS)
        if alone:
            await self._note({ctx.lane for ctx in self.running}, alone=False)

    async def _note(self, lanes: Iterable[LaneState], *, alone: bool) -> None:
        """The rows of these lanes say what of them is running."""
        runner = self._runner
        rows: list[tuple[int, int, str | None]] = []
        for lane in lanes:
            attempts = {ctx.row[POSITION]: ctx.attempt for ctx in self.running if ctx.lane is lane}
            deaths = 0 if lane.suspects is None else lane.suspects.deaths
            rows.append((lane.lane, lane.epoch, Begun(deaths, alone, attempts).text() if attempts or deaths else None))
            self._noted.add(lane)
        while rows and not runner.stopping:
            try:
                await asyncio.wrap_future(runner.store.write(lambda unit: unit.note_begun(runner.name, runner.worker, rows)))
            except StoreError as error:
                await runner.in_trouble(error)
            else:
                return


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _is_suspect(ctx: Context) -> bool:
    """Whether it may be what killed a worker, so that it is handled alone."""
    suspects = ctx.lane.suspects
    return ctx.suspect or (suspects is not None and suspects.attempts.get(ctx.row[POSITION]) == ctx.attempt)
