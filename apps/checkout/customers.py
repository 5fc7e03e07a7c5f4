"""The customers: send orders to an order service at a steady pace, whether or not it keeps up, and remember what they were told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps.checkout.data import Order
from apps.checkout.http1 import Client, Refused
from apps.checkout.stage import order_body


@dataclass(frozen=True, slots=True)
class Answer:
    """What a customer was told: ``status`` 201 taken, 409 cancelled, 503 failed, 0 no answer. ``sent`` in seconds since 1970."""

    order_id: int
    sent: float
    seconds: float
    status: int


async def place_all(
    orders: Sequence[Order],
    address: str,
    *,
    rate: float,
    at_once: int = 64,
    answered: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Send each order in turn, ``rate`` a second, at most ``at_once`` waiting for an answer."""
    client = Client(address, timeout=60.0)
    room = asyncio.Semaphore(at_once)
    answers: list[Answer] = []

    async def place(order: Order) -> None:
        sent, began = time.time(), time.monotonic()
        try:
            status = (await client.call("POST", "/orders", order_body(order))).status
        except Refused as error:
            status = 503 if "503" in str(error) else 0
        finally:
            room.release()
        answer = Answer(order.order_id, sent, time.monotonic() - began, status)
        answers.append(answer)
        answered(answer)

    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            for number, order in enumerate(orders):
                early = began + number / rate - time.monotonic()
                if early > 0:
                    await asyncio.sleep(early)
                await room.acquire()
                group.create_task(place(order))
    finally:
        client.close()
    return answers
