"""The intake: events of other services, from a broker into this log.

One thread owns a reader of the broker: it takes what came, and makes events of it. Another writes them together with how far it has read,
in one transaction, while the first reads on: one batch is made while the one before it is written, and no more than that. What a batch
says of offsets and marks is fixed as it is handed over. The offsets in the store are the truth, and move only from where they are
expected to be (``store/intakes.py``): whoever finds one elsewhere has lost the partition, writes nothing, and begins anew from what the
store says. It does so after any trouble: nothing that a failed attempt has left in memory is ever used again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from ..brokers.port import Broker, Partition, Reader, Received, Topic
from ..envelope import Envelope
from ..errors import BrokerUnavailable, ConfigurationError, InvalidEvent, OffsetLost, PartitionTaken, TidingsError
from ..spelling import spelled_options
from ..store.intakes import IntakeUnit, MarkRow, Move, Offset
from ..store.port import Store, Unit
from .formats import Arrival, CloudEvents, Format
from .given import is_count, is_name
from .marks import Marks
from .unread import dead_letter, record_of

log = logging.getLogger("tidings.intake")

POLL_SECONDS = 0.25
LOOK_SECONDS = 3.0
"""Operators' commands are seen, and standing still is written down, at the latest after this time."""
PAUSE = (0.1, 5.0)
"""Seconds before another attempt after trouble: the first, and the longest."""
FORGET = 10
"""The window is cut after each so many-th of its size."""
RETRIED = 100
"""Dead letters in one transaction."""


@spelled_options
@dataclass(frozen=True)
class Intake:
    """What an app takes from its broker.

    Args:
        topics: to be read. Unless given: those of the event types that the app subscribes to and that aren't its own; the first part of a
            type name is the topic.
        formats: how to read the records of a topic that aren't CloudEvents.
        start: where a topic is begun that was never read before: at its ``first`` record, or ``now``.
        batch: records in one transaction, at most.
        window: so many ids are remembered of events that no sequence tells from others.
        name: all processes of one log whose intakes have the same name share the partitions, and each event is taken once.
    """

    topics: Sequence[str] | None = None
    formats: Mapping[str, Format] = field(default_factory=dict)
    start: Literal["first", "now"] = "first"
    batch: int = 2000
    window: int = 100_000
    name: str = "intake"

    def __post_init__(self) -> None:
        if self.start not in ("first", "now"):
            raise ConfigurationError(f'Intake(start={self.start!r}): write "first" or "now"')
        if not is_count(self.batch) or not is_count(self.window):
            raise ConfigurationError(f"Intake(batch={self.batch!r}, window={self.window!r}): at least 1 of each")
        if not is_name(self.name):
            raise ConfigurationError(f"Intake(name={self.name!r}): a name")
        if isinstance(self.topics, str):  # each of its letters would be one
            raise ConfigurationError(f"Intake(topics={self.topics!r}): a list of names, as in [{self.topics!r}]")
        if self.topics is not None and not all(map(is_name, self.topics)):
            raise ConfigurationError(f"Intake(topics={list(self.topics)!r}): names of topics")
        for topic, one in self.formats.items():
            if not callable(getattr(one, "read", None)) or isinstance(one, type):
                raise ConfigurationError(
                    f"Intake(formats={{{topic!r}: …}}): {one!r} is no format; write CloudEvents(), DebeziumOutbox(…), PlainJSON(…), or an"
                    " object with read(record, topic_id)"
                )

    def topics_of(self, app: str, own_topic: str, types: Collection[str]) -> list[str]:
        """What to read for an app that subscribes to these types."""
        if self.topics is not None:
            return sorted(set(self.topics))
        return sorted({name.rpartition(".")[0].partition(".")[0] for name in types if "." in name} - {app, own_topic} | set(self.formats))


@dataclass
class _Part:
    """A partition that this process reads. ``next``: what is to be read next; ``handed``: as far as what was handed over to be written
    says, which comes after all that was handed over before."""

    topic_id: str
    next: int
    handed: int
    marks: Marks
    end: int
    reached: int = 0

    def move(self, one: Partition) -> Move:
        """What the store is to be told, once."""
        move = Move(*one, self.topic_id, self.handed, self.next, max(self.end, self.next), self.reached * 1000)
        self.handed = self.next
        return move


