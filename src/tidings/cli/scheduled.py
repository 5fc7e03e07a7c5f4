"""``tidings scheduled``: events that are to be published later."""

from __future__ import annotations

import time

import click

from ..envelope import iso_time
from ..errors import NotFound
from .options import Target, store_options
from .output import clock_time, console, duration, print_json, table


@click.group(epilog="Example: tidings scheduled list --store sqlite:///shop.db")
def scheduled() -> None:
    """Events that are to be published later."""


@scheduled.command("list", epilog="Example: tidings scheduled list --store sqlite:///shop.db")
@store_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
def list_(target: Target, as_json: bool, limit: int) -> None:
    """List what is scheduled, the next first."""
    with target.reading() as store:
        rows = store.query(lambda unit: unit.scheduled(limit))
    if as_json:
        print_json([{"due": iso_time(row.due), "event": row.envelope.to_cloudevent()} for row in rows])
        return
    if not rows:
        click.echo("nothing is scheduled")
        return
    now = time.time()
    made = table("Due", "In", "Type", "Key", "Event id", right=("In",))
    for row in rows:
        event, left = row.envelope, row.due / 1e6 - now
        key = "" if event.key is None else f"{event.key_name}={event.key}"
        made.add_row(clock_time(row.due)[:19], duration(left) if left > 0 else "overdue", event.type, key, event.event_id)
    console().print(made)


@scheduled.command(epilog="Example: tidings scheduled cancel 01932f8c-7a3e-7c41-9d55-0c2f3b1a7e10 --store sqlite:///shop.db")
@store_options
@click.argument("event_id")
def cancel(target: Target, as_json: bool, event_id: str) -> None:
    """Take back the scheduled event EVENT_ID."""
    with target.writing() as store:
        if not store.write(lambda unit: unit.cancel(event_id)).result():
            raise NotFound(f"no event {event_id} is scheduled; it may have been published, `tidings scheduled list` shows the others")
    if as_json:
        print_json({"event_id": event_id, "cancelled": True})
    else:
        click.echo(f"cancelled {event_id}")
