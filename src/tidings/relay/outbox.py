"""The relay of somebody else's outbox table: rows in, records out, each once, whoever dies in between.

    read a batch -> send it, with a mark, in one transaction of the broker's -> tick its rows off -> only then send the next

The table's ticks are the truth. What a crash can leave is a batch that was sent and not ticked off; the mark holds its ids, so whoever
takes over ticks them off first, and knows "sent but not ticked" from "never sent". The mark also holds a point in the server's history: a
row that was written again after it, a flag set back by hand say, is not the row that was sent, and is sent again.

A source (``Polling`` here, ``Changes`` in cdc.py) reads in a thread of its own; the relay's thread owns the broker's slot and the leader's
connection.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
import psycopg

from ..brokers.port import Broker, Record, Slot, size
from ..errors import (
    BrokerUnavailable,
    ConfigurationError,
    NotAllowed,
    RecordTooLarge,
    SlotFenced,
    StoreError,
    StoreFailed,
    TidingsError,
    TopicMissing,
)
from ..store.postgres.connect import explain, is_busy, is_lost
from ..store.postgres.durable import flush
from ..store.postgres.horizon import Horizon
from ..store.postgres.leader import Leader, reading
from ..store.postgres.outbox import OutboxTable, server
from ..store.postgres.replication import forget_slot
from .layout import Layout, Recorder, Unsendable, recorder

log = logging.getLogger("tidings.relay")

BATCH_ROWS = 2_000
BATCH_BYTES = 8 * 1024 * 1024
"""A batch ends at whichever comes first."""
DEPTH = 2
"""So many batches are read ahead of the one that is being sent."""
IDLE_SECONDS = (0.002, 0.25)
"""With nothing to read, look again after so long: at first, and at the longest."""
SWEEP_SECONDS = 1.0
"""How often rows are looked for that lie off the fast path."""
AGAIN_SECONDS = (0.2, 5.0)
"""After trouble with the server or the broker, try again after so long: at first, and at the longest."""
STANDBY_SECONDS = 0.25
"""How often a standby asks whether the leader is gone."""


class Mark(msgspec.Struct, omit_defaults=True):
    """What travels with each batch: how far the relay is.

    Attributes:
        mode: ``poll`` or ``cdc``. system, timeline, table: where it read.
        ids: of the rows in the batch. point: a row that was written again from then on is another.
        cursor: by polling, how far the fast path is. lsn, ordinal: by CDC, the last row that was sent. slot, publication: where from.
        ticked: whether rows that were sent are ticked off.
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


