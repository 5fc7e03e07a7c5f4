"""Steps of a test that runs on either store ask for that store's own kind of transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

F = TypeVar("F", bound=Callable[..., Any])


def asks_for_tx(url: str) -> Callable[[F], F]:
    """The decorated function's parameter ``tx`` is a connection to a store of this URL."""

    def mark(fn: F) -> F:
        fn.__annotations__["tx"] = sqlite3.Connection if url.startswith("sqlite") else psycopg.Connection
        return fn

    return mark
