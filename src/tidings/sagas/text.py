"""What the text of a saga's body tells, without running it: what can't be right, and what is worth a look."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SagaDefinitionError
from ..event import EventType
from .step import NOTHING, Function, Provided

if TYPE_CHECKING:
    from .saga import SagaDefinition

AWAITED = ("step", "steps", "sleep", "wait", "child", "pivot", "changed")
OWN = frozenset({"undo", "undo_group", "undo_retry", "retry", "timeout", "at_most_once", "reconcile", "limit"})
"""What ``step`` and ``steps`` take for themselves; everything else is the function's."""
_ALL = ("BaseException", "CancelledError", "GeneratorExit")


class Line(NamedTuple):
    """A call of the Saga's in a body. ``at``: file and line."""

    call: ast.Call
    what: str
    at: str
    awaited: bool


class Text:
    """A body's text; ``Text.of`` gives None where there is none to be read."""

    def __init__(self, main: Callable[..., Any], function: ast.AsyncFunctionDef) -> None:
        self.main = main
        self.function = function
        self._saga = function.args.args[-1].arg
        self._file = inspect.getsourcefile(main)
        self._first = inspect.unwrap(main).__code__.co_firstlineno

    @classmethod
    def of(cls, main: Callable[..., Any]) -> Text | None:
        try:
            (function,) = ast.parse(textwrap.dedent(inspect.getsource(main))).body
        except (OSError, TypeError, ValueError, SyntaxError):
            return None
        if not isinstance(function, ast.AsyncFunctionDef) or len(function.args.args) < 2:
            return None
        return cls(main, function)

    def at(self, node: Any) -> str:
        return f"{self._file}:{self.number(node)}"

    def number(self, node: Any) -> int:
        return int(self._first + node.lineno - 1)

    def calls(self) -> list[Line]:
        """In their order."""
        alone = {id(one.value) for one in ast.walk(self.function) if isinstance(one, ast.Expr)}
        found = [
            Line(one, one.func.attr, self.at(one), id(one) not in alone)
            for one in ast.walk(self.function)
            if isinstance(one, ast.Call)
            and isinstance(one.func, ast.Attribute)
            and isinstance(one.func.value, ast.Name)
            and one.func.value.id == self._saga
        ]
        return sorted(found, key=lambda line: (line.call.lineno, line.call.col_offset))

    def resolved(self, expression: ast.expr) -> Any:
        """What a name stands for, if that can be known without running the body; else None."""
        if isinstance(expression, ast.Attribute):
            module = self.resolved(expression.value)
            return getattr(module, expression.attr, None) if isinstance(module, ModuleType) else None
        code = inspect.unwrap(self.main).__code__
        if not isinstance(expression, ast.Name) or expression.id in (*code.co_varnames, *code.co_cellvars):
            return None
        main: Any = inspect.unwrap(self.main)
        return {**main.__globals__, **inspect.getclosurevars(main).nonlocals}.get(expression.id)


def certain(main: Callable[..., Any]) -> Iterator[str]:
    """What can't be right, whatever names stand for; known as soon as the body is declared."""
    text = Text.of(main)
    for call, what, at, awaited in text.calls() if text is not None else ():
        if what in AWAITED and not awaited:
            yield f"{at}: saga.{what}(…) isn't awaited, so it would do nothing: await saga.{what}(…)"
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if what in ("step", "steps"):
            for name, function in (("undo=", given.get("undo")), ("the step", call.args[0] if call.args else None)):
                if isinstance(function, ast.Lambda):
                    yield f"{at}: {name} is a lambda, and the journal needs a name: write it as a `def`"
        times = [(f"{name}=", given.get(name)) for name in ("timeout", "within", "limit")]
        if what == "sleep" and call.args:
            times.append(("sleep of ", call.args[0]))
        for name, value in times:
            number = _number(value)
            if number is not None and not number > 0:
                yield f"{at}: {name}{number!r} must be more than 0"


def mistakes(main: Callable[..., Any], provided: Provided = NOTHING) -> Iterator[str]:
    """What can't be right by what names stand for now: functions that can't be called so, undos with another signature."""
    text = Text.of(main)
    for call, what, at, _ in text.calls() if text is not None else ():
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if what not in ("step", "steps") or not call.args or None in given or any(isinstance(one, ast.Starred) for one in call.args):
            continue
        assert text is not None
        count = len(call.args) - 1
        named = dict.fromkeys(str(name) for name in given if name not in OWN)
        for kind, expression in (
            ("the step", call.args[0]),
            ("the undo", given.get("undo")),
            ("the reconciliation", given.get("reconcile")),
        ):
            function = None if expression is None else text.resolved(expression)
            if inspect.isroutine(function):
                try:
                    Function(function, kind).check((None,) * count, named, provided)
                except SagaDefinitionError as error:
                    yield f"{at}: {error}"


def warnings_of(definition: SagaDefinition, type_of: Callable[[type], EventType]) -> list[str]:
    """Steps without an undo that stand before one that may fail, waits that aren't declared, and what runs when a worker lets go of an
    instance. Nothing, without a text to read."""
    text = Text.of(definition.main)
    if text is None:
        return []
    found = [
        f"{text.at(node)}: {what}, also whenever a worker lets go of an instance that waits: keep effects out" for node, what in _left(text)
    ]
    bare: tuple[str, str] | None = None
    for call, what, at, _ in text.calls():
        if what == "pivot":
            break
        if what == "wait":
            found += [
                f"{at}: it waits for {one.name}, which it doesn't declare"
                for one in _event_types(text, call, type_of)
                if one.name not in definition.waits
            ]
        if what not in ("step", "steps", "child", "wait"):
            continue
        if bare is not None and what != "wait":
            step, place = bare
            later = ast.unparse(call.args[0]) if call.args else what
            found.append(f"{place}: {step} has no undo, and {later} (line {text.number(call)}) may fail behind it")
            bare = None
        if what in ("step", "steps") and not any(keyword.arg == "undo" for keyword in call.keywords):
            bare = (ast.unparse(call.args[0]) if call.args else "a step", at)
    return found


def _left(text: Text) -> Iterator[tuple[Any, str]]:
    """Where Python runs a body's code when it is left as it stands."""
    for node in ast.walk(text.function):
        if isinstance(node, (ast.Try, ast.TryStar)):
            if node.finalbody:
                yield node.finalbody[0], "this `finally` is run"
            for handler in node.handlers:
                kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
                names = {ast.unparse(kind).rpartition(".")[2] for kind in kinds if kind is not None}
                if handler.type is None or names & set(_ALL):
                    yield handler, f"this `except{' ' + ast.unparse(handler.type) if handler.type is not None else ''}` is run"


def _number(value: ast.expr | None) -> float | None:
    try:
        found = None if value is None else ast.literal_eval(value)
    except ValueError:
        return None
    return found if isinstance(found, (int, float)) else None


def _event_types(text: Text, call: ast.Call, type_of: Callable[[type], EventType]) -> list[EventType]:
    named = [text.resolved(one) for one in call.args]
    return [type_of(one) for one in named if isinstance(one, type) and hasattr(one, "__event_spec__")]
