"""What a worker asks of whoever reads lanes beside the subscriptions: they are leased, shared out and given back in the same way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..store.port import KeyState, Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..store.port import Unit


class HeldLane(Protocol):
    lane: int
    epoch: int


class Sharer(Protocol):
    """A named reader of the log whose lanes are shared among workers in groups. Called on the worker's loop.

    Attributes:
        most_groups, groups: into how many groups its lanes are divided. trouble: what keeps it from going on. in_flight: what it has begun.
    """

    name: str
    most_groups: int
    groups: int
    trouble: str | None

    @property
    def in_flight(self) -> int: ...
    def held_lanes(self) -> Sequence[HeldLane]: ...
    def take(self, lanes: Sequence[Lane], keys: Sequence[KeyState]) -> None: ...
    def drop(self, lane: Any) -> None:
        """It is somebody else's."""
        ...

    def give_back(self, lanes: set[int]) -> None:
        """Begin to let go of them; ``busy_lanes`` says which can't be released yet."""
        ...

    def busy_lanes(self) -> Collection[int]: ...
    def release(self, unit: Unit, lanes: Collection[int]) -> None:
        """Write that they are nobody's."""
        ...

    def pause(self, paused: bool) -> None: ...
    def regroup(self, groups: int) -> None: ...
    def leased(self, until: float) -> None:
        """The lease was renewed to this time, and it was looked at which lanes are ours."""
        ...

    def prolonged(self, until: float) -> None:
        """The lease, which had not run out, was renewed to this time, and nothing has changed."""
        ...

    def look_again(self) -> None:
        """An operator has changed something."""
        ...

    def wake(self) -> None:
        """There may be something new in the log."""
        ...

    async def drain(self) -> None: ...
    async def close(self) -> None: ...
    def kill(self) -> None: ...


class Beside(Sharer, Protocol):
    """One that is no subscription of the app's."""

    def register(self, unit: Unit, app: str, now: int) -> None:
        """Make it known, in the worker's first transaction."""
        ...

    def noted(self, facts: Mapping[str, str]) -> None:
        """What is noted in the store, as it was when lanes are shared out."""
        ...

    def start(self, worker: str, lease: float, reached_head: Callable[[], None]) -> None: ...
