"""What a step or an undo asks for, read from its signature once; and what it may know."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from ..codec import decode_json, is_pydantic
from ..errors import SagaDefinitionError
from ..subscribe.context import EVENT_ID, Context
from ..subscribe.handler import ASYNC_KINDS, SYNC_KINDS, transaction_kind

RESULT_BYTES = 1024 * 1024
"""A step's result may be as large as this, as JSON."""


Provided = Mapping[type, Any]
"""What ``app.provide`` was given."""
NOTHING: Provided = {}


class Unknown:
    """What an undo gets for the result of a step of which nobody knows whether it happened."""

    def __repr__(self) -> str:
        return "UNKNOWN"

    def __bool__(self) -> Literal[False]:
        return False


UNKNOWN: Final = Unknown()


class StepContext(Context, eq=False):
    """A step's ``Context``: the event is the one that started the saga. What it publishes is committed with its journal entry."""

    call: str = ""

    @property
    def idempotency_key(self) -> str:
        """The same text at every attempt of this step of this instance, by any worker; an undo has another."""
        return f"{self.subscription}:{self.row[EVENT_ID]}:{self.call}"


class Function:
    """A step or an undo.

    Attributes:
        tx: the kind of transaction it asked for, or None. result: the parameter that wants a step's result (of an undo), or None.
    """

    def __init__(self, fn: Any, what: str) -> None:
        if not callable(fn):
            if inspect.iscoroutine(fn):
                fn.close()
            raise SagaDefinitionError(f"{what} {fn!r} is no function: give the function, and behind it what it is called with")
        self.fn = fn
        self.name: str = getattr(fn, "__name__", "")
        if not self.name or self.name == "<lambda>":
            raise SagaDefinitionError(f"{what} {fn!r} has no name of its own, which the journal needs: write it as a `def`")
        self.is_async = inspect.iscoroutinefunction(fn)
        self.tx: str | None = None
        self._signature = inspect.signature(fn)
        self._given: dict[str, bool] = {}
        self._asks: dict[str, type] = {}
        self._fits: set[tuple[int, frozenset[str], frozenset[str]]] = set()
        self.result: str | None = None
        for parameter in self._signature.parameters.values():
            wanted = annotation(fn, parameter.annotation)
            if wanted is Context:
                self._given[parameter.name] = True
            elif (kind := transaction_kind(wanted)) is not None:
                if self.tx is not None:
                    raise SagaDefinitionError(f"{self.name} asks for two transactions; a step runs in one")
                self.tx = kind
                self._given[parameter.name] = False
            elif what == "the undo" and parameter.name == "result":
                self.result = parameter.name
            elif isinstance(wanted, type):
                self._asks[parameter.name] = wanted
        if self.tx in ASYNC_KINDS and not self.is_async:
            raise SagaDefinitionError(f"{self.name} asks for an {self.tx}, so it must be `async def`")
        if self.is_async and self.tx in SYNC_KINDS:
            raise SagaDefinitionError(
                f"{self.name} is async and asks for a synchronous {self.tx}, which would block the loop: make it `def`"
            )
        returns = annotation(fn, self._signature.return_annotation)
        self._decode: Callable[[bytes], Any] = decode_json
        if returns not in (inspect.Signature.empty, None, Any):
            try:
                self._decode = msgspec.json.Decoder(returns).decode
            except TypeError as error:
                raise SagaDefinitionError(f"{self.name} returns {returns}, which the journal can't give back: {error}") from error

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any], provided: Provided = NOTHING) -> None:
        """Raise SagaDefinitionError unless it can be called with these, what it is given beside them left out."""
        asked = frozenset(self._asked(kwargs, provided)) if provided else frozenset[str]()
        shape = len(args), frozenset(kwargs), asked
        if shape in self._fits:
            return
        given = {*self._given, *asked, self.result}
        left = self._signature.replace(parameters=[one for one in self._signature.parameters.values() if one.name not in given])
        try:
            left.bind(*args, **kwargs)
        except TypeError as error:
            raise SagaDefinitionError(f"{self.name} can't be called with what the step is given: {error}") from error
        self._fits.add(shape)

    def _asked(self, kwargs: Mapping[str, Any], provided: Provided) -> dict[str, Any]:
        """What the app provides for parameters that the body gives nothing by name for, by their type."""
        return {name: provided[wanted] for name, wanted in self._asks.items() if wanted in provided and name not in kwargs}

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], ctx: Context, result: Any = UNKNOWN, provided: Provided = NOTHING
    ) -> Any:  # fmt: skip
        asked = self._asked(kwargs, provided) if provided else {}
        if not self._given and self.result is None and not asked:
            return self.fn(*args, **kwargs)
        given: dict[str, Any] = {name: ctx if is_ctx else ctx.tx for name, is_ctx in self._given.items()}
        for name, value in asked.items():  # as handlers get it
            given[name] = value() if callable(value) and not isinstance(value, self._asks[name]) else value
        if self.result is not None:
            given[self.result] = result
        # By name what it is given; by position what the body gave, around them.
        rest = iter(args)
        positional: list[Any] = []
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += rest
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                if parameter.name in given:
                    positional.append(given.pop(parameter.name))
                elif parameter.name in kwargs:
                    break
                else:
                    try:
                        positional.append(next(rest))
                    except StopIteration:
                        break
        return self.fn(*positional, **kwargs, **given)

    def stored(self, value: Any) -> str:
        """A result as the journal keeps it.

        Raises:
            SagaDefinitionError: it can't be kept, or not given back as it is.
        """
        try:
            data = encode(value)
            self._decode(data)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise SagaDefinitionError(
                f"{self.name} returned {type(value).__name__}, which the journal can't keep ({error}): return plain values, a dataclass or"
                " a Struct, and say so in its annotation"
            ) from error
        if len(data) > RESULT_BYTES:
            raise SagaDefinitionError(f"{self.name} returned {len(data):,} bytes of JSON; a result may have {RESULT_BYTES:,}")
        return data.decode()

    def restored(self, text: str | None) -> Any:
        return None if text is None else self._decode(text.encode())


def _hook(value: Any) -> Any:
    if is_pydantic(type(value)):
        return value.model_dump(mode="json")
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


encode = msgspec.json.Encoder(decimal_format="string", enc_hook=_hook, order="deterministic").encode


def annotation(fn: Any, given: Any) -> Any:
    if not isinstance(given, str):
        return given
    scope = dict(getattr(fn, "__globals__", {}))
    if inspect.isfunction(fn):
        for variable, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                scope[variable] = cell.cell_contents
    try:
        return eval(given, scope)  # an annotation as text is Python by definition (PEP 563)
    except Exception:  # a name that only type checkers import asks for nothing of ours
        return Any
