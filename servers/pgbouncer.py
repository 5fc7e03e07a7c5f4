"""A real PgBouncer in front of a ``Postgres``: connections through it change their backend with every transaction."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Literal

from .debian import UNPACKED
from .folder import Folder, Missing, free_port
from .postgres import Postgres


def program() -> Path | None:
    """Where it is: Debian's if installed, else the one that scripts/setup unpacked."""
    for place in ("/usr/sbin/pgbouncer", UNPACKED / "usr/sbin/pgbouncer"):
        if Path(place).exists():
            return Path(place)
    return None


class PgBouncer:
    """
    Args:
        postgres: every database of it can be reached by ``url``.
        pool: backends for each database.

    Raises:
        Missing: there is no PgBouncer here.
    """

    def __init__(self, postgres: Postgres, *, mode: Literal["session", "transaction", "statement"] = "transaction", pool: int = 10) -> None:
        found = program()
        if found is None:
            raise Missing("no PgBouncer is here; scripts/setup brings it from Debian's packages")
        self._postgres = postgres
        self.port = free_port()
        self._folder = Folder("pgbouncer")
        path = self._folder.path
        try:
            environment = {"LD_LIBRARY_PATH": str(UNPACKED / "usr/lib/shared")}
            try:
                self._folder.run([str(found), "--version"], environment)
            except PermissionError:  # a checkout below a private folder
                shutil.copytree(UNPACKED / "usr/lib/shared", path / "program", symlinks=True)
                found = Path(shutil.copy(found, path / "program/pgbouncer"))
                environment["LD_LIBRARY_PATH"] = str(path / "program")
            (path / "settings.ini").write_text(f"""
[databases]
* = host=127.0.0.1 port={postgres.port} user={postgres.user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {pool}
max_client_conn = 500
server_login_retry = 0.1
ignore_startup_parameters = extra_float_digits, options
""")
            with (path / "log").open("ab") as log:
                self._process = self._folder.start([str(found), str(path / "settings.ini")], log, environment)
            until = time.monotonic() + 10
            while not self._listens():
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"PgBouncer did not start:\n{self.log()}")
                time.sleep(0.005)
        except BaseException:
            self._folder.close()
            raise

    def __enter__(self) -> PgBouncer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, url: str) -> str:
        """The way through it to the database that ``url`` of the server itself names."""
        return f"postgresql://{self._postgres.user}@127.0.0.1:{self.port}/{url.rpartition('/')[2]}"

    def log(self) -> str:
        return (self._folder.path / "log").read_text(errors="replace")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._folder.close()

    def _listens(self) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.port)) == 0
