"""An operator at work on instances: each action is checked and written in one transaction, with its reason in the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..errors import ActionRefused, NotFound
from ..event import EventType
from ..store.sagas import Action, SagaRow
from . import operating
from .step import encode

if TYPE_CHECKING:
    from ..store.port import Store
    from .saga import Main, SagaDefinition


class Outcome(NamedTuple):
    """What came of an action on an instance: ``row``, as it stands behind it, or why it was ``refused``; neither if there is none."""

    saga: str
    key: str
    refused: str | None = None
    row: SagaRow | None = None


class Deed(NamedTuple):
    """``do`` changes an instance whose row is locked, or tells why not. ``detail``: for the audit trail."""

    action: str
    do: Callable[[Any, SagaRow, int], str | None]
    detail: str | None = None


class Operator:
    """Acts on instances of sagas in a store. Blocks until what it did is durable; for use from threads.

    Each method returns the instance as it stands behind the action. ``saga``: its name, or the decorated function.

    Raises:
        NotFound: there is no such instance. ActionRefused: it makes no sense as the instance stands; nothing was changed.
    """

    def __init__(
        self, store: Store, actor: str, *, sagas: Mapping[tuple[str, int], SagaDefinition] | None = None,
        type_of: Callable[[type], EventType] | None = None,
    ) -> None:  # fmt: skip
        if not actor.strip():
            raise ActionRefused("who acts? the actor's name is empty")
        self.store = store
        self.actor = actor
        self._sagas = sagas
        self._type_of = type_of

    def retry(self, saga: str | Main, key: object, *, reason: str, not_done: str | None = None) -> SagaRow:
        """Try now what waits for another attempt, an undo as well; run a parked one once more.

        Args:
            not_done: a step that is tried once at most and was cut off, and that did not happen, as you have found out: it is called. (One
                that did is skipped, with its result.) Named as for ``skip``.
        """
        return self._act(saga, key, reason, self._deed("retry", reason, not_done=not_done))

    def pause(self, saga: str | Main, key: object, *, reason: str) -> SagaRow:
        """Run nothing more of it: now, or behind the step that runs. Events that come are kept, deadlines go on running."""
        return self._act(saga, key, reason, self._deed("pause", reason))

    def resume(self, saga: str | Main, key: object, *, reason: str) -> SagaRow:
        """Let a paused one go on."""
        return self._act(saga, key, reason, self._deed("resume", reason))

    def compensate(self, saga: str | Main, key: object, *, reason: str) -> SagaRow:
        """Undo it, behind the step that runs; it ends as compensated."""
        return self._act(saga, key, reason, self._deed("compensate", reason))

    def cancel(self, saga: str | Main, key: object, *, reason: str) -> SagaRow:
        """Undo it, behind the step that runs; it ends as cancelled."""
        return self._act(saga, key, reason, self._deed("cancel", reason))

    def skip(self, saga: str | Main, key: object, step: str, result: Any = None, *, reason: str) -> SagaRow:
        """Go on as if a step that waits for another attempt had returned ``result``; or as if an undo had been done, or a sleep was over.

        Args:
            step: its name; where several steps have it, as ``tidings saga show`` tells it: ``charge (call 2)``.
        """
        return self._act(saga, key, reason, self._deed("skip", reason, step=step, result=result))

    def supply(self, saga: str | Main, event: object, *, reason: str) -> SagaRow:
        """Hand an event to an instance that lacks it. It is not published: nobody else sees it.

        Args:
            event: of a class that the saga waits for (``waits=``); its key is the instance's.
        """
        if self._sagas is None or self._type_of is None:
            raise ActionRefused("which class is that event of? Use app.operator(…), or name the app with --app")
        saga, event_type = self._name(saga), self._type_of(type(event))
        waited = {name for (found, _), one in self._sagas.items() if found == saga for name in one.waits}
        if event_type.name not in waited:
            raise ActionRefused(f"the saga {saga!r} waits for {', '.join(sorted(waited)) or 'no event'}, not for {event_type.name}")
        data, key = event_type.to_bytes(event), event_type.key_of(event)

        def supply(unit: Any, row: SagaRow, now: int) -> None:
            unit.sagas().supply(row.saga, row.key, event_type.name, event_type.version, data, now)

        return self._act(saga, key, reason, Deed("supply", supply, f"{event_type.name}: {data.decode()}"))

    def many(
        self, action: str, rows: Sequence[SagaRow], *, reason: str, still: Callable[[SagaRow], bool] = lambda row: True, **what: Any
    ) -> list[Outcome]:
        """The same action on each of these instances, in one transaction: some hundred at a time. Each has its line in the audit trail.

        Args:
            action: a method's name, but for supply. still: whether an instance, as it stands now, is still meant; ``what``: its other
                arguments.
        """
        deed = self._deed(action, reason, **what)
        work = partial(self._work, instances=sorted({(row.saga, row.key) for row in rows}), reason=reason, deed=deed, still=still)
        return self.store.write(work).result()

    def _deed(self, action: str, reason: str, **what: Any) -> Deed:
        """What an action does to one instance, its row being locked and the action making sense: why not, or None."""

        def retry(unit: Any, row: SagaRow, now: int) -> str | None:
            if not_done is not None:
                entry = operating.to_call(row, unit.sagas().journal(row.saga, row.key), not_done)
                if isinstance(entry, str):
                    return entry
                unit.sagas().not_done(row.saga, row.key, entry, f"not done, says {self.actor}: {reason}", now)
            unit.sagas().again(row.saga, row.key, now)
            return None

        def skip(unit: Any, row: SagaRow, now: int) -> str | None:
            entry = operating.to_skip(row, unit.sagas().journal(row.saga, row.key), step)
            if isinstance(entry, str):
                return entry
            given = text if entry.kind == "step" else None
            unit.sagas().skip(row.saga, row.key, operating.done_by_hand(entry, given, now), now)
            return None

        def turn_back(unit: Any, row: SagaRow, now: int) -> str | None:
            if operating.is_behind_its_pivot(unit.sagas().journal(row.saga, row.key)):
                return f"{row.saga} {row.key} is behind its pivot, where nothing is undone any more; skip what fails or supply what lacks"
            unit.sagas().turn_back(row.saga, row.key, action, now)
            return None

        if action == "retry":
            not_done = what.get("not_done")
            return Deed(action, retry, None if not_done is None else f"{not_done}: not done")
        if action == "skip":
            step, result = what["step"], what.get("result")
            try:
                text = encode(result).decode()
            except (TypeError, msgspec.MsgspecError) as error:
                raise ActionRefused(f"the journal can't keep that result: {error}") from error
            return Deed(action, skip, step if result is None else f"{step}: {text}")
        if action in operating.UNDO_WORDS:
            return Deed(action, turn_back)
        if action == "pause":
            return Deed(action, lambda unit, row, now: unit.sagas().pause(row.saga, row.key, now))
        if action == "resume":
            return Deed(action, lambda unit, row, now: unit.sagas().resume(row.saga, row.key, now))
        raise ActionRefused(f"{action!r} is none of what can be done to many: {', '.join(operating.TO_MANY)}")

    def _act(self, saga: str | Main, key: object, reason: str, deed: Deed) -> SagaRow:
        saga = self._name(saga)
        work = partial(self._work, instances=[(saga, str(key))], reason=reason, deed=deed, still=lambda row: True)
        (done,) = self.store.write(work).result()
        if done.refused is not None:
            raise ActionRefused(done.refused, saga=saga, key=str(key), action=deed.action)
        if done.row is None:
            raise NotFound(
                f"there is no saga {saga!r} of key {str(key)!r}; `tidings saga list` shows what there is", name=saga, key=str(key)
            )
        return done.row

    def _name(self, saga: str | Main) -> str:
        if isinstance(saga, str):
            return saga
        found = next((name for (name, _), one in (self._sagas or {}).items() if one.main is saga), None)
        if found is None:
            raise NotFound(f"there is no saga {getattr(saga, '__name__', saga)!r} in this app; give its name", name=str(saga))
        return found

    def _work(
        self, unit: Any, instances: Sequence[tuple[str, str]], reason: str, deed: Deed, still: Callable[[SagaRow], bool]
    ) -> list[Outcome]:
        """In one transaction. The rows are locked in the order of their keys, as whoever locks several does."""
        now, sagas, acted, done = int(self.store.clock.time() * 1_000_000), unit.sagas(), list[tuple[str, str]](), list[Outcome]()
        if not reason.strip():
            return [Outcome(saga, key, "why? the reason is empty, and it is kept") for saga, key in instances]
        for saga, key in instances:
            row: SagaRow | None = sagas.row(saga, key, lock=True)
            if row is not None and not still(row):
                done.append(Outcome(saga, key, f"{saga} {key} is no longer so: it is {row.state}"))
            elif row is not None and (refused := operating.refusal(deed.action, row) or deed.do(unit, row, now)) is not None:
                done.append(Outcome(saga, key, refused))
            elif row is not None:
                acted.append((saga, key))
                done.append(Outcome(saga, key, None, sagas.row(saga, key)))
            else:
                done.append(Outcome(saga, key))
        sagas.act(acted, Action(now, self.actor, deed.action, reason, deed.detail))
        return done
