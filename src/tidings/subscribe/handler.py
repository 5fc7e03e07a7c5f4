"""What a handler asks for, read from its signature once."""

from __future__ import annotations

import contextlib
import inspect
import sqlite3
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import HandlerDefinitionError, StoreError
from ..event import EventType
from ..store.port import RaisedByHandler
from .context import Context

TRANSACTION_TYPES: dict[str, str] = {
    "sqlite3.Connection": "sqlite3",
    "aiosqlite.core.Connection": "aiosqlite",
    "sqlalchemy.orm.session.Session": "session",
    "sqlalchemy.engine.base.Connection": "connection",
    "sqlalchemy.ext.asyncio.session.AsyncSession": "async session",
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": "async connection",
    "django.db.backends.base.base.BaseDatabaseWrapper": "django",
    "django.db.transaction.Atomic": "django",
    "psycopg.Connection": "psycopg",
    "psycopg.AsyncConnection": "async psycopg",
    "psycopg.connection.Connection": "psycopg",
    "psycopg.connection_async.AsyncConnection": "async psycopg",
    "psycopg2.extensions.connection": "psycopg2",
    "asyncpg.connection.Connection": "asyncpg",
}
"""Annotations that ask for a transaction, by full name so that nothing is imported, and the kind of transaction."""

ASYNC_KINDS = {"aiosqlite", "async session", "async connection", "async psycopg", "asyncpg"}
SYNC_KINDS = {"session", "connection", "django", "psycopg", "psycopg2"}
"""``sqlite3`` is neither: an async handler may have it, if it calls it from another thread than the loop's."""


