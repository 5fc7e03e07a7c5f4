"""Testing an app: a real store in a temporary folder, and a clock that the test moves. Nothing sleeps and nothing is mocked."""

import asyncio
from datetime import timedelta
from decimal import Decimal

from tidings import App, Context, Event, Retry
from tidings.testing import Harness

app = App("shop", store="sqlite:///shop.db")  # the harness gives it another store while it runs


class OrderPlaced(Event, key="order_id"):
    order_id: int
    total: Decimal


class OrderPaid(Event, key="order_id"):
    order_id: int


class ReminderSent(Event, key="order_id"):
    order_id: int


class ReminderDue(Event, key="order_id"):
    order_id: int


class Gateway:
    async def charge(self, order_id: int, idempotency_key: str) -> None:
        raise NotImplementedError("tests have one of their own")


@app.subscribe(OrderPlaced, retry=Retry(attempts=3, first=10.0, jitter=0))
async def charge_card(event: OrderPlaced, ctx: Context, gateway: Gateway) -> OrderPaid:
    await gateway.charge(event.order_id, ctx.idempotency_key)
    return OrderPaid(order_id=event.order_id)


@app.subscribe(OrderPaid)
async def plan_reminder(event: OrderPaid, ctx: Context) -> None:
    ctx.publish(ReminderDue(order_id=event.order_id), after=timedelta(days=7))


@app.subscribe(ReminderDue)
async def remind(event: ReminderDue) -> ReminderSent:
    return ReminderSent(order_id=event.order_id)


class FlakyGateway(Gateway):
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.charged: dict[str, int] = {}

    async def charge(self, order_id: int, idempotency_key: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no answer")
        self.charged[idempotency_key] = order_id  # once for each key, as a good gateway does


async def test_a_failing_gateway_delays_the_order_and_nothing_else() -> None:
    gateway = FlakyGateway(failures=2)
    app.provide(Gateway, gateway)
    async with Harness(app) as harness:
        await harness.publish(OrderPlaced(order_id=42, total=Decimal("9.90")))
        await harness.settle()
        assert harness.published(OrderPaid) == []
        assert len(harness.parked(charge_card)) == 1

        await harness.advance(10)  # the second attempt fails too ...
        await harness.advance(20)  # ... the third one doesn't
        assert harness.published(OrderPaid) == [OrderPaid(order_id=42)]
        assert [call.attempt for call in harness.calls(charge_card)] == [1, 2, 3]
        assert harness.published(ReminderSent) == []

        await harness.advance(timedelta(days=7))
        assert harness.published(ReminderSent) == [ReminderSent(order_id=42)]


async def test_a_gateway_that_is_down_for_good_leaves_a_dead_letter() -> None:
    app.provide(Gateway, FlakyGateway(failures=99))
    async with Harness(app) as harness:
        await harness.publish(OrderPlaced(order_id=1, total=Decimal(1)))
        await harness.advance(timedelta(hours=1))
        (dead,) = harness.dead(charge_card)
        assert (dead.event.order_id, dead.attempts, dead.error) == (1, 3, "ConnectionError: no answer")


async def test_a_crash_charges_nobody_twice() -> None:
    gateway = FlakyGateway(failures=0)
    app.provide(Gateway, gateway)
    async with Harness(app) as harness:
        await harness.publish(OrderPlaced(order_id=42, total=Decimal("9.90")))
        await harness.settle()
        await harness.crash()
        await harness.restart()
        await harness.settle()
        assert list(gateway.charged.values()) == [42]
        assert harness.published(OrderPaid) == [OrderPaid(order_id=42)]


for test in (
    test_a_failing_gateway_delays_the_order_and_nothing_else,
    test_a_gateway_that_is_down_for_good_leaves_a_dead_letter,
    test_a_crash_charges_nobody_twice,
):  # pytest with its anyio plug-in would run them as they are
    asyncio.run(test())
    print("passed:", test.__name__)
