"""One instance in this worker's hands: from its journal to where it waits, or to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from ..codec import decode_json
from ..errors import (
    BodyFailed,
    Fenced,
    ForeignAwait,
    JournalMismatch,
    NotDone,
    OutcomeUnknown,
    Refused,
    SagaDefinitionError,
    TidingsError,
)
from ..store.port import RaisedByHandler
from ..store.sagas import CLOSED, Arrival, Entry, Hold, Release, SagaRow, Start
from ..subscribe.parking import describe, storable
from . import compensation, operating
from .attempt import StoreTrouble
from .body import Body, Call, Past
from .journal import key_of, matured, read_to, words
from .result import stored
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
        self.asked = False
        """An operator may have ordered something."""
        self.task: asyncio.Task[None] | None = None
        self._body: Body
        self._past = [entry for entry in entries if entry.branch.startswith("g")]
        self._entries = [entry for entry in entries if not entry.branch.startswith("g")]
        self._arrived: list[tuple[int, str]] = []
        self._data: dict[int, tuple[str, bytes]] = {}
        self._count = row.arrived
        self._running: dict[asyncio.Task[Entry], Call] = {}
        self._recorded: list[tuple[Call, Entry]] = []
        self._woken: asyncio.Future[None] | None = None
        self._handing = False
        self._ahead: Call | None = None
        """The body has this one's result, which isn't written yet. Nothing that it asks for is done before that."""
        self._end: Release | None = None
        """Is written with its last line;"""
        self._finished = False
        """and was."""
        self._trouble: BaseException | None = None
        self._news = False
        self._late = False
        self._seq = count(max((entry.seq for entry in entries if entry.seq is not None), default=0) + 1)
        self._open: set[int] = set()
        self._heard(arrivals)
        self._taken = {
            decode_json((entry.result or "").encode())["position"] for entry in self._entries if entry.kind == "wait" and entry.result
        }

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
        except (BodyFailed, JournalMismatch, ForeignAwait, OutcomeUnknown, SagaDefinitionError) as error:
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
        saga = Saga(definition, row.key, body, self._sagas.type_of, self._sagas.called)
        event = definition.start.decode(row.envelope.data)
        await _alone(lambda: body.begin(event, saga))
        await _alone(lambda: read_to(body, self._entries))
        undone = any(entry.kind == "undo" for entry in self._entries)
        back = any(entry.kind == "back" for entry in self._entries)
        ordered = back or self.row.back is not None  # then nothing of the body itself says so
        if (undone or row.state in operating.UNDOING) and not ordered and not (body.ended and body.error is not None):
            raise JournalMismatch(
                "the instance is being compensated, and the body doesn't fail there any more: put back what it was",
                step="",
                line=body.where(),
            )
        while not body.ended and not back:
            if body.fault is not None:
                raise body.fault
            await self._sagas.owned(self)
            await self._hear()
            if self.row.back is not None:
                break
            if self.row.pause is None and (await self._answer() or await self._children()):
                continue
            if not self._sagas.stopping and self.row.pause is None:
                self._begin_steps()
            if not (self._running or self._news):
                await self._rest()
                return
            await self._next(handing=True)
            await self._hand_on()
        if self._finished:
            return
        if body.fault is not None:
            raise body.fault
        if self.row.back is not None and body.pivoted:
            raise BodyFailed(f"{await self._ordered()}, but it is behind its pivot, where nothing is undone any more", line=body.where())
        if self.row.back is not None and not back:
            await self._turn_back()
        # A sibling of what failed, or what ran when an operator turned it back: it ends, and its body doesn't go on.
        while self._running or self._news:
            await self._next()
            self._recorded.clear()
        if self.row.back is not None:
            await self._compensate(await self._ordered())
        elif body.again is not None:
            await self._restart(body.again)
        elif body.error is None:
            await self._release("completed", result=stored(definition.main, body.result))
        elif compensation.is_outcome(body.error, definition.failures) and not body.pivoted:
            await self._compensate(describe(body.error))
        else:
            raise body.failure(body.error) from body.error

    async def _ordered(self) -> str:
        """Who wants it undone, and why."""
        row = self.row
        if row.undo is not None:
            return row.undo
        return operating.ordered(row, await self._sagas.query(lambda unit: unit.sagas().actions(row.saga, row.key)))

    async def _restart(self, data: bytes) -> None:
        """Begin anew. What would be to be undone is kept, with what began it."""
        row, sagas = self.row, self._sagas
        newest = sagas.called(row.saga)
        assert newest is not None
        now = sagas.now()
        kept = None
        if compensation.due(self._body.calls.values()):
            mark = f"g{1 + sum(entry.kind == 'restart' for entry in self._past)}"
            facts = encode([row.version, row.started, row.envelope.event_id, row.envelope.data.decode()]).decode()
            kept = Entry("restart", mark, "restart", 1, next(self._seq), "done", facts, started=row.started, ended=now)
        ctx = sagas.attempts.context(row.saga, row.envelope, "restart", 1)
        envelope = sagas.attempts.envelope(newest.start.decode(data), ctx)
        taken = sorted(self._taken)
        if not await sagas.write(lambda unit: unit.sagas().restart(self.hold, newest.version, envelope, now, kept, taken)):
            raise Fenced(f"another worker holds {self.hold.saga} {self.hold.key} now; nothing was written")
        sagas.expect(now)

    def _runs_before(self) -> list[Past]:
        """The last first."""
        found = []
        for entry in self._past:
            if entry.kind == "restart":
                version, started, event_id, data = decode_json((entry.result or "").encode())
                found.append(Past(f"{entry.branch}/", version, started, self.row.envelope._replace(event_id=event_id, data=data.encode())))
        return found[::-1]

    async def _calls_before(self, past: Past) -> list[Call]:
        definition = self._sagas.definition(self.row.saga, past.version)
        if definition is None:
            raise JournalMismatch(f"version {past.version} of {self.row.saga} has steps to be undone; put its code back", step="", line="?")
        body = Body(definition.main, f"{self.row.saga}:{past.envelope.event_id}", past.started)
        saga = Saga(definition, self.row.key, body, self._sagas.type_of, self._sagas.called)
        entries = [replace(one, branch=one.branch.removeprefix(past.mark)) for one in self._past if one.branch.startswith(past.mark)]
        event = definition.start.decode(past.envelope.data)
        await _alone(lambda: body.begin(event, saga))
        await _alone(lambda: read_to(body, entries))
        if body.fault is not None:
            raise body.fault
        body.leave()
        for call in body.calls.values():
            call.past = past
        return list(body.calls.values())

    def _heard(self, arrivals: list[Arrival]) -> None:
        self._arrived = [(one.position, one.type) for one in arrivals]
        self._data = {one.position: (one.type, one.data) for one in arrivals}

    async def _hear(self) -> None:
        """What operators have ordered meanwhile."""
        if self.asked:
            self.asked = False
            row = await self._sagas.query(lambda unit: unit.sagas().row(self.row.saga, self.row.key))
            self.row.back, self.row.pause, self.row.undo = row.back, row.pause, row.undo

    async def _turn_back(self) -> None:
        """An operator wants it undone. From this line on the body is handed nothing, at each run: what it calls is what is undone."""
        now, seq = self._sagas.now(), next(self._seq)
        await self._sagas.attempts.record(self.hold, Entry("back", "0", self.row.back or "", 1, seq, "done", started=now, ended=now))
        while self._running or self._news:
            await self._next()
        for call, entry in sorted(self._recorded, key=lambda one: one[1].seq or 0):
            if (entry.seq or 0) < seq and not self._body.ended:
                await _alone(lambda call=call, entry=entry: self._body.hand(call, entry))  # type: ignore[misc]
        if self._body.fault is not None:
            raise self._body.fault

    # -- sleeps and waits

    async def _answer(self) -> bool:
        """Answer one of them, if one can be."""
        now = self._sagas.now()
        found = matured(self._body.waiting(), self._arrived, self._taken, now)
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
        elif kind == "changed":
            result = "true"
        await self._note(call, Entry(kind, branch, name, number, None, state, result, started=call.began, ended=now))
        return True

    async def _note(self, call: Call, entry: Entry) -> None:
        """Write what became of a call that is no step, and hand it on when its turn has come."""
        entry.seq = seq = next(self._seq)
        self._open.add(seq)
        try:
            await self._sagas.attempts.record(self.hold, entry)
        finally:
            self._open.discard(seq)
        call.entry = entry
        self._recorded.append((call, entry))
        await self._hand_on()

    # -- children

    async def _children(self) -> bool:
        """Begin those that the body has called for; see whether one has ended."""
        calls = [call for call in self._body.waiting() if call.child is not None]
        for call in calls:
            if call.entry is None and not self._sagas.stopping and not await self._begin_child(call):
                return True
        asked = [call.child for call in calls if call.entry is not None and call.child is not None]
        if not asked:
            return False
        ended = {(row[0], row[1]): row[2:] for row in await self._sagas.query(lambda unit: unit.sagas().ended(asked)) if row[2] in CLOSED}
        for call in calls:
            if call.child in ended and call.entry is not None:
                state, result, error = ended[call.child]
                kind, branch, name, number = call.key
                text = None if state == "completed" else f"{state}: {error}"
                entry = Entry(
                    kind, branch, name, number, None, "done" if state == "completed" else "failed", result, text,
                    started=call.entry.started, ended=self._sagas.now(), digest=call.digest,
                )  # fmt: skip
                await self._note(call, entry)
                return True
        return False

    async def _begin_child(self, call: Call) -> bool:
        """False if there is an instance of its key that isn't ours; then the body has been told."""
        assert call.child is not None
        sagas, now = self._sagas, self._sagas.now()
        kind, branch, name, number = call.key
        definition = sagas.called(name)
        assert definition is not None
        ctx = sagas.attempts.context(self.row.saga, self.row.envelope, f"{branch}:{name}:{number}", 1)
        me = (self.row.saga, self.row.key)
        start = Start(name, definition.version, self.row.app, sagas.attempts.envelope(call.args[0], ctx), now, parent=me)
        begun = Entry(kind, branch, name, number, None, "begun", started=now, ended=now, digest=call.digest)
        seq = next(self._seq)
        refused = replace(begun, seq=seq, state="refused", error="there is an instance of its key that isn't this one's child")
        self._open.add(seq)
        try:
            entry = await sagas.write(lambda unit: _adopted(unit, self.hold, begun, refused, start))
        finally:
            self._open.discard(seq)
        call.entry = entry
        if entry.seq is not None:
            self._recorded.append((call, entry))
            await self._hand_on()
        sagas.hurry()
        return entry.seq is None

    async def _undo_child(self, call: Call) -> Entry:
        """Undone, or asked to be; it tells when it is."""
        assert call.child is not None
        child, sagas = call.child, self._sagas
        name = call.key[2]
        row = await sagas.query(lambda unit: unit.sagas().row(*child))
        now = sagas.now()
        entry = Entry("undo", *_undo_key(call), None, "retrying", started=now, ended=now)
        if row is None or row.parent != (self.row.saga, self.row.key) or row.state in ("compensated", "cancelled", "gone"):
            entry = replace(entry, seq=next(self._seq), state="done")
            await sagas.attempts.record(self.hold, entry)
            return entry
        if row.undo is None:
            reason = f"its parent {self.row.saga} {self.row.key} is undone"
            await sagas.write(lambda unit: unit.sagas().ask_undo(child, reason, now))
            sagas.hurry()
        if row.state in ("stuck", "parked"):
            return replace(entry, attempts=compensation.STUCK_AFTER, error=f"{name} {row.key} is {row.state}: {row.error}")
        return entry

    # -- steps

    def _begin_steps(self) -> None:
        now, under_way = self._sagas.now(), set(self._running.values())
        for call in self._body.waiting():
            if call.key[0] != "step" or call in under_way:
                continue
            if call.entry is not None and call.entry.due is not None and call.entry.due > now:
                continue
            if _cut_off(call) and call.reconcile is None:
                continue
            task = asyncio.get_running_loop().create_task(self._attempt(call))
            self._running[task] = call
            task.add_done_callback(self._ended)

    async def _attempt(self, call: Call) -> Entry:
        assert call.fn is not None
        function, sagas = call.fn, self._sagas
        kind, branch, name, number = call.key
        attempt = 1 if call.entry is None else call.entry.attempts + 1
        began = sagas.now()
        started = began if call.entry is None else call.entry.started
        ctx = sagas.attempts.context(self.row.saga, self.row.envelope, f"{branch}:{name}:{number}", attempt)
        mine: list[int] = []
        finding_out = _cut_off(call)

        def unknown(state: str = "begun", **facts: Any) -> Entry:
            return Entry(kind, branch, name, number, None, state, attempts=attempt, started=started, digest=call.digest, **facts)

        def entry(state: str, **facts: Any) -> Entry:
            seq = next(self._seq)
            self._open.add(seq)
            mine.append(seq)
            return Entry(
                kind, branch, name, number, seq, state, attempts=attempt, started=started, ended=sagas.now(), digest=call.digest, **facts
            )

        try:
            if call.once and not finding_out:
                await sagas.attempts.record(self.hold, unknown(ended=began))
            return await sagas.attempts.run(
                call.reconcile if finding_out and call.reconcile is not None else function,
                call.args,
                call.kwargs,
                ctx,
                self.hold,
                lambda value: entry("done", result=function.stored(value)),
                timeout=call.timeout,
                write=lambda done: self._write(call, done),
            )
        except (Fenced, StoreTrouble):
            raise
        except Exception as raised:
            error = raised.error if isinstance(raised, RaisedByHandler) else raised
            self._open.difference_update(mine)
            mine.clear()
            text = describe(error)
            if isinstance(error, Refused):
                failed = entry("refused", error=storable(str(error)))
            elif finding_out and isinstance(error, NotDone):
                failed = unknown("retrying", error=text, ended=sagas.now(), due=sagas.now())
            elif finding_out:
                due = sagas.now() + int(compensation.delay(attempt, error, sagas.rng) * 1_000_000)
                failed = unknown(error=text, ended=sagas.now(), due=due)
            elif call.once and (call.reconcile is not None or self._body.pivoted):
                failed = unknown(error=text, ended=sagas.now())
            else:
                delay = None if isinstance(error, SagaDefinitionError) else call.retry.delay(attempt, error, sagas.rng)
                if delay is None and self._body.pivoted:
                    delay = compensation.delay(attempt, error, sagas.rng)
                if delay is None:
                    failed = entry("failed", error=text)
                else:
                    due = sagas.now() + int(delay * 1_000_000)
                    failed = unknown("retrying", error=text, ended=sagas.now(), due=due)
            log.info("%s %s: %s, attempt %d: %s", self.row.saga, self.row.key, words(call.key), attempt, text)
            await sagas.attempts.record(self.hold, failed)
            if self._ahead is not None:
                raise StoreTrouble(f"{words(call.key)}: its body went ahead with a result that can't be kept: {text}") from error
            return failed
        finally:
            self._open.difference_update(mine)

    async def _write(self, call: Call, entry: Entry) -> None:
        """Write what became of a step, and with it the end of the instance, if it was the last one."""
        if not self._may_go_ahead():
            await self._sagas.attempts.record(self.hold, entry)
            return
        loop = asyncio.get_running_loop()
        written: asyncio.Future[bool] = loop.create_future()
        loop.call_soon(self._go_ahead, call, entry, written)  # in no task, so the body can run
        await self._sagas.attempts.held(self.hold, written)
        self._finished = self._end is not None

    def _may_go_ahead(self) -> bool:
        """It is all that the body waits for, nothing else is under way that might be handed on before, and nobody looks at the instance."""
        return (
            self._handing
            and not (self._news or self._recorded or self._body.ended)
            and self._trouble is None
            and len(self._running) == len(self._open) == len(self._body.open) == 1
        )

    def _go_ahead(self, call: Call, entry: Entry, written: asyncio.Future[bool]) -> None:
        if written.done():  # its worker was killed
            return
        if self._may_go_ahead():
            self._ahead, call.entry = call, entry
            try:
                self._body.hand(call, entry)
                self._end = self._completed()
            except BaseException as error:  # the driver's, once the line stands
                self._trouble = error
        self._sagas.journal.record(self.hold, entry, self._end, written)

    def _completed(self) -> Release | None:
        """How it is let go of, if the body has returned and nobody else is to be told."""
        body, row = self._body, self.row
        if body.fault is not None or not body.ended or body.error is not None or row.parent is not None or row.back is not None:
            return None
        try:
            result = stored(self._definition.main, body.result)
        except SagaDefinitionError:  # it is found out again
            return None
        return Release(self.hold, "completed", None, None, None, None, self._sagas.now(), result)

    async def _next(self, *, handing: bool = False) -> None:
        """Wait until a step has ended, or something else falls due. ``handing``: meanwhile results are handed on."""
        now = self._sagas.now()
        pending = [call for call in self._body.waiting() if call not in self._running.values()]
        times = [due for call in pending if (due := _due(call)) is not None]
        patience = None if not pending else min(ARRIVALS_SECONDS, *(max(0.0, (time - now) / 1e6) + 0.001 for time in times), 9.0)
        self._late = False
        if not self._news:
            loop = asyncio.get_running_loop()
            self._woken = loop.create_future()
            timer = None if patience is None else loop.call_later(patience, self._too_late)
            self._handing = handing
            try:
                await self._woken
            finally:
                self._handing = False
                if timer is not None:
                    timer.cancel()
        self._news = False
        if self._trouble is not None:
            raise self._trouble
        if self._late and any(call.key[0] in ("wait", "child") for call in pending):
            saga, key = self.row.saga, self.row.key
            row, arrivals = await self._sagas.query(lambda unit: (unit.sagas().row(saga, key), unit.sagas().arrivals(saga, key)))
            self._count = row.arrived
            self._heard(arrivals)

    def _too_late(self) -> None:
        self._late = True
        self._wake()

    def _wake(self) -> None:
        self._news = True
        if self._ahead is None and self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _ended(self, task: asyncio.Task[Entry]) -> None:
        """A step has. Called in no task, so the body can run: a saga that goes from step to step needs nobody else."""
        call = self._running.pop(task)
        ahead, self._ahead = self._ahead is call, None
        if task.cancelled():
            self._trouble = self._trouble or asyncio.CancelledError()
        elif (error := task.exception()) is not None:
            self._trouble = self._trouble or error
        else:
            call.entry = entry = task.result()
            if entry.seq is not None and not ahead:
                self._recorded.append((call, entry))
            if self._handing and self._trouble is None:
                try:
                    self._hand()
                    if self._goes_on():
                        self._begin_steps()
                        if not self._news:
                            return
                except BaseException as error:  # the driver's
                    self._trouble = error
        self._wake()

    def _goes_on(self) -> bool:
        """The body wants steps and nothing else, and nobody wants anything of the instance."""
        sagas, row, running = self._sagas, self.row, self._running.values()
        return (
            not (self._body.ended or self.asked or sagas.stopping)
            and self._body.fault is None
            and row.pause is None
            and row.back is None
            and sagas.lasts(self)
            and all(call.key[0] == "step" and (call.entry is None or call in running) for call in self._body.waiting())
        )

    async def _hand_on(self) -> None:
        """In the order of the journal: nothing before what may still be written ahead of it."""
        if self._recorded:
            await _alone(self._hand)

    def _hand(self) -> None:
        """Not in a task."""
        self._recorded.sort(key=lambda one: one[1].seq or 0)
        while self._recorded and not self._body.ended and (self._recorded[0][1].seq or 0) < min(self._open, default=2**62):
            self._body.hand(*self._recorded.pop(0))

    # -- at rest

    async def _rest(self) -> None:
        """Nothing can be done now: let go of it until something falls due or comes."""
        pending = self._body.waiting()
        if not pending:
            raise ForeignAwait(
                f"{self._body.where()}: the saga's body awaits something that is none of its calls (saga.step, saga.sleep, saga.wait), so"
                " nobody would wake it",
                line=self._body.where(),
            )
        if self._sagas.stopping:
            await self._release(self.row.state if self.row.state not in CLOSED else "running", due=self._sagas.now())
            return
        for call in pending:
            if _cut_off(call) and call.reconcile is None:
                raise OutcomeUnknown(
                    f"{call.line}: {words(call.key)} is tried once at most and was cut off, so nobody knows whether it happened: find out,"
                    " and say so (`tidings saga skip` with its result if it did, `tidings saga retry --not-done` if not); or give the step"
                    " a reconcile=",
                    step=call.key[2],
                )
        times = [due for call in pending if (due := _due(call)) is not None]
        last = next((call.entry.error for call in pending if call.entry is not None), None)
        await self._release("waiting", due=min(times, default=None), waits=[_wait(call) for call in pending], error=last)

    async def _release(
        self, state: str, *, due: int | None = None, waits: list[Any] | None = None, error: str | None = None, result: str | None = None
    ) -> None:
        now, text = self._sagas.now(), None if waits is None else encode(waits).decode()
        arrived = self._count if state in ("waiting", "compensating", "stuck") else None
        if not await self._sagas.let_go(Release(self.hold, state, due, text, error, arrived, now, result, self.row.parent)):
            raise Fenced(f"another worker holds {self.hold.saga} {self.hold.key} now; nothing was written")
        if due is not None or arrived is not None:
            self._sagas.expect(due)

    async def _park(self, error: Exception) -> None:
        text = storable(str(error)) if isinstance(error, TidingsError) else describe(error)
        log.error("%s %s is parked: %s", self.row.saga, self.row.key, text)
        try:
            await self._release("parked", error=text)
        except Fenced as fenced:
            log.info("%s", fenced)
        except StoreTrouble as trouble:
            log.warning("%s", trouble)
            await self._sagas.free(self.hold, TROUBLE_SECONDS)

    # -- back

    async def _compensate(self, text: str) -> None:
        """``text``: why."""
        state = self.row.state
        if state not in operating.UNDOING:
            state = "compensating"
            now = self._sagas.now()
            if not await self._sagas.write(lambda unit: unit.sagas().turn(self.hold, "compensating", text, now)):
                raise Fenced(f"another worker holds {self.hold.saga} {self.hold.key} now; nothing was written")
        done = {key_of(entry)[1:]: entry for entry in (*self._entries, *self._past) if entry.kind == "undo"}
        rounds = compensation.rounds(self._body.calls.values())
        for past in self._runs_before():
            rounds += compensation.rounds(await self._calls_before(past))
        for turn, together in enumerate(rounds):
            before = {call: done.get(_undo_key(call)) for call in together}
            left = [call for call, entry in before.items() if entry is None or entry.state not in ("done", "skipped")]
            if not left:
                continue
            await self._sagas.owned(self)
            await self._hear()
            if self._sagas.stopping or self.row.pause is not None:
                await self._release(state, due=self._sagas.now(), error=text)
                return
            now = self._sagas.now()
            tried = await asyncio.gather(*(self._tried(call, before[call], now) for call in left), return_exceptions=True)
            if trouble := [one for one in tried if isinstance(one, BaseException)]:
                raise trouble[0]
            failed = [
                (call, one)
                for call, one in zip(left, tried, strict=True)
                if isinstance(one, Entry) and one.state not in ("done", "skipped")
            ]
            if failed:
                given_up = any(call.child is None and entry.due is None for call, entry in failed)
                state = compensation.state_after(max(entry.attempts for _, entry in failed), given_up=given_up)
                waits = [
                    {
                        "for": f"undo {call.undo.name if call.undo is not None else ' '.join(call.child or call.key[2:3])}",
                        "call": ["undo", *_undo_key(call)],
                        "since": entry.started,
                        "until": entry.due,
                        "attempts": entry.attempts,
                        "error": entry.error,
                        **({} if call.child is None else {"child": list(call.child)}),
                        "then": [words(later.key) for later_turn in rounds[turn + 1 :] for later in later_turn],
                    }
                    for call, entry in failed
                ]
                due = min((entry.due for _, entry in failed if entry.due is not None), default=None)
                await self._release(state, due=due, waits=waits, error=text)
                return
            state = "compensating"
        await self._release("compensated", error=text)

    async def _tried(self, call: Call, before: Entry | None, now: int) -> Entry:
        """An undo, if its time has come."""
        if call.child is not None:
            return await self._undo_child(call)
        return await self._undo(call, before) if before is None or (before.due is not None and before.due <= now) else before

    async def _undo(self, call: Call, before: Entry | None) -> Entry:
        """One attempt. The entry stands under its step's name."""
        assert call.undo is not None
        assert call.fn is not None
        function, sagas = call.undo, self._sagas
        _, branch, name, number = call.key
        envelope = self.row.envelope if call.past is None else call.past.envelope
        attempt = 1 if before is None else before.attempts + 1
        started = sagas.now() if before is None else before.started
        known = call.entry is not None and call.entry.state in ("done", "skipped") and call.entry.seq is not None
        result = call.fn.restored(call.entry.result) if known and call.entry is not None else UNKNOWN
        ctx = sagas.attempts.context(self.row.saga, envelope, f"{branch}:{name}:{number}:undo", attempt)

        def entry(state: str, seq: int | None, error: str | None = None, due: int | None = None) -> Entry:
            return Entry("undo", *_undo_key(call), seq, state, None, error, attempt, started, sagas.now(), due)

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
        except Exception as raised:
            error = raised.error if isinstance(raised, RaisedByHandler) else raised
            delay = compensation.undo_delay(call.undo_retry, attempt, error, sagas.rng)
            failed = entry("retrying", None, describe(error), None if delay is None else sagas.now() + int(delay * 1_000_000))
            log.warning("%s %s: undo of %s, attempt %d: %s", self.row.saga, self.row.key, words(call.key), attempt, failed.error)
            await sagas.attempts.record(self.hold, failed)
            return failed


