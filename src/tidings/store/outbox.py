"""What Tidings asks of a database that has an outbox table of somebody else's.

Events are rows that an application inserts, in its own transactions; a relay reads them, sends them, and ticks them off. What an
implementation must keep:

- *Nothing is passed over.* Every row that was committed without a tick comes in some batch, also one whose id is lower than others that
  came before, and one whose tick was taken back.
- *Order.* Rows come in the order in which they were written, as far as that can be told; a batch says of how many of its rows it can't.
- *Durable before it leaves.* What a batch holds is not taken back by a crash of the server.
- *One leader.* Of each name at most one ``Leader`` leads; one that was frozen past its lease can't tick anything off.
- *Ticks.* What ``tick`` was told is ticked off when it returns, and nothing else is.
- *Threads.* Everything here blocks. A Leader belongs to the thread that uses it; a Source reads in a thread of its own.
- *Closing.* Whoever opens closes, on every path.

Nothing is made or changed in the application's schema; by CDC a slot and a publication are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from .port import Holder

Row = Sequence[bytes | None]
"""A row: its id, and the columns that were asked for, in their order. All are texts but columns of bytes, which are what they hold."""
Recorder = Callable[[Row, bytes | None, int | None, bool], Any]
"""(row, sequence, milliseconds since 1970 at which it was committed if that is known, whether it is out of order) -> record."""


class Unsendable(Exception):
    """A row from which no record can be made. ``id``: of the row. The message says why."""

    def __init__(self, why: str, id: str) -> None:
        super().__init__(why)
        self.id = id


@dataclass
class Wanted:
    """Which table, and how it is read.

    Attributes:
        relay: its name; one leader at a time has it. table: as SQL names it. id: the column that tells rows apart. columns: to be read
            beside it. published: the column that is true once a row was sent, or says when, None if nothing does. time: a column to go
            by where ids have no order. deletes: rows that were sent are deleted.
        mode: ``poll`` or ``cdc``. batch: rows at a time. slot, publication, unlimited_wal: by CDC. former: by CDC, what a column was
            called when older rows were written, the latest first; empty: there was none.
    """

    relay: str
    table: str
    id: str
    columns: Sequence[str]
    published: str | None
    time: str | None = None
    deletes: bool = False
    mode: str = "poll"
    batch: int = 2_000
    slot: str = ""
    publication: str = ""
    unlimited_wal: bool = False
    former: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Found(NamedTuple):
    """The table as it is. id: another one if it was made anew. name: quoted. marks: something says which rows were sent. pooled: ids are
    not drawn one by one. advice: a statement that makes reading cheaper."""

    id: int
    name: str
    marks: bool
    pooled: bool
    advice: str | None


class Server(NamedTuple):
    """Which server and database it is. id: of the cluster. timeline: raised when a standby takes over. standby: nothing can be written
    there. database: its name. number: tells databases of one server apart, whatever they are called."""

    id: str
    timeline: int
    standby: bool
    database: str
    number: int


class Mark(msgspec.Struct, omit_defaults=True):
    """What travels with each batch: how far the relay is.

    Attributes:
        mode: ``poll`` or ``cdc``. system, timeline, table: where it read.
        ids: of the rows in the batch. point: a row that was written again from then on is another.
        cursor: by polling, how far the fast path is. lsn, ordinal: by CDC, the last row that was sent. slot, publication: where from.
        ticked: whether rows that were sent are ticked off.
        database: the number of it, since tables of two databases may have the same; 0 in marks that were made before this was kept.
    """

    mode: str
    system: str
    timeline: int
    table: int
    ids: list[str] = []
    point: int = 0
    cursor: str | None = None
    lsn: int = 0
    ordinal: int = 0
    slot: str = ""
    ticked: bool = True
    publication: str = ""
    database: int = 0


class Batch(NamedTuple):
    """Rows as they are to be sent. records: what ``Given.record`` made of them. ids: those to be ticked off. mark: of the relay after it.
    late: how many are out of order. confirm: by CDC, what the server may forget once it was sent."""

    records: list[Any]
    ids: list[str]
    mark: Mark
    late: int = 0
    confirm: int = 0


class Source(Protocol):
    """Where batches come from. Its own thread fills it; the relay's thread takes and tells."""

    def take(self, seconds: float) -> Batch | None:
        """The next batch, None if none came for so long. Raises what its thread ended with."""
        ...

    def sent(self, batch: Batch) -> None:
        """It is with the broker, and ticked off."""
        ...

    def stop(self) -> None:
        """Read no more. What was read is still given."""
        ...

    def close(self) -> None: ...


