"""Connections to the server: their settings, and their errors in plain words."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from ...errors import ConfigurationError, StoreBusy, StoreError, StoreFailed, StoreNotInitialised
from ...urls import label, password_of

OLDEST = 150000
"""The oldest server that is tested, as ``server_version_num``."""

_LOST_NAMES = {"OperationalError", "InterfaceError", "ConnectionDoesNotExistError", "InternalClientError"}
"""What psycopg2 and asyncpg raise then, without a SQLSTATE."""

_WORDS = {
    "3D000": 'database ".*" does not exist',
    "28P01": "password authentication failed|no password supplied",
    "28000": 'no pg_hba.conf entry|role ".*" (does not exist|is not permitted)',
    "53300": "too many clients|remaining connection slots",
}

CONNECT_SECONDS = 10

_DONE = {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}

_AGAIN = {"40001", "40P01", "55P03"}
"""Serialization failure, deadlock, lock not available: nobody's failure, the same work is simply run again."""
_RESOURCES = {"53000", "53100", "53200", "53300", "25006"}
"""The server is out of disk, memory or connections, or read-only for now."""
_LOST = {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}
"""The server ended the connection: shut down, crashed, or found it idle in a transaction for too long."""


def check_url(url: str) -> str:
    """``url``, if it can be one.

    Raises:
        ConfigurationError: it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"postgresql", "postgres"} or not (parts.netloc or parts.query) or not parts.path.strip("/"):
        raise ConfigurationError(f"store={label(url)!r}: write postgresql://user@host:5432/database (the password may be in PGPASSWORD)")
    return url


def connect(url: str, *, name: str = "tidings") -> psycopg.Connection[Any]:
    """A connection in autocommit mode: who needs a transaction says BEGIN.

    Raises:
        StoreFailed: no connection, with what to do about it.
    """
    try:
        conn = psycopg.connect(
            url, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name=name, keepalives_idle=30, keepalives_interval=10
        )
    except psycopg.Error as error:
        raise explain(error, url) from error
    version = conn.info.server_version
    if version < OLDEST:
        conn.close()
        raise StoreFailed(
            f"{label(url)} is PostgreSQL {version // 10000}; Tidings needs {OLDEST // 10000} or newer: upgrade the server", found=version
        )
    try:
        if is_pooled(conn):
            conn.prepare_threshold = None
    except psycopg.Error as error:
        conn.close()
        raise explain(error, url) from error
    return conn


def is_pooled(conn: psycopg.Connection[Any]) -> bool:
    """Whether a pooler stands between, so that the next transaction may be another backend's: no prepared statements then, no LISTEN, and
    settings for one transaction only. The number that a pooler gives its client, for cancelling, is not the backend's."""
    row = conn.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != conn.info.backend_pid


def _drivers(error: BaseException) -> list[BaseException]:
    """An error, and the driver's inside SQLAlchemy's (``orig``), Django's and our own (``__cause__``). A cause in anybody else's is his."""
    found = [error]
    orig = getattr(error, "orig", None)
    if isinstance(orig, BaseException):
        found += [orig] if orig.__cause__ is None else [orig, orig.__cause__]
    if error.__cause__ is not None and (isinstance(error, StoreError) or type(error).__module__.startswith(("django.", "sqlalchemy."))):
        found.append(error.__cause__)
    return found


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error of psycopg, psycopg2 or asyncpg."""
    for one in _drivers(error):
        state = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        if isinstance(state, str):
            return state
    return None


def is_busy(error: BaseException) -> bool:
    """Whether the same work may simply be run again: a conflict, or the server has trouble of its own."""
    state = sqlstate_of(error)
    return state in _AGAIN or state in _RESOURCES or is_lost(error)


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, so that nobody knows what became of a COMMIT that was under way."""
    state = sqlstate_of(error)
    if state is not None:
        return state in _LOST or state.startswith("08")
    for one in _drivers(error):
        if isinstance(one, (psycopg.OperationalError, psycopg.InterfaceError, ConnectionError)):
            return True
        if type(one).__module__.startswith(("psycopg2", "asyncpg")) and type(one).__name__ in _LOST_NAMES:
            return True
    return False


def command(conn: psycopg.Connection[Any], statements: str) -> pq.abc.PGresult:
    """Statements in one round trip, on a connection of this thread's; what the last of them gave.

    Past the driver, whose way to the server takes the interpreter's lock several times: a loop that is busy gives it late, each time.
    """
    result = conn.pgconn.exec_(statements.encode())
    if result.status not in _DONE:
        if conn.pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError(result.get_error_message())
        raise error_from_result(result)
    return result


def is_open(conn: psycopg.Connection[Any]) -> bool:
    return not conn.closed and conn.pgconn.status == pq.ConnStatus.OK


def explain(error: BaseException, url: str) -> StoreError:
    """The same error in words that name the fix."""
    where, state = label(url), sqlstate_of(error) or ""
    said = " ".join(str(error).split())
    if "@" in (password := password_of(url)):  # the driver takes what is behind it for the host, and would show it
        said = said.replace(password, "***").replace(password.partition("@")[2], "***")
        return StoreFailed(f"{where}: {said} -- write an @ in the password as %40, or set PGPASSWORD", url=where, sqlstate=state or None)
    if not state:  # while connecting, libpq gives nothing but the server's words
        state = next((known for known, words in _WORDS.items() if re.search(words, said)), "")
    if state in _AGAIN:
        return StoreBusy(f"{where}: {said}; nothing was written, and the same may be tried again")
    if state == "42P01":
        return StoreNotInitialised(f"{where} has no Tidings tables; run `tidings store init --store {where}`", url=where)
    advice = {
        "28P01": "the password is wrong; set PGPASSWORD or write it into the URL",
        "28000": "this user may not log in; look at pg_hba.conf and the role's LOGIN right",
        "3D000": "there is no such database; create it with `createdb`",
        "42501": "this user lacks a right; the role needs what docs/guides lists (CREATE in the schema for `store init`; SELECT, INSERT,"
        " UPDATE, DELETE on the tidings_ tables and USAGE, SELECT on their sequence)",
        "53100": "the server's disk is full; free some, nothing was written and nothing is lost",
        "53300": "the server has no connection left; raise max_connections, or put a pool between",
        "25006": "the server is read-only (a standby?); give the primary's address",
    }.get(state)
    if advice is None and is_lost(error):
        advice = "the server can't be reached or ended the connection; see that it runs and listens there"
    return StoreFailed(f"{where}: {said}" + (f" -- {advice}" if advice else ""), url=where, sqlstate=state or None)
