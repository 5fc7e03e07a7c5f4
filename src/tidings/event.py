"""What an event is: a value with a type name, a version and a key."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, dataclass_transform

import msgspec

from .codec import Decode, Encode, codec_of, is_pydantic
from .envelope import check_key
from .errors import EventDefinitionError, InvalidEvent
from .spelling import misspelt

C = TypeVar("C", bound=type)

_UNSET = "\0unset"
_TYPE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/:]{0,254}")


@dataclasses.dataclass(frozen=True, slots=True)
class EventSpec:
    """What a class says about itself: the name of its key field (None: it has no key), its type name if given, its version."""

    key: str | None
    type: str | None
    version: int


if TYPE_CHECKING:  # for type checkers, class arguments are those of Event.__init_subclass__
    _EventMeta = msgspec.StructMeta
else:

    class _EventMeta(type(msgspec.Struct)):
        def __new__(
            mcls,
            name: str,
            bases: tuple[type, ...],
            namespace: dict[str, Any],
            *,
            key: str | None = _UNSET,
            type: str | None = None,
            version: int | None = None,
            **config: Any,
        ) -> Any:
            config.setdefault("frozen", True)  # one decoded event is shared by every subscription of a process
            try:
                cls = super().__new__(mcls, name, bases, namespace, **config)
            except TypeError:
                _refuse_unknown(name, config)
                raise
            inherited: EventSpec | None = getattr(cls, "__event_spec__", None)
            if key == _UNSET and inherited is None:
                return cls  # a base class; using it as an event says what is missing
            chosen = inherited.key if key == _UNSET and inherited is not None else key
            cls.__event_spec__ = _spec(cls, chosen, type, 1 if version is None else version)
            return cls


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, metaclass=_EventMeta, frozen=True):
    """Base class for events: a frozen ``msgspec.Struct``.

    Class arguments:
        key: the field that orders the events of one entity, or None for events that promise no order.
        type: the type name, as other services write it; ``"<app name>.<class name>"`` unless given.
        version: of the schema, an integer; 1 unless given.

    Example: ``class OrderPlaced(Event, key="order_id"): order_id: int``
    """

    __event_spec__: ClassVar[EventSpec]

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            key: str | None = ...,
            type: str | None = ...,
            version: int = ...,
            frozen: bool = ...,
            kw_only: bool = ...,
            forbid_unknown_fields: bool = ...,
            rename: Any = ...,
            tag: Any = ...,
            tag_field: str | None = ...,
            omit_defaults: bool = ...,
        ) -> None: ...


def event(*, key: str | None, type: str | None = None, version: int = 1) -> Callable[[C], C]:
    """Make an event of a dataclass, an attrs class, a ``msgspec.Struct`` or a pydantic model.

    Args:
        key: the field that orders the events of one entity, or None for events that promise no order.
        type: the type name; ``"<app name>.<class name>"`` unless given.
        version: of the schema, an integer.

    Raises:
        EventDefinitionError: the class is none of these, or has no such field.
    """

    def mark(cls: C) -> C:
        supported = dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__") or issubclass(cls, msgspec.Struct) or is_pydantic(cls)
        if not supported:
            raise EventDefinitionError(
                f"@event is for dataclasses, attrs classes, msgspec.Structs and pydantic models; {cls.__name__} is none of them."
                " Put @event above @dataclass (it must run last).",
                cls=cls,
            )
        cast(Any, cls).__event_spec__ = _spec(cls, key, type, version)
        return cls

    return mark


class EventType:
    """An event class as one app knows it: its type name, how its key is read, how it is carried.

    Raises:
        EventDefinitionError: the class is no event, or can't be carried as JSON.
    """

    __slots__ = ("cls", "decode", "encode", "key_name", "name", "read_key", "shareable", "version")

    def __init__(self, cls: type, app_name: str) -> None:
        spec: EventSpec | None = getattr(cls, "__event_spec__", None)
        if spec is None:
            if issubclass(cls, type) or cls.__module__ == "builtins":
                raise EventDefinitionError(
                    f"{'a class' if issubclass(cls, type) else f'a value of type {cls.__name__}'} is not an event: an event is an instance"
                    ' of a class like `class OrderPlaced(Event, key="order_id")`',
                    cls=cls,
                )
            raise EventDefinitionError(
                f'{cls.__name__} is not an event: write `class {cls.__name__}(Event, key="…")`, or put @event(key="…") on it'
                " (key=None if its events need no order)",
                cls=cls,
            )
        self.cls = cls
        self.name = spec.type or f"{app_name}.{cls.__name__}"
        self.version = spec.version
        self.key_name = spec.key
        self.encode: Encode
        self.decode: Decode
        try:
            self.encode, self.decode = codec_of(cls)
        except (TypeError, NameError) as error:  # NameError: an annotation that can't be resolved
            raise EventDefinitionError(f"{cls.__name__} can't be carried as JSON: {error}", cls=cls) from error
        struct_config = getattr(cls, "__struct_config__", None)
        self.shareable = bool(struct_config and struct_config.frozen)

    def key_of(self, value: Any) -> str | None:
        """The key of an event as text; None if the class has no key.

        Raises:
            InvalidEvent: the key is None, empty, too long (``LONGEST_KEY``), or of a kind that has no stable text.
        """
        if self.key_name is None:
            return None
        key = getattr(value, self.key_name)
        if type(key) is int:
            return str(key)
        return check_key(key if type(key) is str and key else self._unusual_key(key))

    def _unusual_key(self, key: object) -> str:
        if isinstance(key, enum.Enum):
            key = key.value
        if isinstance(key, (int, str, uuid.UUID, decimal.Decimal, datetime.date)) and not isinstance(key, bool) and key != "":
            return key.isoformat() if isinstance(key, datetime.date) else str(key)
        hint = " (with an ORM: flush first, so that the database has given the row its id)" if key is None else ""
        raise InvalidEvent(
            f"{self.cls.__name__}.{self.key_name} is {key!r}: a key is a non-empty text, a whole number, a UUID, a Decimal or a date{hint}",
            type=self.name,
            key_name=self.key_name,
        )

    def to_bytes(self, value: Any) -> bytes:
        """The event as JSON, checked against its own class (msgspec does not check when a Struct is made).

        Raises:
            InvalidEvent: a field has the wrong type or can't be serialised.
        """
        try:
            data = self.encode(value)
            self.decode(data)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise InvalidEvent(f"{self.cls.__name__} can't be published: {error}", type=self.name) from error
        if b"null" in data:
            self.refuse_infinite(value)
        return data

    def refuse_infinite(self, value: Any) -> None:
        """JSON has no word for it, and writes null.

        Raises:
            InvalidEvent: somewhere in the event is a float that is infinite or not a number.
        """
        if not _is_finite(value):
            raise InvalidEvent(
                f"{self.cls.__name__} can't be published: a float in it is infinite or not a number, for which JSON has no word: use None",
                type=self.name,
            )


def _is_finite(value: Any) -> bool:
    """Whether every float in it is; in what can't be looked into there is none."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_is_finite(one) for one in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_finite(one) for one in value)
    cls = type(value)
    if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value) or hasattr(cls, "__attrs_attrs__") or is_pydantic(cls):
        return all(_is_finite(getattr(value, name, None)) for name in fields_of(cls))
    return True


