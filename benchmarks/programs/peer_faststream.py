"""FastStream with its in-memory broker: publishing runs the handler at once, so there is one rate for both."""

import asyncio
import json
import logging
import sys
import time

from faststream.nats import NatsBroker, TestNatsBroker


async def main(seconds: float) -> None:
    broker = NatsBroker(logger=None, apply_types=False)
    handled = 0

    @broker.subscriber("orders")  # type: ignore[untyped-decorator]
    async def handle(order: dict[str, object]) -> None:
        nonlocal handled
        handled += 1

    async with TestNatsBroker(broker) as running:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await running.publish({"order_id": handled, "customer": "ada", "total": "12.50"}, "orders")
    print(json.dumps({"publish": handled / seconds, "handle": handled / seconds}), flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(float(sys.argv[2])))
