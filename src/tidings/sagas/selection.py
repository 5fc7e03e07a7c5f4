"""Which instances are meant: those of a saga, in some states, that wait for something, for so long already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..store.sagas import SagaRow
from . import account
from .operating import waits

if TYPE_CHECKING:
    from ..store.port import Store

PAGE = 1000
"""So many are looked at in one query."""


@dataclass(frozen=True, slots=True)
class Selection:
    """None and empty: whatever it is. ``waiting_for``: an event's type, or a step that is tried again. ``before``: it has waited for that,
    or stood in its state, since then; microseconds since 1970."""

    saga: str | None = None
    states: tuple[str, ...] = ()
    version: int | None = None
    waiting_for: str | None = None
    before: int | None = None

    def holds(self, row: SagaRow) -> bool:
        """Whether an instance is meant as it stands."""
        if self.saga not in (None, row.saga) or self.version not in (None, row.version):
            return False
        if row.state not in self.states if self.states else row.state == "gone":
            return False
        asked = [wait for wait in waits(row) if self.waiting_for is None or account.is_waited_for(wait, self.waiting_for)]
        if self.waiting_for is not None and not asked:
            return False
        return self.before is None or account.standing_since(row, asked) <= self.before

    def pages(self, store: Store, size: int = PAGE) -> Iterator[list[SagaRow]]:
        """The oldest first, at most ``size`` at a time: chosen by the store as far as it can tell, the rest by looking at each. None comes
        twice, whatever changes meanwhile."""
        last: SagaRow | None = None
        while True:
            page: list[SagaRow] = store.query(
                lambda unit, last=last: unit.sagas().rows(  # type: ignore[misc]
                    self.saga, self.states, size, version=self.version, before=self.before, waits=self.waiting_for, after=last
                )
            )
            if found := [row for row in page if self.holds(row)]:
                yield found
            if len(page) < size:
                return
            last = page[-1]

    def first(self, store: Store, limit: int) -> list[SagaRow]:
        """At most so many."""
        found: list[SagaRow] = []
        for page in self.pages(store, max(PAGE, limit)):
            found += page
            if len(found) >= limit:
                break
        return found[:limit]