@dataclass
class _Batch:
    """What becomes of some records. ``doubtful``: digests of events, by their index, of which the store must say whether they are new.

    ``moves`` and ``marks``: from ``close`` on, how far it brings the partitions; what is read later doesn't change it."""

    records: Sequence[Received] = ()
    events: list[Envelope] = field(default_factory=list)
    doubtful: dict[int, bytes] = field(default_factory=dict)
    unread: list[tuple[Received, str]] = field(default_factory=list)
    parts: dict[Partition, _Part] = field(default_factory=dict)
    dropped: int = 0
    moves: list[Move] = field(default_factory=list)
    marks: list[MarkRow] = field(default_factory=list)

    def close(self) -> None:
        self.moves = [part.move(one) for one, part in self.parts.items()]
        self.marks = [row for part in self.parts.values() for row in part.marks.changed()]


class _Refused(PartitionTaken):
    def __init__(self, records: int, error: BaseException) -> None:
        super().__init__(f"the store refuses one of {records} records, so they are taken one by one: {error}")
        self.records = records


class RunningIntake:
    """An intake at work, in a thread of its own from ``start`` to ``stop``.

    Args:
        topics: that are read. own: names of apps whose events come from here. worker: who this process is, for ``status``.

    Attributes:
        group: of the processes that share the partitions: those of one log, so that each of two logs is given everything.
        trouble: why nothing is taken; None if all is well. taken, dropped, unread: events since the start, those that were dropped since
            they were here already, records that couldn't be read.
    """

    def __init__(
        self, options: Intake, store: Store, broker: Broker, app: str, topics: Sequence[str], worker: str, own: Collection[str]
    ) -> None:
        self.options = options
        self.name = options.name
        self.group = f"tidings.{store.log_id}.{options.name}"
        self.topics = tuple(topics)
        self.trouble: str | None = None
        self.taken = self.dropped = self.unread = 0
        self._store = store
        self._broker = broker
        self._app = app
        self._worker = worker
        self._own = frozenset(own)
        self._formats: dict[str, Format] = {topic: options.formats.get(topic) or CloudEvents() for topic in topics}
        self._given: set[Partition] = set()
        self._parts: dict[Partition, _Part] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="tidings-intake-asks")
        self._asked: Future[Mapping[str, Topic]] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="tidings-intake-writes")
        self._written: Future[None] | None = None
        self._control = -1
        self._looked = 0.0
        self._told: set[Partition] | None = None
        self._remembered = 0
        self._careful = 0

    @property
    def behind(self) -> int:
        """Records in its partitions that it has not read, as far as it knows their ends."""
        return sum(max(0, part.end - part.next) for part in list(self._parts.values()))

    # -- lifecycle

    def start(self) -> None:
        """Make the intake known and begin. Raises StoreError."""
        now = self._now()
        self._store.write(lambda unit: unit.intake(self.name).register(self._app, self._broker.label, now)).result()
        self._thread = threading.Thread(target=self._run, name="tidings-intake", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after what is under way, and leave the group. Blocks."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._asking.shutdown(wait=False)
        self._writer.shutdown(wait=False)

    def _run(self) -> None:
        pause, longest = PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._session()
            except PartitionTaken as error:
                log.info("%s", error)
            except Exception as error:
                if isinstance(error, TidingsError) or self._store.is_busy(error) or self._store.is_lost(error):
                    log.warning("the intake begins anew: %s", error)
                else:
                    log.exception("the intake begins anew")
                self.trouble = str(error)
            if time.monotonic() - began > longest:
                pause = PAUSE[0]
            self._stopping.wait(pause)
            pause = min(longest, pause * 2)
        try:
            self._store.write(lambda unit: unit.intake(self.name).own((), self._worker)).result()
        except TidingsError as error:
            log.info("that this intake has ended could not be written down: %s", error)

    def _session(self) -> None:
        """Read until something is wrong, or is to be begun anew; then all that is in memory goes, with the reader."""
        self._know_nothing()
        with closing(self._broker.reader(self.group, self.topics, self._assigned, self._revoked)) as reader:
            try:
                self._read_on(reader)
            except BaseException:
                if self._written is not None:  # whatever becomes of it, it is over before anything begins anew
                    wait((self._written,))
                    self._written = None
                raise
            self._settle()

    def _read_on(self, reader: Reader) -> None:
        while not self._stopping.is_set():
            try:
                records = reader.poll(1 if self._careful else self.options.batch, POLL_SECONDS)
            except OffsetLost as error:
                self._lost(Partition(error.facts["topic"], error.facts["partition"]))
                continue
            if records:
                self._take(records, reader)
                self._careful = max(0, self._careful - len(records))
            else:
                self._settle()
            for one, offset in reader.reached().items():  # what is not ours to see lies before it: ends of transactions
                if (part := self._parts.get(one)) is not None and part.next < offset:
                    part.next = offset
            if records or self._given or reader.trouble is not None:
                self.trouble = reader.trouble
            if (self._told != self._given or time.monotonic() - self._looked > LOOK_SECONDS) and self._look(reader):
                return

    def _know_nothing(self) -> None:
        self._given.clear()
        self._parts.clear()
        self._told = None

    # -- partitions come and go, in the reader's thread

    def _assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        """Where to begin in each; those left out have something that an operator must decide."""
        topics = self._broker.topics(sorted({one.topic for one in partitions}))
        if missing := {one.topic for one in partitions} - set(topics):
            raise BrokerUnavailable(f"the topic {min(missing)} has just gone; looking again")
        ranges = self._broker.ranges(partitions)
        self._given.update(partitions)

        def begin(unit: Unit) -> dict[Partition, _Part]:
            intake = unit.intake(self.name)
            known = {Partition(row.topic, row.partition): row for row in intake.offsets()}
            begun = {row.topic for row in known.values()}
            found: dict[Partition, _Part] = {}
            for one in partitions:
                topic_id, there, row = topics[one.topic].id, ranges[one], known.get(one)
                if row is None:
                    # A partition that was added to a topic is read from its beginning, wherever the topic was begun.
                    next_ = there.end if self.options.start == "now" and one.topic not in begun else there.first
                    intake.begin(*one, topic_id, next_, there.end)
                elif row.resume is not None:
                    next_ = {"first": there.first, "end": there.end}[row.resume] if not row.resume.isdigit() else int(row.resume)
                    intake.settle(*one, topic_id, next_, there.end)
                elif row.topic_id != topic_id:
                    self._stop(intake, row, _another_topic(row, topic_id))
                    continue
                else:
                    next_ = row.next
                found[one] = _Part(topic_id, next_, next_, Marks(*one, intake.marks(*one)), there.end)
            return found

        found = self._store.write(begin).result()
        self._parts.update(found)
        return {one: part.next for one, part in found.items()}

    def _revoked(self, partitions: Sequence[Partition]) -> None:
        self._settle()
        for one in partitions:
            self._given.discard(one)
            self._parts.pop(one, None)

    def _lost(self, one: Partition) -> None:
        """What is to be read next isn't there any more."""
        self._settle()
        part = self._parts.pop(one, None)
        if part is None:
            return
        there = self._broker.ranges([one])[one]
        if part.next < there.first:
            what = f"offsets {part.next} to {there.first - 1} went before they were read (the topic's retention is too short for that)"
        else:
            what = f"it ends at {there.end}, and was read up to {part.next}: the broker has lost what it had given out"

        def stop(unit: Unit) -> None:
            intake = unit.intake(self.name)
            row = next(row for row in intake.offsets() if (row.topic, row.partition) == one)
            self._stop(intake, row, f"{one.topic}/{one.partition}: {what}; {_RESUME.format(one)}")

        self._store.write(stop).result()

    def _stop(self, intake: IntakeUnit, row: Offset, why: str) -> None:
        if row.trouble != why:
            log.error("%s", why)
            intake.trouble(row.topic, row.partition, why)

    # -- records become events

    def _take(self, records: Sequence[Received], reader: Reader) -> None:
        # Asked now and heard below: the topics that these records came from are still those that they are taken for. One that was made
        # anew under its name between two looks would otherwise be read on as if nothing had happened.
        asked = self._asking.submit(self._broker.topics, sorted({record.topic for record in records}))
        batch = self._sift(records)
        for one, end in reader.ends(batch.parts).items():
            batch.parts[one].end = end
        self._see_same_topics(asked, batch)
        batch.close()
        self._settle()
        self._written = self._writer.submit(self._write, batch)

    def _settle(self) -> None:
        """Wait until all that was handed over is written; raise what prevented it."""
        written, self._written = self._written, None
        if written is not None:
            try:
                written.result()
            except _Refused as error:
                self._careful = error.records
                raise

    def _sift(self, records: Sequence[Received]) -> _Batch:
        """What is new among them, and how far that brings each partition."""
        batch = _Batch(records)
        events, doubtful = batch.events, batch.doubtful
        parts, formats, own, log_id = self._parts, self._formats, self._own, self._store.log_id
        seen: set[bytes] = set()
        one = Partition("", -1)
        part, format_ = parts.get(one), next(iter(formats.values()))
        for record in records:
            if record.partition != one.partition or record.topic != one.topic:  # they come in runs
                one = Partition(record.topic, record.partition)
                part, format_ = parts.get(one), formats[record.topic]
                if part is not None:
                    batch.parts[one] = part
            if part is None or record.offset < part.next:
                continue
            part.next = record.offset + 1
            part.reached = record.time
            arrival = self._read(format_, record, part.topic_id, batch)
            if arrival is None:
                continue
            envelope, origin = arrival
            if envelope.source in own or (origin is not None and origin.log == log_id):
                continue  # it came from here: taking it in would send it round and round
            if origin is None or not origin.in_order:
                digest = digest_of(envelope)
                if digest in seen:
                    batch.dropped += 1
                    continue
                seen.add(digest)
                doubtful[len(events)] = digest
            elif not part.marks.passes(origin):
                batch.dropped += 1
                continue
            events.append(envelope)
        return batch

    def _read(self, format_: Format, record: Received, topic_id: str, batch: _Batch) -> Arrival | None:
        try:
            return format_.read(record, topic_id)
        except InvalidEvent as error:
            batch.unread.append((record, str(error)))
        except Exception as error:  # the user's own function
            batch.unread.append((record, f"{type(error).__name__}: {error}"))
        return None

    def _see_same_topics(self, asked: Future[Mapping[str, Topic]], batch: _Batch) -> None:
        topics = asked.result()
        for one, part in batch.parts.items():
            if one.topic not in topics or topics[one.topic].id != part.topic_id:
                raise PartitionTaken(f"the topic {one.topic} went while it was read")

    def _write(self, batch: _Batch) -> None:
        try:
            self._write_down(batch)
        except Exception as error:
            if not self._store.is_refusal(error):
                raise
            if len(batch.records) > 1:  # each alone, from where the store stands
                raise _Refused(len(batch.records), error) from error
            why = f"the store refuses it: {error}"
            self._write_down(_Batch(batch.records, unread=[(batch.records[0], why)], parts=batch.parts, moves=batch.moves))

    def _write_down(self, batch: _Batch) -> None:
        """Everything in one transaction; the events last, since readers of the log wait for who has written to it."""
        now = self._now()
        events: Sequence[Envelope] = batch.events
        with self._store.transaction() as connection:
            unit = self._store.unit(connection)
            intake = unit.intake(self.name)
            if left := intake.move(batch.moves):
                raise PartitionTaken(f"{left[0][0]}/{left[0][1]} was read on by another process; this one begins anew from there")
            intake.set_marks(batch.marks)
            if batch.doubtful:
                new = intake.unseen(list(batch.doubtful.values()))
                events = [one for at, one in enumerate(events) if at not in batch.doubtful or batch.doubtful[at] in new]
                self._remembered += len(new)
                if self._remembered > self.options.window // FORGET:
                    self._remembered = 0
                    intake.forget(self.options.window)
            for record, why in batch.unread:
                part = batch.parts[Partition(record.topic, record.partition)]
                unit.park(dead_letter(self.name, record, part.topic_id, why, intake.next_dead(), now))
            if events:
                unit.append_many(events)
        self.taken += len(events)
        self.dropped += batch.dropped + len(batch.events) - len(events)
        self.unread += len(batch.unread)

    # -- now and then

    def _look(self, reader: Reader) -> bool:
        """Write down what others may want to know, and see what operators want; whether to begin anew for that."""
        self._looked = time.monotonic()
        self._settle()
        if reader.trouble is not None:
            self._see_if_it_is_over(reader)
        for one, end in reader.ends(self._parts).items():
            self._parts[one].end = max(end, self._parts[one].next)
        quiet = {one: part for one, part in self._parts.items() if part.handed < part.next}
        if quiet or self._told != self._given:
            self._note(quiet)
        control, offsets = self._store.query(lambda unit: (unit.control(), unit.intake(self.name).offsets()))
        if control == self._control:
            return False
        self._control = control
        self._try_again()
        return any(row.resume is not None and (row.topic, row.partition) in self._given for row in offsets)

    def _see_if_it_is_over(self, reader: Reader) -> None:
        """Nothing comes in, and nobody would say that it could."""
        if self._asked is None:
            self._asked = self._asking.submit(self._broker.topics, self.topics)
        elif self._asked.done():
            asked, self._asked = self._asked, None
            if asked.exception() is None and len(asked.result()) == len(self.topics):
                reader.trouble = None

    def _note(self, quiet: Mapping[Partition, _Part]) -> None:
        moves = [part.move(one) for one, part in quiet.items()]
        given = set(self._given)

        def note(unit: Unit) -> list[tuple[str, int]]:
            intake = unit.intake(self.name)
            left = intake.move(moves)
            intake.own(given, self._worker)
            return left

        if left := self._store.write(note).result():
            raise PartitionTaken(f"{left[0][0]}/{left[0][1]} was read on by another process; this one begins anew from there")
        self._told = given

    def _try_again(self) -> None:
        """Dead letters that an operator wants to be read again."""
        if not self._store.query(lambda unit: unit.parked(self.name, ("retry",), 1)):
            return
        now = self._now()
        with self._store.transaction() as connection:
            unit = self._store.unit(connection)
            intake = unit.intake(self.name)
            intake.lock()  # so that no other process tries the same
            for row in unit.parked(self.name, ("retry",), RETRIED):
                record, topic_id = record_of(row)
                batch = _Batch()
                format_ = self._formats.get(record.topic) or CloudEvents()
                arrival = self._read(format_, record, topic_id, batch)
                if batch.unread:
                    unit.park(dead_letter(self.name, record, topic_id, batch.unread[0][1], row.envelope.position, now, row.attempts + 1))
                    continue
                unit.unpark(self.name, row.envelope.position)
                # Later ones of its lane came in meanwhile, so that no mark can tell about it.
                if arrival is not None and intake.unseen([digest_of(arrival.envelope)]):
                    unit.append_many([arrival.envelope])
        self._control = -1  # there may be more of them

    def _now(self) -> int:
        return int(self._store.clock.time() * 1_000_000)


def digest_of(envelope: Envelope) -> bytes:
    """What tells an event from all others (CloudEvents: its source and id), in 16 bytes."""
    return blake2b(f"{len(envelope.source)} {envelope.source}{envelope.event_id}".encode(), digest_size=16).digest()


_RESUME = "`tidings intake resume {0.topic} --partition {0.partition} --from first|end|OFFSET` goes on"


def _another_topic(row: Offset, topic_id: str) -> str:
    return (
        f"{row.topic}/{row.partition}: the topic was deleted and made anew ({row.topic_id} is {topic_id} now), and was read up to offset"
        f" {row.next} before; what came behind that is lost. {_RESUME.format(row)}"
    )
