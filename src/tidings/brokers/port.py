"""What Tidings asks of a broker.

A broker keeps topics of records in numbered partitions, each in order. Two things are asked of it: to take what a relay sends together with
how far the relay has come, and to give an intake what is there from an offset on. What an implementation must keep:

- *Together.* What one ``Slot.send`` was given appears whole, with its mark, to those who read committed records only; or nothing of it.
- *Order.* Records of one key go to one partition, in the order in which they were sent. Which partition is what the technology's own
  clients would choose, so that others who produce with the same key agree.
- *Fencing.* ``open_slot`` shuts out whoever had that slot before: nothing that he sends afterwards appears, and what he had sent and not
  committed never does. Only then the mark is read, so nobody can move it any more.
- *Unknown is said.* If nobody knows whether a ``send`` took place, it raises, and the slot has to be opened anew to find out.
- *Threads.* Everything here blocks. A Slot and a Reader belong to the thread that uses them; ``Broker`` may be used from any.
- *Closing.* Whoever opens closes, on every path, errors included.

The mark is the relay's own text; a broker doesn't look into it. It is kept per relay and slot, and nobody else's open transaction hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, bytes]]


class Record(NamedTuple):
    """One record to be sent. ``time``: milliseconds since 1970; 0 for when it is sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    time: int


def size(record: Record) -> int:
    """Bytes that a record takes, rather a few more than fewer."""
    total = 40 + len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        total += len(name) + len(value) + 8
    return total


class Received(NamedTuple):
    """One record that was read. ``time``: milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    time: int


class Topic(NamedTuple):
    """``id`` is another one if the topic was deleted and made anew."""

    name: str
    id: str
    partitions: int


class Partition(NamedTuple):
    topic: str
    partition: int


class Range(NamedTuple):
    """Offsets that a partition still has: ``first`` up to before ``end`` (of what is committed)."""

    first: int
    end: int


class Slot(Protocol):
    """A relay's way to the broker for its share of the lanes.

    Attributes:
        mark: what its last committed ``send`` was given; None if there was none.
        together: whether records and mark appear together. False: records that were sent may be sent again after a failure, and there is
            no mark; asked for by name.
    """

    mark: bytes | None
    together: bool

    def send(self, records: Sequence[Record], mark: bytes) -> None:
        """All records and the mark, together. Waits while the broker doesn't answer, until ``give_up``.

        Raises:
            RecordTooLarge, TopicMissing: before anything was sent; the slot can be used again.
            SlotFenced: somebody opened it after us, or the broker gave up on us. Nothing was sent. Close it.
            BrokerUnavailable, NotAllowed: nobody knows. Close it.
        """
        ...

    def give_up(self) -> None:
        """From another thread: a ``send`` that waits for the broker is to raise BrokerUnavailable soon."""
        ...

    def close(self) -> None: ...


class Reader(Protocol):
    """A member of the group of processes that share the partitions of some topics.

    Attributes:
        trouble: what the broker said last that keeps records from coming; None if they come.
    """

    trouble: str | None

    def poll(self, most: int, seconds: float) -> list[Received]:
        """Records of the partitions that are ours, each partition's in order; none if nothing came for so long. Calls the callbacks that
        ``Broker.reader`` was given, in this thread; what they raise comes out here.

        Raises:
            OffsetLost: a partition doesn't have the offset any more that is to be read next. It isn't read any more; the others are.
            BrokerUnavailable, NotAllowed: close it.
        """
        ...

    def reached(self) -> Mapping[Partition, int]:
        """Partitions that were found to be at their end since the last call, and the offset that comes next there: nothing committed lies
        between the last record that ``poll`` gave and this."""
        ...

    def ends(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        """Where these end, as far as is known without asking."""
        ...

    def close(self) -> None:
        """Leave the group, so that others get the partitions at once."""
        ...


class Broker(Protocol):
    """A connection to one cluster. ``label``: its address as it may be shown."""

    label: str

    def topics(self, names: Sequence[str]) -> Mapping[str, Topic]:
        """Those that exist. Raises BrokerUnavailable, NotAllowed."""
        ...

    def create(self, topic: str, partitions: int) -> None:
        """Does nothing if it exists. Raises BrokerUnavailable, NotAllowed."""
        ...

    def ranges(self, partitions: Sequence[Partition]) -> Mapping[Partition, Range]: ...
    def fits(self, record: Record) -> bool:
        """Whether it is small enough to be taken."""
        ...

    def limit(self, topic: str) -> int:
        """Bytes that a record of this topic may have. Raises BrokerUnavailable."""
        ...

    def forget(self) -> None:
        """Ask again for limits, which somebody may have changed."""
        ...

    def open_slot(self, relay: str, slot: int, slots: int, *, together: bool = True, patience: float = 10.0) -> Slot:
        """Shut out whoever had it, then read its mark. Slots of another number of slots are others, with marks of their own.

        Args:
            patience: seconds after which the broker gives up a ``send`` whose sender is gone, so that readers wait no longer for its end.

        Raises:
            BrokerUnavailable, NotAllowed, SlotFenced: somebody else did the same at this moment.
        """
        ...

    def reader(
        self,
        group: str,
        topics: Sequence[str],
        assigned: Callable[[Sequence[Partition]], Mapping[Partition, int]],
        revoked: Callable[[Sequence[Partition]], None],
    ) -> Reader:
        """
        Args:
            assigned: called with partitions that became ours, gives the offset from which each is read (never the broker's own idea of it);
                one that it leaves out is not read.
            revoked: called with those that are no longer ours.
        """
        ...

    def close(self) -> None: ...
