"""Values to bytes and back. JSON by msgspec; pydantic models by their own means."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]

encode_json: Encode = msgspec.json.Encoder(decimal_format="string").encode
decode_json: Decode = msgspec.json.Decoder().decode


def codec_of(cls: type) -> tuple[Encode, Decode]:
    """The pair of functions that carry values of ``cls`` as JSON bytes.

    Decoding is tolerant: unknown fields are ignored, missing ones take their defaults.

    Raises:
        TypeError: msgspec (or pydantic) can't carry a field of this class.
    """
    if is_pydantic(cls):

        def encode(value: Any) -> bytes:
            return value.model_dump_json().encode()  # type: ignore[no-any-return]

        return encode, cls.model_validate_json  # type: ignore[attr-defined]
    return encode_json, msgspec.json.Decoder(cls).decode


def is_pydantic(cls: type) -> bool:
    """Whether ``cls`` is a pydantic model; pydantic is not imported to find out."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)