def contained(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``call`` of a synchronous handler, of which ``sys.exit()`` and the like come out as RaisedByHandler: in a thread they can't end the
    program, and would only end the task that waits for it."""

    def calling(event: Any, ctx: Context) -> Any:
        try:
            return call(event, ctx)
        except Exception:
            raise
        except BaseException as error:
            raise RaisedByHandler(error) from None

    return calling


def tell_apart(call: Callable[[Any, Any], Any], is_async: bool) -> Callable[[Any, Any], Any]:
    """``call``, whose StoreErrors and ConnectionErrors come out as RaisedByHandler; if it is synchronous, it is ``contained`` as well."""
    if is_async:

        async def waiting(event: Any, ctx: Context) -> Any:
            try:
                return await call(event, ctx)
            except (StoreError, ConnectionError) as error:
                raise RaisedByHandler(error) from None

        return waiting

    def calling(event: Any, ctx: Context) -> Any:
        try:
            return call(event, ctx)
        except (StoreError, ConnectionError) as error:
            raise RaisedByHandler(error) from None
        except Exception:
            raise
        except BaseException as error:
            raise RaisedByHandler(error) from None

    return calling


class Decoded(dict[int, Any]):
    """Events of one class by position, for the subscriptions that decode the same. ``size``: bytes of their data; see ``Runner.decode``."""

    def __init__(self) -> None:
        self.size = 0


class Handler:
    """A function for one event type in one subscription.

    Attributes:
        call: ``call(event, ctx)``; awaitable if ``is_async``.
        tx: the kind of transaction it asked for, or None. inline: async and without one: it can begin wherever the loop is.
        takes_list: it asked for ``list[EventClass]``.
        decode: bytes to event. decoded: events by position that other subscriptions of the app have decoded; None if it is alone with them.
    """

    __slots__ = (
        "_defaults", "_direct", "call", "decode", "decoded", "event_type", "fn", "inline", "is_async", "name", "needs", "takes_list", "tx",
        "where",
    )  # fmt: skip

    def __init__(self, fn: Callable[..., Any], event_type: EventType, *, where: Callable[[Any], bool] | None, name: str) -> None:
        self.fn = fn
        self.event_type = event_type
        self.where = where
        self.name = getattr(fn, "__qualname__", name)
        self.is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
        self.tx: str | None = None
        self.needs: dict[str, type] = {}
        self._defaults: set[str] = set()
        parameters = list(inspect.signature(fn).parameters.values())
        if not parameters:
            raise HandlerDefinitionError(f"{self.name} takes no argument; the first one is the event", handler=self.name)
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise HandlerDefinitionError(
                f"{self.name} yields, and a handler returns: an event, a list of events, or nothing; ctx.publish(…) publishes on the way",
                handler=self.name,
            )
        first, *others = parameters
        self.takes_list = typing.get_origin(self._annotation(first)) is list
        self._check_class(self._annotation(first))
        ctx_name = tx_name = None
        for parameter in others:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise HandlerDefinitionError(
                    f"{self.name}: *args and **kwargs say nothing of what the handler needs; name it", handler=self.name
                )
            wanted = self._annotation(parameter)
            if wanted is Context:
                ctx_name = parameter.name
            elif (kind := transaction_kind(wanted)) is not None:
                if tx_name is not None:
                    raise HandlerDefinitionError(
                        f"{self.name} asks for two transactions, {tx_name!r} and {parameter.name!r}; a handler runs in one",
                        handler=self.name,
                    )
                tx_name, self.tx = parameter.name, kind
            elif parameter.default is not parameter.empty and (not isinstance(wanted, type) or wanted is parameter.empty):
                continue
            elif isinstance(wanted, type) and wanted is not inspect.Parameter.empty:
                self.needs[parameter.name] = wanted
                if parameter.default is not parameter.empty:
                    self._defaults.add(parameter.name)
            else:
                raise HandlerDefinitionError(
                    f"{self.name}: the parameter {parameter.name!r} has no type. Handlers get what they ask for by type: Context,"
                    " a transaction such as sqlite3.Connection or Session, or what app.provide(…) was given.",
                    handler=self.name,
                )
        if self.tx in ASYNC_KINDS and not self.is_async:
            raise HandlerDefinitionError(f"{self.name} asks for an {self.tx}, so it must be `async def`", handler=self.name)
        if self.is_async and self.tx in SYNC_KINDS:
            raise HandlerDefinitionError(
                f"{self.name} is async and asks for a synchronous {self.tx}, which would block the loop: make it `def`,"
                " or ask for the async one",
                handler=self.name,
            )
        self.call = self._direct = _caller(fn, [parameter for parameter in others if parameter.name in (ctx_name, tx_name)], ctx_name)
        self.inline = self.is_async and self.tx is None
        self.decode = event_type.decode
        self.decoded: Decoded | None = None

    def _check_class(self, wanted: Any) -> None:
        """Of the first parameter: another event's class is a slip."""
        given = self.event_type.cls
        wanted = next(iter(typing.get_args(wanted)), None) if self.takes_list else wanted
        if isinstance(wanted, type) and hasattr(wanted, "__event_spec__") and not issubclass(given, wanted):
            raise HandlerDefinitionError(
                f"{self.name} is to handle {given.__name__}, and its first parameter is {wanted.__name__}: they must be one class",
                handler=self.name,
            )

    def provide(self, values: Mapping[type, Any]) -> None:
        """Bind the app's own dependencies.

        Raises:
            HandlerDefinitionError: one wasn't provided.
        """
        self.call = self._direct
        if not self.needs:
            return
        makers: dict[str, Callable[[], Any]] = {}
        for parameter, wanted in self.needs.items():
            if wanted not in values:
                if parameter in self._defaults:
                    continue
                raise HandlerDefinitionError(
                    f"{self.name} asks for {wanted.__name__}, which nobody provides; call app.provide({wanted.__name__},"
                    " …) before the app starts",
                    handler=self.name,
                    wanted=wanted,
                )
            value = values[wanted]
            makers[parameter] = value if callable(value) and not isinstance(value, wanted) else partial(_given, value)
        inner_fn = self.fn
        hints = list(inspect.signature(inner_fn).parameters.values())[1:]
        by_name = {parameter.name: self._annotation(parameter) for parameter in hints}

        def call(event: Any, ctx: Context) -> Any:
            arguments = {name: make() for name, make in makers.items()}
            for name, wanted in by_name.items():
                if wanted is Context:
                    arguments[name] = ctx
                elif name not in arguments and transaction_kind(wanted) is not None:
                    arguments[name] = ctx.tx
            return inner_fn(event, **arguments)

        self.call = call

    def _annotation(self, parameter: inspect.Parameter) -> Any:
        given = parameter.annotation
        if not isinstance(given, str):
            return given
        scope = dict(getattr(self.fn, "__globals__", {}))
        if inspect.isfunction(self.fn):
            for variable, cell in zip(self.fn.__code__.co_freevars, self.fn.__closure__ or (), strict=True):
                with contextlib.suppress(ValueError):  # not assigned yet
                    scope[variable] = cell.cell_contents
        scope.setdefault(self.event_type.cls.__name__, self.event_type.cls)
        try:
            return eval(given, scope)  # an annotation as text is Python by definition (PEP 563)
        except Exception as error:
            raise HandlerDefinitionError(
                f"{self.name}: the annotation {given!r} of {parameter.name!r} can't be resolved ({error}); import it at"
                " the top of the module",
                handler=self.name,
            ) from error


def transaction_kind(wanted: Any) -> str | None:
    """Which kind of transaction an annotation asks for; None if it asks for something else."""
    wanted = typing.get_origin(wanted) or wanted  # psycopg.Connection[dict[str, Any]]
    if not isinstance(wanted, type):
        return None
    if issubclass(wanted, sqlite3.Connection):
        return "sqlite3"
    for base in wanted.__mro__:
        kind = TRANSACTION_TYPES.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return kind
    return None


def _given(value: Any) -> Any:
    return value


def _caller(fn: Callable[..., Any], others: list[inspect.Parameter], ctx_name: str | None) -> Callable[[Any, Any], Any]:
    """The cheapest call for the usual signatures. ``others``: the parameters for the context and the transaction, as they come."""
    wants_ctx = [parameter.name == ctx_name for parameter in others]
    if any(parameter.kind is parameter.KEYWORD_ONLY for parameter in others) or _leaves_gaps(fn, others):
        names = [parameter.name for parameter in others]
        return lambda event, ctx: fn(event, **{name: ctx if name == ctx_name else ctx.tx for name in names})
    if not others:
        return lambda event, ctx: fn(event)
    if wants_ctx == [True]:
        return fn
    if wants_ctx == [False]:
        return lambda event, ctx: fn(event, ctx.tx)
    if wants_ctx == [True, False]:
        return lambda event, ctx: fn(event, ctx, ctx.tx)
    return lambda event, ctx: fn(event, ctx.tx, ctx)


def _leaves_gaps(fn: Callable[..., Any], others: list[inspect.Parameter]) -> bool:
    """Whether these don't follow the event at once: a parameter with a default stands between."""
    names = list(inspect.signature(fn).parameters)[1 : 1 + len(others)]
    return names != [parameter.name for parameter in others]
