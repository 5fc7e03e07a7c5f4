from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidings import App, Context, Event, HandlerDefinitionError, Retry
from tidings.subscribe.middleware import wrap
from tidings.testing import Harness

Call = Callable[[Any, Any], Any]


class Placed(Event, key="order"):
    order: int


def noting(name: str, seen: list[str]) -> Callable[[Call], Call]:
    def layer(call: Call) -> Call:
        def wrapped(event: Any, ctx: Any) -> Any:
            seen.append(f"{name} in")
            try:
                return call(event, ctx)
            finally:
                seen.append(f"{name} out")

        return wrapped

    return layer


def test_the_first_is_outermost() -> None:
    seen: list[str] = []
    call = wrap(lambda event, ctx: seen.append("handler"), False, [noting("a", seen), noting("b", seen)], "x")
    call(1, 2)
    assert seen == ["a in", "b in", "handler", "b out", "a out"]


def test_an_async_layer_does_not_fit_a_sync_handler() -> None:
    def timed(call: Call) -> Call:
        async def wrapped(event: Any, ctx: Any) -> Any:
            return await call(event, ctx)

        return wrapped

    with pytest.raises(
        HandlerDefinitionError, match=r"the middleware 'timed' is async and ship is not: write a sync one, or make the handler async"
    ):
        wrap(lambda event, ctx: None, False, [timed], "ship")
    assert wrap(lambda event, ctx: None, True, [timed], "ship") is not None


async def test_around_handlers_of_every_kind(tmp_path: Path) -> None:
    """The app's own are around the subscription's; they see the context, may change the result, and an error goes through them."""
    app = App("shop", store=f"sqlite:///{tmp_path}/unused.db")
    seen: list[str] = []
    app.use(noting("app", seen))

    @app.use
    def guarded(call: Call) -> Call:
        def wrapped(event: Any, ctx: Context) -> Any:
            if event.order == 2 and ctx.attempt == 1:
                raise PermissionError(ctx.subscription)
            return call(event, ctx)

        return wrapped

    @app.subscribe(Placed, order="log", middleware=[noting("own", seen)], retry=Retry(first=1, jitter=0))
    def handle(event: Placed) -> None:
        seen.append(f"order {event.order}")

    async with Harness(app) as harness:
        for order in (1, 2):
            await harness.publish(Placed(order=order))
            await harness.settle()
        assert seen == ["app in", "own in", "order 1", "own out", "app out", "app in", "app out"]
        (parked,) = harness.parked(handle)
        assert parked.error == "PermissionError: handle"
        await harness.advance(1)
        assert seen[7:] == ["app in", "own in", "order 2", "own out", "app out"]
