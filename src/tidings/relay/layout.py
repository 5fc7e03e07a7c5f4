"""How somebody else's outbox table is laid out, and what a row of it becomes on a broker: values and functions of values.

``simple``: the row is an event. It goes out as a CloudEvent in binary mode, its key the aggregate's id.

``debezium``: the row says itself where it goes. It goes out as Debezium's outbox event router writes it with its defaults: to the topic
``outbox.event.<aggregatetype>``, the key the aggregate's id, the payload as it is, the row's id in the header ``id``; a NULL payload is a
tombstone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches

from ..brokers.port import Headers, Record
from ..errors import ConfigurationError
from ..store.outbox import Row, Unsendable

Recorder = Callable[[Row, bytes | None, int | None, bool], Record]


@dataclass(frozen=True)
class Layout:
    """Names of columns.

    Attributes:
        id: tells rows apart; the event's id. key: whose event it is. type: its type. payload: what happened. time: when; None for when it
        was read.
        published: a column that is true once the row was sent, or a timestamp that says when; None where there is none.
        route: a column that says where the row goes. headers: further headers, (name, column).
        topic: where rows go; ``{route}`` and ``{type}`` stand for what is in those columns.
        cloudevent: the record is a CloudEvent; otherwise the payload travels alone, and the id in a header.
        content_type: what a CloudEvent says that its payload is.
        former: what a column was called before, (name, earlier names); an empty one: rows of then have none.
    """

    id: str
    key: str
    payload: str
    type: str | None = None
    time: str | None = None
    published: str | None = None
    route: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    topic: str = ""
    cloudevent: bool = True
    content_type: str = "application/json"
    former: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def columns(self) -> list[str]:
        """What has to be read behind the id, in this order."""
        named = (self.key, self.payload, self.type, self.time, self.route)
        return [*(column for column in named if column is not None), *(column for _, column in self.headers)]

    def naming(self, columns: Sequence[str], topic: str | None = None) -> Layout:
        """The same with other names: ``key=customer_id``, ``published=`` for none, ``header.region=region`` for a header more,
        ``payload=body|payload`` for one that was renamed.

        Raises:
            ConfigurationError: one of them is not understood.
        """
        names = [field.name for field in fields(self) if field.name not in ("headers", "topic", "cloudevent", "content_type", "former")]
        changes: dict[str, str | None] = {}
        headers, former = list(self.headers), list(self.former)
        for one in columns:
            name, equals, column = (part.strip() for part in one.partition("="))
            column, *earlier = (part.strip() for part in column.split("|"))
            if earlier and (not column or (name == "id" and "" in earlier)):
                raise ConfigurationError(f"--columns {one}: write its name of today, and behind a bar those that it had before")
            if earlier:
                former.append((column, tuple(earlier)))
            if name.startswith("header.") and equals and column:
                header = name.removeprefix("header.")
                if not _HEADER.fullmatch(header):
                    raise ConfigurationError(f"--columns {one}: a header's name has letters, digits, '-', '_' and '.'")
                headers.append((header, column))
                continue
            if name not in names or not equals:
                near = get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]}=…?" if near else f"write one of {', '.join(names)}, or header.<name>, and =<column>"
                raise ConfigurationError(f"--columns {one}: {hint}")
            if not column and name in ("id", "key", "payload"):
                raise ConfigurationError(f"--columns {one}: there must be such a column")
            changes[name] = column or None
        made = replace(self, **changes, headers=tuple(headers), former=tuple(former), topic=topic or self.topic)  # type: ignore[arg-type]
        for place in _PLACE.findall(made.topic):
            if place not in ("route", "type") or getattr(made, place) is None:
                raise ConfigurationError(
                    f"--topic {made.topic}: {{{place}}} has no column; {{route}} and {{type}} can be had, named with --columns"
                )
        if "{" in _PLACE.sub("", made.topic) or "}" in _PLACE.sub("", made.topic):
            raise ConfigurationError(f"--topic {made.topic}: a brace that isn't {{route}} or {{type}}")
        if made.cloudevent and made.type is None:
            raise ConfigurationError("a CloudEvent needs a type; name its column with --columns type=…")
        return made


_HEADER = re.compile(r"[A-Za-z0-9_.-]+")
_PLACE = re.compile(r"\{(\w+)\}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

SIMPLE = Layout(id="id", key="aggregate_id", payload="payload", type="event_type", time="created_at", published="published")
"""``outbox(id, aggregate_id, event_type, payload, created_at, published)``; the topic is the table's name unless given."""

