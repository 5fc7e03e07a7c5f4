"""A saga's body on a loop of its own, on which nothing happens but what the journal says.

``asyncio.gather``, tasks and groups of them work as ever, since the loop runs their callbacks; whatever would wait for the world outside
(a timer, a socket, a thread) is refused there, with the line. The body runs until it is quiet, then it is handed one result. So it
goes the same way each time: the first time, and whenever another worker reads the journal to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context as Variables
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from ..envelope import Envelope
from ..errors import BodyFailed, ChildFailed, ForeignAwait, NotInTime, Refused, SagaError, StepFailed, TidingsError
from ..retry import Retry
from ..store.sagas import Entry
from .step import Function

Key = tuple[str, str, str, int]
"""Kind, branch, name, counter: which call of a body it is, whenever the body is run."""


AGAIN = Retry(attempts=2**62, first=1.0, most=300.0)
"""How an undo is tried again unless its step says how: without end."""


class Past(NamedTuple):
    """A run of the body before the saga restarted itself, whose steps are still to be undone if it comes to that.

    ``mark``: stands before the branches of its entries. ``envelope``: what began it.
    """

    mark: str
    version: int
    started: int
    envelope: Envelope


class Again(BaseException):
    """Ends a body that begins anew."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of the body, and what became of it. ``due``: microseconds, of a sleep or a deadline. ``line``: where it stands.

    ``child``: saga and key; ``decode``: what becomes of its result. ``once``: of a step that is tried once at most."""

    key: Key
    future: asyncio.Future[Any]
    line: str
    began: int
    due: int | None = None
    digest: str | None = None
    fn: Function | None = None
    undo: Function | None = None
    undo_group: str | None = None
    undo_retry: Retry = AGAIN
    once: bool = False
    reconcile: Function | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    retry: Any = None
    timeout: float | None = None
    types: dict[str, Callable[[bytes], Any]] = field(default_factory=dict)
    child: tuple[str, str] | None = None
    past: Past | None = None
    decode: Callable[[bytes], Any] | None = None
    entry: Entry | None = None

    @property
    def pending(self) -> bool:
        """Nothing has become of it yet."""
        return (self.entry is None or self.entry.seq is None) and not self.future.cancelled()


class Branch(asyncio.Task[Any]):
    """A task of a body, named by the order in which its parent made it."""

    branch: str = "0"
    children: int = 0


class BodyLoop:
    """As much of an event loop as tasks and futures need among themselves."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self.tasks: list[Branch] = []
        self.fault: TidingsError | None = None
        self.at_rest: Callable[[], str] = lambda: "?"
        """The line at which the body waits, for what its own frames don't tell: a task of nothing but a call of ours or of asyncio's."""

    def run(self) -> None:
        """Until nothing is left to do. Not from within a task of another loop."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            while self._ready:
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(outer)

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Variables | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)  # type: ignore[arg-type]
        self._ready.append(handle)
        return handle

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Variables | None = None) -> Branch:
        parent = asyncio.current_task(self)  # type: ignore[arg-type]
        task = Branch(coro, loop=self, name=name, context=context)  # type: ignore[arg-type]
        if isinstance(parent, Branch):
            parent.children += 1
            task.branch = f"{parent.branch}.{parent.children}"
        self.tasks.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Of tasks that nobody awaited: the saga's own business."""

    def __getattr__(self, name: str) -> NoReturn:
        self.refuse(f"{name}()")
        raise AssertionError

    def refuse(self, what: str) -> NoReturn:
        """The body wanted something of the world outside."""
        line = self.line()
        self.fault = ForeignAwait(
            f"{line}: a saga's body may await its own calls only (saga.step, saga.sleep, saga.wait), and this asks the event loop for"
            f" {what}: put it into a step",
            line=line,
        )
        raise self.fault

    def line(self) -> str:
        """Of the body, that runs now."""
        return where() or self.at_rest()


