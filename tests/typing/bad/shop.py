"""Every line that ends in "# error" is one that mypy --strict must reject; no other may be.

Not here: the arguments of an Event class. mypy doesn't look at them where a metaclass (msgspec's) does; they are refused when the class is made.
"""

import sqlite3
from datetime import timedelta

from tidings import App, Context, Event, Receipt, Retry, event


class Placed(Event, key="order"):
    order: int


@event()  # error
class Keyless:
    number: int


Placed()  # error
Placed(order="one")  # error
Placed(order=1, more=2)  # error
Placed(order=1).order = 2  # error
Placed(order=1).total  # error

App("shop")  # error
App("shop", store=5)  # error
App("shop", store="sqlite:///a.db", synchronous="OFF")  # error
App("shop", store="sqlite:///a.db", retention=7)  # error
App("shop", store="sqlite:///a.db", leese=7)  # error

app = App("shop", store="sqlite:///a.db")

app.subscription("a", order="keys")  # error
app.subscription("b", concurrency="many")  # error
app.subscription("c", retry=3)  # error
app.subscription("d", start="yesterday")  # error
app.subscription("e", on_dead="stop")  # error
app.subscription("f", ratee=3)  # error
Retry(attempts="8")  # error
Retry(tries=8)  # error
Retry(give_up_on=ValueError)  # error


@app.subscribe("Placed")  # error
def by_name(event: Placed) -> None: ...


@app.subscribe(Placed, order="keys")  # error
def unordered(event: Placed) -> None: ...


@app.subscribe(Placed, consurrency=3)  # error
def misspelt(event: Placed) -> None: ...


@app.subscribe(Placed)
def handler(event: Placed, ctx: Context) -> None:
    ctx.attempt = "first"  # error
    ctx.publish()  # error
    ctx.publish(Placed(order=1), after=3)  # error
    ctx.positon  # error


handler(5)  # error
app.provide(Placed, 5)  # error


async def publish(conn: sqlite3.Connection) -> None:
    app.publish()  # error
    app.publish(Placed(order=1), tx=conn, after=3)  # error
    app.publish(Placed(order=1), tx=conn, at="tomorrow")  # error
    app.publish(Placed(order=1), conn, timedelta(1))  # error
    app.publish(Placed(order=1), tx=conn, headers={"a": 1})  # error
    number: int = app.publish(Placed(order=1), tx=conn)  # error
    await app.publish(Placed(order=1), tx=conn)  # error
    receipt: Receipt = app.publish(Placed(order=1), tx="own")  # error
    app.publish(Placed(order=1), tx=conn).positon  # error
    app.publish(Placed(order=1), tx="own").position  # error
