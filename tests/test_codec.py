from __future__ import annotations

import datetime
import subprocess
import sys
import uuid
from decimal import Decimal

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import Event
from tidings.codec import codec_of, is_pydantic


class Everything(Event, key=None):
    number: int
    text: str
    amount: Decimal
    moment: datetime.datetime
    day: datetime.date
    span: datetime.timedelta
    id: uuid.UUID
    data: bytes
    parts: list[dict[str, int | None]]


@given(
    st.builds(
        Everything,
        number=st.integers(-(2**63), 2**64 - 1),
        text=st.text(),
        amount=st.decimals(allow_nan=False, allow_infinity=False),
        moment=st.datetimes(timezones=st.just(datetime.UTC)),
        day=st.dates(),
        span=st.timedeltas(datetime.timedelta(-10_000), datetime.timedelta(10_000)),
        id=st.uuids(),
        data=st.binary(),
        parts=st.lists(st.dictionaries(st.text(), st.none() | st.integers(-(2**63), 2**63 - 1))),
    )
)
def test_there_and_back(value: Everything) -> None:
    encode, decode = codec_of(Everything)
    assert decode(encode(value)) == value


def test_money_is_carried_as_text() -> None:
    """A number would be read as a float by others, and lose its cents."""

    class Money(Event, key=None):
        amount: Decimal

    encode, decode = codec_of(Money)
    assert encode(Money(amount=Decimal("0.10"))) == b'{"amount":"0.10"}'
    assert decode(b'{"amount":"0.10"}').amount.as_tuple().exponent == -2


def test_a_class_that_can_not_be_carried() -> None:
    class Both(Event, key=None):
        either: dict[str, int] | dict[int, str]

    with pytest.raises(TypeError):
        codec_of(Both)


def test_pydantic_models_are_recognised_without_importing_pydantic() -> None:
    class Model(pydantic.BaseModel):
        pass

    assert is_pydantic(Model)
    assert not is_pydantic(msgspec.Struct)
    script = "import sys, tidings.codec; assert not tidings.codec.is_pydantic(int); assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_pydantics_own_rules_hold() -> None:
    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        number: int = pydantic.Field(gt=0)

    encode, decode = codec_of(Model)
    assert decode(encode(Model(number=1))) == Model(number=1)
    for bad in (b'{"number": 0}', b'{"number": 1, "more": 2}'):
        with pytest.raises(pydantic.ValidationError):
            decode(bad)
