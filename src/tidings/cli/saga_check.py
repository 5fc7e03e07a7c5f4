"""``tidings saga check`` and ``tidings saga migrate``: whether instances under way can go on with the code, without running anything."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from typing import Any

import click

from ..app import App
from ..sagas.check import Problem, problem_of
from ..sagas.text import mistakes, warnings_of
from ..store import store_at
from ..store.port import Store
from ..store.sagas import Entry, SagaRow
from .applications import load
from .output import count, print_json

PAGE = 200


@click.command(epilog="Example: tidings saga check shop:app --store postgresql://tidings@db/shop")
@click.argument("spec", metavar="MODULE:APP")
@click.option("--store", "url", envvar="TIDINGS_STORE", help="The store to look at, if it isn't the app's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(spec: str, url: str | None, as_json: bool) -> None:
    """List instances under way that can't go on with the code of MODULE:APP. Exits with 1 if there is one.

    Their journals are read to it; no step is run, and nothing is written. It fails, too, if the text of a body calls a step or an undo with
    what it doesn't take. Also told, without making it fail: steps that have no undo and stand before one that may fail, waits that aren't
    declared, and what runs whenever a worker lets go of an instance.
    """
    app = load(spec)
    wrong = [
        f"{definition.name} (version {definition.version}): {text}"
        for definition in app.saga_definitions.values()
        for text in mistakes(definition.main, definition.provided)
    ]
    warned = [
        f"{definition.name} (version {definition.version}): {text}"
        for definition in app.saga_definitions.values()
        for text in warnings_of(definition, app.type_of)
    ]
    store = _opened(app, url)
    try:
        looked, problems = 0, list[Problem]()
        for row, entries in _under_way(store):
            if row.app != app.name:
                continue
            looked += 1
            if (problem := problem_of(row, entries, app.saga_definitions, app.type_of)) is not None:
                problems.append(problem)
    finally:
        store.close()
    if as_json:
        print_json({"checked": looked, "problems": [problem._asdict() for problem in problems], "mistakes": wrong, "warnings": warned})
    else:
        for text in warned:
            click.echo(f"warning: {text}")
        for text in wrong:
            click.echo(text)
        for problem in problems:
            click.echo(f"{problem.saga} {problem.key} (version {problem.version}): {problem.problem}")
        click.echo(f"{count(looked, 'instance')} under way, {len(problems) or 'none'} that can't go on")
    if problems or wrong:
        raise SystemExit(1)


@click.command(epilog='Example: tidings saga migrate shop:app checkout --to 2 --reason "the new carrier"')
@click.argument("spec", metavar="MODULE:APP")
@click.argument("name")
@click.option("--to", "to", type=click.IntRange(1), required=True, help="The version to go on with.")
@click.option("--from", "from_", type=click.IntRange(1), help="Only instances of this version; of every other one unless given.")
@click.option("--store", "url", envvar="TIDINGS_STORE", help="The store, if it isn't the app's own.")
@click.option("--reason", required=True, help="Why; it is kept.")
@click.option("--actor", help="Who; the name of the user that runs this unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate(spec: str, name: str, to: int, from_: int | None, url: str | None, reason: str, actor: str | None, as_json: bool) -> None:
    """Let instances of NAME go on with another version of its code, where their journals fit it. Exits with 1 if some are left.

    Those that somebody is working on at the moment are left, too.
    """
    if not reason.strip():
        raise click.UsageError("--reason is empty; say why")
    app = load(spec)
    if (name, to) not in app.saga_definitions:
        raise click.UsageError(f"{spec} has no saga {name!r} of version {to}")
    store = _opened(app, url, writing=True)
    moved, left = 0, list[Problem]()
    who = actor or getpass.getuser()
    try:
        for row, entries in _under_way(store):
            if row.saga != name or row.version == to or from_ not in (None, row.version):
                continue
            problem = problem_of(row, entries, app.saga_definitions, app.type_of, to)
            now = time.time_ns() // 1000
            if problem is None and not store.write(lambda unit, row=row, now=now: unit.sagas().migrate(row, to, who, reason, now)).result():  # type: ignore[misc]
                problem = Problem(row.saga, row.key, row.version, f"{row.worker or 'a worker'} is working on it; try again")
            if problem is None:
                moved += 1
            else:
                left.append(problem)
    finally:
        store.close()
    if as_json:
        print_json({"migrated": moved, "left": [problem._asdict() for problem in left]})
    else:
        for problem in left:
            click.echo(f"{problem.saga} {problem.key} (version {problem.version}) is left: {problem.problem}")
        click.echo(f"{count(moved, 'instance')} of {name} go on with version {to}, {len(left) or 'none'} left")
    if left:
        raise SystemExit(1)


def _opened(app: App, url: str | None, *, writing: bool = False) -> Store:
    store = app.store if url is None else store_at(url)
    if writing:
        store.open()
    else:
        store.open_to_read()
    return store


def _under_way(store: Store) -> Iterator[tuple[SagaRow, list[Entry]]]:
    after = ("", "")
    while True:

        def read(unit: Any, after: tuple[str, str] = after) -> list[tuple[SagaRow, list[Entry]]]:
            sagas = unit.sagas()
            return [(row, sagas.journal(row.saga, row.key)) for row in sagas.under_way(after, PAGE)]

        page = store.query(read)
        yield from page
        if len(page) < PAGE:
            return
        after = (page[-1][0].saga, page[-1][0].key)
