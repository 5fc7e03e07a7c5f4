"""Events need no base class: dataclasses, attrs classes, pydantic models and msgspec Structs all work, side by side."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import attrs
import msgspec
import pydantic

from tidings import App, Event, InvalidEvent, event

app = App("shop", store="sqlite:///classes.db")


class OrderPlaced(Event, key="order_id"):
    order_id: int
    total: Decimal


@event(key="order_id")
@dataclass
class OrderPaid:
    order_id: int
    on: date


@event(key="order_id", type="shipping.Dispatched", version=2)
@attrs.frozen
class Dispatched:
    order_id: int
    parcel: str


@event(key="email")
class CustomerJoined(pydantic.BaseModel):
    email: str = pydantic.Field(min_length=3)


@event(key=None)
class Ping(msgspec.Struct, frozen=True):
    at: str


for value in (
    OrderPlaced(order_id=1, total=Decimal("9.90")),
    OrderPaid(order_id=1, on=date(2026, 1, 31)),
    Dispatched(order_id=1, parcel="P-7"),
    CustomerJoined(email="ann@example.org"),
    Ping(at="noon"),
):
    envelope = app.envelope(value)  # what publish would write
    print(f"{envelope.type} v{envelope.version}, {envelope.key_name}={envelope.key}: {envelope.data.decode()}")

# A reader may have its own class for somebody else's type: it names the fields it needs and ignores the others.


@event(key="order_id", type="shop.OrderPlaced")
@dataclass
class AnOrder:
    order_id: int
    coupon: str | None = None  # a field that old events don't have needs a default


written = app.envelope(OrderPlaced(order_id=1, total=Decimal("9.90")))
print(App("coupons", store="sqlite:///classes.db").type_of(AnOrder).decode(written.data))

# An event is checked when it is published, not when it is read.
try:
    app.envelope(OrderPlaced(order_id="one", total=Decimal(1)))  # type: ignore[arg-type]
except InvalidEvent as error:
    print(error)
