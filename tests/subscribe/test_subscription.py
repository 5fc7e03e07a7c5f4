from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

import pytest

from tidings import App, ConfigurationError, Event, EventDefinitionError, HandlerDefinitionError, Retry, SubscriptionNameTaken


class Placed(Event, key="order"):
    order: int


class Paid(Event, key="order"):
    order: int


class Same(Event, key="order", type="shop.Placed"):
    order: int


@pytest.fixture
def app() -> App:
    return App("shop", store="sqlite:///unused.db")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "keys"}, 'order=\'keys\': choose "key", "none" or "log"'),
        ({"on_dead": "stop"}, 'on_dead=\'stop\': choose "go on" or "hold"'),
        ({"concurrency": 0}, "concurrency=0: a whole number from 1"),
        ({"concurrency": 1.5}, "concurrency=1.5: a whole number from 1"),
        ({"concurrency": True}, "concurrency=True: a whole number from 1"),
        ({"concurrency": "4"}, "concurrency='4': a whole number from 1"),
        ({"rate": 0}, "rate=0: events a second, more than 0"),
        ({"rate": "fast"}, "rate='fast': events a second, more than 0"),
        ({"timeout": 0}, "timeout=0: seconds, more than 0"),
        ({"timeout": "3"}, "timeout='3': seconds, more than 0"),
        ({"retry": 3}, "retry=3: give a Retry(attempts=…)"),
        ({"size": 0}, "size=0, age=1.0: a number from 1, and seconds"),
        ({"age": -1}, "size=100, age=-1: a number from 1, and seconds"),
        ({"max_parked": 0}, "max_parked=0: keys, 1 or more"),
        ({"checkpoint_age": -1}, "checkpoint_age=-1: seconds"),
        ({"start": "yesterday"}, 'start=\'yesterday\': choose "start", "now", a time or a position'),
        ({"start": -1}, "start=-1: choose"),
        ({"start": datetime(2026, 1, 1)}, "give the time zone too, datetime(…, tzinfo=UTC)"),
    ],
)
def test_options_that_can_not_be(app: App, options: dict[str, Any], message: str) -> None:
    for declare in (lambda: app.subscription("mail", **options), lambda: app.subscribe(Placed, **options)(handle)):
        with pytest.raises(ConfigurationError) as caught:
            declare()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert app.subscriptions == {}


def handle(event: Placed | Paid) -> None: ...


def test_a_misspelt_option_is_told_with_the_right_one(app: App) -> None:
    with pytest.raises(ConfigurationError, match=r"^subscribe has no option 'consurrency'; did you mean concurrency=\?$"):
        app.subscribe(Placed, consurrency=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match=r"^subscribe has no option 'xyz'; there are order, concurrency, rate, "):
        app.subscribe(Placed, xyz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "a\nb"])
def test_names(app: App, name: str) -> None:
    with pytest.raises(ConfigurationError, match="a name is letters, digits, - and _"):
        app.subscription(name)
    with pytest.raises(ConfigurationError, match="a name is letters, digits, - and _"):
        App(name, store="sqlite:///unused.db")


def test_two_of_one_name(app: App) -> None:
    app.subscribe(Placed)(handle)
    with pytest.raises(SubscriptionNameTaken, match=r"^the app 'shop' has a subscription 'handle' already; give one of them another name$"):
        app.subscribe(Paid)(handle)
    app.subscribe(Paid, name="again")(handle)
    assert list(app.subscriptions) == ["handle", "again"]


def test_two_handlers_of_one_type_in_one_subscription(app: App) -> None:
    mail = app.subscription("mail")
    mail.on(Placed)(handle)
    for cls in (Placed, Same):
        with pytest.raises(
            HandlerDefinitionError, match=r"^subscription 'mail' has a handler for shop\.Placed already \(handle\)"
        ) as caught:
            mail.on(cls)(lambda event: None)
        assert caught.value.type == "shop.Placed"  # type: ignore[attr-defined]


def test_what_is_no_event(app: App) -> None:
    class Plain:
        pass

    with pytest.raises(EventDefinitionError, match=r"^Plain is not an event: write `class Plain\(Event, key=\"…\"\)`"):
        app.subscribe(Plain)(handle)
    for wrong in ((), ("Placed",), (None,), (handle,)):
        with pytest.raises(HandlerDefinitionError, match="name the event class"):
            app.subscribe(*wrong)(handle)
    assert app.subscriptions == {}  # what failed left no half of a subscription


def test_a_list_handler_stands_alone(app: App) -> None:
    def many(events: list[Placed]) -> None: ...

    mail = app.subscription("mail")
    mail.on(Placed)(many)
    with pytest.raises(HandlerDefinitionError, match="must be the only one"):
        mail.on(Paid)(handle)


def test_shared_transactions_need_one(app: App) -> None:
    with pytest.raises(HandlerDefinitionError, match="shared_tx=True is for handlers that ask for a transaction"):
        app.subscribe(Placed, shared_tx=True)(handle)


def test_a_decorator_gives_the_function_back(app: App) -> None:
    assert app.subscribe(Placed, retry=Retry(attempts=1))(handle) is handle
    assert app.subscription("mail").on(Paid, Placed)(handle) is handle
    assert set(app.subscriptions["mail"].handlers) == {"shop.Paid", "shop.Placed"}


def test_one_function_for_several_types_may_ask_for_everything(app: App) -> None:
    def both(event: Placed | Paid, tx: sqlite3.Connection) -> None: ...

    app.subscribe(Placed, Paid)(both)
    assert {one.tx for one in app.subscriptions["both"].handlers.values()} == {"sqlite3"}
