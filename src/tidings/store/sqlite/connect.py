"""Connections to the file: their settings, their errors in plain words, and who holds the write lock."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from ...errors import ConfigurationError, StoreBusy, StoreError, StoreFailed

BUSY_SECONDS = 5.0
WAL_LIMIT = 64 * 1024 * 1024
"""The -wal file is cut back to this many bytes after a checkpoint; it only grows past it while a reader holds an old snapshot."""

_WAL_WRITE_LOCK = 120  # the byte of the -shm file that stands for the write lock (SQLite's file format, section 4.2)


def path_of(url: str) -> str:
    """The file of a ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` URL.

    Raises:
        ConfigurationError: it is no such URL.
    """
    prefix = "sqlite:///"
    if not url.startswith(prefix) or len(url) == len(prefix):
        raise ConfigurationError(f"store={url!r}: write sqlite:///shop.db for a file here, sqlite:////var/lib/shop.db for an absolute path")
    path = url.removeprefix(prefix)
    if path == ":memory:" or "?" in path:
        raise ConfigurationError(
            f"store={url!r}: a log is a plain file; options are arguments of App or SQLiteStore, and memory can't be shared"
        )
    return path


def connect(
    path: str, *, synchronous: str, create: bool = False, read_only: bool = False, busy: float = BUSY_SECONDS
) -> sqlite3.Connection:
    """A connection in autocommit mode: who needs a transaction says BEGIN.

    Raises:
        StoreFailed: the file can't be opened.
    """
    mode = "ro" if read_only else "rwc" if create else "rw"
    if read_only and not os.path.exists(path + "-wal") and not os.access(os.path.dirname(path) or ".", os.W_OK):
        mode = "ro&immutable=1"  # nobody has it open, and the -shm file that reading wants can't be made here
    try:
        conn = sqlite3.connect(
            f"{Path(path).absolute().as_uri()}?mode={mode}", uri=True, timeout=busy, isolation_level=None, check_same_thread=False
        )
        try:
            if not read_only:
                _use_wal(conn, busy)
            conn.execute(f"PRAGMA synchronous = {synchronous}")
            conn.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
            conn.execute("PRAGMA wal_autocheckpoint = 2000")
            conn.execute("PRAGMA cache_size = -8000")
            conn.execute("PRAGMA temp_store = MEMORY")  # else savepoints copy each page they touch to a temporary file, from 64 KiB on
        except BaseException:
            conn.close()
            raise
    except sqlite3.Error as error:
        raise explain(error, path) from error
    return conn


def _use_wal(conn: sqlite3.Connection, busy: float) -> None:
    """A new file's change to WAL wants it alone, and SQLite doesn't wait for that when several processes start together."""
    until = time.monotonic() + busy
    while True:
        try:
            conn.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


class _PlainRows:
    """A user's connection, its rows as tuples, whatever ``row_factory`` he has set for his own."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._cursor().execute(statement, arguments)

    def executemany(self, statement: str, arguments: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        return self._cursor().executemany(statement, arguments)

    def _cursor(self) -> sqlite3.Cursor:
        cursor = self._conn.cursor()
        cursor.row_factory = None
        return cursor


def plain(conn: sqlite3.Connection) -> sqlite3.Connection:
    """``conn``, or what gives its rows as tuples if its owner wants them in another form."""
    return conn if conn.row_factory is None else cast(sqlite3.Connection, _PlainRows(conn))


def is_busy(error: BaseException) -> bool:
    """Whether the write lock or a snapshot was in the way: nobody's failure, to be run again."""
    return isinstance(error, sqlite3.OperationalError) and _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_store_failure(error: BaseException) -> bool:
    """Whether the file failed (disk full, read-only, damaged), and not what was asked of it."""
    return isinstance(error, sqlite3.Error) and _code(error) in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
    )


def is_about_another_file(error: BaseException) -> bool:
    """Whether an error of a handler in its transaction is one that ``is_busy`` or ``is_store_failure`` means, and not about this file.

    Its transaction has the write lock, so the file could be opened, is no other program's and can be written. Full disks and failed reads
    and writes may be this file's, or another's: for these nobody can tell.
    """
    causes = (error, getattr(error, "orig", None), error.__cause__)
    found = [one for one in causes if one is not None and (is_busy(one) or is_store_failure(one))]
    return bool(found) and not any(_code(one) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) for one in found)


def explain(error: sqlite3.Error, path: str) -> StoreError:
    """The same error in words that name the fix."""
    code = _code(error)
    if is_busy(error):
        holder = write_lock_holder(path)
        who = f"process {holder[0]} ({holder[1]})" if holder else "another process"
        return StoreBusy(
            f"{path} is locked: {who} has held its write lock for longer than the busy time-out. Let it commit, or end"
            " it; nothing was written here.",
            path=path,
            holder=holder[0] if holder else None,
        )
    if os.path.isdir(path):
        return StoreFailed(f"{path} is a folder; name a file in it, as in sqlite:///{path.rstrip('/')}/shop.db", path=path)
    advice: dict[int, Callable[[], str]] = {
        sqlite3.SQLITE_FULL: lambda: f"no space left for {path} ({error}); free some, nothing was written and nothing is lost",
        sqlite3.SQLITE_READONLY: lambda: f"{path} can't be written ({error}); give this user write access to the file and its folder",
        sqlite3.SQLITE_CANTOPEN: lambda: f"{path} can't be opened ({error}); check that the folder exists and this user may write there",
        sqlite3.SQLITE_NOTADB: lambda: f"{path} is no SQLite database; choose another file for the store",
        sqlite3.SQLITE_CORRUPT: lambda: f"{path} is damaged ({error}); restore a backup, or look at it with `sqlite3 {path} .recover`",
        sqlite3.SQLITE_IOERR: lambda: f"reading or writing {path} failed ({error}); look at the disk and the system's log",
    }
    words = advice.get(code)
    return StoreFailed(words() if words else f"{path}: {error}", path=path)


def write_lock_holder(path: str) -> tuple[int, str] | None:
    """Process id and name of who holds the write lock, where the system tells (Linux).

    Reads /proc/locks: asking by fcntl would need a descriptor on the -shm file, and closing that one drops this process's own locks.
    """
    try:
        inode = os.stat(path + "-shm").st_ino
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) < 8 or "->" in fields or fields[3] != "WRITE" or not fields[5].endswith(f":{inode}"):
            continue
        if int(fields[6]) <= _WAL_WRITE_LOCK and (fields[7] == "EOF" or int(fields[7]) >= _WAL_WRITE_LOCK):
            pid = int(fields[4])
            try:
                return pid, Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                return pid, "gone"
    return None


def boot_id() -> str:
    """What tells this boot of the machine from others; leases of another boot are over."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{sys.platform}"


def _code(error: Any) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
