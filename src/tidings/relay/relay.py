"""The relay: a subscription whose handler is a broker. It sends what its app published, each event once and in order per key.

Its lanes are leased to workers like those of any subscription, in as many groups as there are slots, and its progress stands in the same
table, so lag, retention, pausing and status are the same. What is particular is in ``sender``: for how far it has come, the broker's own
word counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from ..envelope import LANES
from ..errors import ConfigurationError
from ..spelling import spelled_options
from ..store.port import EVERYTHING, KeyState, Lane
from ..subscribe.sharing import group_of, whole_groups
from .given import is_count, is_name
from .sender import Sender, slots_note

if TYPE_CHECKING:
    from ..brokers.port import Broker
    from ..store.port import Store, Unit

log = logging.getLogger("tidings.relay")

PATIENCE = 5.0
"""Seconds that draining waits for a broker that doesn't answer."""


@spelled_options
@dataclass(frozen=True)
class Relay:
    """How an app's events go to its broker.

    Args:
        slots: how many senders there are over all workers, each for a share of the lanes. Changing it is safe at any time: who starts last
            decides.
        rows: events in a transaction, at most.
        partitions: a topic that is missing is made with so many; None: somebody else makes it.
        exactly_once: events and position are one transaction of the broker. False: an event may be sent again after a failure.
        name: of the subscription; ``relay-`` and the app's name unless given.

    Raises:
        ConfigurationError
    """

    slots: int = 4
    rows: int = 2000
    partitions: int | None = None
    exactly_once: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        if not is_count(self.slots, LANES):
            raise ConfigurationError(f"Relay(slots={self.slots!r}): 1 to {LANES}")
        if not is_count(self.rows, 20_000):
            raise ConfigurationError(f"Relay(rows={self.rows!r}): 1 to 20000")
        if self.partitions is not None and not is_count(self.partitions):
            raise ConfigurationError(f"Relay(partitions={self.partitions!r}): 1 or more, or None")
        if not isinstance(self.exactly_once, bool):
            raise ConfigurationError(f"Relay(exactly_once={self.exactly_once!r}): True or False")
        if self.name is not None and not is_name(self.name):
            raise ConfigurationError(f"Relay(name={self.name!r}): a name, or None")


