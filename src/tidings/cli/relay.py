"""``tidings relay``: how far events have gone to the broker, where to go on when that is not clear; and a foreign outbox table."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ..errors import NotFound, PositionUnclear
from ..relay.sender import Question, note_of, slots_note
from ..store.port import EVERYTHING, Store
from .options import Target, store_options
from .output import console, count, print_json, table
from .relay_lag import relay_lag
from .relay_table import relay_table

CHOICES = ("broker", "store", "start")


class _Relay(click.Group):
    """Options where a command's name belongs are those of ``table``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["table", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Relay, epilog="Example: tidings relay list --store sqlite:///shop.db")
def relay() -> None:
    """Events that go to a broker: how far each slot is, and what to do about one that stopped and asks.

    With --database, it relays the outbox table of an application that knows nothing of Tidings: see tidings relay table --help.
    """


relay.add_command(relay_table)
relay.add_command(relay_lag)


@relay.command("list", epilog="Example: tidings relay list --store sqlite:///shop.db")
@store_options
def list_(target: Target, as_json: bool) -> None:
    """List the relays of the store, their slots, and what they ask."""
    with target.reading() as store:
        found = relays(store)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("nothing goes to a broker from here; App(…, broker=…) makes that happen")
        return
    made = table("Relay", "App", "Slots", "Asks", right=("Slots",))
    for row in found:
        asks = [f"slot {one['slot']}: {one['ask']}" + (f" (chosen: {one['answer']})" if one["answer"] else "") for one in row["questions"]]
        made.add_row(row["relay"], row["app"], str(row["slots"]), "\n".join(asks) or "nothing")
    console().print(made)


@relay.command(epilog="Example: tidings relay resume relay-shop --from store --store sqlite:///shop.db")
@store_options
@click.argument("name", required=False)
@click.option("--from", "where", required=True, type=click.Choice(CHOICES), help="See above.")
def resume(target: Target, as_json: bool, name: str | None, where: str) -> None:
    """Choose where NAME goes on, in the slots that stopped because broker, log and store don't agree.

    \b
    broker  behind the last event that the broker knows to have. Not possible if it knows none, or if the log went back.
    store   behind the last event that the store knows to have been sent. What only the broker knew of may be sent again.
    start   with the oldest event that is still in the log: everything is sent again.

    If the log went back in time (a restored backup, a standby that was behind), this raises its incarnation: those who read know that from
    now on positions are given out anew. Slots that don't ask are left alone.
    """
    with target.writing() as store:
        asking = [row for row in relays(store) if row["questions"] and name in (None, row["relay"])]
        if not asking:
            raise NotFound("no relay asks" if name is None else f"the relay {name!r} asks nothing", name=name)
        done = sum(store.write(lambda unit, row=row: _answer(unit, row, where)).result() for row in asking)  # type: ignore[misc]
    if as_json:
        print_json({"from": where, "slots": done})
    else:
        click.echo(f"{count(done, 'slot')} will go on from {where}")


def _answer(unit: Any, row: dict[str, Any], where: str) -> int:
    """In one transaction: the choice, what it means for the store's position, and the incarnation."""
    questions = row["questions"]
    if where == "broker" and any(one["sent"] is None or one["back"] for one in questions):
        raise PositionUnclear("the broker can't be gone by: it knows no position, or one that the log doesn't have; choose store or start")
    if where == "start":
        unit.rewind(row["relay"], unit.retained())
    elif where == "broker":
        unit.rewind(row["relay"], min(one["sent"] for one in questions))
    if any(one["back"] for one in questions):
        unit.raise_incarnation()
    for one in questions:
        question = Question(one["ask"], one["sent"], one["stored"], one["back"], where)
        unit.note(note_of(row["relay"], one["slot"]), msgspec.json.encode(question).decode())
    return len(questions)


def relays(store: Store) -> list[dict[str, Any]]:
    """Every relay, as JSON would show it."""

    def look(unit: Any) -> list[dict[str, Any]]:
        facts = unit.facts()
        found = []
        for row in unit.subscriptions():
            history = msgspec.json.decode(facts.get(slots_note(row.name), "[]"))
            if EVERYTHING not in row.types or not history:
                continue
            questions = [
                {"slot": slot, **msgspec.to_builtins(msgspec.json.decode(facts[note], type=Question))}
                for slot in range(history[-1])
                if (note := note_of(row.name, slot)) in facts
            ]
            found.append({"relay": row.name, "app": row.app, "slots": history[-1], "questions": questions})
        return found

    return store.query(look)
