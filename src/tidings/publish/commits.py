"""Being asked before a transaction commits: SQLAlchemy tells, the drivers don't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def committed_by(tx: Any) -> Any:
    """The synchronous twin whose commit ends an AsyncSession's or AsyncConnection's transaction; None for anything else."""
    return getattr(tx, "sync_session", None) or getattr(tx, "sync_connection", None)


def before_commit(target: Any, refuse: Callable[..., None]) -> None:
    """Have ``refuse`` called before each commit of what ``committed_by`` gave; what it raises prevents the commit."""
    import sqlalchemy.event

    def refuse_connection(connection: Any) -> None:
        try:
            refuse()
        except BaseException:
            connection.connection.rollback()  # SQLAlchemy counts this transaction as over, and would put it into the pool as it is
            raise

    is_session = hasattr(target, "flush")
    sqlalchemy.event.listen(target, "before_commit" if is_session else "commit", refuse if is_session else refuse_connection)
