from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta

from tidings import App, Context, Event, Retry
from tidings.testing import Harness


class Placed(Event, key="order", version=2):
    order: int


class Paid(Event, key="order"):
    order: int


class Ping(Event, key=None):
    pass


async def test_what_a_handler_may_know() -> None:
    app = App("shop", store="sqlite:///unused.db")
    seen: list[Context] = []

    @app.subscribe(Placed, Ping, name="all", retry=Retry(first=1, jitter=0))
    def note(event: Placed | Ping, ctx: Context) -> None:
        seen.append(ctx)
        if len(seen) == 1:
            raise ValueError

    async with Harness(app, start=datetime(2026, 3, 1, 12, tzinfo=UTC)) as harness:
        receipt = await harness.publish(Placed(order=42), headers={"tenant": "a"})
        await harness.settle()
        await harness.publish(Ping())
        await harness.advance(1)
        first, ping, again = sorted(seen, key=lambda ctx: (ctx.attempt, ctx.position))
        for ctx in (first, again):
            assert (ctx.subscription, ctx.type, ctx.version, ctx.key, ctx.source) == ("all", "shop.Placed", 2, "42", "shop")
            assert (ctx.event_id, ctx.position) == (receipt.event_id, receipt.position)
            assert (ctx.time, ctx.headers, ctx.causation_id) == (datetime(2026, 3, 1, 12, tzinfo=UTC), {"tenant": "a"}, None)
            assert ctx.envelope == harness.log()[0]
        assert (first.attempt, again.attempt) == (1, 2)
        assert first.idempotency_key == again.idempotency_key == f"all:{receipt.event_id}"
        assert (ping.key, ping.headers, ping.traceparent) == (None, {}, None)
        assert ping.idempotency_key != first.idempotency_key


async def test_what_a_failed_handler_published_is_not() -> None:
    app = App("shop", store="sqlite:///unused.db")

    @app.subscribe(Placed, retry=Retry(attempts=2, first=1, jitter=0))
    def pay(event: Placed, ctx: Context, tx: sqlite3.Connection) -> Paid:
        ctx.publish(Paid(order=ctx.attempt))
        ctx.publish(Ping(), after=timedelta(minutes=1))
        if ctx.attempt == 1:
            raise ValueError
        return Paid(order=10)

    async with Harness(app) as harness:
        await harness.publish(Placed(order=1))
        await harness.settle()
        assert harness.published(Paid) == []
        assert harness.scheduled() == []
        await harness.advance(1)
        assert harness.published(Paid) == [Paid(order=2), Paid(order=10)]
        assert len(harness.scheduled()) == 1
        await harness.advance(60)
        assert harness.published(Ping) == [Ping()]


async def test_what_is_no_event_is_the_handlers_failure() -> None:
    app = App("shop", store="sqlite:///unused.db")

    @app.subscribe(Placed, retry=Retry(attempts=1))
    def returns(event: Placed) -> object:
        return {"order": 1}

    @app.subscribe(Placed, retry=Retry(attempts=1))
    async def publishes(event: Placed, ctx: Context) -> None:
        ctx.publish(Paid(order="one"))  # type: ignore[arg-type]

    async with Harness(app) as harness:
        await harness.publish(Placed(order=1))
        await harness.settle()
        assert harness.dead(returns)[0].error.startswith("EventDefinitionError: a value of type dict is not an event")
        assert harness.dead(publishes)[0].error.startswith("InvalidEvent: Paid can't be published: Expected `int`")
        assert harness.published(Paid) == []
