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
@click.option(
    "--from",
    "since",
    type=click.IntRange(0),
    default=0,
    metavar="VERSION",
    help="What came after this version of the tables (store check).",
)
@json_option
def sql(dialect: str, since: int, as_json: bool) -> None:
    """Print the tables as SQL, for those who own their DDL.

    Once the script has run, nothing is left for `tidings store init` but to fill in what a new store needs.
    """
    found = [{"number": number, "title": title, "sql": text.strip()} for number, title, text in migrations(dialect) if number > since]
    if not found:
        raise click.UsageError(f"--from {since}: version {migrations(dialect)[-1][0]} is the newest, and there is nothing after it")
    if as_json:
        print_json(found)
    else:
        click.echo(script(dialect, since))


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


@store.command(epilog="Example: tidings store acknowledge --store postgresql://shop@db/shop")
@store_options
@click.option("--at-least", type=click.IntRange(1), metavar="POSITION", help="Go on behind this position, if that is further.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def acknowledge(target: Target, as_json: bool, at_least: int | None, yes: bool) -> None:
    """Say that you know that the log went back in time (a restored backup, a promoted standby without the last transactions).

    Positions go on behind the highest that any subscription here has seen, so that none is given out twice, and the log's incarnation
    rises: what reads this log elsewhere then doesn't take new events for those that it has seen. Run it while no worker runs."""
    with target.writing() as opened:
        upto = max(opened.query(lambda unit: unit.passed()), at_least or 0)
        head = opened.query(lambda unit: unit.head())
        if not yes:
            click.confirm(f"The log ends at position {head}. Go on behind {max(head, upto)}, in a new incarnation?", abort=True, err=True)
        incarnation = opened.write(lambda unit: unit.acknowledge(upto)).result()
    if as_json:
        print_json({"incarnation": incarnation, "head": max(head, upto)})
    else:
        click.echo(f"incarnation {incarnation}; the next event gets a position above {max(head, upto)}")


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
