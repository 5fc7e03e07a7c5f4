"""What an instance's row, journal and actions say, in words for a support person: functions of values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..store.sagas import CLOSED, Action, Entry, SagaRow
from .journal import key_of, words
from .operating import UNDO_WORDS, UNDOING, underlying, unknown, waits

OVERDUE = 10_000_000
"""Microseconds: so long a worker that is at rest may take to look."""

_STATES = {
    "running": "is about to go on",
    "waiting": "waits",
    "compensating": "is being undone",
    "stuck": "is stuck: undoing it fails again and again",
    "parked": "is parked: the code doesn't fit it, and nothing is run until it is mended",
    "completed": "is completed",
    "compensated": "has failed, and is undone",
    "cancelled": "was cancelled, and is undone",
}
_OUTCOMES = {
    "late": "nothing came in time",
    "skipped": "skipped by hand",
    "retrying": "failed, is tried again",
    "begun": "begun; nobody knows",
}


@dataclass(slots=True)
class Line:
    """One line of a timeline. Times are microseconds; ``took``: from the first attempt's beginning; None of what isn't over."""

    time: int
    what: str
    outcome: str
    attempts: int = 0
    took: int | None = None
    error: str | None = None


@dataclass(slots=True)
class Undo:
    """How it stands with undoing a step: ``undone``, ``undone by hand``, ``failing`` or ``to come``. ``next``: when it is tried again."""

    step: str
    state: str
    attempts: int = 0
    next: int | None = None
    error: str | None = None


def state_words(row: SagaRow) -> str:
    """``is paused; it was waiting``."""
    if row.state == "paused":
        return f"is paused; behind that it goes on {'being undone' if row.pause in UNDOING else f'as {row.pause}'}"
    found = _STATES[row.state]
    if row.worker is not None:
        found = f"is being undone by {row.worker}" if row.state in UNDOING else f"is being worked on by {row.worker}"
    if row.back is not None and row.state not in (*CLOSED, *UNDOING):
        found += f", and is to be {UNDO_WORDS[row.back]}"
    if row.pause is not None:
        found += ", and is to be paused"
    return found


def standing_since(row: SagaRow, asked: Sequence[dict[str, Any]] | None = None) -> int:
    """Since when it waits for what it waits for, or is in its state. ``asked``: only these of its waits."""
    found = waits(row) if asked is None else asked
    return min((wait["since"] for wait in found), default=row.since)


def wait_words(wait: dict[str, Any]) -> str:
    """``the event shop.Shipped or shop.Cancelled``, ``its sleep to end``, ``another attempt at charge``, ``the child parcel p1 to end``."""
    kind, what = wait.get("call", ["step"])[0], str(wait["for"])
    if (child := child_of(wait)) is not None:
        return f"the child {' '.join(child)} to {'be undone' if kind == 'undo' else 'end'}"
    if kind == "wait":
        return f"the event {what.replace(' | ', ' or ')}"
    if kind == "sleep":
        return "its sleep to end"
    if kind == "undo":
        return f"another attempt to undo {words(tuple(wait['call']))} ({what.removeprefix('undo ')})"
    return what if "error" in wait else f"{what} to begin"


def child_of(wait: dict[str, Any]) -> tuple[str, str] | None:
    """Saga and key of the child that is waited for."""
    found = wait.get("child")
    return None if found is None else (str(found[0]), str(found[1]))


def overdue(row: SagaRow, now: int) -> str | None:
    """That nobody goes on with it, though its time has come."""
    if row.worker is not None or row.due is None or row.due > now - OVERDUE or row.state in CLOSED:
        return None
    return f"nobody has taken it; does a worker run that has version {row.version} of {row.saga}?"


def trouble(row: SagaRow) -> str | None:
    """Why it goes on only when a person has done something."""
    if row.state == "stuck":
        return next((str(wait["error"]) for wait in waits(row) if wait.get("error")), row.error or "an undo fails again and again")
    return row.error or "its code doesn't fit" if row.state == "parked" else "an operator has paused it" if row.state == "paused" else None


def mend(row: SagaRow, journal: Sequence[Entry] = ()) -> list[str]:
    """The commands with which a person lets it go on, one or the other; none if it doesn't wait for one."""
    name = f"{row.saga} {row.key}"
    if row.state == "parked" and (cut := unknown(row, journal)):
        step = shlex.quote(words(key_of(cut[0])))
        return [f"tidings saga skip {name} {step} --result … --reason …", f"tidings saga retry {name} --not-done {step} --reason …"]
    if row.state in ("stuck", "parked"):
        return [f"tidings saga retry {name} --reason …"]
    return [f"tidings saga resume {name} --reason …"] if row.state == "paused" else []


