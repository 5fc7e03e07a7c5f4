"""Apache Kafka, over confluent-kafka (librdkafka): the connection to one cluster. What is imported of it is imported when it is used."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BrokerError, BrokerUnavailable, ConfigurationError, NotAllowed, RecordTooLarge, SlotFenced, TopicMissing
from ..urls import label
from . import kafka_rights as rights
from .kafka_rights import Right
from .kafka_settings import hidden, missing_files, surroundings
from .port import Partition, Range, Record, Topic, size

if TYPE_CHECKING:
    from .port import Reader, Slot

log = logging.getLogger("tidings.broker")


class _Calm(logging.Filter):
    """librdkafka says of each attempt to connect that it failed, twenty times a second. Once in ten seconds is enough, and what becomes
    an error of ours is said by that."""

    SECONDS = 10.0
    TOLD = ("ADDPARTS ", "TXNERR ", "FATAL ", "HEARTBEAT ")
    REFUSED = ("SASL authentication error", "SSL handshake failed", "certificate verify failed")

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, at = record.getMessage().partition(" (after ")[0], time.monotonic()
        if text.startswith(self.TOLD) or (text.startswith("FAIL ") and any(words in text for words in self.REFUSED)):
            return log.isEnabledFor(logging.DEBUG)
        if at - self._said.get(text, -self.SECONDS) < self.SECONDS:
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[text] = at
        return True


log.addFilter(_Calm())

SECONDS = 10.0
"""So long an answer may take."""
SEEN_SECONDS = 5.0
"""So long a topic that was made may be unknown to some broker."""
LARGEST = 1_000_000
"""Bytes of a record that a topic takes unless it says otherwise: what librdkafka sends at most, a little less than Kafka's own limit."""
REFUSED_SECONDS = 1.0
"""A connection that isn't let in is waited for so long: another of the brokers may let us in."""
FORBIDDEN = {29: "topic", 30: "group", 31: "cluster", 53: "transactional id"}
"""Kafka's numbers of its answers for a right that is missing, and on what."""
_MARGIN = 200
"""Bytes that a batch needs around its only record."""


