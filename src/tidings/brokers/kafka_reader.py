"""Reading from Apache Kafka, over confluent-kafka's consumer.

The group only shares the partitions out among processes. Offsets are the caller's: none is ever committed to Kafka or asked of it, and
``auto.offset.reset=error`` keeps librdkafka from going anywhere else by itself (it would jump to the end of a topic that was made anew).
Groups use the protocol of KIP-848 where the broker has it, and cooperative-sticky assignment otherwise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BrokerUnavailable, NotAllowed, OffsetLost
from .kafka_rights import Right, lacks
from .port import Partition, Range, Received

if TYPE_CHECKING:
    from .kafka import KafkaBroker

log = logging.getLogger("tidings.broker")

SECONDS = 10.0
"""So long an answer may take."""

_READING = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
    "queued.max.messages.kbytes": 16_384,  # what waits in memory, all partitions together
    "topic.metadata.refresh.interval.ms": 10_000,
}
_NEW_GROUPS = {"group.protocol": "consumer"}
_OLD_GROUPS = {"group.protocol": "classic", "partition.assignment.strategy": "cooperative-sticky"}


_new = tuple.__new__


class KafkaReader:
    """``Reader`` over confluent-kafka's Consumer.

    Args:
        broker: whose settings are any client's; they may not set what ``_READING`` does.
    """

    def __init__(
        self,
        broker: KafkaBroker,
        group: str,
        topics: Sequence[str],
        assigned: Callable[[Sequence[Partition]], Mapping[Partition, int]],
        revoked: Callable[[Sequence[Partition]], None],
    ) -> None:
        self.trouble: str | None = None
        self._broker = broker
        self._group = group
        self._topics = list(topics)
        self._assigned = assigned
        self._revoked = revoked
        self._raised: BaseException | None = None
        self._refused: str | None = None
        self._lost: list[OffsetLost] = []
        self._reached: dict[Partition, int] = {}
        self._ours: set[Partition] = set()
        self._consumer = self._join(_OLD_GROUPS if "group.protocol" in broker.settings else _NEW_GROUPS)

    def _join(self, protocol: Mapping[str, Any]) -> Any:
        from confluent_kafka import Consumer

        from .kafka import _made

        given = {**protocol, **self._broker.settings, **_READING, "group.id": self._group, "error_cb": self._on_error}
        consumer = _made(Consumer, given)
        consumer.subscribe(self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)
        return consumer

    # -- reading

    def poll(self, most: int, seconds: float) -> list[Received]:
        # Not consume(most, seconds): that waits for so many, or for all of the time.
        first = self._consumer.poll(seconds)
        found = [] if first is None else [first, *self._consumer.consume(most - 1, 0)] if most > 1 else [first]
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        ours = self._ours
        records = [
            _new(Received, (one.topic(), one.partition(), one.offset(), one.key(), one.value(), one.headers() or (), one.timestamp()[1]))
            for one in found
            if (one.error() is None or self._on_trouble(one)) and (one.topic(), one.partition()) in ours
        ]
        if records:
            self.trouble = self._refused = None
        elif self._lost:
            raise self._lost.pop(0)
        return records

    def reached(self) -> Mapping[Partition, int]:
        reached, self._reached = self._reached, {}
        return reached

    def ends(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        from confluent_kafka import TopicPartition

        known = {one: self._consumer.get_watermark_offsets(TopicPartition(*one), cached=True) for one in partitions}
        return {one: marks[1] for one, marks in known.items() if marks is not None and marks[1] >= 0}

    def close(self) -> None:
        self._consumer.close()
        self._raised = None

    # -- what the broker says

    def _on_trouble(self, told: Any) -> bool:
        """Always False: it is no record."""
        from confluent_kafka import KafkaError

        error, code = told.error(), told.error().code()
        if code == KafkaError._PARTITION_EOF:
            self._reached[Partition(told.topic(), told.partition())] = told.offset()
            self.trouble = None
        elif code == KafkaError._AUTO_OFFSET_RESET:
            self._stop(Partition(told.topic(), told.partition()), told.offset())
        elif code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
            if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
                right = Right(("Read",), "group", (self._group,))
            else:
                right = Right(("Read",), "topic", (told.topic(),) if told.topic() else self._topics)
            raise NotAllowed(lacks(self._broker.label, self._broker.settings, right), said=error.str())
        elif code == KafkaError._FATAL:
            if "not supported" in error.str() and self._consumer is not None and not self._ours:
                log.info("the broker knows the classic protocol for groups only")
                self._consumer.close()
                self._consumer = self._join(_OLD_GROUPS)
            else:
                raise BrokerUnavailable(f"reading from the broker failed: {error.str()}", said=error.str())
        elif code == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self.trouble = f"there is no topic {told.topic()} yet; it is read once it is there"
        elif code != KafkaError._MAX_POLL_EXCEEDED:  # that one joins again by itself
            self.trouble = error.str()
        return False

    def _stop(self, partition: Partition, offset: int) -> None:
        """Not by giving it up: the group would find it given back that it had not asked for."""
        from confluent_kafka import TopicPartition

        if partition in self._ours:
            self._consumer.pause([TopicPartition(*partition)])
            self._ours.discard(partition)
            self._lost.append(
                OffsetLost(
                    f"{partition.topic}/{partition.partition} has no offset {offset} any more",
                    topic=partition.topic,
                    partition=partition.partition,
                    offset=offset,
                )
            )

    def _on_error(self, error: Any) -> None:
        """What concerns no partition: connections that fail. librdkafka goes on trying."""
        from confluent_kafka import KafkaError

        refused = self._broker.refusal(error)
        if refused is not None and refused != self._refused:
            log.warning("%s", refused)
        if refused is not None:
            self._refused = self.trouble = refused
        elif error.code() != KafkaError._ALL_BROKERS_DOWN or self._refused is None:
            self.trouble = error.str()

    def _on_assign(self, consumer: Any, given: Sequence[Any]) -> None:
        from confluent_kafka import OFFSET_END, TopicPartition

        offsets: Mapping[Partition, int] = {}
        try:
            if given:
                offsets = self._assigned([Partition(one.topic, one.partition) for one in given])
        except BaseException as error:  # it would be lost in librdkafka
            self._raised = error
        self._ours |= set(offsets)
        ours = [Partition(one.topic, one.partition) for one in given]
        partitions = [TopicPartition(*one, offsets.get(one, OFFSET_END)) for one in ours]
        consumer.incremental_assign(partitions)
        if left := [one for one in partitions if one.offset == OFFSET_END]:
            consumer.pause(left)

    def _on_revoke(self, consumer: Any, taken: Sequence[Any]) -> None:
        gone = [Partition(one.topic, one.partition) for one in taken]
        try:
            self._revoked(gone)
        except BaseException as error:
            self._raised = error
        self._ours -= set(gone)
        consumer.incremental_unassign(taken)


def ranges(admin: Any, partitions: Sequence[Partition], answer: Callable[..., Any]) -> Mapping[Partition, Range]:
    """What they still have, of what is committed. ``answer``: waits for one of the admin's."""
    from confluent_kafka import IsolationLevel, TopicPartition
    from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

    from .kafka import is_leaderless

    until = time.monotonic() + SECONDS

    def ask(which: Any) -> dict[Partition, int]:
        found: dict[Partition, int] = {}
        while left := [one for one in partitions if one not in found]:
            wanted = {TopicPartition(*one): which for one in left}
            asked = admin.list_offsets(wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=SECONDS)
            for one, future in asked.items():
                try:
                    told = answer(future, f"what {one.topic}/{one.partition} holds", Right(("Describe",), "topic", (one.topic,)))
                    found[Partition(one.topic, one.partition)] = told.offset
                except BrokerUnavailable as error:
                    if not is_leaderless(error.__cause__) or time.monotonic() > until:
                        raise
            if len(found) < len(partitions):
                time.sleep(0.02)
        return found

    if not partitions:
        return {}
    first, end = ask(OffsetSpec.earliest()), ask(OffsetSpec.latest())  # type: ignore[no-untyped-call]
    return {one: Range(first[one], end[one]) for one in partitions}
