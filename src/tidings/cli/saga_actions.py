"""What operators do to a saga by hand: ``tidings saga retry``, ``skip``, ``supply``, ``compensate``, ``cancel``, ``pause``, ``resume``."""

from __future__ import annotations

import functools
import getpass
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..errors import ActionRefused, InvalidEvent
from ..sagas.operator import Operator
from .options import Target, store_options
from .output import print_json
from .saga_many import Many, act_on_many, many_options

if TYPE_CHECKING:
    from ..app import App
    from ..store.sagas import SagaRow

ACTIONS: list[click.Command] = []
Act = Callable[[Operator, str, str], "SagaRow"]


def _action(example: str, *, to_many: bool = True) -> Callable[[Callable[..., None]], click.Command]:
    """A command that gets ``act(do, said)``: call it with what is done and what is said then; and with the other arguments of the
    operator's method of this name, for many instances."""

    def mark(fn: Callable[..., None]) -> click.Command:
        @functools.wraps(fn)
        def command(target: Target, as_json: bool, name: str, key: str | None, reason: str, actor: str | None, **rest: Any) -> None:
            many = Many(**{one.name: rest.pop(one.name) for one in fields(Many)}) if to_many else None
            if many is not None and many.said and key is not None and "step" in rest and rest["step"] is None:
                key, rest["step"] = None, key  # NAME STEP, without a key
            if "step" in rest and rest["step"] is None:
                raise click.UsageError("Missing argument 'STEP'.")
            if not reason.strip():
                raise click.UsageError("--reason is empty; say why")
            if many is not None and many.said == (key is not None):
                raise click.UsageError("say which: one by its KEY, or many by --state, --waiting-for, --older-than, --version or --all")
            who = actor or getpass.getuser()

            def act(do: Act, said: str, app: App | None = None, **what: Any) -> None:
                from .saga import named

                with target.writing() as store:
                    known = {} if app is None else {"sagas": app.saga_definitions, "type_of": app.type_of}
                    operator = Operator(store, who, **known)  # type: ignore[arg-type]
                    if key is None:
                        assert many is not None
                        act_on_many(store, operator, name, many, fn.__name__, reason, what, as_json)
                        return
                    rows = named(store, name, key)
                    if len(rows) > 1:
                        raise click.UsageError(f"several sagas have this key: {', '.join(row.saga for row in rows)}; name one of them")
                    row = do(operator, rows[0].saga, key)
                if as_json:
                    facts = {"saga": row.saga, "key": row.key, "action": fn.__name__, "actor": who, "reason": reason, "state": row.state}
                    print_json({**facts, "worker": row.worker})
                else:
                    later = f"; {row.worker} is at it, and hears of it" if row.worker is not None else ""
                    click.echo(f"{row.saga} {row.key} {said}{later}")

            fn(act, reason, target=target, **rest) if "target" in fn.__annotations__ else fn(act, reason, **rest)

        for option in (
            click.option("--actor", help="Who; the name of the user that runs this unless given."),
            click.option("--reason", required=True, help="Why; it is kept."),
        ):
            command = option(command)
        optioned = many_options(command) if to_many else command
        made = click.argument("name")(click.argument("key", required=not to_many)(optioned))
        decorated = click.command(fn.__name__, epilog=f"Example: tidings saga {example} --store sqlite:///shop.db")(store_options(made))
        ACTIONS.append(decorated)
        return decorated

    return mark


@_action('retry checkout 42 --reason "the bank answers again"')
@click.option("--not-done", metavar="STEP", help="A step that was cut off, and did not happen, as you have found out: it is called.")
def retry(act: Any, reason: str, not_done: str | None) -> None:
    """Try now what an instance waits to try again, an undo as well, or run a parked one once more.

    A step that is tried once at most, and of which nobody knows whether it happened, is not called again before somebody has found out:
    --not-done says that it did not happen. If it did, `skip` goes on with its result.
    """
    said = "is tried again now" if not_done is None else f"is tried again now, with {not_done}, which was not done"
    act(lambda operator, saga, key: operator.retry(saga, key, reason=reason, not_done=not_done), said, not_done=not_done)


