from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import re
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

from tidings import App, Event, EventDefinitionError, InvalidEvent, event
from tidings.event import EventType


class Placed(Event, key="order"):
    order: int
    total: Decimal = Decimal(0)


@event(key="order")
@dataclasses.dataclass
class AsDataclass:
    order: int
    total: Decimal = Decimal(0)


@event(key="order")
@attrs.frozen
class AsAttrs:
    order: int
    total: Decimal = Decimal(0)


@event(key="order")
class AsPydantic(pydantic.BaseModel):
    order: int
    total: Decimal = Decimal(0)


@event(key="order")
class AsStruct(msgspec.Struct, frozen=True):
    order: int
    total: Decimal = Decimal(0)


KINDS = [Placed, AsDataclass, AsAttrs, AsPydantic, AsStruct]


@pytest.mark.parametrize("cls", KINDS)
def test_every_kind_of_class_is_carried_there_and_back(cls: Any) -> None:
    event_type = EventType(cls, "shop")
    assert (event_type.name, event_type.version, event_type.key_name) == (f"shop.{cls.__name__}", 1, "order")
    value = cls(order=42, total=Decimal("9.90"))
    assert event_type.key_of(value) == "42"
    data = event_type.to_bytes(value)
    assert msgspec.json.decode(data) == {"order": 42, "total": "9.90"}
    assert event_type.decode(data) == value


@pytest.mark.parametrize("cls", KINDS)
def test_a_tolerant_reader(cls: Any) -> None:
    """Unknown fields are ignored, missing ones take their defaults; what is required and missing is an error."""
    decode = EventType(cls, "shop").decode
    assert decode(b'{"order": 1, "later": {"a": [1]}}') == cls(order=1)
    for bad in (b'{"total": "1"}', b'{"order": "one"}', b"[]", b"", b"\xff", b'{"order": null}'):
        with pytest.raises((msgspec.MsgspecError, pydantic.ValidationError, UnicodeDecodeError)):
            decode(bad)


def test_names_versions_and_keys() -> None:
    class Shipped(Event, key="order", type="warehouse.Shipped", version=3):
        order: int

    class Ping(Event, key=None):
        pass

    shipped = EventType(Shipped, "shop")
    assert (shipped.name, shipped.version) == ("warehouse.Shipped", 3)
    ping = EventType(Ping, "shop")
    assert (ping.key_name, ping.key_of(Ping())) == (None, None)


def test_a_subclass_has_its_bases_key_and_its_own_name() -> None:
    class Base(Event):
        order: int

    class Child(Base, key="order", type="shop.Base", version=2):
        pass

    class Grandchild(Child):
        more: int = 0

    assert EventType(Child, "shop").name == "shop.Base"
    grandchild = EventType(Grandchild, "shop")
    assert (grandchild.name, grandchild.version, grandchild.key_name) == ("shop.Grandchild", 1, "order")


def test_events_are_frozen_values() -> None:
    placed = Placed(order=1)
    with pytest.raises(AttributeError):
        placed.order = 2  # type: ignore[misc]
    assert placed == Placed(order=1)
    assert hash(placed) == hash(Placed(order=1))
    assert EventType(Placed, "shop").shareable
    assert not EventType(AsDataclass, "shop").shareable  # nobody says that its handlers don't change it


class Stranger:
    pass


class Unserialisable(Event, key=None):
    it: Stranger


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (-(2**70), str(-(2**70))),
        ("a b", "a b"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        (datetime.date(2026, 3, 1), "2026-03-01"),
        (datetime.datetime(2026, 3, 1, 1, tzinfo=datetime.UTC), "2026-03-01T01:00:00+00:00"),
        (Colour.RED, "red"),
    ],
)
def test_keys_as_text(value: object, text: str) -> None:
    class Keyed(Event, key="it"):
        it: Any

    assert EventType(Keyed, "shop").key_of(Keyed(it=value)) == text


@pytest.mark.parametrize("value", [None, "", True, 1.5, b"1", [1], {}, object()], ids=lambda value: type(value).__name__)
def test_what_is_no_key(value: object) -> None:
    class Keyed(Event, key="it"):
        it: Any

    with pytest.raises(
        InvalidEvent, match=r"^Keyed\.it is .*: a key is a non-empty text, a whole number, a UUID, a Decimal or a date"
    ) as caught:
        EventType(Keyed, "shop").key_of(Keyed(it=value))
    assert "\n" not in str(caught.value)
    assert caught.value.key_name == "it"  # type: ignore[attr-defined]


@pytest.mark.promise("bounded")
@pytest.mark.parametrize("key", ["x" * 1025, "ü" * 513, "a\0b"], ids=["long", "long in bytes", "zero byte"])
def test_what_no_store_takes_for_a_key(key: str, tmp_path: Path) -> None:
    class Keyed(Event, key="it"):
        it: str

    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.open()
    try:
        for publish in (lambda: app.publish(Keyed(it=key), tx="own"), lambda: app.envelope(Keyed(it=key))):
            with pytest.raises(InvalidEvent, match=r"^the key 'x|^the key 'ü|^the key 'a") as caught:
                publish()
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 250
        app.publish(Keyed(it=key[:512].replace("\0", "")), tx="own").result()
    finally:
        app.close()


