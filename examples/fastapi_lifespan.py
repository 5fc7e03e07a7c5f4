"""Inside a web application: the worker lives as long as FastAPI does, and a request publishes in its own transaction."""

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from tidings import App, Event

tidings = App("shop", store="sqlite:///web.db")


class OrderPlaced(Event, key="order_id"):
    order_id: int
    item: str


@tidings.subscribe(OrderPlaced)
async def announce(event: OrderPlaced) -> None:
    print(f"order {event.order_id}: {event.item}")
    announced.set()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with tidings:
        yield


def database() -> Iterator[sqlite3.Connection]:
    conn = sqlite3.connect("web.db", check_same_thread=False)
    try:
        with conn:  # commits, or rolls back if the request fails
            yield conn
    finally:
        conn.close()


web = FastAPI(lifespan=lifespan)


@web.post("/orders")
def place(item: str, conn: Annotated[sqlite3.Connection, Depends(database)]) -> dict[str, int]:
    conn.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)")
    order_id = conn.execute("INSERT INTO orders (item) VALUES (?)", (item,)).lastrowid
    assert order_id is not None
    tidings.publish(OrderPlaced(order_id=order_id, item=item), tx=conn)
    return {"order": order_id}


announced = threading.Event()

with TestClient(web) as client:
    response = client.post("/orders", params={"item": "lamp"})
    announced.wait(10)
    print("the client got", response.json())
