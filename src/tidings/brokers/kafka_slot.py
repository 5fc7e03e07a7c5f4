"""A relay's slot on Kafka: one transactional id, and a partition of a compacted topic that only this id writes.

Sending is one transaction of the events and of a record that says how far the relay has come. Whoever opens the slot calls
``init_transactions`` first, which ends whatever its predecessor had begun and shuts him out; only then it reads the position, so nobody
can move it any more. The partition is nobody else's: shared, an open transaction of another slot would hide the position from those who
read what is committed.

Rules that were paid for:

- *A producer is closed on every path, and empty by then.* The client frees the text of a fatal error as it ends, and once more if an answer
  comes while it does: one that was fenced and is dropped, or closed, with records in transit kills the process. So what is left in it is
  purged, and nothing is closed before it is gone. Neither ``close()`` nor one ``flush()`` waits for that: the first of them that hears of
  the fatal error stops there. A thread of its own does it, for closing may wait for a broker that is away.
- *Nothing is aborted.* After any error but a time-out, and after any exception of ``produce``, the producer is closed and the slot opened
  anew: a partly filled transaction would otherwise commit with the next.
- *A commit that timed out is only ever committed again.*
- *No delivery callbacks* in a transaction: one that raises surfaces after the commit. A record that failed fails the commit.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BrokerUnavailable, NotAllowed, RecordTooLarge, SlotFenced, TopicMissing
from .kafka_rights import Right
from .port import Record

if TYPE_CHECKING:
    from .kafka import KafkaBroker

log = logging.getLogger("tidings.broker")

CLOSE_SECONDS = 2.0
"""So long closing is waited for; behind that it goes on by itself."""
EMPTY_SECONDS = 10.0
"""So long what was purged is waited for before a producer is closed; its threads take milliseconds."""
SLICE = 1.0
"""Seconds of one try to commit; between two of them ``give_up`` is looked at."""
OPEN_SECONDS = 10.0
"""So long the broker may take to end what the predecessor had begun."""
TAIL = 64
"""So many offsets before the end of the partition are read first; transactions' own markers take offsets too."""

_POSITIONS = {
    "cleanup.policy": "compact",
    "segment.ms": "3600000",
    "segment.bytes": "16777216",
    "min.cleanable.dirty.ratio": "0.1",
    "max.compaction.lag.ms": "86400000",
}

_PRODUCING: dict[str, Any] = {
    "partitioner": "murmur2_random",  # the Java client's own
    "enable.idempotence": True,
    "linger.ms": 0.5,
    "batch.size": 262_144,
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 262_144,
    "allow.auto.create.topics": False,
    "topic.metadata.propagation.max.ms": 5000,
}


class _Sending:
    """What both ways of sending share: a producer, closed on every path, and the topics that it knows."""

    def __init__(self, broker: KafkaBroker, settings: dict[str, Any]) -> None:
        self._broker = broker
        self._settings = settings
        self._producer: Any = None
        self._batch = 0
        self._known: set[str] = set()
        self._refused: str | None = None
        self._given_up = False

    def _make(self) -> Any:
        """A new producer, whose batches are no larger than the smallest of the topics known so far takes. (A single record may be.)"""
        from confluent_kafka import Producer

        from .kafka import _made

        batch = int(self._broker.settings.get("batch.size", _PRODUCING["batch.size"]))
        self._batch = min(batch, self._broker.smallest())
        self._refused = None
        given = {**_PRODUCING, **self._broker.settings, **self._settings, "batch.size": self._batch, "error_cb": self._on_error}
        self._producer = _made(Producer, given)
        return self._producer

    def _on_error(self, error: Any) -> None:
        """Of connections; librdkafka goes on trying. Called while it is polled."""
        self._refused = self._broker.refusal(error) or self._refused

    def _see_if_refused(self) -> None:
        """After something took too long."""
        if self._refused is not None:
            raise NotAllowed(self._refused)

    def _may_not(self, error: Any, topics: Collection[str]) -> Right | None:
        """The right that sending lacked, if it was one to write: the broker's answer doesn't say to which topic."""
        from confluent_kafka import KafkaError

        # The cluster's: an idempotent producer is refused at its beginning, if it may write to no topic at all.
        if error.code() not in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
            return None
        return Right(("Write",), "topic", self._broker.unwritable(topics) or sorted(topics))

    def _check(self, records: Sequence[Record]) -> None:
        """Before anything is sent: the topics exist, and each record fits."""
        new = {record.topic for record in records} - self._known
        if new:
            there = self._broker.topics(sorted(new))
            for topic in sorted(new):
                if topic not in there:
                    raise TopicMissing(
                        f"{self._broker.label} has no topic {topic}; create it, or let the relay do so with Relay(partitions=…)",
                        topic=topic,
                    )
            if min(map(self._broker.limit, new)) < self._batch:
                raise SlotFenced(f"{self._broker.label}: a topic takes smaller batches than we make; the slot has to be opened anew")
            self._known |= new
        enough = self._broker.smallest() // 2
        for record in records:
            if len(record.value or b"") > enough and not self._broker.fits(record):
                raise RecordTooLarge(f"a record of {len(record.value or b''):,} bytes is more than the topic {record.topic} takes")

    def give_up(self) -> None:
        self._given_up = True

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            closing = threading.Thread(target=_closed, args=(producer, self._broker.label), name="tidings-closing", daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)


