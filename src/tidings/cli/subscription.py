"""``tidings subscription``: who reads the log, and from where."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from ..envelope import iso_time
from ..subscribe.backlog import lapsed_text
from . import Failed
from .options import Moment, Target, complete_subscription, micros, require_subscription, store_options
from .output import clock_time, console, count, print_json, table


@click.group(epilog="Example: tidings subscription pause charge_card --store sqlite:///shop.db")
def subscription() -> None:
    """Subscriptions: list, pause, resume, rewind, remove. Workers that run see it within a second."""


@subscription.command("list", epilog="Example: tidings subscription list --store sqlite:///shop.db")
@store_options
def list_(target: Target, as_json: bool) -> None:
    """List the subscriptions of the store; `tidings status` tells how far they are."""
    with target.reading() as store:
        rows = store.query(lambda unit: unit.subscriptions())
    if as_json:
        print_json(
            [
                {
                    "name": row.name,
                    "app": row.app,
                    "types": row.types,
                    "order": row.ordering,
                    "created": iso_time(row.created),
                    "start": row.start,
                    "paused": row.paused,
                    "held": row.held,
                    "lapsed": row.lapsed is not None,
                }
                for row in rows
            ]
        )
        return
    if not rows:
        click.echo("no subscriptions yet; `tidings run module:app` makes those of an app")
        return
    made = table("Name", "App", "Order", "Since", "State", "Types")
    for row in rows:
        state = "lapsed" if row.lapsed else "paused" if row.paused else "held" if row.held else "on"
        made.add_row(row.name, row.app, row.ordering, clock_time(row.created)[:19], state, "\n".join(row.types))
    console().print(made)


@subscription.command(epilog="Example: tidings subscription pause charge_card --store sqlite:///shop.db")
@store_options
@click.argument("name", shell_complete=complete_subscription)
def pause(target: Target, as_json: bool, name: str) -> None:
    """Let NAME begin nothing new, in every worker, until it is resumed."""
    _pause(target, as_json, name, True)


@subscription.command(epilog="Example: tidings subscription resume charge_card --store sqlite:///shop.db")
@store_options
@click.argument("name", shell_complete=complete_subscription)
def resume(target: Target, as_json: bool, name: str) -> None:
    """Let NAME go on where it was paused."""
    _pause(target, as_json, name, False)


def _reached(unit: Any, name: str) -> int:
    lapsed = next((row.lapsed for row in unit.subscriptions() if row.name == name), None)
    return int(lapsed[1]) if lapsed is not None else min(lane.position for lane in unit.lanes(name))


def _pause(target: Target, as_json: bool, name: str, paused: bool) -> None:
    with target.writing() as store:
        require_subscription(store, name)
        lapsed = next((row for row in store.query(lambda unit: unit.subscriptions()) if row.name == name and row.lapsed is not None), None)
        if lapsed is not None and not paused:
            raise Failed(lapsed_text(lapsed))
        store.write(lambda unit: unit.set_paused(name, paused)).result()
    if as_json:
        print_json({"name": name, "paused": paused})
    else:
        click.echo(f"{name} {'is paused' if paused else 'goes on'}")


@subscription.command(epilog="Example: tidings subscription rewind analytics --to 2026-01-31T00:00:00Z --store sqlite:///shop.db")
@store_options
@click.argument("name", shell_complete=complete_subscription)
@click.option(
    "--to",
    "to",
    required=True,
    metavar="start|now|TIME|POSITION",
    help="The oldest event, the end of the log, a time (or 10m ago), or behind a position.",
)
@click.option("--yes", is_flag=True, help="Don't ask.")
def rewind(target: Target, as_json: bool, name: str, to: str, yes: bool) -> None:
    """Let NAME read on from another place, back or forward. What lies behind it is handled again, or skipped."""
    moment: datetime | None = None
    if to not in ("start", "now") and not to.isdigit():
        moment = Moment().convert(to, None, None)
    with target.writing() as store:
        require_subscription(store, name)

        def look(unit: Any) -> tuple[int, int, int]:
            head, retained = unit.head(), unit.retained()
            if to == "start":
                position = retained
            elif to == "now":
                position = head
            else:
                position = int(to) if moment is None else unit.first_position_at(micros(moment))
            return min(max(position, retained), head), head, _reached(unit, name)

        position, head, reached = store.query(look)
        if not yes:
            words = f"{name} has read up to position {reached} of {head}."
            again = (
                f"goes back to {position}: events behind it are handled again."
                if position < reached
                else f"goes on behind {position}; what it skips isn't handled."
            )
            click.confirm(f"{words} It {again} What is parked behind {position} is dropped from there. Go on?", abort=True, err=True)
        dropped = store.write(lambda unit: unit.rewind(name, position)).result()
    if as_json:
        print_json({"name": name, "position": position, "parked_dropped": dropped})
    else:
        click.echo(
            f"{name} goes on behind position {position}"
            + (f"; {count(dropped, 'parked event')} will come again from the log" if dropped else "")
        )


@subscription.command(epilog="Example: tidings subscription remove analytics --store sqlite:///shop.db")
@store_options
@click.argument("name", shell_complete=complete_subscription)
@click.option("--yes", is_flag=True, help="Don't ask.")
def remove(target: Target, as_json: bool, name: str, yes: bool) -> None:
    """Forget NAME: its progress, parked events and dead letters. Take it out of the app first: a worker that starts makes it anew."""
    with target.writing() as store:
        require_subscription(store, name)
        retrying, waiting, dead = store.query(lambda unit: unit.count_parked(name))
        if not yes:
            click.confirm(
                f"Forget {name}, {count(retrying + waiting, 'parked event')} and {count(dead, 'dead letter')}?", abort=True, err=True
            )
        store.write(lambda unit: unit.remove(name)).result()
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        click.echo(f"{name} is forgotten")