class Batch(NamedTuple):
    """Rows as they are to be sent. ids: those to be ticked off. mark: of the relay after it. late: how many are out of order.
    confirm: by CDC, what the server may forget once it was sent."""

    records: list[Record]
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
            except (psycopg.Error, StoreError, BrokerUnavailable, NotAllowed, SlotFenced) as error:
                # A right that was missing from the start is a mistake that somebody looks on to; one that went is given back.
                if not (_passes(error) or (isinstance(error, NotAllowed) and self._led)):
                    raise error if not isinstance(error, psycopg.Error) else explain(error, self.options.url) from error
                said = " ".join(str(error).split())
                if self.progress.trouble != said:
                    self.progress.trouble = said
                    self._tell("trouble", {"error": said})
                pause = AGAIN_SECONDS[0] if self.progress.batches > before else min(pause * 2, AGAIN_SECONDS[1])
                self._stopping.wait(pause)
            finally:
                self.progress.leading = False

    def look(self) -> OutboxTable:
        """Whether the database and the table are what they should be, before anything is waited for."""
        with reading(self.options.url, self.options.name) as conn:
            table = self.table(conn)
        if not table.marks and self.options.mode == "poll":
            raise ConfigurationError(
                f"{table.name} has no column that says what was sent; name one with --columns published=…, or let rows be deleted with"
                " --after delete"
            )
        return table

    def _stand(self) -> None:
        """Wait for the lead, then lead until something breaks."""
        leader = Leader(self.options.url, self.options.name, lease=self.options.lease)
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
        here = server(leader.conn)
        if here.standby:
            raise StoreFailed("this server is a standby (in recovery), where rows can't be ticked off; give the primary's address")
        table = self.table(leader.conn)
        slot = self._slot = self.broker.open_slot(options.name, 0, 1, patience=options.lease)
        if self.stopping:
            slot.give_up()
        source: Source | None = None
        try:
            mark = self._agree(slot.mark, here.id, here.timeline, table, leader)
            record = recorder(options.layout, options.source or f"{here.database}/{table.name}")
            source = self._source(table, record, mark, leader, slot)
            self._led = True
            self.progress.leading, self.progress.trouble = True, None
            self._tell(
                "leading",
                {"relay": options.name, "table": table.name, "mode": options.mode, "advice": table.advice, "pooled": table.pooled},
            )
            self._send(slot, source, table, leader)
        finally:
            if source is not None:
                source.close()
            self._slot = None
            slot.close()

    def table(self, conn: psycopg.Connection[Any]) -> OutboxTable:
        """The table, looked at. Raises StoreError: it is no such outbox."""
        layout, after = self.options.layout, self.options.after
        return OutboxTable(
            conn,
            self.options.table,
            id=layout.id,
            columns=layout.columns,
            published=None if after == "nothing" else layout.published,
            time=layout.time,
            deletes=after == "delete",
        )

    # -- what was left

    def _agree(self, raw: bytes | None, system: str, timeline: int, table: OutboxTable, leader: Leader) -> Mark:
        """The mark to go on from, once what it says was sent has been ticked off."""
        fresh = Mark(self.options.mode, system, timeline, table.oid)
        if raw is None:
            return fresh
        try:
            mark = msgspec.json.decode(raw, type=Mark)
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"the broker's mark of the relay {self.options.name!r} is not an outbox relay's; take another --name"
            ) from error
        if (mark.system, mark.timeline, mark.table) != (system, timeline, table.oid):
            answer, self.options.resume_from = self.options.resume_from, None
            if answer is None:
                raise StoreFailed(
                    f"the relay {self.options.name!r} last read another database or table, or this one before a failover or a restore,"
                    " where rows that were sent may have lost their tick: look at those without one, then give --resume-from table to send"
                    " them all, or --resume-from broker to go on behind what was sent last"
                )
            if answer == "table":
                return fresh
            mark.system, mark.timeline, mark.table = system, timeline, table.oid
        if mark.mode != self.options.mode and not mark.ticked and self.options.resume_from != "table":
            raise StoreFailed(
                f"the relay {self.options.name!r} has run by CDC without ticking rows off, so polling can't tell what was sent. Tick those"
                " rows off yourself, then give --resume-from table to send the others"
            )
        if mark.ids:
            again = table.tick(leader.conn, mark.ids, before=mark.point)
            if again:
                self.note(f"{again} rows had been sent and not ticked off; they are now", rows=again)
        return mark

    # -- sending

    def _source(self, table: OutboxTable, record: Recorder, mark: Mark, leader: Leader, slot: Slot) -> Source:
        if self.options.mode == "poll":
            if mark.slot and forget_slot(leader.conn, mark.slot):
                self.note(f"dropped the replication slot {mark.slot}: the relay polls now, and a slot that nobody reads keeps WAL")
            return Polling(self.options, table, record, mark, self.unsendable)
        from .cdc import Changes

        return Changes(self, table, record, mark, leader, slot)

    def _send(self, slot: Slot, source: Source, table: OutboxTable, leader: Leader) -> None:
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
            self.tick(table, leader, batch.ids)
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

    def tick(self, table: OutboxTable, leader: Leader, ids: Sequence[str]) -> None:
        """Tick rows off, however long the application's locks keep it waiting: nothing is sent before."""
        while True:
            try:
                table.tick(leader.conn, ids)
                return
            except psycopg.Error as error:
                if is_lost(error) or not is_busy(error):
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


def weight(row: Sequence[bytes | None]) -> int:
    """Bytes that a row's record takes, more or less."""
    return 300 + sum([len(cell) for cell in row if cell])


def _id(record: Record) -> str:
    return next((raw.decode(errors="replace") for name, raw in record.headers if name in ("ce_id", "id")), "?")


def _passes(error: BaseException) -> bool:
    """Whether it is trouble that ends by itself."""
    if isinstance(error, (BrokerUnavailable, SlotFenced)):
        return True
    return is_busy(error)


