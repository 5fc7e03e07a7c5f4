"""The same line for every driver: publish in a transaction of sqlite3, aiosqlite, an AsyncSession or Django."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import aiosqlite
import django
from django.conf import settings
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tidings import App, Event

app = App("shop", store="sqlite:///drivers.db")
app.open()


class OrderPlaced(Event, key="order_id"):
    order_id: int
    by: str


# sqlite3: the driver opens a transaction at the first write; `with conn:` commits it.
with closing(sqlite3.connect("drivers.db")) as conn, conn:
    app.publish(OrderPlaced(order_id=1, by="sqlite3"), tx=conn)


async def asynchronously() -> None:
    async with aiosqlite.connect("drivers.db") as connection:
        await app.publish(OrderPlaced(order_id=2, by="aiosqlite"), tx=connection)
        await connection.commit()

    engine = create_async_engine("sqlite+aiosqlite:///drivers.db")
    async with AsyncSession(engine) as session, session.begin():
        await app.publish(OrderPlaced(order_id=3, by="AsyncSession"), tx=session)
    await engine.dispose()


asyncio.run(asynchronously())

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path("drivers.db").absolute()}}, USE_TZ=True)
django.setup()
from django.db import connection, transaction  # noqa: E402 - Django wants its settings first

with transaction.atomic():
    app.publish(OrderPlaced(order_id=4, by="Django"), tx=connection)
connection.close()

# Where there is no transaction of yours, ask for one by name. The receipt comes when the event is durable.
app.publish(OrderPlaced(order_id=5, by="nobody"), tx="own").result()

for envelope in app.store.query(lambda unit: unit.select(limit=10)):
    print(envelope.position, envelope.type, envelope.data.decode())
app.close()
