"""``tidings publish``: an event by hand, from the arguments or as CloudEvents JSON."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from ..codec import encode_json
from ..envelope import Envelope, check_key, lane_of
from ..errors import InvalidEvent
from ..event import EventType
from ..ids import new_id
from ..publish.publisher import headers_text, traceparent_of
from ..store.port import Unit
from .options import Duration, Moment, Target, store_options
from .output import count, print_json

if TYPE_CHECKING:
    from ..app import App


@click.command(epilog="""Example: tidings publish shop.OrderPlaced '{"order_id": 42}' --app shop:app""")
@store_options
@click.argument("type_name", metavar="[TYPE]", required=False)
@click.argument("data", metavar="[JSON]", required=False)
@click.option("--key-name", metavar="NAME", help="Which field of JSON is the key; with --app its class says it.")
@click.option("--key", metavar="VALUE", help="The key, if it isn't the field's value.")
@click.option("--header", "headers", metavar="NAME=TEXT", multiple=True, help="A further text that goes with the event; several times.")
@click.option("--source", metavar="NAME", help="The app that it comes from; unless given, what stands before the type's last dot.")
@click.option(
    "--cloudevent", type=click.File("rb"), metavar="FILE", help="Read events in CloudEvents JSON, one a line or a list; - is stdin."
)
@click.option("--at", type=Moment(), help="Publish at this time instead of now.")
@click.option("--after", type=Duration(), help="Publish after so long, as in 10m.")
def publish(
    target: Target,
    as_json: bool,
    type_name: str | None,
    data: str | None,
    key_name: str | None,
    key: str | None,
    headers: tuple[str, ...],
    source: str | None,
    cloudevent: IO[bytes] | None,
    at: datetime | None,
    after: timedelta | None,
) -> None:
    """Publish an event of TYPE with the data JSON, in a transaction of its own.

    With --app the event is checked against the app's class of that type. Without, --key-name names the field that is its key;
    an event without a key promises no order.
    """
    if at is not None and after is not None:
        raise click.UsageError("give --at or --after, not both")
    if (cloudevent is None) == (type_name is None):
        raise click.UsageError("give TYPE and JSON, or --cloudevent FILE")
    app = target.app()
    if cloudevent is not None:
        if headers:
            raise click.UsageError("--header goes with TYPE and JSON; what --cloudevent reads has its own")
        envelopes = [_checked(Envelope.from_cloudevent(value), app) for value in _cloudevents(cloudevent.read())]
    else:
        assert type_name is not None
        if data is None:
            raise click.UsageError("give the event's data as JSON, for example '{\"order_id\": 42}'")
        envelopes = [_envelope(type_name, data, key_name, key, source, app, _named(headers))]
    due = round(at.timestamp() * 1e6) if at else time.time_ns() // 1000 + round(after.total_seconds() * 1e6) if after else None
    with target.writing(make=app is not None) as store:  # as the app's own first publish would
        if due is not None:

            def schedule(unit: Unit) -> None:
                for envelope in envelopes:
                    unit.schedule(envelope, due)

            store.write(schedule).result()
            positions: list[int | None] = [None] * len(envelopes)
        else:
            positions = [*store.write(lambda unit: unit.append(envelopes)).result()]
    if as_json:
        print_json(
            [{"event_id": e.event_id, "lane": e.lane, "position": position} for e, position in zip(envelopes, positions, strict=True)]
        )
        return
    if len(envelopes) != 1:
        click.echo(f"{'scheduled' if due else 'published'} {count(len(envelopes), 'event')}")
        return
    for envelope, position in zip(envelopes, positions, strict=True):
        place = f"at position {position}" if position is not None else "for later; `tidings scheduled list` shows it"
        click.echo(f"{'scheduled' if due else 'published'} {envelope.type} {envelope.event_id} {place}")


def _named(headers: tuple[str, ...]) -> dict[str, str] | None:
    found = {}
    for one in headers:
        name, equals, text = one.partition("=")
        if not equals:
            raise click.UsageError(f"--header {one}: write NAME=TEXT")
        found[name] = text
    return found or None


def _envelope(
    type_name: str, data: str, key_name: str | None, key: str | None, source: str | None, app: App | None, headers: dict[str, str] | None
) -> Envelope:
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidEvent(f"the data is no JSON: {error}") from error
    if app is not None:
        event_type = _type_named(app, type_name)
        if key_name is not None or key is not None:
            raise click.UsageError(f"{event_type.cls.__name__} says what its key is; leave out --key-name and --key, or --app")
        try:
            return app.envelope(event_type.decode(data.encode()), headers=headers)
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise InvalidEvent(f"the data does not fit {event_type.cls.__name__}: {error}") from error
    if key is not None and key_name is None:
        raise click.UsageError("--key needs --key-name: order 42 is not customer 42")
    if key_name is not None and key is None:
        found = value.get(key_name) if isinstance(value, dict) else None
        if isinstance(found, bool) or not isinstance(found, (str, int)) or found == "":
            raise InvalidEvent(f"the data has no field {key_name!r} with a text or a whole number in it; give the key with --key")
        key = str(found)
    if key is not None:
        check_key(key)
    event_id = new_id()
    source = source or type_name.rpartition(".")[0] or "tidings"
    lane = lane_of(None, event_id) if key is None else lane_of(key_name, key)
    now, body = time.time_ns() // 1000, encode_json(value)
    trace, texts = traceparent_of(headers), headers_text(headers)
    return Envelope(0, lane, source, type_name, 1, key_name, key, event_id, now, source, body, event_id, None, trace, texts)


def _checked(envelope: Envelope, app: App | None) -> Envelope:
    if app is not None:
        event_type = _type_named(app, envelope.type)
        try:
            event_type.decode(envelope.data)
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise InvalidEvent(f"event {envelope.event_id} does not fit {event_type.cls.__name__}: {error}") from error
    return envelope


def _type_named(app: App, name: str) -> EventType:
    """The app's event type of that name: of its handlers, or a class in a module where one of its handlers or the app stands."""
    import difflib
    import sys

    known = {handler.event_type.name: handler.event_type for sub in app.subscriptions.values() for handler in sub.handlers.values()}
    for module in [module for module in list(sys.modules.values()) if app in vars(module).values()]:
        for value in list(vars(module).values()):
            if isinstance(value, type) and getattr(value, "__event_spec__", None) is not None:
                event_type = app.type_of(value)
                known.setdefault(event_type.name, event_type)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known)) or 'none at all'}"
    raise InvalidEvent(f"the app {app.name!r} has no class for events of type {name}; {hint}", type=name)


def _cloudevents(text: bytes) -> list[dict[str, Any]]:
    """One event, a list of them, or one a line."""
    try:
        try:
            whole = msgspec.json.decode(text)
            values = whole if isinstance(whole, list) else [whole]
        except msgspec.DecodeError:
            values = msgspec.json.Decoder().decode_lines(text)
    except msgspec.DecodeError as error:
        raise InvalidEvent(f"no CloudEvents JSON: {error}") from error
    for value in values:
        if not isinstance(value, dict):
            raise InvalidEvent(f"no CloudEvent: {value!r}")
    return values
