"""The relay of somebody else's outbox table: rows in, records out, each once, whoever dies in between.

    read a batch -> send it, with a mark, in one transaction of the broker's -> tick its rows off -> only then send the next

The table's ticks are the truth. What a crash can leave is a batch that was sent and not ticked off; the mark holds its ids, so whoever
takes over ticks them off first, and knows "sent but not ticked" from "never sent". The mark also holds a point in the server's history: a
row that was written again after it, a flag set back by hand say, is not the row that was sent, and is sent again.

A source reads in a thread of its own (``store/outbox.py``); the relay's thread owns the broker's slot and the leader's connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..brokers.port import Broker, Record, Slot, size
from ..errors import (
    BrokerUnavailable,
    ConfigurationError,
    NotAllowed,
    RecordTooLarge,
    SlotFenced,
    StoreError,
    StoreFailed,
    TopicMissing,
)
from ..store import outbox_at
from ..store.outbox import Batch, Found, Given, Leader, Mark, Outbox, Server, Source, Wanted
from .layout import Layout, recorder

log = logging.getLogger("tidings.relay")

BATCH_ROWS = 2_000
"""In one transaction of the broker's, at most."""
AGAIN_SECONDS = (0.2, 5.0)
"""After trouble with the server or the broker, try again after so long: at first, and at the longest."""
STANDBY_SECONDS = 0.25
"""How often a standby asks whether the leader is gone."""


@dataclass
class Options:
    """
    Attributes:
        name: of the relay; one leader at a time has it. url: of the database. table: as SQL names it.
        after: what is done to rows that were sent: ``flag``, ``delete`` or ``nothing``.
        create_topics: partitions of topics that are made if they aren't there; None: a missing topic is an error.
        skip_unsendable: a row of which no record can be made, or that is too large for the broker, is reported and ticked off, not sent.
    """

    name: str
    url: str
    table: str
    layout: Layout
    source: str = ""
    mode: str = "poll"
    after: str = "flag"
    create_topics: int | None = None
    skip_unsendable: bool = False
    resume_from: str | None = None
    batch: int = BATCH_ROWS
    lease: float = 10.0
    slot: str = ""
    publication: str = ""
    unlimited_wal: bool = False


def outbox_of(options: Options) -> Outbox:
    """The table that these options name. Raises ConfigurationError: the URL is none."""
    layout = options.layout
    return outbox_at(
        options.url,
        Wanted(
            relay=options.name,
            table=options.table,
            id=layout.id,
            columns=layout.columns,
            published=None if options.after == "nothing" else layout.published,
            time=layout.time,
            deletes=options.after == "delete",
            mode=options.mode,
            batch=options.batch,
            slot=options.slot,
            publication=options.publication,
            unlimited_wal=options.unlimited_wal,
            former=dict(layout.former),
        ),
    )


@dataclass
class Progress:
    """What the relay has done since it began. trouble: what it is waiting for, if anything."""

    sent: int = 0
    batches: int = 0
    late: int = 0
    skipped: int = 0
    leading: bool = False
    trouble: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


