"""What a service saw, in the order in which it saw it: a row for each event, in the handler's own transaction.

A real service would not need it. The reconciliation does: it compares these rows with the log and finds what was lost, doubled or
out of order. There is no UNIQUE constraint on purpose, since it would hide what is looked for.
"""

from __future__ import annotations

from apps.checkout.tables import NUMBERED, Tx, run
from tidings import Context


def seen_table(service: str) -> str:
    """The statement that makes ``<service>_seen``."""
    return f"CREATE TABLE IF NOT EXISTS {service}_seen (number {NUMBERED}, order_id INTEGER NOT NULL, position INTEGER NOT NULL)"


def saw(tx: Tx, service: str, ctx: Context) -> None:
    """Note that ``service`` handles this event; undone with the transaction if the handler fails."""
    run(tx, f"INSERT INTO {service}_seen (order_id, position) VALUES (?, ?)", (int(ctx.key or 0), ctx.position))
