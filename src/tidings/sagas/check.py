"""Whether instances can go on with the code as it is: their journals are read to it, and nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..codec import decode_json
from ..errors import JournalMismatch, TidingsError
from ..event import EventType
from ..store.sagas import Entry, SagaRow
from .body import Body
from .compensation import is_outcome
from .journal import read_to
from .operating import UNDOING, underlying
from .saga import Saga, SagaDefinition

Definitions = Mapping[tuple[str, int], SagaDefinition]


class Problem(NamedTuple):
    """Why an instance can't go on. ``step``, ``line``: where, if that is known."""

    saga: str
    key: str
    version: int
    problem: str
    step: str | None = None
    line: str | None = None


def problem_of(
    row: SagaRow, entries: Sequence[Entry], definitions: Definitions, type_of: Callable[[type], EventType], version: int | None = None
) -> Problem | None:
    """Why this instance can't go on with this code, or with another version of it; None if it can."""
    version = row.version if version is None else version
    definition = definitions.get((row.saga, version))
    if definition is None:
        there = ", ".join(str(number) for name, number in sorted(definitions) if name == row.saga)
        what = f"only of version {there}" if there else "none of this saga"
        return Problem(row.saga, row.key, row.version, f"it is of version {version}, and there is code {what}")
    try:
        for entry in entries:
            if entry.kind == "restart":
                old, started, event_id, data = decode_json((entry.result or "").encode())
                mark = f"{entry.branch}/"
                before = definitions.get((row.saga, old))
                if before is None:
                    raise JournalMismatch(f"version {old} of it has steps that may have to be undone", step="", line=None)
                past = [replace(one, branch=one.branch.removeprefix(mark)) for one in entries if one.branch.startswith(mark)]
                _read(before, row.key, f"{row.saga}:{event_id}", started, data.encode(), past, definitions, type_of)
        present = [one for one in entries if not one.branch.startswith("g")]
        seed = f"{row.saga}:{row.envelope.event_id}"
        body = _read(definition, row.key, seed, row.started, row.envelope.data, present, definitions, type_of)
        failed = body.error if body.ended and body.again is None else None
        undone = underlying(row) in UNDOING or any(one.kind == "undo" for one in present)
        ordered = row.back is not None or any(one.kind == "back" for one in present)
        if failed is not None and not is_outcome(failed, definition.failures):
            raise body.failure(failed)
        if undone and failed is None and not ordered:
            raise JournalMismatch("it is being undone, and the body doesn't fail there any more", step="", line=body.where())
    except TidingsError as error:
        facts = error.facts
        return Problem(row.saga, row.key, row.version, str(error), facts.get("step") or None, facts.get("line"))
    return None


def _read(
    definition: SagaDefinition, key: str, seed: str, started: int, data: bytes, entries: Sequence[Entry], definitions: Definitions,
    type_of: Callable[[type], EventType],
) -> Body:  # fmt: skip
    def called(saga: Any) -> SagaDefinition | None:
        names = {one.name for one in definitions.values() if one.name == saga or one.main is saga}
        return max((one for one in definitions.values() if one.name in names), key=lambda one: one.version, default=None)

    body = Body(definition.main, seed, started)
    saga = Saga(definition, key, body, type_of, called)
    try:
        body.begin(definition.start.decode(data), saga)
        read_to(body, entries)
        if body.fault is not None:
            raise body.fault
    finally:
        body.leave()
    return body