def _adopted(unit: Any, hold: Hold, begun: Entry, refused: Entry, start: Start) -> Entry:
    entry: Entry | None = unit.sagas().adopt(hold, begun, refused, start)
    if entry is None:
        raise Fenced(f"another worker holds {hold.saga} {hold.key} now; nothing was written")
    return entry


def _undo_key(call: Call) -> tuple[str, str, int]:
    """Branch, name and number of an undo's entry. A child may have the name of a step."""
    _, branch, name, number = call.key
    branch = branch if call.past is None else call.past.mark + branch
    return branch, name if call.child is None else f"child {name}", number


def _cut_off(call: Call) -> bool:
    """It is tried once at most, was begun, and nobody knows what became of it."""
    return call.entry is not None and call.entry.state == "begun" and call.key[0] == "step"


def _due(call: Call) -> int | None:
    """When a pending call can go on by itself."""
    return call.entry.due if call.entry is not None else call.due


def _wait(call: Call) -> dict[str, Any]:
    """What it waits for, as ``tidings saga show`` tells it."""
    facts: dict[str, Any] = {"for": words(call.key), "call": list(call.key), "since": call.began, "until": _due(call), "line": call.line}
    if call.child is not None:
        facts |= {"for": f"the child {' '.join(call.child)}", "child": list(call.child)}
    elif call.entry is not None:
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
