"""Every error that Tidings raises on purpose.

    TidingsError
    ├── ConfigurationError         a declaration that can't work; raised while the program starts
    │   ├── EventDefinitionError       an event class without a usable key, type or version
    │   ├── HandlerDefinitionError     a handler whose signature or options can't be served
    │   ├── SagaDefinitionError        a saga, step or undo that can't be run as it is written
    │   └── SubscriptionNameTaken      two subscriptions of one name
    ├── PublishError               nothing was written by this publish
    │   ├── OutsideTransaction         no transaction was given, or the one given isn't open
    │   ├── InvalidEvent               wrong field types, no key, not serialisable
    │   ├── UnsupportedTransaction     an object that is no transaction of a known driver
    │   └── UnawaitedPublish           an async publish that nobody awaited
    ├── StoreError                 the store can't be used as it is
    │   ├── StoreNotInitialised        no Tidings tables there
    │   ├── WrongStore                 the transaction is another database's
    │   ├── StoreNewer                 the tables were made by a newer Tidings
    │   ├── StoreBusy                  somebody else holds the file's write lock
    │   ├── StoreFailed                full disk, read-only file, damaged file
    │   └── LogWentBack                the log lacks what was read of it before
    ├── BrokerError                the broker can't be used as it is
    │   ├── BrokerUnavailable          no answer, or nobody knows what became of a request
    │   ├── NotAllowed                 wrong password, or a right is missing
    │   ├── TopicMissing               there is no such topic
    │   ├── RecordTooLarge             larger than the topic takes
    │   ├── SlotFenced                 somebody else opened the relay's slot since
    │   ├── OffsetLost                 records that were to be read are gone
    │   ├── PartitionTaken             another process has read on in a partition; nothing was written
    │   └── PositionUnclear            the broker, the log and the store don't agree on how far the relay has come
    ├── HandlingError              about one event in one subscription
    │   ├── UndecodableEvent           the data doesn't fit the class that the handler asks for
    │   ├── HandlerTimeout             the handler ran past its timeout
    │   ├── TransactionEnded           the handler ended the transaction it was given
    │   ├── WorkerDied                 the process died while it handled this event alone
    │   └── Fenced                     another worker holds the lane now; nothing was written
    ├── SagaError                  about one instance of a saga
    │   ├── Refused                    a step's business refusal: it is not tried again, and not undone
    │   ├── NotDone                    a reconciliation's answer: the step did not happen
    │   ├── StepFailed                 a step used up its attempts
    │   ├── ChildFailed                a child was compensated, or couldn't be begun
    │   ├── NotInTime                  no event, or no result, came within the time given
    │   ├── ActionRefused              an operator's action makes no sense as the instance stands
    │   ├── SagaFailed                 whose result was awaited was compensated or cancelled
    │   ├── SagaParked                 whose result was awaited waits for its code to be mended
    │   ├── BodyFailed                 the body raised what is no outcome of the business
    │   ├── OutcomeUnknown             nobody knows whether a step happened that is tried once at most
    │   ├── LateEvent                  it came for a saga that is closed, which wants that told
    │   ├── JournalMismatch            the code does something else than the journal says it did
    │   └── ForeignAwait               the body awaits what is no call of its saga
    └── NotFound                   no such subscription, dead letter, scheduled event or saga

Errors carry their facts as attributes, so that a program needs no parsing.
"""

from __future__ import annotations

from typing import Any


class TidingsError(Exception):
    """Base of all. Facts given as keywords become attributes."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)


class ConfigurationError(TidingsError):
    """A declaration that can't work."""


class EventDefinitionError(ConfigurationError):
    """An event class without a usable key, type or version."""


class HandlerDefinitionError(ConfigurationError):
    """A handler whose signature or options can't be served."""


class SagaDefinitionError(ConfigurationError):
    """A saga, a step or an undo that can't be run as it is written."""


class SubscriptionNameTaken(ConfigurationError):
    """Two subscriptions of one name on one store."""


class PublishError(TidingsError):
    """Nothing was written by this publish."""


class OutsideTransaction(PublishError):
    """No transaction was given, or the one given isn't open."""


class InvalidEvent(PublishError):
    """Wrong field types, a missing key, or a value that can't be serialised."""


