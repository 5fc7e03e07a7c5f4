"""What the arguments of a step say, in few letters: so that a journal knows whether it is still the same call.

A field that is at its default counts as one that isn't there. So an event's class may gain a field with a default, and what was digested
before it had one is digested to the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from ..codec import is_pydantic
from .step import encode

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_LISTS = frozenset({list, tuple})
_NONE = object()

Field = tuple[str, Any, Callable[[], Any] | None]
"""Name, default, and what makes one."""


def digest(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Raises TypeError for what can't be told as JSON."""
    return hashlib.blake2b(encode([_said(args), _said(kwargs)]), digest_size=8).hexdigest()


def _said(value: Any) -> Any:
    cls = type(value)
    if cls in _PLAIN:
        return value
    if cls is dict or (cls not in _LISTS and isinstance(value, Mapping)):
        return {name: _said(one) for name, one in value.items()}
    if cls in _LISTS or isinstance(value, (list, tuple)):
        return [one if type(one) in _PLAIN else _said(one) for one in value]
    if is_pydantic(cls):
        return value.model_dump(mode="json", exclude_defaults=True)
    fields = _fields(cls)  # type: ignore[arg-type]
    if fields is None:
        return value
    said: dict[str, Any] = {}
    for name, default, make in fields:
        found = getattr(value, name)
        if (found is default or found == default) if make is None else found == make():
            continue
        said[name] = _said(found)
    config = getattr(cls, "__struct_config__", None)
    if config is not None and config.tag is not None:
        said[config.tag_field] = config.tag
    return said


@lru_cache(maxsize=1024)
def _fields(cls: type) -> tuple[Field, ...] | None:
    """Of a Struct, a dataclass or an attrs class; None for everything else."""
    if issubclass(cls, msgspec.Struct):
        found = msgspec.structs.fields(cls)
        return tuple((one.name, _or_none(one.default, msgspec.NODEFAULT), _made(one.default_factory, msgspec.NODEFAULT)) for one in found)
    if dataclasses.is_dataclass(cls):
        listed = dataclasses.fields(cls)
        return tuple(
            (one.name, _or_none(one.default, dataclasses.MISSING), _made(one.default_factory, dataclasses.MISSING)) for one in listed
        )
    attributes = getattr(cls, "__attrs_attrs__", None)
    if attributes is None:
        return None
    import attrs

    return tuple(
        (one.name, _NONE, one.default.factory)
        if isinstance(one.default, attrs.Factory) and not one.default.takes_self  # type: ignore[arg-type]
        else (one.name, _or_none(one.default, attrs.NOTHING), None)
        for one in attributes
    )


def _or_none(default: Any, missing: Any) -> Any:
    return _NONE if default is missing else default


def _made(factory: Any, missing: Any) -> Callable[[], Any] | None:
    return None if factory is missing else factory
