"""Fifty subscriptions on one log against one; and the same work at the end of logs of 100 thousand to 10 million rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tidings import App

from ..byhand import OrderPlaced
from ..measure import Cost, Row, as_rate, compare, now, thousands
from .byhand import database, fill, forget, grow, head

MANY = 50
SHORT = 100_000


def run(quick: bool) -> Iterator[Row]:
    count = 2_000 if quick else 5_000
    with database() as url, database(fsync="off") as long_url:
        fill(url, SHORT)
        last = head(url)

        def many() -> Cost:
            return deliver(url, MANY, count, last - count)

        def one() -> Cost:
            cost = deliver(url, 1, count * 5, last - count * 5)
            return Cost(cost.wall * MANY / 5, cost.cpu * MANY / 5)

        comparison = compare(many, one, seconds=4.0 if quick else 12.0, most=5)
        ratio, spread = as_rate(comparison)
        rates = [thousands(MANY * count / wall) for wall in (comparison.ours("wall"), comparison.hand("wall"))]
        yield Row(
            f"PostgreSQL: {MANY} subscriptions on one log, deliveries",
            f"{rates[0]} (one subscription {rates[1]})",
            "≥ 2×",
            ratio >= 2,
            ratio,
            spread,
            {"cpu_us": 1e6 * comparison.ours() / count / MANY},
        )
        fill(long_url, SHORT)
        count = 20_000 if quick else 50_000
        for rows in (1_000_000,) if quick else (1_000_000, 10_000_000):
            grow(long_url, rows)
            end = head(long_url)
            comparison = compare(
                lambda: deliver(long_url, 1, count, end - count),  # noqa: B023
                lambda: deliver(url, 1, count, last - count),
                seconds=3.0 if quick else 10.0,
            )
            ratio, spread = as_rate(comparison)
            rates = [thousands(count / wall) for wall in (comparison.ours("wall"), comparison.hand("wall"))]
            yield Row(
                f"PostgreSQL: empty handler at {rows // 1_000_000} million rows, against 100 thousand",
                f"{rates[0]} (short log {rates[1]})",
                "≥ 90 %",
                ratio >= 0.9,
                ratio,
                spread,
                {"cpu_ratio": comparison.ratio()},
            )


def deliver(url: str, subscriptions: int, count: int, start: int) -> Cost:
    app = App("bench", url)
    left = subscriptions
    done = asyncio.Event()
    names = [f"many{index}" for index in range(subscriptions)]
    for name in names:

        def make(name: str) -> None:
            seen = 0

            @app.subscribe(OrderPlaced, name=name, start=start)
            async def handle(event: OrderPlaced) -> None:
                nonlocal seen, left
                seen += 1
                if seen == count:
                    left -= 1
                    if not left:
                        done.set()

        make(name)

    async def main() -> Cost:
        began = now()
        async with app:
            await asyncio.wait_for(done.wait(), 300)
        return now() - began

    cost = asyncio.run(main())
    forget(url, *names)
    return cost