class Body:
    """One run of a body.

    Attributes:
        now: microseconds since 1970: when the last result was recorded that it was handed. handed: whose. calls: all that it has made so
            far, by key. open: those of them whose result it wasn't handed yet.
    """

    def __init__(self, main: Callable[[Any, Any], Coroutine[Any, Any, Any]], seed: str, now: int) -> None:
        self.loop = BodyLoop()
        self.loop.at_rest = self.where
        self.now = now
        self.handed = ""
        self.calls: dict[Key, Call] = {}
        self.open: dict[Key, Call] = {}
        self.rng = random.Random(seed)
        self._main = main
        self._counters: dict[tuple[str, str, str], int] = {}
        self._task: Branch | None = None
        self.left = False
        self.pivoted = False
        self.again: Any = None

    def begin(self, event: Any, saga: Any) -> None:
        self._task = self.loop.create_task(self._main(event, saga))
        self.loop.run()

    @property
    def fault(self) -> TidingsError | None:
        """Why it can't be run."""
        return self.loop.fault

    @property
    def ended(self) -> bool:
        return self._task is not None and self._task.done()

    @property
    def error(self) -> BaseException | None:
        """What it raised in the end."""
        assert self._task is not None
        if self._task.cancelled():
            return asyncio.CancelledError("the body cancelled itself")
        return self._task.exception()

    @property
    def result(self) -> Any:
        """What it returned."""
        assert self._task is not None
        return self._task.result()

    def failure(self, error: BaseException) -> BodyFailed:
        """For an error that is a mistake in the code."""
        line, traceback = "?", error.__traceback__
        while traceback is not None and not (line != "?" and _is_ours(traceback.tb_frame)):
            if _is_the_bodys(traceback.tb_frame):
                line = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
            traceback = traceback.tb_next
        last = f" behind {self.handed}" if self.handed else ""
        kind = type(error).__name__
        if self.pivoted:
            return BodyFailed(
                f"{line}: the body let {kind} pass behind its pivot, where a saga only goes forward, so nothing is undone: {error}. Let the"
                " code go another way there",
                line=line,
            )
        return BodyFailed(
            f"{line}: the body raised {kind}: {error}{last}, which is no outcome of the business, so nothing is undone: mend it; or, if"
            f" it is one, declare it: @app.saga(…, failures=({kind},))",
            line=line,
        )

    def call(self, kind: str, name: str, **facts: Any) -> Call:
        """Note a call of the body's, made in the task that runs now.

        Raises:
            SagaError: the body has been left, or it is another program that calls.
        """
        here: Any = asyncio._get_running_loop()
        loop: Any = self.loop
        task = asyncio.current_task(here) if here is loop else None
        if self.left or not isinstance(task, Branch):
            raise SagaError(f"{where() or '?'}: saga.{kind} is called from the saga's body only, not from a step or behind its end")
        place = kind, task.branch, name
        self._counters[place] = count = self._counters.get(place, 0) + 1
        key = (*place, count)
        call = self.calls[key] = self.open[key] = Call(key, self.loop.create_future(), self.loop.line(), self.now, **facts)
        return call

    def waiting(self) -> list[Call]:
        """The calls of which nothing has become yet, in the order in which they were made."""
        return [call for call in self.open.values() if call.pending]

    def hand(self, call: Call, entry: Entry) -> None:
        """Tell the body what became of a call, and let it go on until it is quiet."""
        self.now = max(self.now, entry.ended)
        self.handed = call.key[2]
        self.open.pop(call.key, None)
        self.pivoted = self.pivoted or call.key[0] == "pivot"
        if not call.future.done():
            _settle(call, entry)
        self.loop.run()

    def where(self) -> str:
        """The line at which it waits."""
        coroutine: Any = self._task.get_coro() if self._task is not None else None
        line = "?"
        while coroutine is not None and getattr(coroutine, "cr_frame", None) is not None:
            if _is_the_bodys(coroutine.cr_frame):
                line = f"{coroutine.cr_frame.f_code.co_filename}:{coroutine.cr_frame.f_lineno}"
            coroutine = coroutine.cr_await
        return line

    def leave(self) -> None:
        """Let it go as it stands. No call of it does anything any more; Python runs what stands in its ``finally``."""
        self.left = True
        for task in self.loop.tasks:
            if not task.done():
                with contextlib.suppress(BaseException):
                    task.get_coro().close()


def _settle(call: Call, entry: Entry) -> None:
    kind, _, name, _ = call.key
    if kind == "child":
        assert call.child is not None
        saga, key = call.child
        if entry.state != "done":
            call.future.set_exception(ChildFailed(f"the child {saga} {key}: {entry.error}", saga=saga, key=key, error=entry.error))
        else:
            call.future.set_result(None if entry.result is None or call.decode is None else call.decode(entry.result.encode()))
    elif kind == "changed":
        call.future.set_result(entry.result == "true")
    elif entry.state == "refused":
        call.future.set_exception(Refused(entry.error or ""))
    elif entry.state == "failed":
        call.future.set_exception(StepFailed(f"{name} failed after {entry.attempts} attempts: {entry.error}", step=name, error=entry.error))
    elif entry.state == "late":
        call.future.set_exception(NotInTime(f"no {name} came in time", types=name))
    elif kind == "wait":
        from ..codec import decode_json

        arrived = decode_json((entry.result or "").encode())
        call.future.set_result(call.types[arrived["type"]](arrived["data"].encode()))
    else:
        call.future.set_result(None if call.fn is None else call.fn.restored(entry.result))


def _is_ours(frame: Any) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.startswith("tidings.")


def _is_the_bodys(frame: Any) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return not module.startswith(("asyncio.", "tidings."))


def where() -> str:
    """The nearest line that is neither ours nor asyncio's; empty, if there is none between here and the body's loop."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not BodyLoop.run.__code__:
        if _is_the_bodys(frame):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