class KafkaBroker:
    """One cluster. Everything here blocks, and may be called from any thread.

    Args:
        address: ``127.0.0.1:9092``, several with commas between them, or ``kafka://`` before it.
        settings: librdkafka's, passed through: ``{"security.protocol": "SASL_SSL", "sasl.username": …}``.
        file: with further ones, ``sasl.password=…`` in each line; unless given, the one that TIDINGS_KAFKA_SETTINGS names.
        more: the same as keywords, ``_`` for the dots.

    What is not given here may be in the environment: TIDINGS_KAFKA_SASL_PASSWORD is ``sasl.password``.

    Raises:
        ConfigurationError: the address is none, the file can't be read, or the extra ``kafka`` isn't installed.
    """

    def __init__(self, address: str, settings: Mapping[str, Any] | None = None, *, file: str | Path | None = None, **more: Any) -> None:
        bare = address.removeprefix("kafka://").rstrip("/")
        if not bare or "/" in bare or "@" in bare or not all(one.strip() for one in bare.split(",")):
            raise ConfigurationError(
                f"broker={label(address)!r}: write kafka://host:9092, several hosts with commas between them; users and"
                " passwords are settings:"
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
            **surroundings(file),
            **(settings or {}),
            **{name.replace("_", "."): value for name, value in more.items()},
        }
        self._lock = threading.Lock()
        self._client: Any = None
        self._refused: str | None = None
        self._heard = ""
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
                self._client = _made(AdminClient, {**self._settings, "error_cb": self._on_error})
            return self._client

    def _on_error(self, error: Any) -> None:
        """Of connections; librdkafka goes on trying. Called while it is polled."""
        from confluent_kafka import KafkaError

        self._refused = self.refusal(error) or self._refused
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._heard = hidden(error.str().partition(" (after ")[0], self._settings)

    def refusal(self, error: Any) -> str | None:
        """What a client hears of a connection that isn't let in, in our words; None if it is something else."""
        from confluent_kafka import KafkaError

        if error.code() not in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            return None
        said = hidden(re.sub(r"^\S+://\S+: | \(after .*", "", error.str()), self._settings)
        return rights.refused(self.label, self._settings, said, tls=error.code() == KafkaError._SSL)

    def _answer(self, future: Future[Any], what: str, right: Right, expected: int | None = None) -> Any:
        """What a request brought; None if the error ``expected``. Of a connection that isn't let in only ``_on_error`` hears: the request
        itself waits for a better one."""
        from confluent_kafka import KafkaException

        admin, begun = self._admin(), time.monotonic()
        try:
            while not future.done():
                admin.poll(0)  # calls _on_error
                if self._refused is not None and time.monotonic() - begun > REFUSED_SECONDS:
                    raise NotAllowed(self._refused)
                wait((future,), 0.05)
            answer = future.result()
        except KafkaException as error:
            if error.args[0].code() == expected:
                return None
            raise self.explain(error, what, right) from error
        self._refused, self._heard = None, ""
        return answer

    def explain(self, error: Any, what: str, right: Right | None = None) -> BrokerError:
        """A KafkaException in words that name the fix.

        Args:
            what: was being done. right: that is missing, if one is.
        """
        from confluent_kafka import KafkaError

        told = error.args[0]
        code, said = told.code(), hidden(told.str(), self._settings)
        where = f"{self.label}, {what}"
        if (refused := self.refusal(told)) is not None:
            return NotAllowed(refused)
        if code == KafkaError._TIMED_OUT and self._refused is not None:
            return NotAllowed(self._refused)
        if code in {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}:
            return SlotFenced(f"{where}: somebody else opened it since, or the broker gave up on us: {said}")
        if code in FORBIDDEN:
            if right is not None and FORBIDDEN[code] in (right.kind, "cluster"):
                return NotAllowed(rights.lacks(self.label, self._settings, right))
            return NotAllowed(f"{where}: this user lacks a right, see the guide's list for Kafka: {said}")
        if code in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}:
            return TopicMissing(f"{where}: there is no such topic; create it, or let the relay do so with Relay(partitions=…)")
        if code in {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}:
            return RecordTooLarge(f"{where}: larger than the topic takes (max.message.bytes): {said}")
        if code == KafkaError._TIMED_OUT and self._heard:
            said += f"; {self._heard}"
        return BrokerUnavailable(f"{where}: {said}")

    def unwritable(self, names: Collection[str]) -> list[str]:
        """Those of some topics that this user may not write to, as far as the broker tells."""
        from confluent_kafka import KafkaException, TopicCollection
        from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]

        wanted = TopicCollection(sorted(names))
        found = []
        for name, future in self._admin().describe_topics(wanted, include_authorized_operations=True, request_timeout=SECONDS).items():
            try:
                may = future.result().authorized_operations or ()
            except KafkaException:
                may = ()
            if AclOperation.WRITE not in may:
                found.append(name)
        return found

    # -- topics

    def topics(self, names: Sequence[str]) -> Mapping[str, Topic]:
        from confluent_kafka import KafkaError, TopicCollection

        found = {}
        if not names:
            return {}
        for name, future in self._admin().describe_topics(TopicCollection(list(names)), request_timeout=SECONDS).items():
            told = self._answer(future, f"topic {name}", Right(("Describe",), "topic", (name,)), KafkaError.UNKNOWN_TOPIC_OR_PART)
            if told is not None:
                found[name] = Topic(name, str(told.topic_id), len(told.partitions))
        return found

    def create(self, topic: str, partitions: int) -> None:
        self.make(topic, partitions, {})

    def make(self, topic: str, partitions: int, config: Mapping[str, str]) -> None:
        """Create a topic with these settings, as often copied as the cluster does unless told otherwise."""
        from confluent_kafka import KafkaError
        from confluent_kafka.cimpl import NewTopic

        future = self._admin().create_topics([NewTopic(topic, partitions, -1, config=dict(config))], request_timeout=SECONDS)[topic]
        self._answer(future, f"topic {topic}", Right(("Create",), "topic", (topic,)), KafkaError.TOPIC_ALREADY_EXISTS)
        # The controller has made it, and the broker that is asked next may not have heard of it yet.
        until = time.monotonic() + SEEN_SECONDS
        with contextlib.suppress(NotAllowed):  # who may create may not be allowed to look
            while topic not in self.topics([topic]) and time.monotonic() < until:
                time.sleep(0.02)

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
            why = self.explain(error, f"topic {topic}")
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

        return ranges(self._admin(), partitions, self._answer)

    def reader(
        self,
        group: str,
        topics: Sequence[str],
        assigned: Callable[[Sequence[Partition]], Mapping[Partition, int]],
        revoked: Callable[[Sequence[Partition]], None],
    ) -> Reader:
        from .kafka_reader import KafkaReader

        return KafkaReader(self, group, topics, assigned, revoked)

    def close(self) -> None:
        with self._lock:
            self._client = None


def is_leaderless(error: Any) -> bool:
    """Whether a KafkaException says that a partition's leader isn't known yet: its topic was made, or a broker ended, a moment ago."""
    from confluent_kafka import KafkaError, KafkaException

    passing = (
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    )
    return isinstance(error, KafkaException) and error.args[0].code() in passing


def _made(client: Any, settings: Mapping[str, Any]) -> Any:
    """A client with these settings, its own words going to our log. Raises ConfigurationError for a setting that doesn't exist."""
    from confluent_kafka import KafkaException

    try:
        return client({**settings, "logger": log})
    except (KafkaException, ValueError, TypeError) as error:
        said = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        said = "; ".join(missing_files(settings)) or hidden(said, settings)
        raise ConfigurationError(
            f"a setting of the broker {settings['bootstrap.servers']} can't be: {said}"
        ) from None  # it may show secrets