def _closed(producer: Any, label: str) -> None:
    """Close it, however long that takes: with a transaction open it asks the broker, and waits for one that doesn't answer."""
    from confluent_kafka import KafkaException

    until = time.monotonic() + EMPTY_SECONDS
    while len(producer) and time.monotonic() < until:
        try:
            producer.flush(0.1)
        except KafkaException as error:  # told to whoever polls first, and once
            log.debug("emptying a producer of %s: %s", label, error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it could not abort is no news
        try:
            producer.close()
        except Exception as error:  # it is closed all the same
            log.debug("closing a producer of %s: %s", label, error)


def _real(producer: Any, error: Any) -> Any:
    """What is behind an error that says only that the producer has come to its end: it is told to who polls."""
    from confluent_kafka import KafkaError, KafkaException

    if error.args[0].code() == KafkaError._FATAL:
        try:
            producer.poll(0)
        except KafkaException as real:
            return real
    return error


class Transactional(_Sending):
    """``Slot`` with the position in the same transaction as the events."""

    together = True

    def __init__(self, broker: KafkaBroker, relay: str, slot: int, slots: int, patience: float) -> None:
        name = f"tidings-{relay}-{slots}"
        super().__init__(
            broker,
            {
                "transactional.id": (ours := f"{name}-{slot}"),
                "transaction.timeout.ms": max(1000, int(patience * 1000)),
            },
        )
        self._positions, self._slot, self._slots = name, slot, slots
        self._id = Right(("Write", "Describe"), "transactional id", (ours,))
        self._key = str(slot).encode()
        self._what = f"slot {slot} of {name}"
        self.mark: bytes | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        there = self._broker.topics([self._positions]).get(self._positions)
        if there is None:
            self._broker.make(self._positions, self._slots, _POSITIONS)
        self._make()
        self.mark = self._read_mark()

    def _make(self) -> Any:
        producer = super()._make()
        self._call(producer.init_transactions, OPEN_SECONDS)
        return producer

    def send(self, records: Sequence[Record], mark: bytes) -> None:
        self._check(records)
        producer = self._producer
        if producer is None:
            raise BrokerUnavailable(f"{self._broker.label}, {self._what}: it was closed")
        try:
            self._call(producer.begin_transaction)
            self._fill(producer, records, mark)
            self._commit(producer, records)
        except BaseException:
            self.close()
            raise
        self.mark = mark

    def _fill(self, producer: Any, records: Sequence[Record], mark: bytes) -> None:
        from confluent_kafka import KafkaException

        produce = producer.produce
        try:
            for topic, key, value, headers, when in records:
                produce(topic, value, key, -1, None, None, when, headers)
            produce(self._positions, mark, self._key, self._slot)
            producer.poll(0)
        except KafkaException as error:
            raise self._explain(error) from error
        except BufferError as error:
            raise BrokerUnavailable(f"{self._broker.label}, {self._what}: too much waits to be sent: {error}") from error

    def _commit(self, producer: Any, records: Sequence[Record] = ()) -> None:
        from confluent_kafka import KafkaError, KafkaException

        while True:
            try:
                # The client's own wait, inside the commit, looks only each 10 ms when there are no callbacks to wake it.
                until = time.monotonic() + SLICE
                while len(producer) and time.monotonic() < until:
                    producer.poll(0.001)
                producer.commit_transaction(SLICE)
                return
            except KafkaException as error:
                told = error.args[0]
                if told.fatal() or told.txn_requires_abort() or not told.retriable():
                    topics = {self._positions, *(record.topic for record in records)}
                    raise self._explain(error, self._may_not(told, topics)) from error
                if told.code() != KafkaError._TIMED_OUT:
                    time.sleep(0.01)
            self._see_if_refused()
            if self._given_up:
                raise BrokerUnavailable(f"{self._broker.label}, {self._what}: no answer, and we are to stop")

    def _call(self, method: Any, *arguments: Any) -> None:
        from confluent_kafka import KafkaException

        try:
            method(*arguments)
        except KafkaException as error:
            if error.args[0].retriable():
                self._producer.poll(0)
                self._see_if_refused()
            raise self._explain(error, self._id) from error

    def _explain(self, error: Any, right: Right | None = None) -> Exception:
        from confluent_kafka import KafkaError

        code = error.args[0].code()
        # A transaction that took too long was given up by the broker, with the same words as if somebody else had come.
        if code == KafkaError.INVALID_PRODUCER_ID_MAPPING:
            return SlotFenced(f"{self._broker.label}, {self._what}: the broker gave up on us: {error.args[0].str()}")
        why = self._broker.explain(error, self._what, right)
        if isinstance(why, (TopicMissing, RecordTooLarge)):  # seen too late: something of it was sent
            self._known.clear()
            self._broker.forget()
            return BrokerUnavailable(str(why))
        return why

    def _read_mark(self) -> bytes | None:
        """The last record of the slot's partition that was committed. Nobody writes it now, so its end stands still."""
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        from .kafka import _made

        reading = {
            "group.id": self._positions,  # never joined, and nothing is committed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 50,
        }
        mine = {name: value for name, value in self._broker.settings.items() if name not in {"message.max.bytes", "transactional.id"}}
        consumer = _made(Consumer, {**mine, **reading})
        try:
            partition = TopicPartition(self._positions, self._slot)
            first, end = _range_of(consumer, partition)
            span = TAIL
            while end > first:
                start = max(first, end - span)
                found = self._last(consumer, start, end)
                if found is not None or start == first:
                    return found
                span *= 16
            return None
        except KafkaException as error:
            raise self._explain(error, Right(("Read",), "topic", (self._positions,))) from error
        finally:
            consumer.close()

    def _last(self, consumer: Any, start: int, end: int) -> bytes | None:
        from confluent_kafka import KafkaError, KafkaException, TopicPartition

        from .kafka import SECONDS

        consumer.assign([TopicPartition(self._positions, self._slot, start)])
        until = time.monotonic() + SECONDS
        found: bytes | None = None
        while time.monotonic() < until:
            record = consumer.poll(0.1)
            if record is None:
                continue
            if record.error() is None:
                found = record.value()
            elif record.error().code() == KafkaError._PARTITION_EOF:
                if record.offset() >= end:
                    return found
            elif record.error().code() != KafkaError.GROUP_AUTHORIZATION_FAILED and not record.error().retriable():  # it isn't joined
                raise KafkaException(record.error())
        raise BrokerUnavailable(f"{self._broker.label}, {self._what}: its position could not be read in {SECONDS:.0f} seconds")


def _range_of(consumer: Any, partition: Any) -> tuple[int, int]:
    """First offset, and the one behind the last. A topic that was made a moment ago may not be known everywhere yet."""
    from confluent_kafka import KafkaError, KafkaException

    from .kafka import SECONDS, is_leaderless

    until = time.monotonic() + SECONDS
    new = (KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)
    while True:
        try:
            first, end = consumer.get_watermark_offsets(partition, timeout=SECONDS)
            return first, end
        except KafkaException as error:
            if not (error.args[0].code() in new or is_leaderless(error)) or time.monotonic() > until:
                raise
        time.sleep(0.05)


class OneByOne(_Sending):
    """``Slot`` without a transaction: in order, and none twice by one producer; after a failure they are sent again."""

    together = False
    mark: bytes | None = None

    def __init__(self, broker: KafkaBroker, patience: float) -> None:
        super().__init__(broker, {"message.timeout.ms": max(1000, int(patience * 1000))})
        self._failed: Any = None
        self._make()

    def send(self, records: Sequence[Record], mark: bytes) -> None:
        from confluent_kafka import KafkaException

        self._check(records)
        producer = self._producer
        if producer is None:
            raise BrokerUnavailable(f"{self._broker.label}: the slot was closed")
        self._failed = None
        try:
            try:
                for topic, key, value, headers, when in records:
                    producer.produce(topic, value, key, -1, None, self._delivered, when, headers)
                while producer.flush(SLICE):
                    self._see_if_refused()
                    if self._given_up:
                        raise BrokerUnavailable(f"{self._broker.label}: no answer, and we are to stop")
            except BufferError as error:
                raise BrokerUnavailable(f"{self._broker.label}: too much waits to be sent: {error}") from error
            if self._failed is not None:
                raise KafkaException(self._failed)
        except KafkaException as error:
            real = _real(producer, error)
            self.close()
            right = self._may_not(real.args[0], {record.topic for record in records})
            raise self._broker.explain(real, "sending", right) from error
        except BaseException:
            self.close()
            raise

    def _delivered(self, error: Any, record: Any) -> None:
        if error is not None:
            self._failed = error
