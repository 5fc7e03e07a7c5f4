"""A misspelt option is an error that names the right one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

from .errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def misspelt(what: str, option: str, known: Collection[str]) -> str:
    """The error's text: ``what`` has no such option, and which was meant, or which there are."""
    import difflib

    near = difflib.get_close_matches(option, known, 1)
    hint = f"did you mean {near[0]}=?" if near else f"there are {', '.join(known)}"
    return f"{what} has no option {option!r}; {hint}"


def spelled(call: Callable[P, R], what: str = "") -> Callable[P, R]:
    """``call``, which raises ConfigurationError instead of TypeError for an option that it doesn't have."""

    @functools.wraps(call)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        try:
            return call(*args, **options)
        except TypeError:
            import inspect

            known = [name for name in inspect.signature(call).parameters if name != "self"]
            for option in options:
                if option not in known:
                    raise ConfigurationError(misspelt(what or call.__name__, option, known)) from None
            raise

    return checked


def spelled_options(cls: C) -> C:
    """The same for a class that is made with options by name."""
    made: Any = cls
    made.__init__ = spelled(made.__init__, cls.__name__)
    return cls
