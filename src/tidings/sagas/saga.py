"""A saga as its author sees it: the declaration, and what its body may call."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NoReturn, TypeVar, overload

import msgspec

from ..errors import SagaDefinitionError, TidingsError
from ..event import EventType
from ..retry import Retry
from .body import AGAIN, Again, Body
from .digest import digest
from .result import decoder_of
from .step import NOTHING, Function, Provided
from .text import certain

T = TypeVar("T")
E = TypeVar("E")
Late = Literal["ignore", "dead"] | Callable[[Any, Any], Any]
RETRY, ONCE = Retry(), Retry(attempts=1)
Main = Callable[[Any, "Saga"], Coroutine[Any, Any, Any]]


@dataclass(slots=True)
class SagaDefinition:
    """A body, the event that starts it, and those that it may wait for, by type name."""

    name: str
    version: int
    main: Main
    start: EventType
    waits: dict[str, EventType] = field(default_factory=dict)
    failures: tuple[type[Exception], ...] = ()
    late: Late = "ignore"
    provided: Provided = field(default_factory=dict)


def define(
    name: str | None,
    version: int,
    main: Main,
    start: EventType,
    waits: Sequence[EventType],
    failures: Sequence[Any] = (),
    late: Late = "ignore",
    provided: Provided = NOTHING,
) -> SagaDefinition:
    """Check a declaration.

    Raises:
        SagaDefinitionError
    """
    name = name or str(getattr(main, "__name__", ""))
    if not inspect.iscoroutinefunction(main):
        raise SagaDefinitionError(f"the saga {name!r} must be `async def`: it awaits its steps", saga=name)
    if len(inspect.signature(main).parameters) != 2:
        raise SagaDefinitionError(
            f"the saga {name!r} takes the event that starts it and the Saga: async def {name}(event, saga)", saga=name
        )
    if type(version) is not int or version < 1:
        raise SagaDefinitionError(f"the saga {name!r}: version={version!r} must be a whole number from 1", saga=name)
    if start.key_name is None:
        raise SagaDefinitionError(f"the saga {name!r} is one for each key, and {start.name} has none", saga=name)
    for waited in waits:
        if waited.key_name != start.key_name:
            raise SagaDefinitionError(
                f"the saga {name!r} is one for each {start.key_name}, and {waited.name} has {waited.key_name or 'no key'} instead: an event"
                " that it waits for must have its key",
                saga=name,
            )
        if waited.name == start.name:
            raise SagaDefinitionError(f"the saga {name!r} is started by {start.name}, so it can't wait for it too", saga=name)
    decoder_of(main)
    if late not in ("ignore", "dead") and not callable(late):
        raise SagaDefinitionError(f'the saga {name!r}: late={late!r} must be "ignore", "dead", or a function of (event, ctx)', saga=name)
    for failure in failures:
        if not (isinstance(failure, type) and issubclass(failure, Exception)) or failure is Exception:
            raise SagaDefinitionError(
                f"the saga {name!r}: failures={failure!r} must be classes of exceptions of your own that say that the business can't go on",
                saga=name,
            )
    if (mistake := next(certain(main), None)) is not None:
        raise SagaDefinitionError(f"the saga {name!r}: {mistake}", saga=name)
    return SagaDefinition(name, version, main, start, {waited.name: waited for waited in waits}, tuple(failures), late, provided)


@lru_cache(maxsize=4096)
def _function(fn: Callable[..., Any], what: str) -> Function:
    return Function(fn, what)


class Saga:
    """What a saga's body may call. Everything else that touches the world belongs into a step.

    Attributes:
        key: of the instance, as text. name: the saga's.
    """

    def __init__(
        self,
        definition: SagaDefinition,
        key: str,
        body: Body,
        type_of: Callable[[type], EventType],
        called: Callable[[Any], SagaDefinition | None] = lambda saga: None,
    ) -> None:
        self._called = called
        self.name = definition.name
        self.key = key
        self._start = definition.start
        self._waits = definition.waits
        self._provided = definition.provided
        self._body = body
        self._type_of = type_of

    @overload
    async def step(
        self, fn: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, undo: Callable[..., Any] | None = None,
        undo_group: str | None = None, undo_retry: Retry | None = None, retry: Retry | None = None, timeout: float | None = None,
        at_most_once: bool = False, reconcile: Callable[..., Any] | None = None, **kwargs: Any,
    ) -> T: ...  # fmt: skip
    @overload
    async def step(
        self, fn: Callable[..., T], /, *args: Any, undo: Callable[..., Any] | None = None,
        undo_group: str | None = None, undo_retry: Retry | None = None, retry: Retry | None = None, timeout: float | None = None,
        at_most_once: bool = False, reconcile: Callable[..., Any] | None = None, **kwargs: Any,
    ) -> T: ...  # fmt: skip
    async def step(
        self, fn: Callable[..., Any], /, *args: Any, undo: Callable[..., Any] | None = None,
        undo_group: str | None = None, undo_retry: Retry | None = None, retry: Retry | None = None, timeout: float | None = None,
        at_most_once: bool = False, reconcile: Callable[..., Any] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Call a function once, and remember what it returned.

        It asks by type for a transaction, in which its rows and its journal entry are committed together, and for a ``Context``. Without
        a transaction it is called at least once, with the same ``ctx.idempotency_key`` each time.

        Args:
            undo: is called with the same arguments if the saga can't go on later, unless the step was refused; ``result``, if it has such
                a parameter, is what the step returned, or an ``Unknown``. It must accept that nothing happened.
            undo_group: steps of one group are undone side by side, at the place of the last of them.
            undo_retry: when the undo is tried again after an error; without end unless given. When its attempts are used up, the saga is
                ``stuck`` until somebody says ``retry`` or ``skip``.
            retry: when it is tried again after an error; ``Retry()`` unless given.
            timeout: seconds for one attempt.
            at_most_once: it is never called again by itself. An error is a StepFailed at once; if its worker dies meanwhile, nobody knows
                whether it happened, and the instance is parked for a person, unless there is
            reconcile: called with the same arguments and the same idempotency key, it finds out what became of the step: it returns what
                the step would have returned, or raises ``NotDone`` (then the step is called), or ``Refused``. Any other error of it is
                tried again without end.

        Raises:
            Refused: the step raised it. StepFailed: it used up its attempts.
        """
        what: dict[str, Any] = {}
        try:
            function = what["fn"] = _function(fn, "the step")
            if timeout is not None and not timeout > 0:
                raise SagaDefinitionError(f"{function.name}: timeout={timeout!r}: seconds, more than 0")
            function.check(args, kwargs, self._provided)
            if at_most_once:
                if retry is not None or function.tx is not None:
                    raise SagaDefinitionError(
                        f"{function.name}: at_most_once=True is for a step without a transaction (in one it counts once anyway), and"
                        " without retry="
                    )
            elif reconcile is not None:
                raise SagaDefinitionError(f"{function.name}: reconcile= goes with at_most_once=True")
            if reconcile is not None:
                finds = what["reconcile"] = _function(reconcile, "the reconciliation")
                finds.check(args, kwargs, self._provided)
            if undo is None and undo_retry is not None:
                raise SagaDefinitionError(f"{function.name}: undo_retry= goes with undo=")
            if undo is not None:
                back = what["undo"] = _function(undo, "the undo")
                back.check(args, kwargs, self._provided)
            try:
                what["digest"] = digest(args, kwargs)
            except (TypeError, msgspec.MsgspecError) as error:
                raise SagaDefinitionError(f"{function.name} is given what the journal can't keep: {error}") from error
        except SagaDefinitionError as error:
            raise self._wrong(error) from error
        call = self._body.call(
            "step", function.name, args=args, kwargs=kwargs, retry=retry or (ONCE if at_most_once else RETRY),
            timeout=timeout, once=at_most_once, undo_group=undo_group, undo_retry=undo_retry or AGAIN, **what,
        )  # fmt: skip
        return await call.future

    async def steps(
        self, fn: Callable[..., Any], items: Iterable[Any], /, *args: Any, limit: int, undo: Callable[..., Any] | None = None,
        undo_group: str | None = None, undo_retry: Retry | None = None, retry: Retry | None = None, timeout: float | None = None,
        at_most_once: bool = False, reconcile: Callable[..., Any] | None = None, **kwargs: Any,
    ) -> list[Any]:  # fmt: skip
        """A step for each of these items, ``fn(item, *args, **kwargs)``, at most ``limit`` of them at a time.

        Args:
            limit: 1 or more. The others: as ``step`` takes them.

        Returns:
            What they returned, in the order of the items.

        Raises:
            Refused, StepFailed: the first that failed. Those that run beside it have ended by then, and no other is begun.
        """
        if type(limit) is not int or limit < 1:
            raise self._wrong(SagaDefinitionError(f"limit={limit!r}: so many steps at a time, 1 or more"))
        how: dict[str, Any] = {"undo": undo, "undo_group": undo_group, "undo_retry": undo_retry, "retry": retry, "timeout": timeout}
        gate, failed = asyncio.Semaphore(limit), list[Exception]()

        async def one(item: Any) -> Any:
            async with gate:
                if failed:
                    return None
                try:
                    return await self.step(fn, item, *args, at_most_once=at_most_once, reconcile=reconcile, **how, **kwargs)
                except Exception as error:
                    failed.append(error)

        found = await asyncio.gather(*(one(item) for item in items))  # a branch for each, whatever the limit
        if failed:
            raise failed[0]
        return found

    async def sleep(self, duration: float | timedelta) -> None:
        """Go on after so many seconds, whatever dies meanwhile."""
        await self._body.call("sleep", "sleep", due=self._until(duration)).future

    @overload
    async def wait(self, cls: type[E], /, *, within: float | timedelta | None = None) -> E: ...
    @overload
    async def wait(self, cls: type, /, *classes: type, within: float | timedelta | None = None) -> Any: ...
    async def wait(self, cls: type, /, *classes: type, within: float | timedelta | None = None) -> Any:
        """The next event of one of these classes and of this key; also one that came before, since the instance began.

        Raises:
            NotInTime: none came within this time.
        """
        try:
            types = {(event_type := self._type_of(one)).name: event_type for one in (cls, *classes)}
            for name in types:
                if name not in self._waits:
                    raise SagaDefinitionError(
                        f"the saga {self.name!r} waits for {name}, which it doesn't declare:"
                        f" @app.saga(…, waits=[{name.rpartition('.')[2]}])"
                    )
        except TidingsError as error:
            raise self._wrong(error) from error
        due = None if within is None else self._until(within)
        decoders = {name: event_type.decode for name, event_type in types.items()}
        return await self._body.call("wait", " | ".join(types), due=due, types=decoders).future

    async def child(self, saga: str | Main, event: Any) -> Any:
        """Begin another saga of this app as a child, and wait for what it returns. It has an instance and a journal of its own; if this one
        is undone, so is the child, through its own steps.

        Args:
            saga: its name, or the decorated function. event: of the class that starts it; it isn't published.

        Raises:
            ChildFailed: it was compensated by itself, or there is an instance of its key that isn't this one's child.
        """
        try:
            definition = self._called(saga)
            if definition is None:
                name = saga if isinstance(saga, str) else getattr(saga, "__name__", saga)
                raise SagaDefinitionError(f"this app has no saga {name!r} that could be a child", saga=name)
            if self._type_of(type(event)).name != definition.start.name:
                raise SagaDefinitionError(
                    f"the saga {definition.name!r} is started by {definition.start.name}, not by {type(event).__name__}",
                    saga=definition.name,
                )
            key = definition.start.key_of(event)
            assert key is not None
            said = digest((event,), {})
        except TidingsError as error:
            raise self._wrong(error) from error
        call = self._body.call(
            "child", definition.name, args=(event,), child=(definition.name, key), digest=said, decode=decoder_of(definition.main)
        )
        return await call.future

    def restart(self, event: Any) -> NoReturn:
        """Begin anew with another event of the class that starts it, of the same key: for a process without end. The journal begins anew
        too; what is to be undone if it can't go on later stays so.

        Only where nothing else of the body is under way.
        """
        body, start = self._body, self._start
        try:
            if self._type_of(type(event)).name != start.name or start.key_of(event) != self.key:
                raise SagaDefinitionError(
                    f"the saga {self.name!r} restarts with a {start.name} of its own key {self.key}, not with {event!r}", saga=self.name
                )
            data = start.to_bytes(event)
        except TidingsError as error:
            raise self._wrong(error) from error
        if any(call.pending for call in body.calls.values()):
            raise self._wrong(SagaDefinitionError(f"the saga {self.name!r} restarts while it still awaits something else"))
        body.again = data
        raise Again

    async def changed(self, name: str) -> bool:
        """Whether this instance is to go the new way of a change to the code: False if its journal goes on behind this point from before
        the change, True otherwise. The same at each run. Once no instance from before is left, it can be taken out."""
        return bool(await self._body.call("changed", name).future)

    async def pivot(self) -> None:
        """From here on it only goes forward: what fails is tried again without end, and nothing is undone any more."""
        await self._body.call("pivot", "pivot").future

    def now(self) -> datetime:
        """When the last result came that the body was handed: the same at each run."""
        return datetime.fromtimestamp(self._body.now / 1e6, UTC)

    def random(self) -> float:
        """At least 0, less than 1: the same at each run."""
        return self._body.rng.random()

    def uuid(self) -> uuid.UUID:
        """A random one: the same at each run."""
        return uuid.UUID(int=self._body.rng.getrandbits(128), version=4)

    def _until(self, duration: float | timedelta) -> int:
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if not seconds > 0:
            raise self._wrong(SagaDefinitionError(f"{duration!r}: give a time of more than 0 seconds"))
        return self._body.now + int(seconds * 1_000_000)

    def _wrong(self, error: TidingsError) -> SagaDefinitionError:
        """The body calls what can't be run as it is written, whatever it makes of the error."""
        line = self._body.loop.line()
        self._body.loop.fault = told = SagaDefinitionError(f"{line}: {error}", saga=self.name, line=line)
        return told
