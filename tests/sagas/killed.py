"""Sagas that are killed at every point (``killing.py``), and what each must have come to in the end, whatever happened to it on its way.

An effect in the database is a row of ``effects``, one outside a line of a file, with the idempotency key that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.sagas.asking import asks_for_tx
from tidings import ActionRefused, App, Context, Event, NotDone, Refused, Saga


class Placed(Event, key="order_id"):
    order_id: int
    visit: int = 0


class Charged(Event, key="order_id"):
    order_id: int


class Wanted(Event, key="order_id"):
    order_id: int


class End(NamedTuple):
    """What it comes to. ``outside``: what was done there, without repeats under the same key; ``calls``: how many there are with them, if
    that is sure. ``child``: the state of its child."""

    state: str
    effects: list[str]
    outside: list[str]
    child: str | None = None
    calls: int | None = None


def end_of(way: str, order: int) -> End:
    payment = f"payment-{order}"
    return {
        "forward": End("completed", ["charge", f"ship {payment} 7"], ["reserve"]),
        "claimed": End("completed", ["charge", f"ship {payment} 7"], ["reserve"]),
        "called": End("completed", ["charge"], ["reserve"]),
        "back": End("compensated", ["charge", f"refund {payment}"], ["reserve", "unreserve-7"]),
        "cancel": End("cancelled", ["charge", f"refund {payment}"], ["reserve", "unreserve"]),
        "child": End("completed", ["book", "charge", f"ship {payment} 3"], ["label"], "completed"),
        "child-back": End("compensated", ["book", "charge", f"refund {payment}", "unbook"], ["label", "unlabel"], "compensated"),
        "child-cancel": End("cancelled", ["book", "charge", f"refund {payment}", "unbook"], ["label", "unlabel"], "compensated"),
        "again": End("completed", ["visit 0", "visit 1", "visit 2"], []),
        "again-back": End("compensated", [f"{what} {n}" for what in ("leave", "visit") for n in range(3)], []),
        "once": End("completed", ["charge", f"ship {payment} 7"], ["pay"], calls=1),
    }[way]


WAYS = ("forward", "claimed", "called", "back", "cancel", "child", "child-back", "child-cancel", "again", "again-back", "once")

# Points that each way must have been killed at, before and behind.
WANTED = {
    "forward": ["start 1", "record 1", "record 2", "record 3", "reserve 1", "release 1"],
    "claimed": ["start 1", "record 1", "record 2", "record 3", "reserve 1", "release 1", "claim 1"],  # else the one who makes it has it
    "called": ["start 1", "record 1", "reserve 1", "release 1"],  # the last line is written with the end
    "back": ["start 1", "record 1", "record 2", "record 3", "reserve 1", "release 1", "turn 1", "unreserve-7 1", "record 4", "record 5"],
    "cancel": ["turn_back 1", "act 1", "turn 1", "record 1", "record 2", "record 3", "unreserve 1", "release 1"],
    "child": ["adopt 1", "label 1", *(f"record {n}" for n in range(1, 6)), "release 1", "release 2", "release 3", "claim 1"],
    "child-back": ["adopt 1", "ask_undo 1", "turn 1", "unlabel 1", *(f"record {n}" for n in range(1, 10)), "release 4"],
    "child-cancel": ["adopt 1", "turn_back 1", "ask_undo 1", "turn 1", *(f"record {n}" for n in range(1, 9))],
    "again": ["restart 1", "restart 2", "record 1", "record 2", "record 3", "claim 1", "release 1"],
    "again-back": ["restart 1", "restart 2", "turn 1", *(f"record {n}" for n in range(1, 8)), "release 1"],
    "once": ["pay 1", *(f"record {n}" for n in range(1, 5)), "release 1"],
}


def shop(url: str, folder: Path, way: str, point: Callable[[str], None]) -> App:
    """The app with the saga ``checkout`` of this way. ``point`` is called before and behind each call outside."""
    app = App("shop", store=url, lease=0.3)
    mark = "?" if url.startswith("sqlite") else "%s"

    def put(tx: Any, order: Any, what: str) -> None:
        tx.execute(f"INSERT INTO effects VALUES ({mark}, {mark})", (order.order_id, what))

    def outside(order: Any, ctx: Context, what: str) -> None:
        point(f"before {what}")
        with (folder / f"{order.order_id}.txt").open("a") as file:
            file.write(f"{what} {ctx.idempotency_key}\n")
        point(f"behind {what}")

    def cancel(order: Any) -> None:
        try:
            app.operator("ann").cancel("checkout", order.order_id, reason="the customer has gone")
        except ActionRefused as refused:
            if "to be cancelled already" not in str(refused):  # by whoever goes on with a step that was killed behind it
                raise

    def effect(what: str) -> Any:
        @asks_for_tx(url)
        def step(order: Any, tx: Any) -> None:
            put(tx, order, what)

        step.__name__ = what.split()[0]
        return step

    @asks_for_tx(url)
    def charge(order: Placed, tx: Any, ctx: Context) -> str:
        put(tx, order, "charge")
        ctx.publish(Charged(order_id=order.order_id))
        return f"payment-{order.order_id}"

    @asks_for_tx(url)
    def refund(order: Placed, tx: Any, result: object) -> None:
        put(tx, order, f"refund {result}")

    async def reserve(order: Placed, ctx: Context) -> int:
        outside(order, ctx, "reserve")
        return 7

    def unreserve(order: Placed, ctx: Context, result: object) -> None:
        outside(order, ctx, f"unreserve-{result}")

    def reserve_and_cancel(order: Placed, ctx: Context) -> int:
        outside(order, ctx, "reserve")
        cancel(order)
        return 7

    def unreserve_it(order: Placed, ctx: Context) -> None:
        outside(order, ctx, "unreserve")

    @asks_for_tx(url)
    def ship(order: Placed, payment: str, box: int, tx: Any) -> None:
        put(tx, order, f"ship {payment} {box}")
        if way.endswith("back"):
            raise Refused("nobody lives there")

    def label(wanted: Wanted, ctx: Context) -> int:
        outside(wanted, ctx, "label")
        if way == "child-cancel":
            cancel(wanted)
        return 3

    def unlabel(wanted: Wanted, ctx: Context) -> None:
        outside(wanted, ctx, "unlabel")

    async def pay(order: Placed, ctx: Context) -> int:
        outside(order, ctx, "pay")
        return 7

    def look(order: Placed, ctx: Context) -> int:
        file = folder / f"{order.order_id}.txt"
        if not file.exists() or f"pay {ctx.idempotency_key}\n" not in file.read_text():
            raise NotDone("no such payment")
        return 7

    book, unbook = effect("book"), effect("unbook")

    @app.saga(Wanted)
    async def parcel(wanted: Wanted, saga: Saga) -> int:
        await saga.step(book, wanted, undo=unbook)
        return await saga.step(label, wanted, undo=unlabel)

    async def plain(order: Placed, saga: Saga) -> None:
        payment = await saga.step(charge, order, undo=refund)
        box = await saga.step(reserve, order, undo=unreserve)
        if way != "called":
            await saga.step(ship, order, payment, box)

    async def cancelled(order: Placed, saga: Saga) -> None:
        payment = await saga.step(charge, order, undo=refund)
        await saga.step(reserve_and_cancel, order, undo=unreserve_it)
        await saga.sleep(600)  # a worker that has not heard yet may begin one more step
        await saga.step(ship, order, payment, 7)

    async def with_child(order: Placed, saga: Saga) -> None:
        payment = await saga.step(charge, order, undo=refund)
        number = await saga.child(parcel, Wanted(order_id=order.order_id))
        if way == "child-cancel":
            await saga.sleep(600)
        await saga.step(ship, order, payment, number)

    async def endless(order: Placed, saga: Saga) -> None:
        await saga.step(effect(f"visit {order.visit}"), order, undo=effect(f"leave {order.visit}"))
        if order.visit < 2:
            saga.restart(Placed(order_id=order.order_id, visit=order.visit + 1))
        if way == "again-back":
            await saga.step(refuse)

    def refuse() -> None:
        raise Refused("enough")

    async def once(order: Placed, saga: Saga) -> None:
        payment = await saga.step(charge, order, undo=refund)
        box = await saga.step(pay, order, at_most_once=True, reconcile=look)
        await saga.step(ship, order, payment, box)

    bodies = {"cancel": cancelled, "child": with_child, "again": endless, "once": once}
    body = bodies["cancel"] if way == "cancel" else bodies.get(way.split("-")[0], plain)
    app.saga(Placed, name="checkout")(body)
    return app
