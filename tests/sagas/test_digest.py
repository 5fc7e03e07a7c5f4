"""What is digested of a step's arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

from tidings import Event
from tidings.sagas.digest import digest


class Placed(Event, key="order_id"):
    order_id: int


class Line(msgspec.Struct):
    sku: str


@dataclass
class Address:
    street: str


@attrs.define
class Parcel:
    weight: int


class Note(pydantic.BaseModel):
    text: str


def grown() -> dict[str, Any]:
    """The same classes after they have gained fields with a default."""

    class Placed(Event, key="order_id"):
        order_id: int
        gift: bool = False
        tags: list[str] = msgspec.field(default_factory=list)

    class Line(msgspec.Struct):
        sku: str
        price: Decimal = Decimal(0)

    @dataclass
    class Address:
        street: str
        country: str = "NL"
        names: list[str] = field(default_factory=list)

    @attrs.define
    class Parcel:
        weight: int
        marks: list[str] = attrs.Factory(list)
        colour: str | None = None

    class Note(pydantic.BaseModel):
        text: str
        by: str = "somebody"

    return {"Placed": Placed, "Line": Line, "Address": Address, "Parcel": Parcel, "Note": Note}


@pytest.mark.parametrize(
    ("cls", "value"), [(Placed, 1), (Line, "lamp"), (Address, "Main Street"), (Parcel, 3), (Note, "hello")], ids=lambda one: str(one)[-20:]
)
def test_a_field_gained_with_a_default_changes_nothing(cls: Any, value: Any) -> None:
    (name,) = getattr(cls, "__struct_fields__", None) or getattr(cls, "model_fields", None) or cls.__annotations__
    new = grown()[cls.__name__]
    before = digest(({"deep": [cls(**{name: value})]},), {"by": cls(**{name: value})})
    assert before == digest(({"deep": [new(**{name: value})]},), {"by": new(**{name: value})})


@pytest.mark.parametrize(
    "args",
    [(1,), ("1",), (1, 2), ([1, 2],), ({"a": 1},), (Placed(order_id=1),), (grown()["Placed"](order_id=1, gift=True),), (Address("x"),)],
    ids=str,
)
def test_other_values_have_other_digests(args: Any) -> None:
    assert digest(args, {}) == digest(args, {})
    assert digest(args, {}) != digest((*args, None), {})
    assert digest(args, {}) != digest((), {})
    assert digest((Placed(order_id=1),), {}) != digest((Placed(order_id=2),), {})


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(TypeError):
        digest((object(),), {})