class Threaded:
    """A source's thread and what it hands over: a queue of a few batches, and the error that it ended with."""

    def __init__(self, name: str) -> None:
        self._batches: queue.Queue[Batch] = queue.Queue(DEPTH)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._open = 0  # batches that were read and are not ticked off
        self._lock = threading.Condition()
        self._thread = threading.Thread(target=self._main, name=f"tidings-{name}", daemon=True)

    def take(self, seconds: float) -> Batch | None:
        try:
            return self._batches.get(timeout=0 if self._failure is not None or not self._thread.is_alive() else seconds)
        except queue.Empty:
            pass
        if self._failure is not None:
            raise self._failure  # with its cause, which says whether waiting helps
        return None

    def sent(self, batch: Batch) -> None:
        with self._lock:
            self._open -= 1
            self._lock.notify_all()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            self._lock.notify_all()
        while self._thread.is_alive():  # it may be waiting for room
            try:
                self._batches.get_nowait()
            except queue.Empty:
                pass
            self._thread.join(0.01)

    def _main(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self._failure = error

    def _read(self) -> None:
        raise NotImplementedError

    def _give(self, batch: Batch) -> bool:
        """Hand it over; False if it is no longer wanted."""
        with self._lock:
            self._open += 1
        while not self._stop.is_set():
            try:
                self._batches.put(batch, timeout=0.1)
                return True
            except queue.Full:
                continue
        with self._lock:
            self._open -= 1
        return False

    def _settled(self) -> bool:
        """Wait until all that was read has been ticked off; False if that is no longer wanted."""
        with self._lock:
            while self._open and not self._stop.is_set():
                self._lock.wait(0.2)
        return not self._stop.is_set()


class Polling(Threaded):
    """Reads the table itself: ahead of a cursor, and by sweeps what lies off that path.

    Rows ahead may be read while others are being sent. A sweep looks for rows without a tick, and those that are on their way have none
    either: so it waits until everything that was read is ticked off.
    """

    def __init__(self, options: Options, table: OutboxTable, record: Recorder, mark: Mark, unsendable: Callable[[str, str], None]) -> None:
        super().__init__("outbox")
        self._url = options.url
        self._name = options.name
        self._table = table
        self._record = record
        self._mark = mark
        self._unsendable = unsendable
        self._rows = options.batch
        self._most = min(256, options.batch)  # until the size of rows is known
        self._cursor: str | None = mark.cursor if mark.mode == "poll" else None
        self._from = ""  # where the next look through the rows behind the cursor begins
        self._thread.start()

    def _read(self) -> None:
        with reading(self._url, self._name) as conn:
            table = self._table
            horizon = Horizon(table.oid, table.sequence) if table.sequence is not None else None
            pause, swept, more = IDLE_SECONDS[0], 0.0, False
            while not self._stop.is_set():
                rows: list[list[bytes | None]] = []
                if horizon is not None:
                    safe = horizon.observe(conn)
                    if self._cursor is None or int(self._cursor) < safe:
                        rows = table.ahead(conn, self._cursor, safe, self._most)
                    if not rows and (self._cursor is None or int(self._cursor) < safe):
                        self._cursor = str(safe)  # nothing below has been left without a tick
                if rows:
                    self._cursor = (rows[-1][0] or b"").decode()
                    self._hand(conn, rows, late=False)
                    pause = IDLE_SECONDS[0]
                elif horizon is None or more or time.monotonic() - swept >= SWEEP_SECONDS:
                    if not self._settled():
                        return
                    more = self._sweep(conn, horizon)
                    swept = time.monotonic()
                if rows or more:
                    if time.monotonic() - swept < SWEEP_SECONDS or not self._settled():
                        continue
                    more = self._sweep(conn, horizon)
                    swept = time.monotonic()
                    continue
                self._stop.wait(pause)
                pause = min(pause * 1.5, IDLE_SECONDS[1])

    def _sweep(self, conn: psycopg.Connection[Any], horizon: Horizon | None) -> bool:
        """Send what lies off the fast path; whether there may be more of it."""
        table = self._table
        if horizon is None:
            ids = table.unordered(conn, self._most)
        else:
            ids = table.beyond(conn, horizon, self._most)
            if self._cursor is not None and table.indexed:
                ids = [*table.behind(conn, self._cursor, self._most), *ids]
            elif self._cursor is not None:
                last, behind = table.window(conn, self._from or _LEAST[table.id_type], self._cursor)
                self._from = behind[self._most - 1] if len(behind) > self._most else last or ""
                ids = [*behind[: self._most], *ids]
        if not ids:
            return False
        rows = table.these(conn, ids)
        if not rows:
            return False
        self._hand(conn, rows, late=table.ordered)
        return self._settled()

    def _hand(self, conn: psycopg.Connection[Any], rows: list[list[bytes | None]], *, late: bool) -> None:
        """Make a batch of rows, or several if they are large. Nothing leaves that a crash of the server would take back."""
        flush(conn)
        point = self._table.now(conn)
        records: list[Record] = []
        ids: list[str] = []
        total = 0
        ordered = self._table.ordered
        for row in rows:
            id = row[0] or b""
            try:
                record = self._record(row, id.zfill(20) if ordered else None, None, late)
            except Unsendable as error:
                self._unsendable(error.id, str(error))
            else:
                records.append(record)
                total += weight(row)
            ids.append(id.decode())
            if total > BATCH_BYTES:
                self._give(self._batch(records, ids, point, late))
                self._most = max(16, len(ids) // 2)
                records, ids, total = [], [], 0
        if ids:
            self._give(self._batch(records, ids, point, late))
        average = (total + 1) // max(1, len(records))
        self._most = max(16, min(self._rows, self._most * 2, BATCH_BYTES // (average + 1)))

    def _batch(self, records: list[Record], ids: list[str], point: int, late: bool) -> Batch:
        cursor = self._cursor if late else ids[-1] if self._table.ordered else None
        mark = Mark(
            "poll",
            self._mark.system,
            self._mark.timeline,
            self._table.oid,
            ids=ids if self._table.marks else [],
            point=point,
            cursor=cursor,
        )
        return Batch(records, ids, mark, len(records) if late else 0)


_LEAST = {"smallint": "-32768", "integer": "-2147483648", "bigint": "-9223372036854775808"}

__all__ = ["Batch", "Mark", "Options", "OutboxRelay", "Polling", "Progress", "Source", "Threaded", "TidingsError"]
