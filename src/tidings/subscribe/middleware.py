"""Wrapping handlers: a middleware is a function from a call to a call.

def timed(call):
    async def wrapped(event, ctx):
        started = perf_counter()
        try:
            return await call(event, ctx)
        finally:
            print(ctx.type, perf_counter() - started)
    return wrapped
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import HandlerDefinitionError

Call = Callable[[Any, Any], Any]
Middleware = Callable[[Call], Call]


def wrap(call: Call, is_async: bool, layers: Sequence[Middleware], name: str) -> Call:
    """``call`` inside its layers, the first outermost.

    Raises:
        HandlerDefinitionError: an async layer around a sync handler, which would have to block a thread on the loop.
    """
    for layer in reversed(layers):
        call = layer(call)
        if inspect.iscoroutinefunction(call) and not is_async:
            raise HandlerDefinitionError(
                f"the middleware {getattr(layer, '__name__', layer)!r} is async and {name} is not: write a sync one, or"
                " make the handler async",
                handler=name,
            )
    return call