def advice(row: SagaRow, journal: Sequence[Entry] = ()) -> str | None:
    """``mend`` in words: ``when the cause is gone: `tidings saga retry …```."""
    commands = mend(row, journal)
    if len(commands) == 2:
        return f"if it happened: `{commands[0]}`; if not: `{commands[1]}`"
    first = {"stuck": "when the cause is gone", "parked": "when that is mended"}.get(row.state, "when it may go on")
    return f"{first}: `{commands[0]}`" if commands else None


def child_words(row: SagaRow, journal: Sequence[Entry] = ()) -> str:
    """Where a child stands that its parent waits for; if it waits for a person, why, and with which command that one lets it go on."""
    said = f"{row.saga} {row.key} {state_words(row)}"
    if (there := waits(row)) and row.state == "waiting":
        said += f" for {', '.join(wait_words(wait) for wait in there)}"
    return said if (why := trouble(row)) is None else f"{said} ({why}); {advice(row, journal)}"


def is_waited_for(wait: dict[str, Any], name: str) -> bool:
    """Whether ``name`` is what it waits for: an event's type, with or without its app, or the step that is tried again or undone."""
    _, _, step, _ = wait["call"]
    names = {step, str(wait["for"]), str(wait["for"]).removeprefix("undo ")}
    for one in step.split(" | "):
        names |= {one, one.rpartition(".")[2]}
    return name in names


def last_error(row: SagaRow, journal: Sequence[Entry]) -> tuple[str, int | None] | None:
    """A sentence, and when it was: of the newest attempt that failed; else why the instance is where it is."""
    if row.state == "parked" and row.error is not None:
        return row.error, row.since
    failed = [entry for entry in journal if entry.error is not None and entry.state in ("retrying", "failed", "refused")]
    if not failed:
        return None if row.error is None else (row.error, None)
    entry = max(failed, key=lambda one: one.ended)
    name = words(key_of(entry))
    if entry.kind == "undo":
        return f"undoing {name} failed at attempt {entry.attempts}: {entry.error}", entry.ended
    if entry.state == "refused":
        return f"{name} was refused: {entry.error}", entry.ended
    return f"{name} failed at attempt {entry.attempts}{', its last' if entry.state == 'failed' else ''}: {entry.error}", entry.ended


def timeline(row: SagaRow, journal: Sequence[Entry], actions: Sequence[Action]) -> list[Line]:
    """Everything that happened, by time; what operators did among it."""
    found = [Line(row.started, "started", f"by {row.envelope.type}")]
    for entry in journal:
        name, took = words(key_of(entry)), entry.ended - entry.started
        if entry.kind == "back":
            continue  # the action tells it
        what = {"undo": f"undo {name}", "wait": f"wait for {name.replace(' | ', ' or ')}", "sleep": "sleep"}.get(entry.kind, name)
        outcome = "begun" if entry.kind == "child" and entry.state == "begun" else _OUTCOMES.get(entry.state, entry.state)
        over = None if entry.state == "retrying" else took
        if entry.kind == "wait" and entry.state == "done":
            outcome = "came"
        tries = entry.attempts if entry.kind in ("step", "undo") else 0
        found.append(Line(entry.ended, what, outcome, tries, over, entry.error))
    found += [Line(one.time, f"{one.action} by {one.actor}", one.reason, error=one.detail) for one in actions]
    if row.state in CLOSED:
        found.append(Line(row.since, row.state, row.error or ""))
    return sorted(found, key=lambda line: line.time)


def undos(row: SagaRow, journal: Sequence[Entry]) -> list[Undo]:
    """How each compensation stands, in the order in which they are run."""
    done = [entry for entry in journal if entry.kind == "undo"]
    done.sort(key=lambda entry: entry.seq if entry.seq is not None else 2**62)
    states = {"done": "undone", "skipped": "undone by hand", "retrying": "failing"}
    found = [
        Undo(words(key_of(entry)), states[entry.state], entry.attempts, entry.due, entry.error if entry.seq is None else None)
        for entry in done
    ]
    if underlying(row) in UNDOING:
        found += [Undo(step, "to come") for wait in waits(row) for step in wait.get("then", ())]
    return found
