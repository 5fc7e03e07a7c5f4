"""Tidings: event-driven architecture for Python. Announce once; whoever cares reacts."""

from typing import TYPE_CHECKING

from .errors import (
    ActionRefused,
    BodyFailed,
    BrokerError,
    BrokerUnavailable,
    ChildFailed,
    ConfigurationError,
    EventDefinitionError,
    Fenced,
    ForeignAwait,
    HandlerDefinitionError,
    HandlerTimeout,
    HandlingError,
    InvalidEvent,
    JournalMismatch,
    LateEvent,
    LogWentBack,
    NotAllowed,
    NotDone,
    NotFound,
    NotInTime,
    OffsetLost,
    OutcomeUnknown,
    OutsideTransaction,
    PartitionTaken,
    PositionUnclear,
    PublishError,
    RecordTooLarge,
    Refused,
    SagaDefinitionError,
    SagaError,
    SagaFailed,
    SagaParked,
    SlotFenced,
    StepFailed,
    StoreBusy,
    StoreError,
    StoreFailed,
    StoreNewer,
    StoreNotInitialised,
    SubscriptionNameTaken,
    TidingsError,
    TopicMissing,
    TransactionEnded,
    UnawaitedPublish,
    UndecodableEvent,
    UnsupportedTransaction,
    WorkerDied,
    WrongStore,
)
from .event import Event, event

if TYPE_CHECKING:
    from .app import App
    from .brokers.kafka import KafkaBroker
    from .clock import Clock, ManualClock, SystemClock
    from .envelope import Envelope
    from .publish.publishing import Receipt
    from .relay.formats import CloudEvents, DebeziumOutbox, PlainJSON
    from .relay.intake import Intake
    from .relay.relay import Relay
    from .retry import Retry
    from .sagas.operator import Operator
    from .sagas.saga import Saga
    from .sagas.step import Unknown
    from .store.postgres import PostgresStore
    from .store.sqlite import SQLiteStore
    from .subscribe.backlog import Backlog
    from .subscribe.context import Context
    from .subscribe.subscription import Subscription

__version__ = "0.1.0"

__all__ = [
    "ActionRefused",
    "App",
    "Backlog",
    "BodyFailed",
    "BrokerError",
    "BrokerUnavailable",
    "ChildFailed",
    "Clock",
    "CloudEvents",
    "ConfigurationError",
    "Context",
    "DebeziumOutbox",
    "Envelope",
    "Event",
    "EventDefinitionError",
    "Fenced",
    "ForeignAwait",
    "HandlerDefinitionError",
    "HandlerTimeout",
    "HandlingError",
    "Intake",
    "InvalidEvent",
    "JournalMismatch",
    "KafkaBroker",
    "LateEvent",
    "LogWentBack",
    "ManualClock",
    "NotAllowed",
    "NotDone",
    "NotFound",
    "NotInTime",
    "OffsetLost",
    "Operator",
    "OutcomeUnknown",
    "OutsideTransaction",
    "PartitionTaken",
    "PlainJSON",
    "PositionUnclear",
    "PostgresStore",
    "PublishError",
    "Receipt",
    "RecordTooLarge",
    "Refused",
    "Relay",
    "Retry",
    "SQLiteStore",
    "Saga",
    "SagaDefinitionError",
    "SagaError",
    "SagaFailed",
    "SagaParked",
    "SlotFenced",
    "StepFailed",
    "StoreBusy",
    "StoreError",
    "StoreFailed",
    "StoreNewer",
    "StoreNotInitialised",
    "Subscription",
    "SubscriptionNameTaken",
    "SystemClock",
    "TidingsError",
    "TopicMissing",
    "TransactionEnded",
    "UnawaitedPublish",
    "UndecodableEvent",
    "Unknown",
    "UnsupportedTransaction",
    "WorkerDied",
    "WrongStore",
    "__version__",
    "event",
]

# What runs apps brings asyncio, sqlite3 and more along; a module that only declares events, and `tidings --help`, need none of it.
# (Event and errors are imported at once: `tidings.event` is a module, too, and the function has to be bound over it.)
_AT_FIRST_USE = {
    "App": ".app",
    "Backlog": ".subscribe.backlog",
    "Clock": ".clock",
    "CloudEvents": ".relay.formats",
    "Context": ".subscribe.context",
    "DebeziumOutbox": ".relay.formats",
    "Envelope": ".envelope",
    "Intake": ".relay.intake",
    "KafkaBroker": ".brokers.kafka",
    "ManualClock": ".clock",
    "Operator": ".sagas.operator",
    "PlainJSON": ".relay.formats",
    "PostgresStore": ".store.postgres",
    "Receipt": ".publish.publisher",
    "Relay": ".relay.relay",
    "Retry": ".retry",
    "SQLiteStore": ".store.sqlite",
    "Saga": ".sagas.saga",
    "Subscription": ".subscribe.subscription",
    "SystemClock": ".clock",
    "Unknown": ".sagas.step",
}


if not TYPE_CHECKING:  # a type checker would take it for "any name is there"

    def __getattr__(name: str) -> object:
        home = _AT_FIRST_USE.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(home, __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