class RunningRelay:
    """The relay of one app in one process: a sender for each slot whose lanes this worker holds. On the worker's loop.

    Attributes:
        sent: events, since it began.
    """

    def __init__(self, options: Relay, app: str, store: Store, broker: Broker) -> None:
        self.name = options.name or f"relay-{app}"
        self.groups = self.most_groups = options.slots
        self.trouble: str | None = None
        self.ended_sent = 0
        self._options = options
        self._app = app
        self._store, self._broker = store, broker
        self._lanes: dict[int, Lane] = {}
        self._senders: dict[int, Sender] = {}
        self._ending: set[Sender] = set()
        self._paused = self._stopping = False
        self._quiet = asyncio.Event()
        self._worker = ""
        self._lease = 10.0
        self._reached_head: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- what the store knows of it

    def register(self, unit: Unit, app: str, now: int) -> None:
        """Who starts last decides how many slots there are. Then every lane is taken from whoever has it, so that he learns of it."""
        unit.register(self.name, app, [EVERYTHING], "key", unit.retained(), now)
        noted = unit.facts().get(slots_note(self.name))
        history = msgspec.json.decode(noted) if noted else []
        if not history or history[-1] != self._options.slots:
            unit.note(slots_note(self.name), msgspec.json.encode([*history, self._options.slots]).decode())
            if history:
                unit.free(self.name)

    def noted(self, facts: Mapping[str, str]) -> None:
        history = msgspec.json.decode(facts.get(slots_note(self.name), "[]"))
        if history and history[-1] != self.groups:
            self.groups = self.most_groups = history[-1]
            for lane in list(self._lanes.values()):
                self.drop(lane)

    def start(self, worker: str, lease: float, reached_head: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker, self._lease, self._reached_head = worker, lease, reached_head

    # -- lanes come and go

    @property
    def in_flight(self) -> int:
        return sum(not sender.at_head for sender in self._senders.values())

    @property
    def open_slots(self) -> int:
        """Those that this process could send in now."""
        return sum(sender.open for sender in self._senders.values())

    @property
    def sent(self) -> int:
        return self.ended_sent + sum(sender.sent for sender in (*self._senders.values(), *self._ending))

    def held_lanes(self) -> list[Lane]:
        return list(self._lanes.values())

    def take(self, lanes: Sequence[Lane], keys: Sequence[KeyState]) -> None:
        self._lanes.update({lane.lane: lane for lane in lanes})
        for slot in sorted(whole_groups(self._lanes, self.groups) - self._senders.keys()):
            if not self._stopping:
                self._begin(slot)

    def _begin(self, slot: int) -> None:
        sender = self._senders[slot] = Sender(
            relay=self.name,
            app=self._app,
            worker=self._worker,
            slot=slot,
            slots=self.groups,
            lanes={lane.lane: lane.epoch for lane in self._lanes.values() if group_of(lane.lane, self.groups) == slot},
            store=self._store,
            broker=self._broker,
            together=self._options.exactly_once,
            rows=self._options.rows,
            partitions=self._options.partitions,
            patience=self._lease,
            changed=lambda: self._post(self._look_at_trouble),
            ended=lambda sender, lost: self._post(self._ended, sender, lost),
            idle=lambda: self._post(self._reached_head),
        )
        sender.pause(self._paused)
        sender.start()

    def drop(self, lane: Any) -> None:
        self._lanes.pop(lane.lane, None)
        self._end({lane.lane})

    def give_back(self, lanes: set[int]) -> None:
        for lane in lanes:
            self._lanes.pop(lane, None)
        self._end(lanes)

    def busy_lanes(self) -> set[int]:
        return {lane for sender in (*self._senders.values(), *self._ending) for lane in sender.lanes}

    def release(self, unit: Unit, lanes: Collection[int]) -> None:
        unit.release(self.name, self._worker, lanes)

    def _end(self, lanes: set[int]) -> None:
        for slot, sender in list(self._senders.items()):
            if lanes & sender.lanes.keys():
                del self._senders[slot]
                self._ending.add(sender)
                sender.finish()

    def _ended(self, sender: Sender, lost: bool) -> None:
        self._ending.discard(sender)
        self.ended_sent += sender.sent
        if self._senders.get(sender.slot) is sender:  # by itself: the lanes are somebody else's
            del self._senders[sender.slot]
            for number, epoch in sender.lanes.items():
                held = self._lanes.get(number)
                if held is not None and held.epoch == epoch:
                    del self._lanes[number]
        self._look_at_trouble()
        if not self._senders and not self._ending:
            self._quiet.set()

    def _look_at_trouble(self) -> None:
        troubles = [f"slot {sender.slot}: {sender.trouble}" for sender in self._senders.values() if sender.trouble]
        self.trouble = troubles[0] if troubles else None

    def _post(self, work: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:  # the loop is gone, and the process with it
            return

    # -- what happens

    def pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            for sender in self._senders.values():
                sender.pause(paused)

    def regroup(self, groups: int) -> None:
        """Not by what living workers go by: the number of slots is the store's."""

    def leased(self, until: float) -> None:
        """Nothing here rests on the lease's time: who takes over shuts the former sender out at the broker."""

    def prolonged(self, until: float) -> None:
        """As ``leased``."""

    def look_again(self) -> None:
        for sender in self._senders.values():
            sender.look()

    def wake(self) -> None:
        for sender in self._senders.values():
            sender.wake()

    # -- the end

    async def drain(self) -> None:
        """What is being sent is sent, unless the broker doesn't answer."""
        self._stopping = True
        self._end(set(range(LANES)))
        try:
            async with asyncio.timeout(PATIENCE):
                while self._ending:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            for sender in self._ending:
                sender.give_up()

    async def close(self) -> None:
        self.kill()
        for sender in list(self._ending):
            await asyncio.get_running_loop().run_in_executor(None, sender.thread.join, 15.0)

    def kill(self) -> None:
        self._stopping = True
        self._end(set(range(LANES)))
        for sender in self._ending:
            sender.give_up()
