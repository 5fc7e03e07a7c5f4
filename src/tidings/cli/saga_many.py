"""The same action on many instances: ``tidings saga retry checkout --state stuck --reason …``, over what ``tidings saga list`` lists."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import click

from ..errors import NotFound
from ..sagas.operating import TO_MANY, refusal
from ..sagas.operator import Operator
from ..sagas.selection import Selection
from ..store.port import Store
from ..store.sagas import SagaRow
from .options import Duration
from .output import count, print_json

F = TypeVar("F", bound=Callable[..., Any])

UNDER_WAY = ("running", "waiting", "compensating", "stuck", "parked", "paused")
BATCH = 100
"""So many are changed in one transaction; others wait for its locks no longer than that takes."""
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Many:
    """Which, and whether it is meant: without ``yes`` nothing is changed."""

    states: tuple[str, ...]
    waiting_for: str | None
    older_than: timedelta | None
    version: int | None
    everything: bool
    limit: int | None
    yes: bool

    @property
    def said(self) -> bool:
        return bool(self.states or self.waiting_for or self.older_than or self.version or self.everything)

    def of(self, saga: str) -> Selection:
        before = None if self.older_than is None else time.time_ns() // 1000 - round(self.older_than.total_seconds() * 1e6)
        return Selection(saga, self.states or UNDER_WAY, self.version, self.waiting_for, before)


def many_options(fn: F) -> F:
    """Those of ``tidings saga list``, and --all, --limit and --yes; the command gets them as they are."""
    options = (
        click.option("--state", "states", multiple=True, type=click.Choice(UNDER_WAY), help="Instead of KEY: all in this state."),
        click.option("--waiting-for", metavar="WHAT", help="Instead of KEY: all that wait for this event, or to try this step again."),
        click.option("--older-than", type=Duration(), help="Instead of KEY: all that have waited or stood so for longer: 10m, 2h, 3d."),
        click.option("--version", type=click.IntRange(1), help="Instead of KEY: all of this version of the code."),
        click.option("--all", "everything", is_flag=True, help="Instead of KEY: all that are under way."),
        click.option("--limit", type=click.IntRange(1), help="At most so many of them, the oldest first."),
        click.option("--yes", is_flag=True, help="Do it. Without it, what would be done to many is told, and nothing is changed."),
    )
    decorated: Any = fn
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Told:
    matched: int = 0
    done: int = 0
    states: Counter[str] = field(default_factory=Counter)
    refused: list[dict[str, str]] = field(default_factory=list)
    instances: list[dict[str, str]] = field(default_factory=list)
    stopped: bool = False


def act_on_many(
    store: Store, operator: Operator, saga: str, many: Many, action: str, reason: str, what: dict[str, Any], as_json: bool
) -> None:
    """Tell what would be done; or, if that was said, do it, in batches, each of which is done or not.

    Exits with 1 if some were refused, with 130 if somebody stopped it: behind the batch that was on its way.
    """
    assert action in TO_MANY
    told, selection = _Told(), many.of(saga)
    if not store.query(lambda unit: unit.sagas().rows(saga, (), 1)):
        raise NotFound(f"there is no instance of a saga {saga!r}{others(store, saga)}", name=saga)
    with _interrupted() as stop:
        for page in selection.pages(store, BATCH):
            part = page[: None if many.limit is None else many.limit - told.matched]
            told.matched += len(part)
            told.states.update(row.state for row in part)
            if many.yes:
                _do(operator, selection, part, action, reason, what, told)
                if not as_json:
                    click.echo(f"{told.done:,} done", err=True)
            else:
                _foretell(part, action, told)
            if stop.is_set() or told.matched == many.limit:
                told.stopped = stop.is_set()
                break
    if as_json:
        print_json(
            {"saga": saga, "action": action, "actor": operator.actor, "reason": reason, "dry_run": not many.yes, "matched": told.matched,
                "done": told.done, "stopped": told.stopped, "refused": told.refused, "instances": told.instances}
        )  # fmt: skip
    else:
        _tell(saga, action, many, told)
    if told.stopped or told.refused:
        raise SystemExit(130 if told.stopped else 1 if many.yes else 0)


def others(store: Store, name: str) -> str:
    """What sagas there are, for who asks for one that isn't there."""
    known = {row.saga for row in store.query(lambda unit: unit.sagas().rows(None, (), 1000))}
    return f"; there are {', '.join(sorted(known))}" if known and name not in known else ""


def _do(operator: Operator, selection: Selection, rows: list[SagaRow], action: str, reason: str, what: dict[str, Any], told: _Told) -> None:
    for one in operator.many(action, rows, reason=reason, still=selection.holds, **what):
        if one.row is not None:
            told.done += 1
            told.instances.append({"key": one.key, "state": one.row.state})
        else:
            told.refused.append({"key": one.key, "why": one.refused or "it is gone"})


def _foretell(rows: list[SagaRow], action: str, told: _Told) -> None:
    for row in rows:
        if (why := refusal(action, row)) is None:
            told.instances.append({"key": row.key, "state": row.state})
        else:
            told.refused.append({"key": row.key, "why": why})


def _tell(saga: str, action: str, many: Many, told: _Told) -> None:
    for one in told.refused[:SHOWN]:
        click.echo(f"refused: {one['why']}")
    if len(told.refused) > SHOWN:
        click.echo(f"… and {count(len(told.refused) - SHOWN, 'other')} refused; --json lists them")
    if many.yes:
        left = f", {len(told.refused)} refused" if told.refused else ""
        end = "; stopped there, and what is done stays" if told.stopped else ""
        click.echo(f"{action}: {count(told.done, 'instance')} of {saga}{left}{end}")
        return
    states = ", ".join(f"{number:,} {state}" for state, number in told.states.most_common())
    click.echo(f"{action} would be done to {count(len(told.instances), 'instance')} of {saga}" + (f" (of {states})" if states else ""))
    if told.instances:
        more = " …" if len(told.instances) > SHOWN else ""
        click.echo(f"keys: {', '.join(one['key'] for one in told.instances[:SHOWN])}{more}")
        click.echo("nothing was changed; --yes does it")


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, so that no batch is left half told; the second one ends the process."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def first(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