DEBEZIUM = Layout(
    id="id", key="aggregateid", payload="payload", type="type", route="aggregatetype", topic="outbox.event.{route}", cloudevent=False
)
"""``(id, aggregatetype, aggregateid, type, payload)``, sent as Debezium's outbox event router does."""

LAYOUTS = {"simple": SIMPLE, "debezium": DEBEZIUM}


def recorder(layout: Layout, source: str) -> Recorder:
    """What makes records of rows that were read as ``[id, *layout.columns]``.

    Args:
        source: the CloudEvents source.

    Raises (the function):
        Unsendable
    """
    at = {name: number for number, name in enumerate(["id", *_present(layout)])}
    key_at, payload_at, type_at, time_at = at["key"], at["payload"], at.get("type"), at.get("time")
    extra = [(name, at[f"header.{name}"]) for name, _ in layout.headers]
    fixed: Headers = ()
    if layout.cloudevent:
        fixed = (("ce_specversion", b"1.0"), ("ce_source", source.encode()), ("content-type", layout.content_type.encode()))
    topic_of = _topics(layout, at)

    def record(row: Row, sequence: bytes | None, committed: int | None, late: bool) -> Record:
        id = row[0]
        assert id is not None
        key, moment = row[key_at], None if time_at is None else row[time_at]
        millis = None if moment is None else millis_of(moment)
        headers: list[tuple[str, bytes]]
        if fixed:
            kind = None if type_at is None else row[type_at]
            if not kind:
                raise Unsendable(f"the column {layout.type} is empty, and an event needs a type", id.decode())
            headers = [("ce_id", id), ("ce_type", kind), *fixed]
            if millis is not None and moment is not None:
                headers.append(("ce_time", rfc3339(moment)))
            if key is not None and (key.isascii() or _is_text(key)):
                headers.append(("ce_partitionkey", key))
            if sequence is not None:
                headers.append(("ce_sequence", sequence))
            if late:
                headers.append(LATE)
        else:
            headers = [("id", id)]
        for name, number in extra:
            value = row[number]
            if value is not None:
                headers.append((name, value))
        if millis is None:
            millis = committed if committed is not None else time.time_ns() // 1_000_000
        # Where a header tells the event's time the record's own is that of sending, since brokers count retention from it (cloudevents.py).
        return Record(topic_of(row), key, row[payload_at], headers, 0 if fixed and moment is not None else millis)

    return record


LATE = ("ce_tidingsoutoforder", b"true")


def _is_text(raw: bytes) -> bool:
    """Whether it may stand in an attribute: a column of bytes may be any."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _present(layout: Layout) -> list[str]:
    """The parts that stand behind ``layout.columns``, in the same order."""
    named = [name for name in ("key", "payload", "type", "time", "route") if getattr(layout, name) is not None]
    return [*named, *(f"header.{name}" for name, _ in layout.headers)]


def _topics(layout: Layout, at: dict[str, int]) -> Callable[[Row], str]:
    if "{" not in layout.topic:
        topic = layout.topic
        return lambda row: topic
    known: dict[tuple[bytes | None, ...], str] = {}
    places = [(f"{{{name}}}", at[name]) for name in _PLACE.findall(layout.topic)]

    def topic_of(row: Row) -> str:
        values = tuple([row[number] for _, number in places])
        if (topic := known.get(values)) is None:
            topic = layout.topic
            for (place, _), value in zip(places, values, strict=True):
                topic = topic.replace(place, (value or b"").decode())
            if None in values or not _TOPIC.fullmatch(topic):
                raise Unsendable(f"{topic!r} is no name for a topic", (row[0] or b"").decode())
            if len(known) < 10_000:
                known[values] = topic
        return topic

    return topic_of


def millis_of(moment: bytes) -> int | None:
    """A timestamp as the server writes it (ISO; without an offset it is UTC) in milliseconds since 1970; None for infinity."""
    try:
        made = datetime.fromisoformat(moment.decode())
    except ValueError:
        return None
    if made.tzinfo is None:
        made = made.replace(tzinfo=UTC)
    return int(made.timestamp() * 1000)


def rfc3339(moment: bytes) -> bytes:
    """The same for CloudEvents: ``2026-01-31 12:00:00.5+00`` becomes ``2026-01-31T12:00:00.5Z``."""
    day, _, rest = moment.partition(b" ")
    if not rest:
        return day + b"T00:00:00Z"
    return day + b"T" + (rest[:-3] + b"Z" if rest.endswith(b"+00") else rest if b"+" in rest or b"-" in rest else rest + b"Z")
