"""An operator at work on instances: each action is checked and written in one transaction, with its reason in the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import ActionRefused, NotFound
from ..event import EventType
from ..store.sagas import Action, SagaRow
from . import operating
from .step import encode

if TYPE_CHECKING:
    from ..store.port import Store
    from .saga import SagaDefinition


class Operator:
    """Acts on instances of sagas in a store. Blocks until what it did is durable; for use from threads.

    Each method returns the instance as it stands behind the action.

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

    def retry(self, saga: str, key: object, *, reason: str, not_done: str | None = None) -> SagaRow:
        """Try now what waits for another attempt, an undo as well; run a parked one once more.

        Args:
            not_done: a step that is tried once at most and was cut off, and that did not happen, as you have found out: it is called. (One
                that did is skipped, with its result.) Named as for ``skip``.
        """

        def again(unit: Any, row: SagaRow, now: int) -> str | None:
            if not_done is not None:
                entry = operating.to_call(row, unit.sagas().journal(row.saga, row.key), not_done)
                if isinstance(entry, str):
                    return entry
                unit.sagas().not_done(row.saga, row.key, entry, f"not done, says {self.actor}: {reason}", now)
            unit.sagas().again(row.saga, row.key, now)
            return None

        return self._act("retry", saga, key, reason, again, detail=None if not_done is None else f"{not_done}: not done")

    def pause(self, saga: str, key: object, *, reason: str) -> SagaRow:
        """Run nothing more of it: now, or behind the step that runs. Events that come are kept, deadlines go on running."""
        return self._act("pause", saga, key, reason, lambda unit, row, now: unit.sagas().pause(row.saga, row.key, now))

    def resume(self, saga: str, key: object, *, reason: str) -> SagaRow:
        """Let a paused one go on."""
        return self._act("resume", saga, key, reason, lambda unit, row, now: unit.sagas().resume(row.saga, row.key, now))

    def compensate(self, saga: str, key: object, *, reason: str) -> SagaRow:
        """Undo it, behind the step that runs; it ends as compensated."""
        return self._turn_back("compensate", saga, key, reason)

    def cancel(self, saga: str, key: object, *, reason: str) -> SagaRow:
        """Undo it, behind the step that runs; it ends as cancelled."""
        return self._turn_back("cancel", saga, key, reason)

    def skip(self, saga: str, key: object, step: str, result: Any = None, *, reason: str) -> SagaRow:
        """Go on as if a step that waits for another attempt had returned ``result``; or as if an undo had been done, or a sleep was over.

        Args:
            step: its name; where several steps have it, as ``tidings saga show`` tells it: ``charge (call 2)``.
        """
        try:
            text = encode(result).decode()
        except (TypeError, msgspec.MsgspecError) as error:
            raise ActionRefused(f"the journal can't keep that result: {error}") from error

        def skip(unit: Any, row: SagaRow, now: int) -> str | None:
            entry = operating.to_skip(row, unit.sagas().journal(row.saga, row.key), step)
            if isinstance(entry, str):
                return entry
            given = text if entry.kind == "step" else None
            unit.sagas().skip(row.saga, row.key, operating.done_by_hand(entry, given, now), now)
            return None

        return self._act("skip", saga, key, reason, skip, detail=step if result is None else f"{step}: {text}")

    def supply(self, saga: str, event: object, *, reason: str) -> SagaRow:
        """Hand an event to an instance that lacks it. It is not published: nobody else sees it.

        Args:
            event: of a class that the saga waits for (``waits=``); its key is the instance's.
        """
        if self._sagas is None or self._type_of is None:
            raise ActionRefused("which class is that event of? Use app.operator(…), or name the app with --app")
        event_type = self._type_of(type(event))
        waited = {name for (found, _), one in self._sagas.items() if found == saga for name in one.waits}
        if event_type.name not in waited:
            raise ActionRefused(f"the saga {saga!r} waits for {', '.join(sorted(waited)) or 'no event'}, not for {event_type.name}")
        data, key = event_type.to_bytes(event), event_type.key_of(event)

        def supply(unit: Any, row: SagaRow, now: int) -> None:
            unit.sagas().supply(row.saga, row.key, event_type.name, event_type.version, data, now)

        return self._act("supply", saga, key, reason, supply, detail=f"{event_type.name}: {data.decode()}")

    def _turn_back(self, how: str, saga: str, key: object, reason: str) -> SagaRow:
        def turn_back(unit: Any, row: SagaRow, now: int) -> str | None:
            if operating.is_behind_its_pivot(unit.sagas().journal(row.saga, row.key)):
                return f"{row.saga} {row.key} is behind its pivot, where nothing is undone any more; skip what fails or supply what lacks"
            unit.sagas().turn_back(row.saga, row.key, how, now)
            return None

        return self._act(how, saga, key, reason, turn_back)

    def _act(
        self, action: str, saga: str, key: object, reason: str, do: Callable[[Any, SagaRow, int], str | None], detail: str | None = None
    ) -> SagaRow:
        if not reason.strip():
            raise ActionRefused("why? the reason is empty, and it is kept")
        now = int(self.store.clock.time() * 1_000_000)

        def work(unit: Any) -> SagaRow | str | None:
            row: SagaRow | None = unit.sagas().row(saga, str(key), lock=True)
            if row is None:
                return None
            if (refused := operating.refusal(action, row) or do(unit, row, now)) is not None:
                return refused
            unit.sagas().act(row.saga, row.key, Action(now, self.actor, action, reason, detail))
            after: SagaRow = unit.sagas().row(saga, str(key))
            return after

        done = self.store.write(work).result()
        if done is None:
            raise NotFound(
                f"there is no saga {saga!r} of key {str(key)!r}; `tidings saga list` shows what there is", name=saga, key=str(key)
            )
        if isinstance(done, str):
            raise ActionRefused(done, saga=saga, key=str(key), action=action)
        return done
