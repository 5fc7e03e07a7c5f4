"""Apache Kafka, over confluent-kafka (librdkafka): the connection to one cluster. What is imported of it is imported when it is used."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BrokerError, BrokerUnavailable, ConfigurationError, NotAllowed, RecordTooLarge, SlotFenced, TopicMissing
from .port import Partition, Range, Record, Topic, size

if TYPE_CHECKING:
    from .port import Reader, Slot

log = logging.getLogger("tidings.broker")


class _Calm(logging.Filter):
    """librdkafka says of each attempt to connect that it failed, twenty times a second. Once in ten seconds is enough."""

    SECONDS = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, at = record.getMessage().partition(" (after ")[0], time.monotonic()
        if at - self._said.get(text, -self.SECONDS) < self.SECONDS:
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[text] = at
        return True


log.addFilter(_Calm())

SECONDS = 10.0
"""So long an answer may take."""
LARGEST = 1_000_000
"""Bytes of a record that a topic takes unless it says otherwise: what librdkafka sends at most, a little less than Kafka's own limit."""
_MARGIN = 200
"""Bytes that a batch needs around its only record."""


class KafkaBroker:
    """One cluster. Everything here blocks, and may be called from any thread.

    Args:
        address: ``127.0.0.1:9092``, several with commas between them, or ``kafka://`` before it.
        settings: librdkafka's, passed through: ``{"security.protocol": "SASL_SSL", "sasl.username": …}``.
        more: the same as keywords, ``_`` for the dots.

    Raises:
        ConfigurationError: the address is none, or the extra ``kafka`` isn't installed.
    """

    def __init__(self, address: str, settings: Mapping[str, Any] | None = None, **more: Any) -> None:
        bare = address.removeprefix("kafka://").rstrip("/")
        if not bare or "/" in bare or "@" in bare or not all(one.strip() for one in bare.split(",")):
            raise ConfigurationError(
                f"broker={address!r}: write kafka://host:9092, several hosts with commas between them; users and passwords are settings:"
                ' KafkaBroker("host:9092", sasl_username=…)'
            )
        try:
            import confluent_kafka  # noqa: F401
        except ImportError as error:
            raise ConfigurationError("Kafka needs the package confluent-kafka: pip install 'tidings[kafka]'") from error
        self.label = bare
        self._settings: dict[str, Any] = {
            "bootstrap.servers": bare,
            "client.id": "tidings",
            "reconnect.backoff.max.ms": 1000,
            **(settings or {}),
            **{name.replace("_", "."): value for name, value in more.items()},
        }
        self._lock = threading.Lock()
        self._client: Any = None
        self._limits: dict[str, int] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """For any client of this cluster."""
        return self._settings

    def _admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        with self._lock:
            if self._client is None:
                # Kept, since requests that are under way die with it.
                self._client = _made(AdminClient, self._settings)
            return self._client

    # -- topics

    def topics(self, names: Sequence[str]) -> Mapping[str, Topic]:
        from confluent_kafka import KafkaError, KafkaException, TopicCollection

        found = {}
        if not names:
            return {}
        for name, future in self._admin().describe_topics(TopicCollection(list(names)), request_timeout=SECONDS).items():
            try:
                told = future.result()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise explain(error, self.label, f"topic {name}") from error
            found[name] = Topic(name, str(told.topic_id), len(told.partitions))
        return found

    def create(self, topic: str, partitions: int) -> None:
        self.make(topic, partitions, {})

    def make(self, topic: str, partitions: int, config: Mapping[str, str]) -> None:
        """Create a topic with these settings, as often copied as the cluster does unless told otherwise."""
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.cimpl import NewTopic

        future = self._admin().create_topics([NewTopic(topic, partitions, -1, config=dict(config))], request_timeout=SECONDS)[topic]
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise explain(error, self.label, f"topic {topic}") from error

    def fits(self, record: Record) -> bool:
        return size(record) + _MARGIN <= self.limit(record.topic)

    def limit(self, topic: str) -> int:
        """Bytes that a batch of this topic may have. Asked once for each topic; if that isn't allowed, Kafka's own default."""
        return self._limits.get(topic) or self._ask_limit(topic)

    def smallest(self) -> int:
        """Bytes that a batch of any topic may have, of those that were asked for."""
        return min(list(self._limits.values()), default=LARGEST)

    def _ask_limit(self, topic: str) -> int:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin._config import ConfigResource

        most = int(self._settings.get("message.max.bytes", LARGEST))
        wanted = ConfigResource(ConfigResource.Type.TOPIC, topic)
        try:
            config = self._admin().describe_configs([wanted], request_timeout=SECONDS)[wanted].result()
            found = self._limits[topic] = min(most, int(config["max.message.bytes"].value))
            return found
        except KafkaException as error:
            why = explain(error, self.label, f"topic {topic}")
            if isinstance(why, BrokerUnavailable):
                raise why from error
            if isinstance(why, NotAllowed):
                self._limits[topic] = most
            return most

    def forget(self) -> None:
        """Ask again how large records may be: somebody may have changed it."""
        self._limits.clear()

    # -- sending

    def open_slot(self, relay: str, slot: int, slots: int, *, together: bool = True, patience: float = 10.0) -> Slot:
        from .kafka_slot import OneByOne, Transactional

        return Transactional(self, relay, slot, slots, patience) if together else OneByOne(self, patience)

    # -- reading

    def ranges(self, partitions: Sequence[Partition]) -> Mapping[Partition, Range]:
        from .kafka_reader import ranges

        return ranges(self._admin(), partitions)

    def reader(
        self,
        group: str,
        topics: Sequence[str],
        assigned: Callable[[Sequence[Partition]], Mapping[Partition, int]],
        revoked: Callable[[Sequence[Partition]], None],
    ) -> Reader:
        from .kafka_reader import KafkaReader

        return KafkaReader(self._settings, group, topics, assigned, revoked)

    def close(self) -> None:
        with self._lock:
            self._client = None


def _made(client: Any, settings: Mapping[str, Any]) -> Any:
    """A client with these settings, its own words going to our log. Raises ConfigurationError for a setting that doesn't exist."""
    from confluent_kafka import KafkaException

    try:
        return client({**settings, "logger": log})
    except (KafkaException, ValueError, TypeError) as error:
        said = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise ConfigurationError(f"a setting of the broker {settings['bootstrap.servers']} can't be: {said}") from error


def explain(error: Any, label: str, what: str) -> BrokerError:
    """A KafkaException in words that name the fix."""
    from confluent_kafka import KafkaError

    told = error.args[0]
    code, said = told.code(), told.str()
    if code in {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}:
        return SlotFenced(f"{label}, {what}: somebody else opened it since, or the broker gave up on us: {said}")
    if code in {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL}:
        return NotAllowed(f"{label}, {what}: the broker doesn't let us in; look at security.protocol, user and password: {said}")
    if code in {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
    }:
        return NotAllowed(f"{label}, {what}: this user lacks a right, see the guide's list for Kafka: {said}")
    if code in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}:
        return TopicMissing(f"{label}, {what}: there is no such topic; create it, or let the relay do so with Relay(partitions=…)")
    if code in {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}:
        return RecordTooLarge(f"{label}, {what}: larger than the topic takes (max.message.bytes): {said}")
    return BrokerUnavailable(f"{label}, {what}: {said}")
