from __future__ import annotations

import sqlite3
from decimal import Decimal
from typing import Any, Optional, Union

import aiosqlite
import pytest
from django.db.backends.base.base import BaseDatabaseWrapper
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tidings import Context, Event, HandlerDefinitionError
from tidings.event import EventType
from tidings.subscribe.handler import Handler, transaction_kind


class Placed(Event, key="order"):
    order: int


class Paid(Event, key="order"):
    order: int


class Gateway:
    pass


class OwnSession(Session):
    pass


class FakeContext:
    tx = "the transaction"


def handler(fn: Any) -> Handler:
    return Handler(fn, EventType(Placed, "shop"), where=None, name="mail")


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        (sqlite3.Connection, "sqlite3"),
        (aiosqlite.Connection, "aiosqlite"),
        (Session, "session"),
        (OwnSession, "session"),
        (Connection, "connection"),
        (AsyncSession, "async session"),
        (AsyncConnection, "async connection"),
        (BaseDatabaseWrapper, "django"),
        (int, None),
        (Gateway, None),
        ("Session", None),
        (list[int], None),
    ],
)
def test_what_asks_for_a_transaction(wanted: Any, kind: str | None) -> None:
    assert transaction_kind(wanted) == kind


def test_every_mixture_of_arguments() -> None:
    event, ctx = Placed(order=1), FakeContext()

    def plain(event: Placed) -> Any:
        return (event,)

    def with_ctx(event: Placed, ctx: Context) -> Any:
        return (event, ctx)

    def with_tx(event: Placed, tx: sqlite3.Connection) -> Any:
        return (event, tx)

    def with_all(event: Placed, *, db: sqlite3.Connection, why: Context, gateway: Gateway, more: int = 5, anything=3) -> Any:
        return (event, db, why, gateway, more, anything)

    gateway = Gateway()
    for fn, expected in (
        (plain, (event,)),
        (with_ctx, (event, ctx)),
        (with_tx, (event, ctx.tx)),
        (with_all, (event, ctx.tx, ctx, gateway, 5, 3)),
    ):
        one = handler(fn)
        one.provide({Gateway: gateway})
        assert one.call(event, ctx) == expected
    assert handler(with_tx).tx == "sqlite3"
    assert handler(plain).tx is None


def test_a_function_is_asked_at_each_call_a_value_is_given() -> None:
    def fn(event: Placed, gateway: Gateway, amount: Decimal) -> Any:
        return gateway, amount

    one = handler(fn)
    one.provide({Gateway: Gateway, Decimal: Decimal(3)})
    (first, amount), (second, _) = one.call(None, None), one.call(None, None)
    assert (type(first), first is second, amount) == (Gateway, False, 3)


def test_a_list_is_asked_for_by_its_type() -> None:
    def fn(events: list[Placed]) -> None: ...

    assert handler(fn).takes_list


def test_a_callable_object_and_a_method() -> None:
    class Mailer:
        def send(self, event: Placed, ctx: Context) -> Any:
            return (self, event, ctx)

        def __call__(self, event: Placed) -> Any:
            return (self, event)

    mailer = Mailer()
    assert handler(mailer.send).call(1, 2) == (mailer, 1, 2)
    assert handler(mailer).call(1, 2) == (mailer, 1)


def test_an_async_callable_object_is_async() -> None:
    class Mailer:
        async def __call__(self, event: Placed) -> None: ...

    assert handler(Mailer()).is_async


def test_annotations_as_text_find_what_the_function_sees() -> None:
    class Local:
        pass

    def fn(event: Placed, local: Local, other: int = 3) -> Any:
        return Local, local, Later

    one = handler(fn)
    assert one.needs["local"] is Local
    Later = 1


@pytest.mark.parametrize("annotation", ["Context | None", "Optional[Context]", "Union[Context, None]"])
def test_what_may_be_none_is_what_it_is(annotation: str) -> None:
    def fn(event, ctx=None): ...

    fn.__annotations__ = {"ctx": eval(annotation, {"Context": Context, "Optional": Optional, "Union": Union})}
    one = handler(fn)
    assert one.tx is None


def no_argument() -> None: ...


def no_type(event: Placed, gateway) -> None: ...


def star(event: Placed, *more: Any) -> None: ...


def stars(event: Placed, **more: Any) -> None: ...


def unresolved(event: Placed, it: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def sync_asks_async(event: Placed, tx: AsyncSession) -> None: ...


async def async_asks_sync(event: Placed, tx: Session) -> None: ...


def two(event: Placed, tx: sqlite3.Connection, session: Session) -> None: ...


def yields(event: Placed) -> Any:
    yield event


async def yields_later(event: Placed) -> Any:
    yield event


def of_another(event: Paid) -> None: ...


def lists_of_another(events: list[Paid]) -> None: ...


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (yields, "yields yields, and a handler returns: an event, a list of events, or nothing"),
        (yields_later, "yields_later yields, and a handler returns"),
        (of_another, "of_another is to handle Placed, and its first parameter is Paid: they must be one class"),
        (lists_of_another, "lists_of_another is to handle Placed, and its first parameter is Paid"),
        (no_argument, "no_argument takes no argument; the first one is the event"),
        (no_type, "no_type: the parameter 'gateway' has no type. Handlers get what they ask for by type: Context, a transaction"),
        (star, "star: *args and **kwargs say nothing of what the handler needs; name it"),
        (stars, "stars: *args and **kwargs say nothing"),
        (
            unresolved,
            "unresolved: the annotation 'Nowhere' of 'it' can't be resolved (name 'Nowhere' is not defined); import it at the top",
        ),
        (sync_asks_async, "sync_asks_async asks for an async session, so it must be `async def`"),
        (async_asks_sync, "async_asks_sync is async and asks for a synchronous session, which would block the loop: make it `def`"),
        (two, "two asks for two transactions, 'tx' and 'session'; a handler runs in one"),
    ],
)
def test_what_can_not_be_served(fn: Any, message: str) -> None:
    with pytest.raises(HandlerDefinitionError) as caught:
        handler(fn)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_nobody_provides() -> None:
    def fn(event: Placed, gateway: Gateway) -> None: ...

    with pytest.raises(
        HandlerDefinitionError, match=r"asks for Gateway, which nobody provides; call app\.provide\(Gateway, …\) before the app starts"
    ):
        handler(fn).provide({})
