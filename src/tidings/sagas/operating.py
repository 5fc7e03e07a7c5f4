"""What an operator may do about an instance, and when: functions of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..store.sagas import CLOSED, Action, Entry, SagaRow
from .journal import key_of, words

UNDOING = ("compensating", "stuck")
UNDO_WORDS = {"compensate": "compensated", "cancel": "cancelled"}
_LEFT = {
    "retry": "nothing is left to be tried",
    "skip": "nothing is left to be skipped",
    "supply": "it waits for nothing any more",
    "compensate": "what is closed can't be undone any more",
    "cancel": "what is closed can't be cancelled any more",
    "pause": "nothing is left to be paused",
    "resume": "nothing is left to go on with",
}
_INSTEAD = {
    "wait": "{} (`tidings saga supply` hands it the event)",
    "sleep": "its sleep to end (`tidings saga skip … sleep` ends it)",
    "child": "{} to end",
    "step": "{} to begin",
}
ACTIONS = tuple(_LEFT)
TO_MANY = tuple(action for action in ACTIONS if action != "supply")
"""An event is one instance's."""


def underlying(row: SagaRow) -> str:
    """The state, and of one that is paused the one that it goes on with."""
    return row.pause if row.state == "paused" and row.pause is not None else row.state


def waits(row: SagaRow) -> list[dict[str, Any]]:
    """What it waits for: ``for``, ``since``, ``until`` and ``call``; empty while somebody is at work on it."""
    if row.waits is None or row.worker is not None or underlying(row) in (*CLOSED, "parked"):
        return []
    found: list[dict[str, Any]] = msgspec.json.decode(row.waits)
    return found


def refusal(action: str, row: SagaRow) -> str | None:
    """Why it makes no sense to do this to the instance as it stands now, with what to do instead; None if it makes sense."""
    name, state = f"{row.saga} {row.key}", underlying(row)
    if row.state in CLOSED:
        return f"{name} is {row.state}: {_LEFT[action]}"
    if action in ("retry", "skip") and row.worker is not None:
        return f"{name} is being worked on by {row.worker}; look again in a moment"
    if action == "retry" and row.state == "paused":
        return f"{name} is paused; `tidings saga resume` lets it go on"
    if action == "retry" and state == "waiting" and (there := waits(row)) and not any("attempts" in wait for wait in there):
        what = " and ".join(dict.fromkeys(_INSTEAD[wait["call"][0]].format(wait["for"].replace(" | ", " or ")) for wait in there))
        return f"{name} has nothing that is to be tried again: it waits for {what}"
    if action in ("supply", *UNDO_WORDS) and state in UNDOING:
        return f"{name} is being undone already" + ("; no event is waited for any more" if action == "supply" else "")
    if action in ("supply", *UNDO_WORDS) and row.back is not None:
        return f"{name} is to be {UNDO_WORDS[row.back]} already"
    if action == "pause" and row.pause is not None:
        return f"{name} is paused already"
    if action == "resume" and row.pause is None:
        return f"{name} is not paused: it is {row.state}"
    return None


def is_behind_its_pivot(journal: Sequence[Entry]) -> bool:
    return any(entry.kind == "pivot" and not entry.branch.startswith("g") for entry in journal)


def skippable(row: SagaRow, journal: Sequence[Entry]) -> list[Entry]:
    """Lines that an operator may write in place of a worker: what is tried again, a sleep, and, if the instance is parked, what was skipped
    (with a result that doesn't fit, perhaps); and what nobody knows of. Of an instance that is being undone, undos only."""
    if underlying(row) in UNDOING:
        return [entry for entry in journal if entry.kind == "undo" and entry.state == "retrying"]
    found = [entry for entry in journal if entry.kind == "step" and entry.state == "retrying"]
    if underlying(row) == "parked":
        found += [entry for entry in journal if entry.kind == "step" and entry.state == "skipped"]
    found += unknown(row, journal)
    for wait in waits(row):
        kind, branch, step, number = wait["call"]
        if kind == "sleep":
            found.append(Entry(kind, branch, step, number, None, "retrying", attempts=0, started=wait["since"]))
    return found


def to_skip(row: SagaRow, journal: Sequence[Entry], step: str) -> Entry | str:
    """The line that ``step`` names, by its name or by all its words (``charge (call 2)``), or why there is none."""
    there = skippable(row, journal)
    if (found := _named(row, there, step)) is not None:
        return found
    events = {name for wait in waits(row) if wait["call"][0] == "wait" for name in (wait["for"], *wait["call"][2].split(" | "))}
    if step in events or step in {name.rpartition(".")[2] for name in events}:
        return f"{row.saga} {row.key} waits for an event there; `tidings saga supply` supplies it"
    hint = _listed(there) or "nothing of it waits to be tried again"
    return f"{row.saga} {row.key} has no {step!r} that could be skipped; {hint}"


def _named(row: SagaRow, there: Sequence[Entry], step: str) -> Entry | str | None:
    """The one that is meant; that several could be; None if there is none."""
    found = [entry for entry in there if step in (entry.step, words(key_of(entry)))]
    if len(found) > 1:
        return f"{row.saga} {row.key} has several of that name; say which: {_names(found)}"
    return found[0] if found else None


def _listed(there: Sequence[Entry]) -> str:
    return f"there is {_names(there)}" if there else ""


def _names(entries: Sequence[Entry]) -> str:
    return ", ".join(repr(words(key_of(entry))) for entry in entries)


def unknown(row: SagaRow, journal: Sequence[Entry]) -> list[Entry]:
    """Lines of steps that are tried once at most and were cut off: nobody knows whether they happened. None while somebody may be at them,
    or if the instance is being undone, when they are undone in any case."""
    if row.worker is not None or underlying(row) not in ("parked", "waiting"):
        return []
    return [entry for entry in journal if entry.kind == "step" and entry.state == "begun" and not entry.branch.startswith("g")]


def to_call(row: SagaRow, journal: Sequence[Entry], step: str) -> Entry | str:
    """The line of which ``step`` says that it did not happen, so that it is to be called; or why there is none."""
    there = unknown(row, journal)
    if (found := _named(row, there, step)) is not None:
        return found
    hint = _listed(there) or "of each step it is known"
    return f"{row.saga} {row.key} has no step {step!r} of which nobody knows whether it happened; {hint}"


def done_by_hand(entry: Entry, result: str | None, now: int) -> Entry:
    """The line as an operator writes it; ``result`` is JSON."""
    return Entry(
        entry.kind, entry.branch, entry.step, entry.number, entry.seq, "skipped", result, entry.error, entry.attempts, entry.started, now,
        None, entry.digest,
    )  # fmt: skip


def order_words(action: Action) -> str:
    """``cancelled by ann: the customer changed her mind``."""
    return f"{UNDO_WORDS.get(action.action, action.action)} by {action.actor}: {action.reason}"


def ordered(row: SagaRow, actions: Sequence[Action]) -> str:
    """In whose words an instance is to be undone."""
    return next((order_words(one) for one in reversed(actions) if one.action == row.back), f"{row.back} by an operator")
