"""Reading a journal to a body. Functions of values: nothing here does anything.

An entry is of the call with the same kind, branch, name and counter. (By name and counter alone, two branches that call the same step would
swap their results whenever they ended in another order.) Results are handed on in the order in which they were recorded, and the body runs
until it is quiet before the next: so whatever it has called when a result comes, it had called then too.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import JournalMismatch
from ..store.sagas import Entry
from .body import Body, Call, Key


def key_of(entry: Entry) -> Key:
    return entry.kind, entry.branch, entry.step, entry.number


def words(key: Key) -> str:
    """``charge``, ``charge (call 2) in branch 0.1``."""
    _, branch, name, number = key
    return name + (f" (call {number})" if number > 1 else "") + (f" in branch {branch}" if branch != "0" else "")


def read_to(body: Body, entries: Sequence[Entry]) -> None:
    """Hand the body all that is known.

    Raises:
        JournalMismatch: it does something else than what the journal says that it did.
    """
    known = {key_of(entry) for entry in entries}
    left = sum(entry.kind not in ("undo", "back") for entry in entries)
    back = False
    for entry in entries:
        if entry.kind in ("undo", "back"):
            back = back or entry.kind == "back"  # from there on it was handed nothing
            continue
        _answer_old(body, known, left)
        left -= 1
        if body.fault is not None:
            return
        call = body.calls.get(key_of(entry))
        if call is None and entry.kind == "changed":  # the code no longer asks
            continue
        if call is None:
            raise _mismatch(body, entry)
        if call.digest != entry.digest:
            raise JournalMismatch(
                f"{call.line}: {words(call.key)} is called with other arguments than those in the journal: what a body gives its steps must"
                " follow from the event and from earlier results",
                step=call.key[2],
                line=call.line,
            )
        call.entry = entry
        if entry.seq is not None and not body.ended and not back:
            body.hand(call, entry)


def _answer_old(body: Body, known: set[Key], left: int) -> None:
    """The journal goes on behind a point that asks whether the code has changed, and doesn't say that it asked: it is from before."""
    while left and not body.ended:
        asked = [call for call in body.waiting() if call.key[0] == "changed" and call.key not in known]
        if not asked:
            return
        kind, branch, name, number = asked[0].key
        asked[0].entry = Entry(kind, branch, name, number, 0, "done", "false")
        body.hand(asked[0], asked[0].entry)


def _mismatch(body: Body, entry: Entry) -> JournalMismatch:
    asked = body.waiting()
    if body.ended:
        now, line = "it ends before that", "?"
    elif asked:
        now, line = "it calls " + " and ".join(f"{words(call.key)} ({call.line})" for call in asked), asked[0].line
    else:
        now, line = f"it waits for something else ({body.where()})", body.where()
    return JournalMismatch(
        f"the journal says that the body called {words(key_of(entry))} here, and now {now}: the code doesn't fit this instance. Put back"
        " what it was, or give the changed saga another version",
        step=entry.step,
        line=line,
    )


def matured(calls: Sequence[Call], arrived: Sequence[tuple[int, str]], taken: set[int], now: int) -> tuple[Call, int | None] | None:
    """The first call among sleeps and waits that can be answered: with the position of the event that came, or None if its time is over.

    An event goes before a deadline, the call that was made first before the others.

    Args:
        arrived: position and type, ascending. taken: positions that were handed on.
    """
    for call in calls:
        if call.pending and call.key[0] in ("pivot", "changed"):
            return call, None
        if call.pending and call.key[0] == "wait":
            for position, kind in arrived:
                if position not in taken and kind in call.types:
                    return call, position
        if call.pending and call.key[0] in ("sleep", "wait") and call.due is not None and call.due <= now:
            return call, None
    return None