Tell = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and its facts: leading, standby, trouble, skipped, note, caught_up."""


class OutboxRelay:
    """One relay: leads or stands by until it is stopped.

    Args:
        broker: opened by whoever gives it.
        tell: is told what happens.
    """

    def __init__(self, options: Options, broker: Broker, *, tell: Tell | None = None) -> None:
        self.options = options
        self.outbox = outbox_of(options)
        self.broker = broker
        self.progress = Progress()
        self._tell = tell or (lambda event, facts: None)
        self._stopping = threading.Event()
        self._known: set[str] = set()
        self._led = False
        self._slot: Slot | None = None

    # -- lifecycle

    def stop(self) -> None:
        """Read no more; what was read is sent and ticked off, then ``run`` returns. From any thread or a signal's handler."""
        self._stopping.set()
        if (slot := self._slot) is not None:
            slot.give_up()  # if the broker doesn't answer, it is no use to wait

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def run(self) -> None:
        """Relay until stopped.

        Raises:
            StoreError, BrokerError, ConfigurationError: something that waiting doesn't mend; the message says what to do.
        """
        pause = AGAIN_SECONDS[0]
        self.look()
        while not self.stopping:
            before = self.progress.batches
            try:
                self._stand()
            except Exception as error:
                if not self._passes(error):
                    told = self.outbox.explain(error)
                    if told is error:
                        raise
                    raise told from error
                said = " ".join(str(error).split())
                if self.progress.trouble != said:
                    self.progress.trouble = said
                    self._tell("trouble", {"error": said})
                pause = AGAIN_SECONDS[0] if self.progress.batches > before else min(pause * 2, AGAIN_SECONDS[1])
                self._stopping.wait(pause)
            finally:
                self.progress.leading = False

    def _passes(self, error: Exception) -> bool:
        """Whether it is trouble that ends by itself, or is ended by somebody while we wait."""
        if isinstance(error, NotAllowed):
            # Missing from the start, it is a mistake that somebody looks on to; a right that went is given back.
            return self._led
        return isinstance(error, (BrokerUnavailable, SlotFenced)) or self.outbox.is_busy(error)

    def look(self) -> Found:
        """Whether the database and the table are what they should be, before anything is waited for."""
        table = self.outbox.look()
        if not table.marks and self.options.mode == "poll":
            raise ConfigurationError(
                f"{table.name} has no column that says what was sent; name one with --columns published=…, or let rows be deleted with"
                " --after delete"
            )
        return table

    def _stand(self) -> None:
        """Wait for the lead, then lead until something breaks."""
        leader = self.outbox.leader(self.options.lease)
        try:
            told = False
            while not leader.lead():
                self.progress.trouble = None
                if not told:
                    told = True
                    self._tell("standby", {"relay": self.options.name})
                if self._stopping.wait(STANDBY_SECONDS):
                    return
            self._lead(leader)
        finally:
            leader.close()

    def _lead(self, leader: Leader) -> None:
        options = self.options
        here = leader.server()
        if here.standby:
            raise StoreFailed("this server is a standby (in recovery), where rows can't be ticked off; give the primary's address")
        table = leader.table()
        slot = self._slot = self.broker.open_slot(options.name, 0, 1, patience=options.lease)
        if self.stopping:
            slot.give_up()
        source: Source | None = None
        try:
            mark = self._agree(slot.mark, here, table, leader)
            source = leader.source(mark, self._given(slot, options.source or f"{here.database}/{table.name}"))
            options.resume_from = None  # it was the answer to this, and to nothing that may come later
            self._led = True
            self.progress.leading, self.progress.trouble = True, None
            self._tell(
                "leading",
                {"relay": options.name, "table": table.name, "mode": options.mode, "advice": table.advice, "pooled": table.pooled},
            )
            self._send(slot, source, leader)
        finally:
            if source is not None:
                source.close()
            self._slot = None
            slot.close()

    def _given(self, slot: Slot, source: str) -> Given:
        return Given(
            record=recorder(self.options.layout, source),
            unsendable=self.unsendable,
            note=self.note,
            facts=self.progress.facts.update,
            claim=lambda mark: slot.send([], msgspec.json.encode(mark)),
            anew=self.options.resume_from == "table",
        )

    # -- what was left

    def _agree(self, raw: bytes | None, here: Server, table: Found, leader: Leader) -> Mark:
        """The mark to go on from, once what it says was sent has been ticked off."""
        fresh = Mark(self.options.mode, here.id, here.timeline, table.id, database=here.number)
        if raw is None:
            return fresh
        try:
            mark = msgspec.json.decode(raw, type=Mark)
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"the broker's mark of the relay {self.options.name!r} is not an outbox relay's; take another --name"
            ) from error
        if mark.database == 0 and mark.system == here.id:
            mark.database = here.number
        if (mark.system, mark.timeline, mark.database, mark.table) != (here.id, here.timeline, here.number, table.id):
            answer, self.options.resume_from = self.options.resume_from, None
            if answer is None:
                raise StoreFailed(
                    f"the relay {self.options.name!r} last read another database or table, or this one before a failover or a restore. If"
                    " that is another application's, give this one a --name of its own. If it is this one, rows that were sent may have"
                    " lost their tick: look at those without one, then give --resume-from table to send them all, or --resume-from broker"
                    " to go on behind what was sent last"
                )
            if answer == "table":
                return fresh
            mark.system, mark.timeline, mark.database, mark.table = here.id, here.timeline, here.number, table.id
        if mark.mode != self.options.mode and not mark.ticked and self.options.resume_from != "table":
            raise StoreFailed(
                f"the relay {self.options.name!r} has run by CDC without ticking rows off, so polling can't tell what was sent. Tick those"
                " rows off yourself, then give --resume-from table to send the others"
            )
        if mark.ids:
            again = leader.tick(mark.ids, before=mark.point)
            if again:
                self.note(f"{again} rows had been sent and not ticked off; they are now", rows=again)
        return mark

    # -- sending

    def _send(self, slot: Slot, source: Source, leader: Leader) -> None:
        stopped = False
        while True:
            if self.stopping and not stopped:
                source.stop()
                stopped = True
            batch = source.take(0.2)
            if batch is None:
                leader.speak()
                if stopped:
                    return
                continue
            self._send_batch(slot, batch)
            self.tick(leader, batch.ids)
            source.sent(batch)
            progress = self.progress
            progress.sent += len(batch.records)
            progress.late += batch.late
            progress.batches += 1
            progress.trouble = None

    def _send_batch(self, slot: Slot, batch: Batch) -> None:
        """Send it; leave out, if that is allowed, what doesn't fit."""
        records: Sequence[Record] = batch.records
        self.topics({record.topic for record in records})
        while True:
            try:
                slot.send(records, msgspec.json.encode(batch.mark))
                return
            except TopicMissing:
                if self.options.create_topics is None:
                    raise
                self._known.clear()
                self.topics({record.topic for record in records})
            except RecordTooLarge as error:
                left = [record for record in records if self.broker.fits(record)]
                if not self.options.skip_unsendable or len(left) == len(records):
                    raise RecordTooLarge(f"{error}; raise the limit, or give --skip-unsendable to leave such rows out") from error
                for record in records:
                    if not self.broker.fits(record):
                        self.unsendable(_id(record), f"{size(record):,} bytes are too much for the broker")
                records = left

    def topics(self, names: Iterable[str]) -> None:
        """See that the topics are there, and make them if that was asked for."""
        unknown = [name for name in names if name not in self._known]
        if not unknown:
            return
        there = self.broker.topics(unknown)
        for name in unknown:
            if name not in there:
                if self.options.create_topics is None:
                    raise TopicMissing(f"the broker has no topic {name!r}; make it, or give --create-topics N", topic=name)
                self.broker.create(name, self.options.create_topics)
        self._known.update(unknown)

    def tick(self, leader: Leader, ids: Sequence[str]) -> None:
        """Tick rows off, however long the application's locks keep it waiting: nothing is sent before."""
        while True:
            try:
                leader.tick(ids)
                return
            except Exception as error:
                if self.outbox.is_lost(error) or not self.outbox.is_busy(error):
                    raise
                self.progress.trouble = f"rows that were sent can't be ticked off yet: {' '.join(str(error).split())}"
                self._tell("trouble", {"error": self.progress.trouble})
                time.sleep(0.05)

    def note(self, text: str, **facts: Any) -> None:
        """Something that whoever looks on should know."""
        self._tell("note", {"text": text, **facts})

    def unsendable(self, id: str, why: str) -> None:
        """A row of which no record can be made: an error, or told and left out."""
        if not self.options.skip_unsendable:
            raise StoreError(
                f"the row {id} of {self.options.table} can't be sent: {why} -- mend it, tick it off, or give"
                " --skip-unsendable to leave such rows out",
                id=id,
            )
        self.progress.skipped += 1
        self._tell("skipped", {"id": id, "why": why})


def _id(record: Record) -> str:
    return next((raw.decode(errors="replace") for name, raw in record.headers if name in ("ce_id", "id")), "?")