@_action('skip checkout 42 charge --result \'"p-17"\' --reason "paid at the counter"')
@click.argument("step", required=False)
@click.option("--result", default="null", metavar="JSON", help="What the step is to have returned; nothing unless given.")
def skip(act: Any, reason: str, step: str, result: str) -> None:
    """Go on without STEP, which waits for another attempt, as if it had returned --result.

    Also an undo that was done by hand, by the name of its step; or `sleep`. A result that doesn't fit parks the instance, and can be given
    again.
    """
    try:
        value = msgspec.json.decode(result)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--result is no JSON: {error}; a text is written '\"p-17\"'") from error
    act(
        lambda operator, saga, key: operator.skip(saga, key, step, value, reason=reason), f"goes on without {step}", step=step, result=value
    )


@_action('supply checkout 42 ShipmentDispatched \'{"parcel": "p1"}\' --app shop:app --reason "the carrier\'s mail was lost"', to_many=False)
@click.argument("event_type")
@click.argument("data", default="{}")
def supply(act: Any, reason: str, target: Target, event_type: str, data: str) -> None:
    """Hand an instance the event that it lacks, of EVENT_TYPE with DATA as JSON; its key is filled in. Nobody else sees it. Needs --app."""
    app = target.app()
    if app is None:
        raise click.UsageError("supply needs --app module:app, which knows what the event must hold")

    def do(operator: Operator, saga: str, key: str) -> SagaRow:
        return operator.supply(saga, _event(app, operator, saga, key, event_type, data), reason=reason)

    act(do, f"has {event_type}", app)


def _event(app: App, operator: Operator, saga: str, key: str, name: str, data: str) -> object:
    waited = {found: one for (of, _), definition in app.saga_definitions.items() if of == saga for found, one in definition.waits.items()}
    event_type = next((one for found, one in waited.items() if name in (found, found.rpartition(".")[2])), None)
    if event_type is None:
        raise ActionRefused(f"the saga {saga!r} waits for {', '.join(sorted(waited)) or 'no event'}, not for {name}")
    row = operator.store.query(lambda unit: unit.sagas().row(saga, key))
    assert row is not None  # it was found by the same key
    key_name = str(row.envelope.key_name)
    try:
        given = msgspec.json.decode(data, type=dict[str, Any])
        given.setdefault(key_name, msgspec.json.decode(row.envelope.data).get(key_name, key))
        event: object = event_type.decode(msgspec.json.encode(given))
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise InvalidEvent(f"the data does not fit {event_type.cls.__name__}: {error}") from error
    if event_type.key_of(event) != key:
        raise ActionRefused(f"the event's {key_name} is {event_type.key_of(event)}, and the instance's {key}")
    return event


@_action('compensate checkout 42 --reason "the supplier has closed"')
def compensate(act: Any, reason: str) -> None:
    """Undo what an instance did, behind the step that runs; it ends as compensated."""
    act(lambda operator, saga, key: operator.compensate(saga, key, reason=reason), "is being undone")


@_action('cancel checkout 42 --reason "the customer changed her mind"')
def cancel(act: Any, reason: str) -> None:
    """Undo what an instance did, behind the step that runs; it ends as cancelled."""
    act(lambda operator, saga, key: operator.cancel(saga, key, reason=reason), "is being cancelled: what it did is undone")


@_action('pause checkout 42 --reason "the auditors look at it"')
def pause(act: Any, reason: str) -> None:
    """Run nothing more of an instance until it is resumed. Events that come are kept; deadlines go on running."""
    act(lambda operator, saga, key: operator.pause(saga, key, reason=reason), "is paused")


@_action('resume checkout 42 --reason "they are done"')
def resume(act: Any, reason: str) -> None:
    """Let a paused instance go on."""
    act(lambda operator, saga, key: operator.resume(saga, key, reason=reason), "goes on")
