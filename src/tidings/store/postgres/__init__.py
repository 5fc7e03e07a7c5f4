"""The log on PostgreSQL (extra ``postgres``)."""

from ...errors import ConfigurationError

try:
    import psycopg  # noqa: F401
except ImportError as error:
    raise ConfigurationError("a store on PostgreSQL needs psycopg: pip install 'tidings[postgres]'") from error

from .store import PostgresStore

__all__ = ["PostgresStore"]
