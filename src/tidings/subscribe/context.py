"""What a handler may know about the event it handles, and how it publishes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ..envelope import Envelope

if TYPE_CHECKING:
    from .handler import Handler
    from .lanes import LaneState
    from .parking import Failure

POSITION, LANE, TOPIC, TYPE, VERSION, KEY_NAME, KEY, EVENT_ID, TIME, SOURCE, DATA, CORRELATION, CAUSATION, TRACEPARENT, HEADERS = range(15)
"""Where the fields of ``Envelope`` stand in a row."""


class Context(msgspec.Struct, eq=False):
    """One event on its way through one subscription; a handler gets it by asking for ``Context``.

    Attributes:
        subscription: its name.
        attempt: 1 for the first.
        tx: the transaction the handler runs in, if it asked for one.
        each: for a handler that takes a list: the context of each event in it.
    """

    # A Struct, because one is made for each event, and at that it is twice as quick as a class with an __init__.
    row: tuple[Any, ...]
    subscription: str
    handler: Handler
    lane: LaneState
    key_id: Any
    attempt: int = 1
    tx: Any = None
    each: list[Context] | None = None
    parked: bool = False
    noted: bool = False
    suspect: bool = False
    taken: bool = False
    settling: bool = False
    published: list[tuple[Any, datetime | None, timedelta | None, Mapping[str, str] | None]] | None = None
    outputs: list[tuple[Envelope, int | None]] | None = None
    failure: Failure | None = None

    def reset(self) -> None:
        """Forget a run that was undone."""
        self.published = self.failure = self.tx = None
        self.outputs = [] if self.noted else None  # its end is one with consequences: the next may begin when it is written
        self.settling = False

    def publish(
        self, event: Any, *, at: datetime | None = None, after: timedelta | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish with this handler's checkpoint: if and only if the handler succeeds. ``at`` and ``after`` as in ``App.publish``."""
        if self.published is None:
            self.published = []
        self.published.append((event, at, after, headers))

    @property
    def envelope(self) -> Envelope:
        """The event as the log holds it."""
        return Envelope(*self.row)

    @property
    def idempotency_key(self) -> str:
        """The same text at every attempt, by any worker: give it to whatever must happen once outside."""
        return f"{self.subscription}:{self.row[EVENT_ID]}"

    @property
    def position(self) -> int:
        """Place in the log."""
        return int(self.row[POSITION])

    @property
    def event_id(self) -> str:
        return str(self.row[EVENT_ID])

    @property
    def type(self) -> str:
        return str(self.row[TYPE])

    @property
    def version(self) -> int:
        return int(self.row[VERSION])

    @property
    def key(self) -> str | None:
        return self.row[KEY]  # type: ignore[no-any-return]

    @property
    def source(self) -> str:
        """Name of the app that published it."""
        return str(self.row[SOURCE])

    @property
    def time(self) -> datetime:
        """When it was published, by its publisher's clock."""
        return datetime.fromtimestamp(self.row[TIME] / 1_000_000, UTC)

    @property
    def correlation_id(self) -> str:
        """Id of the event that began the story."""
        return str(self.row[CORRELATION])

    @property
    def causation_id(self) -> str | None:
        """Id of the event whose handler published this one."""
        return self.row[CAUSATION]  # type: ignore[no-any-return]

    @property
    def traceparent(self) -> str | None:
        return self.row[TRACEPARENT]  # type: ignore[no-any-return]

    @property
    def headers(self) -> dict[str, str]:
        """Further texts that the publisher gave."""
        return {} if self.row[HEADERS] is None else msgspec.json.decode(self.row[HEADERS])