def fields_of(cls: type) -> tuple[str, ...]:
    """The names of the fields of an event class."""
    if is_pydantic(cls):
        return tuple(cls.model_fields)  # type: ignore[attr-defined]
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    attrs = getattr(cls, "__attrs_attrs__", None)
    if attrs is not None:
        return tuple(attribute.name for attribute in attrs)
    return tuple(field.name for field in dataclasses.fields(cast(Any, cls)))


def _refuse_unknown(name: str, given: Iterable[str]) -> None:
    """Raise EventDefinitionError for the first class argument that neither Tidings nor msgspec knows."""
    import inspect

    parameters = inspect.signature(msgspec.defstruct).parameters.values()
    msgspecs = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in ("bases", "module", "namespace")]
    known = ["key", "type", "version", *msgspecs]
    for option in given:
        if option not in known:
            raise EventDefinitionError(misspelt(f"{name}: an event class", option, known), option=option) from None


def _spec(cls: type, key: str | None, type_name: str | None, version: Any) -> EventSpec:
    if key is not None and key not in fields_of(cls):
        raise EventDefinitionError(
            f"{cls.__name__}: key={key!r} is not one of its fields ({', '.join(fields_of(cls)) or 'it has none'})", cls=cls, key=key
        )
    if type_name is not None and not _TYPE_NAME.fullmatch(type_name):
        raise EventDefinitionError(
            f'{cls.__name__}: type={type_name!r} is no type name; use letters, digits and . _ - / :, for example "shop.OrderPlaced"',
            cls=cls,
        )
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise EventDefinitionError(f"{cls.__name__}: version={version!r} must be a whole number from 1", cls=cls)
    return EventSpec(key, sys.intern(type_name) if type_name else None, version)