class UnsupportedTransaction(PublishError):
    """The object given as ``tx`` is no transaction of a driver that Tidings knows."""


class UnawaitedPublish(PublishError):
    """``publish`` on an async driver was called and never awaited."""


class StoreError(TidingsError):
    """The store can't be used as it is."""


class StoreNotInitialised(StoreError):
    """The database has no Tidings tables."""


class WrongStore(StoreError):
    """The transaction belongs to another database than the app's store."""


class StoreNewer(StoreError):
    """The tables were made by a newer version of Tidings."""


class StoreBusy(StoreError):
    """The file's write lock was held by somebody else for too long. ``holder`` names the process if it is known."""


class StoreFailed(StoreError):
    """The file can't be read or written: full disk, read-only, damaged."""


class LogWentBack(StoreError):
    """The log lacks what was read of it before: it was restored from a backup, or a standby that was behind took over."""


class BrokerError(TidingsError):
    """The broker can't be used as it is."""


class BrokerUnavailable(BrokerError):
    """No answer in time, or nobody knows what became of a request."""


class NotAllowed(BrokerError):
    """Wrong user or password, or a right is missing."""


class TopicMissing(BrokerError):
    """There is no such topic. ``topic`` names it."""


class RecordTooLarge(BrokerError):
    """The topic takes no record of this size."""


class SlotFenced(BrokerError):
    """Somebody else opened the relay's slot since, or the broker gave up on us; nothing was sent."""


class OffsetLost(BrokerError):
    """Records that were to be read are gone from the broker: ``topic``, ``partition``, ``offset``."""


class PartitionTaken(BrokerError):
    """Another process has read on in a partition that this one believed to be its own; nothing was written."""


class PositionUnclear(BrokerError):
    """How far a relay has come is not what the broker, the log and the store say together. Somebody has to choose where it goes on."""


class HandlingError(TidingsError):
    """About one event in one subscription."""


class UndecodableEvent(HandlingError):
    """The data of an event doesn't fit the class that the handler asks for."""


class HandlerTimeout(HandlingError):
    """A handler ran past its timeout."""


class TransactionEnded(HandlingError):
    """A handler ended the transaction that it was given; nothing counts as done."""


class WorkerDied(HandlingError):
    """The process died, or stood still past its lease, while it handled this event and nothing else that could have been the cause."""


class Fenced(HandlingError):
    """Another worker holds the lane now; nothing was written."""


class SagaError(TidingsError):
    """About one instance of a saga."""


class Refused(SagaError):
    """For steps to raise: the business says no. It is not tried again, and nothing of that step is to be undone."""


class NotDone(SagaError):
    """For a ``reconcile`` to raise: the step did not happen, so it is tried again."""


class OutcomeUnknown(SagaError):
    """A step that is tried once at most was cut off, and nothing tells whether it happened. ``step``. The instance is parked."""


class StepFailed(SagaError):
    """A step used up its attempts, and nobody knows whether it happened. ``step``, ``error``."""


class ActionRefused(SagaError):
    """An operator's action makes no sense as the instance stands. Nothing was changed. ``saga``, ``key``, ``action``."""


class ChildFailed(SagaError):
    """A child was compensated by itself, or there is an instance of its key that isn't this one's child. ``saga``, ``key``, ``error``."""


class NotInTime(SagaError):
    """No event that the saga waited for, or no result that was awaited, came within the time given."""


class SagaFailed(SagaError):
    """The saga whose result was awaited was compensated or cancelled. ``saga``, ``key``, ``state``, ``error``."""


class SagaParked(SagaError):
    """The saga whose result was awaited is parked; it goes on once its code is mended. ``saga``, ``key``, ``error``."""


class LateEvent(SagaError):
    """An event came for a saga that is closed, and ``late="dead"`` makes it a dead letter. ``saga``, ``key``, ``state``."""


class JournalMismatch(SagaError):
    """The code does something else than the journal says it did. ``step``, ``line``. The instance is parked until the code is mended."""


class BodyFailed(SagaError):
    """A saga's body raised what is no outcome of the business. ``line``. The instance is parked until the code is mended."""


class ForeignAwait(SagaError):
    """A saga's body awaits what is no call of its saga. ``line``. The instance is parked until the code is mended."""


class NotFound(TidingsError):
    """No subscription, dead letter, scheduled event or saga of that name."""
