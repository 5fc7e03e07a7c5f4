"""The command line beside a program: what happened to order 42, which subscription is behind, what is dead and how to mend it."""

import asyncio
import subprocess
import sys
from pathlib import Path

from tidings import App, Event, Retry

app = App("shop", store="sqlite:///traced.db")
broken = True


class OrderPlaced(Event, key="order_id"):
    order_id: int


class OrderPaid(Event, key="order_id"):
    order_id: int


@app.subscribe(OrderPlaced)
async def charge_card(event: OrderPlaced) -> OrderPaid:
    return OrderPaid(order_id=event.order_id)


@app.subscribe(OrderPaid, retry=Retry(attempts=1))
async def send_mail(event: OrderPaid) -> None:
    if broken:
        failed.set()
        raise ConnectionError("the mail server is down")
    sent.set()


failed, sent = asyncio.Event(), asyncio.Event()


def tidings(*arguments: str) -> None:
    print("$ tidings", *arguments, flush=True)
    subprocess.run([Path(sys.executable).parent / "tidings", *arguments, "--store", "sqlite:///traced.db"], check=True)


async def main() -> None:
    global broken
    async with app:
        await app.publish(OrderPlaced(order_id=42), tx="own")
        await failed.wait()
    tidings("trace", "order_id", "42")
    tidings("dead", "list")
    tidings("dead", "retry", "send_mail", "--all")
    broken = False
    async with app:
        await sent.wait()
    tidings("trace", "order_id", "42", "--no-data")


asyncio.run(main())
