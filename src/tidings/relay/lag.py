"""How far behind the relay of somebody else's outbox is, told by the database alone: also where no relay runs."""

from __future__ import annotations

from ..store.outbox import Lag
from .outbox import Options, outbox_of

MOST = 100_000
"""Rows are counted so far."""


def look(options: Options) -> Lag:
    """
    Raises:
        StoreError: no connection, no such table, no such slot.
    """
    return outbox_of(options).lag(MOST)
