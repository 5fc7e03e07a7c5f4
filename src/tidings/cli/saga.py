"""``tidings saga``: where long processes stand, what they wait for, and trying again what is stuck."""

from __future__ import annotations

import getpass
import time
from collections import Counter
from typing import Any

import click
import msgspec

from ..errors import NotFound
from ..store.port import Store
from ..store.sagas import CLOSED, Action, Entry, SagaRow
from .options import Target, store_options
from .output import clock_time, console, count, duration, print_json, table
from .saga_check import check, migrate

STATES = ("running", "waiting", "compensating", "stuck", "parked", *CLOSED)


@click.group(epilog="Example: tidings saga show checkout 42 --store sqlite:///shop.db")
def saga() -> None:
    """Sagas: where each instance stands, what it waits for, and what was undone."""


@saga.command("list", epilog="Example: tidings saga list --state stuck --state parked --store sqlite:///shop.db")
@store_options
@click.argument("name", required=False)
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only those in this state; several times for several.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
def list_(target: Target, as_json: bool, name: str | None, states: tuple[str, ...], limit: int) -> None:
    """List instances, the oldest first: of the saga NAME, or of all."""
    with target.reading() as store:
        rows = store.query(lambda unit: unit.sagas().rows(name, states, limit + 1))
    more, rows, now = len(rows) > limit, rows[:limit], time.time_ns() // 1000
    if as_json:
        print_json([_as_json(row) for row in rows])
        return
    if not rows:
        click.echo("no sagas")
        return
    made = table("Saga", "Key", "Version", "State", "For", "Waits for", "Error", right=("Version", "For"))
    for row in rows:
        waits = ", ".join(str(wait["for"]) for wait in _waits(row))
        made.add_row(
            row.saga, row.key, str(row.version), row.state, duration((now - row.since) / 1e6), waits, "" if row.error is None else row.error
        )
    console().print(made)
    if more:
        click.echo(f"… and more; --limit {limit * 10} shows more of them", err=True)


@saga.command(epilog="Example: tidings saga show order 42 --store sqlite:///shop.db")
@store_options
@click.argument("name")
@click.argument("key")
def show(target: Target, as_json: bool, name: str, key: str) -> None:
    """Show an instance: NAME is the saga's, or that of its key (order_id, or order)."""
    with target.reading() as store:
        found = [(row, *_details(store, row)) for row in _named(store, name, key)]
    if as_json:
        print_json([{**_as_json(row), "journal": journal, "actions": actions} for row, journal, actions in found])
        return
    for row, journal, actions in found:
        _print(row, journal, actions)


@saga.command(epilog='Example: tidings saga retry checkout 42 --reason "the bank answers again" --store sqlite:///shop.db')
@store_options
@click.argument("name")
@click.argument("key")
@click.option("--reason", required=True, help="Why; it is kept.")
@click.option("--actor", help="Who; the name of the user that runs this unless given.")
def retry(target: Target, as_json: bool, name: str, key: str, reason: str, actor: str | None) -> None:
    """Try now what an instance waits to try again, or what it is parked for."""
    if not reason.strip():
        raise click.UsageError("--reason is empty; say why")
    with target.writing() as store:
        rows = _named(store, name, key)
        if len(rows) > 1:
            raise click.UsageError(f"several sagas have this key: {', '.join(row.saga for row in rows)}; name one of them")
        (row,) = rows
        if row.state in CLOSED:
            raise click.UsageError(f"{row.saga} {row.key} is {row.state}: nothing is left to be tried")
        now, who = time.time_ns() // 1000, actor or getpass.getuser()
        done = store.write(lambda unit: unit.sagas().retry(row.saga, row.key, who, reason, now)).result()
    if not done:
        raise click.UsageError(f"{row.saga} {row.key} is being worked on by {row.worker}; look again in a moment")
    if as_json:
        print_json({"saga": row.saga, "key": row.key, "action": "retry", "actor": who, "reason": reason})
    else:
        click.echo(f"{row.saga} {row.key} is tried again now")


saga.add_command(check)
saga.add_command(migrate)


def _named(store: Store, name: str, key: str) -> list[SagaRow]:
    rows = store.query(lambda unit: unit.sagas().named(name, key))
    if not rows:
        known = Counter(row.saga for row in store.query(lambda unit: unit.sagas().rows(None, (), 1000)))
        hint = f"; there are {', '.join(sorted(known))}" if known and name not in known else ""
        raise NotFound(f"there is no saga {name!r} of key {key!r}{hint}; `tidings saga list` shows what there is", name=name, key=key)
    return rows


def _details(store: Store, row: SagaRow) -> tuple[list[Entry], list[Action]]:
    return store.query(lambda unit: (unit.sagas().journal(row.saga, row.key), unit.sagas().actions(row.saga, row.key)))


def _waits(row: SagaRow) -> list[dict[str, Any]]:
    return [] if row.waits is None or row.state in (*CLOSED, "parked") else msgspec.json.decode(row.waits)


def _as_json(row: SagaRow) -> dict[str, Any]:
    return {
        "saga": row.saga,
        "key": row.key,
        "key_name": row.envelope.key_name,
        "version": row.version,
        "state": row.state,
        "since": row.since,
        "started": row.started,
        "due": row.due,
        "worker": row.worker,
        "waits_for": _waits(row),
        "error": row.error,
        "event_id": row.envelope.event_id,
        "correlation_id": row.envelope.correlation_id,
    }


def _print(row: SagaRow, journal: list[Entry], actions: list[Action]) -> None:
    now = time.time_ns() // 1000
    click.echo(
        f"{row.saga} {row.key} (version {row.version}) {_words(row)} since {clock_time(row.since)}, {duration((now - row.since) / 1e6)}"
    )
    click.echo(f"started {clock_time(row.started)} by {row.envelope.type} {row.envelope.event_id}")
    if row.error is not None:
        click.echo(f"error: {row.error}")
    for wait in _waits(row):
        until = "" if wait.get("until") is None else f" until {clock_time(wait['until'])}"
        error = "" if wait.get("error") is None else f", {count(wait['attempts'], 'attempt')} so far: {wait['error']}"
        click.echo(f"waits for {wait['for']} since {clock_time(wait['since'])}{until}{error}")
    for entry in journal:
        attempts = "" if entry.attempts == 1 else f", {count(entry.attempts, 'attempt')}"
        took = f", {duration((entry.ended - entry.started) / 1e6)}" if entry.kind != "undo" or entry.state == "done" else ""
        what = f"{'undo of ' if entry.kind == 'undo' else 'wait for ' if entry.kind == 'wait' else ''}{entry.step}"
        error = "" if entry.error is None else f": {entry.error}"
        click.echo(f"  {clock_time(entry.ended, day=False)}  {what}  {entry.state}{attempts}{took}{error}")
    for action in actions:
        click.echo(f"  {clock_time(action.time, day=False)}  {action.action} by {action.actor}: {action.reason}")


def _words(row: SagaRow) -> str:
    match row.state:
        case "running":
            return "is running" if row.worker is not None else "is to go on"
        case "stuck":
            return "is stuck while it is undone"
        case "compensating":
            return "is being undone"
        case "compensated":
            return "is undone"
        case other:
            return f"is {other}"
