"""Where events are kept: the port, and a store for each database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..errors import ConfigurationError
from ..urls import label

if TYPE_CHECKING:
    from ..clock import Clock
    from .outbox import Outbox, Wanted
    from .port import Store

DIALECTS = ("sqlite", "postgresql")


def store_at(url: str, *, clock: Clock | None = None, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> Store:
    """The store that a URL names, not opened. ``synchronous`` is SQLite's; a PostgreSQL server has its own ``synchronous_commit``.

    Raises:
        ConfigurationError: no store is known by such a URL, or its driver isn't installed.
    """
    scheme = url.partition(":")[0]
    if scheme in {"postgresql", "postgres"}:
        from .postgres import PostgresStore

        return PostgresStore(url, clock=clock)
    if scheme == "sqlite":
        from .sqlite import SQLiteStore

        return SQLiteStore(url, clock=clock, synchronous=synchronous)
    hint = f" ({scheme}:// is SQLAlchemy's; here it is without the driver)" if "+" in scheme else ""
    raise ConfigurationError(f"store={label(url)!r}: write sqlite:///shop.db for a file, or postgresql://user@host:5432/database{hint}")


def outbox_at(url: str, wanted: Wanted) -> Outbox:
    """Somebody else's outbox table, on the database that a URL names.

    Raises:
        ConfigurationError: it is no URL of a database that has such tables.
    """
    from .postgres.foreign import PostgresOutbox

    return PostgresOutbox(url, wanted)


def migrations(dialect: str) -> tuple[tuple[int, str, str], ...]:
    """Number, title and SQL of each migration."""
    if dialect == "postgresql":
        from .postgres import schema as postgres

        return postgres.MIGRATIONS
    from .sqlite import schema as sqlite

    return sqlite.MIGRATIONS


def script(dialect: str, since: int = 0) -> str:
    """All migrations behind a version as one script."""
    if dialect == "postgresql":
        from .postgres import schema as postgres

        return postgres.sql(since)
    from .sqlite import schema as sqlite

    return sqlite.sql(since)
