"""Tidings: event-driven architecture for Python. Announce once; whoever cares reacts."""

from .app import App
from .clock import Clock, ManualClock, SystemClock
from .envelope import Envelope
from .errors import (
    ConfigurationError,
    EventDefinitionError,
    Fenced,
    HandlerDefinitionError,
    HandlerTimeout,
    HandlingError,
    InvalidEvent,
    NotFound,
    OutsideTransaction,
    PublishError,
    StoreBusy,
    StoreError,
    StoreFailed,
    StoreNewer,
    StoreNotInitialised,
    SubscriptionNameTaken,
    TidingsError,
    TransactionEnded,
    UnawaitedPublish,
    UndecodableEvent,
    UnsupportedTransaction,
    WrongStore,
)
from .event import Event, event
from .publish.publisher import Receipt
from .retry import Retry
from .store.sqlite import SQLiteStore
from .subscribe.context import Context
from .subscribe.subscription import Subscription

__version__ = "0.1.0"

__all__ = [
    "App",
    "Clock",
    "ConfigurationError",
    "Context",
    "Envelope",
    "Event",
    "EventDefinitionError",
    "Fenced",
    "HandlerDefinitionError",
    "HandlerTimeout",
    "HandlingError",
    "InvalidEvent",
    "ManualClock",
    "NotFound",
    "OutsideTransaction",
    "PublishError",
    "Receipt",
    "Retry",
    "SQLiteStore",
    "StoreBusy",
    "StoreError",
    "StoreFailed",
    "StoreNewer",
    "StoreNotInitialised",
    "Subscription",
    "SubscriptionNameTaken",
    "SystemClock",
    "TidingsError",
    "TransactionEnded",
    "UnawaitedPublish",
    "UndecodableEvent",
    "UnsupportedTransaction",
    "WrongStore",
    "__version__",
    "event",
]