def test_a_wrong_field_is_found_when_it_is_published() -> None:
    """msgspec doesn't check when a Struct is made; the log must not get what no handler could read."""
    with pytest.raises(InvalidEvent, match=r"^Placed can't be published: Expected `int`, got `str` - at `\$\.order`$"):
        EventType(Placed, "shop").to_bytes(Placed(order="one"))  # type: ignore[arg-type]


def test_a_field_that_can_not_be_serialised() -> None:
    class Odd(Event, key=None):
        it: Any

    with pytest.raises(InvalidEvent, match=r"^Odd can't be published: .*object.* is unsupported$"):
        EventType(Odd, "shop").to_bytes(Odd(it=object()))

    app = App("shop", store="sqlite:///unused.db")
    with pytest.raises(InvalidEvent, match="Unserialisable can't be published"):
        app.envelope(Unserialisable(it=Stranger()))


@dataclasses.dataclass
class Part:
    weights: dict[str, list[float | None]]


@event(key=None)
@dataclasses.dataclass
class WeighedDataclass:
    part: Part
    note: str | None = None


@event(key=None)
class WeighedPydantic(pydantic.BaseModel):
    part: Part
    note: str | None = None


class Weighed(Event, key=None):
    part: Part
    note: str | None = None


@pytest.mark.promise("nothing vanishes")
@pytest.mark.parametrize("cls", [Weighed, WeighedDataclass, WeighedPydantic])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_word_for_is_refused_and_not_published_as_null(cls: Any, number: float, tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}")
    app.open()
    with pytest.raises(InvalidEvent, match="infinite or not a number"):
        app.publish(cls(part=Part({"a": [1.0, number]})), tx="own")
    with pytest.raises(InvalidEvent, match="infinite or not a number"):
        app.envelope(cls(part=Part({"a": [number]})))
    app.publish(cls(part=Part({"a": [1.0, None]})), tx="own").result()
    app.close()


def test_an_annotation_that_nobody_can_resolve() -> None:
    class Unresolved(Event, key=None):
        it: Missing  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(EventDefinitionError, match=r"^Unresolved can't be carried as JSON: name 'Missing' is not defined$"):
        EventType(Unresolved, "shop")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: type("E", (Event,), {"__annotations__": {"order": int}}, key="oder"), "E: key='oder' is not one of its fields (order)"),
        (lambda: type("E", (Event,), {}, key="order"), "E: key='order' is not one of its fields (it has none)"),
        (lambda: type("E", (Event,), {}, key=None, type=""), "E: type='' is no type name"),
        (lambda: type("E", (Event,), {}, key=None, type="a b"), "E: type='a b' is no type name"),
        (lambda: type("E", (Event,), {}, key=None, type="x" * 256), "is no type name"),
        (lambda: type("E", (Event,), {}, key=None, version=0), "E: version=0 must be a whole number from 1"),
        (lambda: type("E", (Event,), {}, key=None, version=True), "E: version=True must be a whole number from 1"),
        (lambda: type("E", (Event,), {}, key=None, version="2"), "E: version='2' must be a whole number from 1"),
        (lambda: event(key=None)(object), "@event is for dataclasses, attrs classes, msgspec.Structs and pydantic models; object is none"),
        (lambda: event(key=None)(type("E", (), {})), "Put @event above @dataclass (it must run last)."),
        (lambda: event(key="b")(dataclasses.make_dataclass("E", ["a"])), "E: key='b' is not one of its fields (a)"),
        (
            lambda: EventType(int, "shop"),
            "a value of type int is not an event: an event is an instance of a class like `class OrderPlaced(",
        ),
        (lambda: EventType(type(Event), "shop"), "a class is not an event"),
        (lambda: EventType(type("Keyless", (Event,), {}), "shop"), "Keyless is not an event"),
    ],
)
def test_what_is_no_event(make: Any, message: str) -> None:
    with pytest.raises(EventDefinitionError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "hint"), [("kye", "did you mean key=?"), ("frozn", "did you mean frozen=?"), ("zzz", "there are key, type, version, ")]
)
def test_a_misspelt_class_argument(option: str, hint: str) -> None:
    with pytest.raises(EventDefinitionError, match=re.escape(f"E: an event class has no option '{option}'; {hint}")):
        type("E", (Event,), {"__annotations__": {"order": int}}, **{option: "order"})
    with pytest.raises(TypeError):  # msgspec's own
        type("E", (Event,), {"__annotations__": {"order": int}}, key="order", tag=1.5)


def test_two_apps_in_one_process_do_not_see_each_other() -> None:
    shop, mail = App("shop", store="sqlite:///a.db"), App("mail", store="sqlite:///b.db")
    assert shop.type_of(Placed).name == "shop.Placed"
    assert mail.type_of(Placed).name == "mail.Placed"
    assert shop.type_of(Placed) is shop.type_of(Placed)