@dataclass
class Given:
    """What a source is given by its relay.

    Attributes:
        record: makes records of rows; raises Unsendable. unsendable: is told of such a row by id and reason, and raises if that is an
            error. note: is told what whoever looks on should know. facts: is told figures to be shown. claim: sends a mark at once.
        anew: somebody has said that what was lost is to be left.
    """

    record: Recorder
    unsendable: Callable[[str, str], None]
    note: Callable[..., None]
    facts: Callable[[dict[str, Any]], None]
    claim: Callable[[Mark], None]
    anew: bool = False


class Leader(Protocol):
    """Who leads the relay of a name, or would like to. ``server``, ``table`` and what follows: only once ``lead`` has said yes."""

    def lead(self) -> bool:
        """Whether it leads now."""
        ...

    def speak(self) -> None:
        """Say that it is alive, if it is time to. Raises what ``Outbox.is_busy`` knows: it leads no more."""
        ...

    def server(self) -> Server: ...
    def table(self) -> Found: ...
    def tick(self, ids: Sequence[str], *, before: int | None = None) -> int:
        """Tick rows off; how many had no tick. ``before``: only those that were not written again since that point (``Mark.point``)."""
        ...

    def source(self, mark: Mark, given: Given) -> Source:
        """Go on from a mark.

        Raises:
            StoreError: that isn't possible; with what to do.
        """
        ...

    def close(self) -> None: ...


class Outbox(Protocol):
    """The table of one database. Raises StoreError where there is no connection, and ConfigurationError for a name that is none."""

    def look(self) -> Found:
        """Whether it is what it should be. Raises StoreError if not."""
        ...

    def leader(self, lease: float) -> Leader:
        """Seconds after which a leader that says nothing leads no more."""
        ...

    def lag(self, most: int) -> Lag:
        """How far behind the relay is, by the database alone; rows are counted up to ``most``."""
        ...

    def is_busy(self, error: BaseException) -> bool:
        """Whether the same may be tried again: a conflict, or the server has trouble that ends."""
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection is gone."""
        ...

    def explain(self, error: Exception) -> Exception:
        """A driver's error in words that name the fix; any other as it is."""
        ...


@dataclass
class SlotLag:
    """A replication slot. behind, retained: bytes of WAL that the relay has not confirmed, and that the server keeps for it.
    left: until it may be lost, None if never or not soon. wal: ``reserved``, ``extended``, ``unreserved`` or ``lost``."""

    name: str
    streaming: bool
    behind: int
    retained: int
    left: int | None
    wal: str


@dataclass
class Lag:
    """
    Attributes:
        behind: rows that were not sent; None where nothing says so (by CDC without ticks, ``slot`` does). exact: False if there are more.
        seconds: since the oldest of them was written.
        leader: where the relay that leads is, ``local`` by a local socket; None if none leads. leader_pid: the server's process for it.
        slot: by CDC. horizon: transactions that hold readers of this table back, the oldest first.
    """

    relay: str
    table: str
    mode: str
    behind: int | None
    exact: bool
    seconds: float | None
    leader: str | None
    leader_pid: int | None
    slot: SlotLag | None
    horizon: list[Holder]
