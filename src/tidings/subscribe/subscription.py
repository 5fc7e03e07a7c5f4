"""A subscription: a name, the types it reads, how it reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict, TypeVar

from ..errors import ConfigurationError, HandlerDefinitionError
from ..event import EventType
from ..retry import Retry
from .backlog import Backlog
from .handler import Handler
from .middleware import Middleware

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Options:
    """How a subscription reads. See ``App.subscription`` for what each means."""

    order: Literal["key", "none", "log"] = "key"
    concurrency: int = 16
    rate: float | None = None
    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    start: Literal["start", "now"] | datetime | int = "start"
    on_dead: Literal["go on", "hold"] = "go on"
    size: int = 100
    age: float = 1.0
    shared_tx: bool = False
    max_parked: int = 1000
    checkpoint_age: float = 0.25
    lapse: Backlog | None = None
    middleware: Sequence[Middleware] = ()

    def __post_init__(self) -> None:
        _require(self.order in ("key", "none", "log"), f'order={self.order!r}: choose "key", "none" or "log"')
        _require(self.on_dead in ("go on", "hold"), f'on_dead={self.on_dead!r}: choose "go on" or "hold"')
        _require(_is_whole(self.concurrency, 1), f"concurrency={self.concurrency!r}: a whole number from 1")
        _require(self.rate is None or _is_more_than_0(self.rate), f"rate={self.rate!r}: events a second, more than 0")
        _require(self.timeout is None or _is_more_than_0(self.timeout), f"timeout={self.timeout!r}: seconds, more than 0")
        _require(isinstance(self.retry, Retry), f"retry={self.retry!r}: give a Retry(attempts=…)")
        _require(self.size >= 1 and self.age >= 0, f"size={self.size!r}, age={self.age!r}: a number from 1, and seconds")
        _require(self.max_parked >= 1, f"max_parked={self.max_parked!r}: keys, 1 or more")
        _require(self.checkpoint_age >= 0, f"checkpoint_age={self.checkpoint_age!r}: seconds")
        _require(self.lapse is None or isinstance(self.lapse, Backlog), f"lapse={self.lapse!r}: give a Backlog(age=…) or Backlog(events=…)")
        if isinstance(self.start, datetime):
            _require(self.start.tzinfo is not None, f"start={self.start!r}: give the time zone too, datetime(…, tzinfo=UTC)")
        else:
            _require(
                self.start in ("start", "now") or _is_whole(self.start, 0),
                f'start={self.start!r}: choose "start", "now", a time or a position',
            )


class Given(TypedDict, total=False):
    """``Options`` as keyword arguments, for type checkers."""

    order: Literal["key", "none", "log"]
    concurrency: int
    rate: float | None
    timeout: float | None
    retry: Retry | None
    start: Literal["start", "now"] | datetime | int
    on_dead: Literal["go on", "hold"]
    size: int
    age: float
    shared_tx: bool
    max_parked: int
    checkpoint_age: float
    lapse: Backlog | None
    middleware: Sequence[Middleware]


class Subscription:
    """Made by ``App.subscription``; ``on`` adds a handler for a type."""

    def __init__(self, name: str, options: Options, type_of: Callable[[type], EventType]) -> None:
        self.name = name
        self.options = options
        self.handlers: dict[str, Handler] = {}
        self._type_of = type_of

    def on(self, *classes: type, where: Callable[[Any], bool] | None = None) -> Callable[[F], F]:
        """The decorated function handles events of these classes.

        Args:
            where: a plain predicate over the event; others count as handled.

        Raises:
            HandlerDefinitionError: the type has a handler here already, or the signature can't be served.
        """
        if not classes or not all(isinstance(cls, type) for cls in classes):
            raise HandlerDefinitionError(f"subscription {self.name!r}: name the event class, as in @…on(OrderPlaced)")

        def mark(fn: F) -> F:
            for cls in classes:
                event_type = self._type_of(cls)
                handler = Handler(fn, event_type, where=where, name=self.name)
                known = self.handlers.get(event_type.name)
                if known is not None:
                    raise HandlerDefinitionError(
                        f"subscription {self.name!r} has a handler for {event_type.name} already ({known.name}); give"
                        f" {handler.name} a subscription of"
                        " its own, with another name",
                        subscription=self.name,
                        type=event_type.name,
                    )
                if self.handlers and (handler.takes_list or any(other.takes_list for other in self.handlers.values())):
                    raise HandlerDefinitionError(
                        f"subscription {self.name!r}: a handler that takes a list must be the only one; give"
                        f" {handler.name} a subscription of its own"
                    )
                if self.options.shared_tx and handler.tx is None:
                    raise HandlerDefinitionError(
                        f"{handler.name}: shared_tx=True is for handlers that ask for a transaction, and it asks for none"
                    )
                self.handlers[event_type.name] = handler
            return fn

        return mark


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_more_than_0(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigurationError(message)
