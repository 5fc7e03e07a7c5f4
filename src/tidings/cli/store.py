"""``tidings store``: the tables themselves."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from operator import methodcaller
from typing import Any

import click

from ..store import DIALECTS, migrations, script
from .options import Duration, Moment, Target, json_option, micros, store_options
from .output import count, print_json

CHUNK = 5_000
"""Rows deleted by one transaction, so that publishers never wait long."""


@click.group(epilog="Example: tidings store init --store sqlite:///shop.db")
def store() -> None:
    """Make, check, condense and trim a store."""


@store.command(epilog="Example: tidings store init --store sqlite:///shop.db")
@store_options
def init(target: Target, as_json: bool) -> None:
    """Make the tables, or bring those of an older Tidings up to date. Does no harm a second time."""
    made = target.store()
    made.open()
    try:
        facts = made.query(lambda unit: unit.facts())
    finally:
        made.close()
    if as_json:
        print_json({"store": made.label, "schema": int(facts["schema"]), "log_id": facts["log_id"]})
    else:
        click.echo(f"{made.label} is ready: schema {facts['schema']}, log {facts['log_id']}")


@store.command(epilog="Example: tidings store check --store sqlite:///shop.db")
@store_options
@click.option("--full", is_flag=True, help="Check the indexes against the tables too (slower; SQLite).")
def check(target: Target, as_json: bool, full: bool) -> None:
    """Check the store and say what is in it; exit code 1 if it is damaged."""
    with target.reading() as opened:

        def look(unit: Any) -> dict[str, Any]:
            return {
                "head": unit.head(),
                "searched_plainly": unit.searched_plainly(),
                "scheduled": len(unit.scheduled(1000)),
                "trimmable": unit.trimmable(),
                **unit.facts(),
            }

        facts = opened.query(look)
        found = opened.examine(full)
        label = opened.label
    result = {
        "store": label,
        "ok": not found.problems,
        "problems": found.problems,
        "schema": int(facts["schema"]),
        "log_id": facts["log_id"],
        "incarnation": int(facts["incarnation"]),
        "events": found.events,
        "head": facts["head"],
        "retained": int(facts["retained"]),
        "trimmable": facts["trimmable"],
        "searched_plainly": facts["searched_plainly"],
        **found.figures,
    }
    if as_json:
        print_json(result)
    else:
        click.echo(f"{label}: {'damaged' if found.problems else 'in order'}")
        for problem in found.problems:
            click.echo(f"  {problem}")
        click.echo(f"schema {result['schema']}, log {facts['log_id']}, incarnation {facts['incarnation']}")
        click.echo(
            f"{count(found.events, 'event')} in the log, the last at position {facts['head']};"
            f" {count(facts['scheduled'], 'event')} scheduled"
        )
        if int(facts["retained"]):
            click.echo(f"trimmed up to position {facts['retained']}; every subscription has passed {facts['trimmable']}")
        for line in found.lines:
            click.echo(line)
        if facts["searched_plainly"] > 50_000:
            click.echo(
                f"{count(facts['searched_plainly'], 'event')} not condensed for searching: workers do it, or `tidings store condense`"
            )
    if found.problems:
        click.echo(found.advice, err=True)
        raise SystemExit(1)


@store.command(epilog="Example: tidings store sql postgresql > migrations.sql")
@click.argument("dialect", type=click.Choice(DIALECTS), default=DIALECTS[0])
@json_option
def sql(dialect: str, as_json: bool) -> None:
    """Print the tables as SQL, for those who own their DDL."""
    if as_json:
        print_json([{"number": number, "title": title, "sql": text.strip()} for number, title, text in migrations(dialect)])
    else:
        click.echo(script(dialect))


@store.command(epilog="Example: tidings store trim --older 30d --store sqlite:///shop.db")
@store_options
@click.option("--older", type=Duration(), help="Events older than this, as in 30d.")
@click.option("--before", type=Moment(), help="Events published before this time.")
@click.option("--upto", type=click.IntRange(1), metavar="POSITION", help="Events up to this position.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def trim(target: Target, as_json: bool, older: timedelta | None, before: datetime | None, upto: int | None, yes: bool) -> None:
    """Delete old events, as far as every subscription has passed them. Parked events and dead letters keep their own copies."""
    if sum(given is not None for given in (older, before, upto)) != 1:
        raise click.UsageError("say how far: --older, --before or --upto")
    moment = time.time_ns() // 1000 - round(older.total_seconds() * 1e6) if older is not None else micros(before)
    with target.writing() as opened:

        def look(unit: Any) -> tuple[int, int]:
            return unit.trimmable(), unit.first_position_at(moment) if upto is None else upto

        passed, wanted = opened.query(look)
        last = min(passed, wanted)
        if wanted > passed:
            click.echo(f"asked for positions up to {wanted}, but a subscription has only read up to {passed}; it stops there", err=True)
        if not yes:
            click.confirm(f"Delete the events up to position {last}?", abort=True, err=True)
        deleted = 0
        parts = opened.upkeep(last)
        while part := opened.write(lambda unit: unit.trim(last, CHUNK)).result():
            deleted += part
    if as_json:
        print_json({"deleted": deleted, "parts": parts, "upto": last})
    else:
        if parts:
            click.echo(f"dropped {count(parts, 'whole part')} of the log")
        click.echo(f"deleted {count(deleted, 'event')}; the room is used again, but not given back to the disk (VACUUM would)")


@store.command(epilog="Example: tidings store condense --store sqlite:///shop.db")
@store_options
def condense(target: Target, as_json: bool) -> None:
    """Make trace and log --key quick now; workers do the same, little by little."""
    done = 0
    with target.writing() as opened:
        while (block := opened.query(lambda unit: unit.next_block())) is not None:
            opened.write(methodcaller("add_block", block)).result()
            done += 1
        left = opened.query(lambda unit: unit.searched_plainly())
    if as_json:
        print_json({"blocks": done, "searched_plainly": left})
    else:
        click.echo(f"condensed {count(done, 'block')}; {count(left, 'event')} at the end of the log are read one by one")
