"""One instance in this worker's hands: from its journal to where it waits, or to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from ..codec import decode_json
from ..errors import Fenced, ForeignAwait, JournalMismatch, Refused, SagaDefinitionError, TidingsError
from ..store.sagas import CLOSED, Arrival, Entry, Hold, Release, SagaRow
from ..subscribe.parking import describe
from . import compensation
from .attempt import StoreTrouble
from .body import Body, Call
from .journal import key_of, matured, read_to, words
from .saga import Saga, SagaDefinition
from .step import UNKNOWN, encode

if TYPE_CHECKING:
    from .runner import RunningSagas

log = logging.getLogger("tidings.sagas")

TROUBLE_SECONDS = 1.0
"""An instance beside whose step the store failed is looked at again after so long."""
ARRIVALS_SECONDS = 1.0
"""While steps run, events that came meanwhile are looked for this often."""


class Driver:
    """Runs one instance until it waits, ends, or is lost."""

    def __init__(
        self, sagas: RunningSagas, definition: SagaDefinition, row: SagaRow, entries: list[Entry], arrivals: list[Arrival]
    ) -> None:
        self._sagas = sagas
        self._definition = definition
        self.row = row
        self.hold = Hold(row.saga, row.key, row.worker or "", row.epoch)
        self.lapses = sagas.lapses
        self.task: asyncio.Task[None] | None = None
        self._body: Body
        self._entries = entries
        self._arrived: list[tuple[int, str]] = []
        self._data: dict[int, tuple[str, bytes]] = {}
        self._count = row.arrived
        self._running: dict[asyncio.Task[Entry], Call] = {}
        self._recorded: list[tuple[Call, Entry]] = []
        self._seq = count(max((entry.seq for entry in entries if entry.seq is not None), default=0) + 1)
        self._open: set[int] = set()
        self._heard(arrivals)
        self._taken = {decode_json((entry.result or "").encode())["position"] for entry in entries if entry.kind == "wait" and entry.result}

    async def run(self) -> None:
        """Never raises: what goes wrong with the store is tried again by whoever takes the instance then."""
        try:
            await self._drive()
        except Fenced as error:
            log.info("%s", error)
            await self._sagas.free(self.hold, 0.0)  # if it is ours all the same (a commit whose answer was lost), the journal tells more
        except StoreTrouble as error:
            log.warning("%s %s: %s", self.row.saga, self.row.key, error)
            await self._sagas.free(self.hold, TROUBLE_SECONDS)
        except (JournalMismatch, ForeignAwait, SagaDefinitionError) as error:
            await self._park(error)
        except Exception as error:
            log.exception("%s %s", self.row.saga, self.row.key)
            await self._park(error)
        finally:
            for task in self._running:
                task.cancel()
            if hasattr(self, "_body"):
                self._body.leave()

    async def _drive(self) -> None:
        row, definition = self.row, self._definition
        self._body = body = Body(definition.main, f"{row.saga}:{row.envelope.event_id}", row.started)
        saga = Saga(definition, row.key, body, self._sagas.type_of)
        event = definition.start.decode(row.envelope.data)
        await _alone(lambda: body.begin(event, saga))
        await _alone(lambda: read_to(body, self._entries))
        undone = any(entry.kind == "undo" for entry in self._entries)
        if (undone or row.state in ("compensating", "stuck")) and not (body.ended and body.error is not None):
            raise JournalMismatch(
                "the instance is being compensated, and the body doesn't fail there any more: put back what it was",
                step="",
                line=body.where(),
            )
        while not body.ended:
            if body.fault is not None:
                raise body.fault
            await self._sagas.owned(self)
            if await self._answer():
                continue
            if not self._sagas.stopping:
                self._begin_steps()
            if not self._running:
                await self._rest()
                return
            await self._next()
            await self._hand_on()
        if body.fault is not None:
            raise body.fault
        while self._running:  # a sibling of what failed: it ends, and its body doesn't go on
            await self._next()
            self._recorded.clear()
        if body.error is None:
            await self._release("completed")
        else:
            await self._compensate(body.error)

    def _heard(self, arrivals: list[Arrival]) -> None:
        self._arrived = [(one.position, one.type) for one in arrivals]
        self._data = {one.position: (one.type, one.data) for one in arrivals}

    # -- sleeps and waits

    async def _answer(self) -> bool:
        """Answer one of them, if one can be."""
        now = self._sagas.now()
        found = matured(list(self._body.calls.values()), self._arrived, self._taken, now)
        if found is None:
            return False
        call, position = found
        kind, branch, name, number = call.key
        state, result = "done", None
        if position is not None:
            type_, data = self._data[position]
            result = encode({"position": position, "type": type_, "data": data.decode()}).decode()
            self._taken.add(position)
        elif kind == "wait":
            state = "late"
        entry = Entry(kind, branch, name, number, next(self._seq), state, result, started=call.began, ended=now)
        await self._sagas.attempts.record(self.hold, entry)
        call.entry = entry
        await _alone(lambda: self._body.hand(call, entry))
        return True

    # -- steps

    def _begin_steps(self) -> None:
        now, under_way = self._sagas.now(), set(self._running.values())
        for call in self._body.calls.values():
            if call.key[0] != "step" or not call.pending or call in under_way:
                continue
            if call.entry is not None and call.entry.due is not None and call.entry.due > now:
                continue
            task = asyncio.get_running_loop().create_task(self._attempt(call))
            self._running[task] = call

    async def _attempt(self, call: Call) -> Entry:
        assert call.fn is not None
        function, sagas = call.fn, self._sagas
        kind, branch, name, number = call.key
        attempt = 1 if call.entry is None else call.entry.attempts + 1
        began = sagas.now()
        started = began if call.entry is None else call.entry.started
        ctx = sagas.attempts.context(self.row.saga, self.row.envelope, f"{branch}:{name}:{number}", attempt)
        mine: list[int] = []

        def entry(state: str, **facts: Any) -> Entry:
            seq = next(self._seq)
            self._open.add(seq)
            mine.append(seq)
            return Entry(
                kind, branch, name, number, seq, state, attempts=attempt, started=started, ended=sagas.now(), digest=call.digest, **facts
            )

        try:
            return await sagas.attempts.run(
                function,
                call.args,
                call.kwargs,
                ctx,
                self.hold,
                lambda value: entry("done", result=function.stored(value)),
                timeout=call.timeout,
            )
        except (Fenced, StoreTrouble):
            raise
        except Exception as error:
            self._open.difference_update(mine)
            mine.clear()
            text = describe(error)
            if isinstance(error, Refused):
                failed = entry("refused", error=str(error))
            else:
                delay = None if isinstance(error, SagaDefinitionError) else call.retry.delay(attempt, error, sagas.rng)
                if delay is None:
                    failed = entry("failed", error=text)
                else:
                    due = sagas.now() + int(delay * 1_000_000)
                    failed = Entry(
                        kind, branch, name, number, None, "retrying", error=text, attempts=attempt, started=started, ended=sagas.now(),
                        due=due,
                        digest=call.digest,
                    )  # fmt: skip
            log.info("%s %s: %s, attempt %d: %s", self.row.saga, self.row.key, words(call.key), attempt, text)
            await sagas.attempts.record(self.hold, failed)
            return failed
        finally:
            self._open.difference_update(mine)

    async def _next(self) -> None:
        """Wait until a step has ended, or something else falls due."""
        now = self._sagas.now()
        pending = [call for call in self._body.calls.values() if call.pending and call not in self._running.values()]
        times = [due for call in pending if (due := _due(call)) is not None]
        patience = None if not pending else min(ARRIVALS_SECONDS, *(max(0.0, (time - now) / 1e6) + 0.001 for time in times), 9.0)
        ended, _ = await asyncio.wait(self._running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            call = self._running.pop(task)
            entry = task.result()
            call.entry = entry
            if entry.seq is not None:
                self._recorded.append((call, entry))
        if not ended and any(call.key[0] == "wait" for call in pending):
            saga, key = self.row.saga, self.row.key
            row, arrivals = await self._sagas.query(lambda unit: (unit.sagas().row(saga, key), unit.sagas().arrivals(saga, key)))
            self._count = row.arrived
            self._heard(arrivals)

    async def _hand_on(self) -> None:
        """In the order of the journal: nothing before what may still be written ahead of it."""
        self._recorded.sort(key=lambda one: one[1].seq or 0)
        while self._recorded and not self._body.ended and (self._recorded[0][1].seq or 0) < min(self._open, default=2**62):
            call, entry = self._recorded.pop(0)
            await _alone(lambda call=call, entry=entry: self._body.hand(call, entry))  # type: ignore[misc]

    # -- at rest

    async def _rest(self) -> None:
        """Nothing can be done now: let go of it until something falls due or comes."""
        pending = [call for call in self._body.calls.values() if call.pending]
        if not pending:
            raise ForeignAwait(
                f"{self._body.where()}: the saga's body awaits something that is none of its calls (saga.step, saga.sleep, saga.wait), so"
                " nobody would wake it",
                line=self._body.where(),
            )
        if self._sagas.stopping:
            await self._release(self.row.state if self.row.state not in CLOSED else "running", due=self._sagas.now())
            return
        times = [due for call in pending if (due := _due(call)) is not None]
        last = next((call.entry.error for call in pending if call.entry is not None), None)
        await self._release("waiting", due=min(times, default=None), waits=[_wait(call) for call in pending], error=last)

    async def _release(self, state: str, *, due: int | None = None, waits: list[Any] | None = None, error: str | None = None) -> None:
        now, text = self._sagas.now(), None if waits is None else encode(waits).decode()
        arrived = self._count if state == "waiting" else None
        if not await self._sagas.let_go(Release(self.hold, state, due, text, error, arrived, now)):
            raise Fenced(f"another worker holds {self.hold.saga} {self.hold.key} now; nothing was written")
        if due is not None or arrived is not None:
            self._sagas.expect(due)

    async def _park(self, error: Exception) -> None:
        text = str(error) if isinstance(error, TidingsError) else describe(error)
        log.error("%s %s is parked: %s", self.row.saga, self.row.key, text)
        try:
            await self._release("parked", error=text)
        except Fenced as fenced:
            log.info("%s", fenced)
        except StoreTrouble as trouble:
            log.warning("%s", trouble)
            await self._sagas.free(self.hold, TROUBLE_SECONDS)

    # -- back

    async def _compensate(self, error: BaseException) -> None:
        text, state = describe(error), self.row.state
        if state not in ("compensating", "stuck"):
            state = "compensating"
            now = self._sagas.now()
            if not await self._sagas.write(lambda unit: unit.sagas().turn(self.hold, "compensating", text, now)):
                raise Fenced(f"another worker holds {self.hold.saga} {self.hold.key} now; nothing was written")
        done = {key_of(entry)[1:]: entry for entry in self._entries if entry.kind == "undo"}
        for call in compensation.due(self._body.calls.values()):
            entry = done.get(call.key[1:])
            if entry is not None and entry.state == "done":
                continue
            await self._sagas.owned(self)
            if self._sagas.stopping:
                await self._release(state, due=self._sagas.now(), error=text)
                return
            if entry is None or entry.due is None or entry.due <= self._sagas.now():
                entry = await self._undo(call, entry)
            if entry.state != "done":
                assert call.undo is not None
                state = compensation.state_after(entry.attempts)
                waits = [
                    {
                        "for": f"undo {call.undo.name}",
                        "since": entry.started,
                        "until": entry.due,
                        "attempts": entry.attempts,
                        "error": entry.error,
                    }
                ]
                await self._release(state, due=entry.due, waits=waits, error=text)
                return
            state = "compensating"
        await self._release("compensated", error=text)

    async def _undo(self, call: Call, before: Entry | None) -> Entry:
        """One attempt. The entry stands under its step's name."""
        assert call.undo is not None
        assert call.fn is not None
        function, sagas = call.undo, self._sagas
        _, branch, name, number = call.key
        attempt = 1 if before is None else before.attempts + 1
        started = sagas.now() if before is None else before.started
        known = call.entry is not None and call.entry.state == "done" and call.entry.seq is not None
        result = call.fn.restored(call.entry.result) if known and call.entry is not None else UNKNOWN
        ctx = sagas.attempts.context(self.row.saga, self.row.envelope, f"{branch}:{name}:{number}:undo", attempt)

        def entry(state: str, seq: int | None, error: str | None = None, due: int | None = None) -> Entry:
            return Entry("undo", branch, name, number, seq, state, None, error, attempt, started, sagas.now(), due)

        try:
            return await sagas.attempts.run(
                function,
                call.args,
                call.kwargs,
                ctx,
                self.hold,
                lambda value: entry("done", next(self._seq)),
                timeout=call.timeout,
                result=result,
            )
        except (Fenced, StoreTrouble):
            raise
        except Exception as error:
            again = sagas.now() + int(compensation.delay(attempt, error, sagas.rng) * 1_000_000)
            failed = entry("retrying", None, describe(error), again)
            log.warning("%s %s: undo of %s, attempt %d: %s", self.row.saga, self.row.key, words(call.key), attempt, failed.error)
            await sagas.attempts.record(self.hold, failed)
            return failed


def _due(call: Call) -> int | None:
    """When a pending call can go on by itself."""
    return call.entry.due if call.entry is not None else call.due


def _wait(call: Call) -> dict[str, Any]:
    """What it waits for, as ``tidings saga show`` tells it."""
    facts: dict[str, Any] = {"for": words(call.key), "since": call.began, "until": _due(call), "line": call.line}
    if call.entry is not None:
        facts |= {"for": f"another attempt at {words(call.key)}", "attempts": call.entry.attempts, "error": call.entry.error}
    return facts


async def _alone(work: Callable[[], None]) -> None:
    """Run ``work`` on the loop in no task of it: the body has tasks of its own."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            if not over.done():
                over.set_exception(error)
        else:
            if not over.done():
                over.set_result(None)

    loop.call_soon(run)
    await over
