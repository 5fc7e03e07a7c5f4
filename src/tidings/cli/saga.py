"""``tidings saga``: where long processes stand and what they wait for. What operators do to them: ``saga_actions.py``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import click
import msgspec

from ..errors import NotFound
from ..sagas import account
from ..sagas.operating import waits
from ..sagas.selection import Selection
from ..store.port import Store
from ..store.sagas import CLOSED, Action, Entry, SagaRow
from ..story import Story, story_of
from .options import Duration, Target, store_options
from .output import clock_time, console, count, duration, print_json, table
from .saga_actions import ACTIONS
from .saga_check import check, migrate
from .saga_many import UNDER_WAY, others
from .trace import told_json, tree_of

STATES = (*UNDER_WAY, *CLOSED)
RESULT_SHOWN = 200
"""Characters of what a saga returned."""


@click.group(epilog="Example: tidings saga show checkout 42 --store sqlite:///shop.db")
def saga() -> None:
    """Sagas: where each instance stands, what it waits for, what was undone; and acting on one by hand."""


for action in (*ACTIONS, check, migrate):
    saga.add_command(action)


@saga.command("list", epilog="Example: tidings saga list --waiting-for ShipmentDispatched --older-than 3d --store sqlite:///shop.db")
@store_options
@click.argument("name", required=False)
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only those in this state; several times for several.")
@click.option("--waiting-for", metavar="WHAT", help="Only those that wait for this event, or to try this step again.")
@click.option("--older-than", type=Duration(), help="Only those that have waited or stood so for longer: 10m, 2h, 3d.")
@click.option("--version", type=click.IntRange(1), help="Only those of this version of the code.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
def list_(
    target: Target, as_json: bool, name: str | None, states: tuple[str, ...], waiting_for: str | None, older_than: timedelta | None,
    version: int | None, limit: int,
) -> None:  # fmt: skip
    """List instances, the oldest first: of the saga NAME, or of all."""
    now = time.time_ns() // 1000
    before = None if older_than is None else now - round(older_than.total_seconds() * 1e6)
    with target.reading() as store:
        rows = Selection(name, states, version, waiting_for, before).first(store, limit + 1)
        if not rows:
            _say_if_unknown(store, name)
        more, rows = len(rows) > limit, rows[:limit]
        children = store.query(lambda unit: unit.sagas().each(_awaited(rows)))
    if as_json:
        print_json([_as_json(row, children) for row in rows])
        return
    if not rows:
        click.echo("no sagas")
        return
    made = table("Saga", "Key", "Version", "State", "For", "Waits for", "Until", "Error", right=("Version", "For"))
    for row in rows:
        there = waits(row)
        made.add_row(
            row.saga, row.key, str(row.version), row.state, duration((now - account.standing_since(row)) / 1e6),
            ", ".join(account.wait_words(wait) + _standing(wait, children) for wait in there),
            _until([wait.get("until") for wait in there]), row.error or "",
        )  # fmt: skip
    console().print(made)
    if more:
        click.echo(f"… and more; --limit {limit * 10} shows more of them", err=True)


def _say_if_unknown(store: Store, name: str | None) -> None:
    """No instance was found: perhaps the name is misspelt."""
    if name is None:
        return
    names = store.query(lambda unit: unit.sagas().names())
    if name not in names:
        there = f"there are instances of {', '.join(names)}" if names else "there are no instances of any"
        click.echo(f"no saga {name} has an instance in this store; {there}", err=True)


@saga.command(epilog="Example: tidings saga timers --store sqlite:///shop.db")
@store_options
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
def timers(target: Target, as_json: bool, name: str | None, limit: int) -> None:
    """List what goes on by itself, the next one first: sleeps, deadlines and other attempts, of the saga NAME or of all."""
    with target.reading() as store:
        rows = store.query(lambda unit: unit.sagas().timers(name, limit + 1))
        if not rows:
            _say_if_unknown(store, name)
    more, rows, now = len(rows) > limit, rows[:limit], time.time_ns() // 1000
    if as_json:
        print_json([_as_json(row) for row in rows])
        return
    if not rows:
        click.echo("no timers")
        return
    made = table("Due", "In", "Saga", "Key", "For", right=("In",))
    for row in rows:
        what = ", ".join(account.wait_words(wait) for wait in waits(row) if wait.get("until") is not None) or account.state_words(row)
        made.add_row(clock_time(row.due)[:19], _left(row.due, now), row.saga, row.key, what)
    console().print(made)
    if more:
        click.echo(f"… and more; --limit {limit * 10} shows more of them", err=True)


@saga.command(epilog="Example: tidings saga show order 42 --store sqlite:///shop.db")
@store_options
@click.argument("name")
@click.argument("key")
@click.option("--no-events", is_flag=True, help="Leave out the flow's events, which `tidings trace` tells, too.")
def show(target: Target, as_json: bool, name: str, key: str, no_events: bool) -> None:
    """Tell where an instance stands: NAME is the saga's, or that of its key (order_id, or order)."""
    with target.reading() as store:
        found = [(row, *_details(store, row, not no_events), _children(store, row)) for row in named(store, name, key)]
    if as_json:
        print_json(
            [
                {
                    **_as_json(row),
                    "result": None if row.result is None else msgspec.json.decode(row.result),
                    "mend": account.mend(row, journal),
                    "overdue": account.overdue(row, time.time_ns() // 1000),
                    "undos": account.undos(row, journal),
                    "timeline": account.timeline(row, journal, actions),
                    "journal": journal,
                    "actions": actions,
                    "events": None if story is None else [told_json(root) for root in story.roots],
                    "children": [
                        {
                            "saga": child.saga,
                            "key": child.key,
                            "state": child.state,
                            "says": account.child_words(child, of),
                            "trouble": account.trouble(child),
                            "mend": account.mend(child, of),
                        }
                        for child, of in children
                    ],
                }
                for row, journal, actions, story, children in found
            ]
        )
        return
    for number, (row, journal, actions, story, children) in enumerate(found):
        if number:
            click.echo("")
        _print(row, journal, actions, story, children)


def named(store: Store, name: str, key: str) -> list[SagaRow]:
    """Instances of that key, by the saga's name or the key's."""
    rows: list[SagaRow] = store.query(lambda unit: unit.sagas().named(name, key))
    if not rows:
        raise NotFound(
            f"there is no saga {name!r} of key {key!r}{others(store, name)}; `tidings saga list` shows what there is", name=name, key=key
        )
    return rows


def _details(store: Store, row: SagaRow, events: bool) -> tuple[list[Entry], list[Action], Story | None]:
    def read(unit: Any) -> tuple[list[Entry], list[Action], Story | None]:
        story = story_of(unit, row.envelope.key_name or "", row.key) if events else None
        return unit.sagas().journal(row.saga, row.key), unit.sagas().actions(row.saga, row.key), story

    return store.query(read)


def _awaited(rows: Sequence[SagaRow]) -> list[tuple[str, str]]:
    """The children that they wait for."""
    return [child for row in rows for wait in waits(row) if (child := account.child_of(wait)) is not None]


def _children(store: Store, row: SagaRow) -> list[tuple[SagaRow, list[Entry]]]:
    """The children that it waits for, those that they wait for, and so on: any of them may be the one that waits for a person."""

    def read(unit: Any) -> list[tuple[SagaRow, list[Entry]]]:
        sagas, found, last = unit.sagas(), dict[tuple[str, str], SagaRow](), [row]
        while last and len(found) < 100:
            asked = [child for child in _awaited(last) if child not in found]
            there = sagas.each(asked)
            last = [there[child] for child in asked if child in there]
            found |= there
        return [(child, sagas.journal(child.saga, child.key)) for child in found.values()]

    return store.query(read)


def _standing(wait: dict[str, Any], children: Mapping[tuple[str, str], SagaRow]) -> str:
    child = children.get(account.child_of(wait) or ("", ""))
    return f" ({child.state})" if child is not None and account.trouble(child) is not None else ""


def _as_json(row: SagaRow, children: Mapping[tuple[str, str], SagaRow] | None = None) -> dict[str, Any]:
    return {
        "saga": row.saga,
        "key": row.key,
        "key_name": row.envelope.key_name,
        "version": row.version,
        "app": row.app,
        "state": row.state,
        "says": account.state_words(row),
        "since": row.since,
        "started": row.started,
        "due": row.due,
        "worker": row.worker,
        "waits_for": [{**wait, "says": account.wait_words(wait) + _standing(wait, children or {})} for wait in waits(row)],
        "ordered": row.back,
        "error": row.error,
        "parent": None if row.parent is None else {"saga": row.parent[0], "key": row.parent[1]},
        "event_id": row.envelope.event_id,
        "correlation_id": row.envelope.correlation_id,
    }


def _print(
    row: SagaRow, journal: list[Entry], actions: list[Action], story: Story | None, children: list[tuple[SagaRow, list[Entry]]]
) -> None:  # fmt: skip
    now, out = time.time_ns() // 1000, console()
    ago = f"{clock_time(row.since)[:19]}, {duration((now - row.since) / 1e6)}"
    out.print(f"{row.saga} {row.key} {account.state_words(row)}", style="bold", soft_wrap=True)
    facts = table("", "")
    facts.show_header = False
    facts.add_row("  since", ago)
    facts.add_row("  started", f"{clock_time(row.started)[:19]} by {row.envelope.type}; version {row.version} of {row.app}")
    if row.parent is not None:
        facts.add_row("  child of", " ".join(row.parent))
    if row.result is not None:
        facts.add_row(
            "  returned", row.result if len(row.result) <= RESULT_SHOWN else f"{row.result[:RESULT_SHOWN]} … (--json shows it all)"
        )
    for wait in waits(row):
        until = f", until {clock_time(wait['until'])[:19]} ({_left(wait['until'], now)})" if wait.get("until") is not None else ""
        waited = f"since {clock_time(wait['since'])[:19]}, {duration((now - wait['since']) / 1e6)}"
        facts.add_row("  waits for", f"{account.wait_words(wait)} {waited}{until}; {_place(wait)}".rstrip("; "))
    if (advice := account.advice(row, journal)) is not None:
        facts.add_row("  then", advice)
    for child, of in children:
        facts.add_row("  child", account.child_words(child, of))
    facts.add_row("  next timer", "none" if row.due is None else f"{clock_time(row.due)[:19]} ({_left(row.due, now)})")
    if (late := account.overdue(row, now)) is not None:
        facts.add_row("  overdue", f"since {clock_time(row.due)[:19]}, {duration((now - (row.due or now)) / 1e6)}: {late}")
    if (error := account.last_error(row, journal)) is not None:
        facts.add_row("  last error", error[0] + ("" if error[1] is None else f" ({clock_time(error[1])[:19]})"))
    if row.error is not None and row.state not in ("parked", "waiting", "running") and (error is None or row.error not in error[0]):
        facts.add_row("  why undone", row.error)
    out.print(facts)
    out.print("\nTimeline", style="bold")
    lines = table("  When", "What", "Outcome", "Tries", "Took", "", right=("Tries", "Took"))
    lines.columns[0].no_wrap = True
    for line in account.timeline(row, journal, actions):
        took = "" if line.took is None else duration(line.took / 1e6)
        lines.add_row(f"  {clock_time(line.time)}", line.what, line.outcome, str(line.attempts or ""), took, line.error or "")
    out.print(lines)
    if found := account.undos(row, journal):
        out.print("\nUndoing, in this order", style="bold")
        made = table("  Step", "State", "Tries", "Next", "Error", right=("Tries",))
        for undo in found:
            made.add_row(f"  {undo.step}", undo.state, str(undo.attempts or ""), _left(undo.next, now), undo.error or "")
        out.print(made)
    if actions:
        out.print("\nBy hand", style="bold")
        for action in actions:
            detail = "" if action.detail is None else f" {action.detail}"
            out.print(
                f"  {clock_time(action.time)[:19]}  {action.actor}: {action.action}{detail}, because: {action.reason}", soft_wrap=True
            )
    if story is not None and story.roots:
        out.print("\nEvents", style="bold")
        out.print(tree_of(story, None))


def _place(wait: dict[str, Any]) -> str:
    if wait.get("attempts"):
        return f"{count(wait['attempts'], 'attempt')} failed so far"
    line = str(wait.get("line", ""))
    return f"at {line.rpartition('/')[2]}" if line else ""


def _left(due: int | None, now: int) -> str:
    if due is None:
        return ""
    return f"in {duration((due - now) / 1e6)}" if due > now else "now"


def _until(times: list[int | None]) -> str:
    found = [one for one in times if one is not None]
    return clock_time(min(found))[:19] if found else ""
