"""A handler that takes a list: up to `size` events, or what came within `age` seconds, in one call and one transaction."""

import asyncio
import sqlite3
import threading

from tidings import App, Event

app = App("analytics", store="sqlite:///analytics.db")


class PageViewed(Event, key=None):  # no key, so no order is promised
    page: str


counted: list[int] = []
all_counted = threading.Event()


@app.subscribe(PageViewed, size=40, age=0.1)
def count(events: list[PageViewed], tx: sqlite3.Connection) -> None:
    tx.executemany("INSERT INTO views VALUES (?)", [(event.page,) for event in events])
    print(f"{len(events)} views")
    counted.append(len(events))
    if sum(counted) == 101:
        all_counted.set()


async def main() -> None:
    with sqlite3.connect("analytics.db") as conn:
        conn.execute("CREATE TABLE views (page TEXT)")
    for number in range(100):
        app.publish(PageViewed(page=f"/{number}"), tx="own")
    app.publish(PageViewed(page="/last"), tx="own").result()  # durable, and so is all that was asked for before
    async with app:
        await asyncio.to_thread(all_counted.wait)
    print("rows:", conn.execute("SELECT count(*) FROM views").fetchone()[0])
    conn.close()


asyncio.run(main())
