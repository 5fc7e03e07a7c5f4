"""Where the shop's services find their store and the outside world: environment variables, read once when a service is imported."""

from __future__ import annotations

import os

from tidings import Relay
from tidings.store import store_at

STORE_URL = os.environ.get("CHECKOUT_STORE", "sqlite:///checkout.db")
# One store object for all services of a process: on SQLite they take turns at the file's one write lock instead of polling for it against
# each other.
STORE = store_at(STORE_URL)
# Where services of their own, each on a store of its own, hear of each other; None while all share one store.
BROKER = os.environ.get("CHECKOUT_BROKER")
RELAY = Relay(slots=1)
GATEWAY = os.environ.get("CHECKOUT_GATEWAY", "127.0.0.1:7001")
WAREHOUSE = os.environ.get("CHECKOUT_WAREHOUSE", "127.0.0.1:7002")
MAIL = os.environ.get("CHECKOUT_MAIL", "127.0.0.1:7003")
SEED = int(os.environ.get("CHECKOUT_SEED", "1"))
FRAUD_RATE = float(os.environ.get("CHECKOUT_FRAUD_RATE", "0.015"))
# Seconds after which a dead worker's lanes are taken over. Short, so that a killed worker is missed for a moment and not for ten.
LEASE = float(os.environ.get("CHECKOUT_LEASE", "2.0"))
CALL_SECONDS = float(os.environ.get("CHECKOUT_CALL_SECONDS", "1.0"))  # a day, where days are short
