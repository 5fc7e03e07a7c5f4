"""A temporary folder that servers run in. When its owner ends, in whatever way, the servers are ended and the folder goes.

A process belongs to the folder if it works in it (its current directory is there), which is true for PostgreSQL's backends too, and
which nothing else can be mistaken for: no process id is remembered. This file is also the program that watches over the owner.
"""

from __future__ import annotations

import atexit
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any


class Missing(Exception):
    """A server's program is not on this machine and could not be brought."""


class Folder:
    """
    Args:
        name: of the server, a part of the folder's name.
        memory: in memory where there is room, which makes a database several times as fast; it is all the same to a SIGKILL of the server.
    Attributes:
        path: it belongs to the user that the servers run as, and nobody else may look inside.
    """

    def __init__(self, name: str, *, memory: bool = False) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"tidings-{name}-", dir=roomy_memory() if memory else None))
        self._identity = _unprivileged()
        if self._identity:
            os.chown(self.path, self._identity["user"], self._identity["group"])
        # The watcher reads from a pipe that only this process holds, so it hears of a SIGKILL too.
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.path)], stdin=subprocess.PIPE, cwd="/", start_new_session=True
        )
        self._owner = os.getpid()
        atexit.register(self.close)

    def start(self, command: list[str], output: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a server in the folder, in a session of its own so that Ctrl-C does not reach it."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **self._identity,
        )

    def run(self, command: list[str], environment: dict[str, str]) -> str:
        """Run a program as the servers' user to its end; what it printed.

        Raises:
            RuntimeError: it failed. OSError: it could not be started, a PermissionError if that user cannot reach it.
        """
        with tempfile.TemporaryFile() as output:
            code = self.start(command, output, environment).wait(60)
            output.seek(0)
            told = output.read().decode(errors="replace")
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{told}")
        return told

    def give(self, path: Path) -> None:
        """Let the servers' user have a file."""
        if self._identity:
            os.chown(path, self._identity["user"], self._identity["group"])

    def close(self) -> None:
        """End what runs in it and remove it. May be called again; does nothing in a forked child."""
        if os.getpid() != self._owner or self._watcher.stdin is None or self._watcher.stdin.closed:
            return
        atexit.unregister(self.close)
        end(self.path)
        self._watcher.stdin.close()
        self._watcher.wait()


def roomy_memory() -> Path | None:
    """A folder in memory, if the machine has plenty of it left."""
    folder, gigabyte = Path("/dev/shm"), 2**30
    try:
        stat = os.statvfs(folder)
        available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    roomy = stat.f_bavail * stat.f_frsize > 4 * gigabyte and available is not None and int(available[1]) * 1024 > 8 * gigabyte
    return folder if roomy and os.access(folder, os.W_OK) else None


def _unprivileged() -> dict[str, Any]:
    """Whom servers run as if this process is root, which they refuse to be."""
    if os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise Missing("this is root, and there is neither a user postgres nor a user nobody that a server could run as")


def free_port() -> int:
    """A loopback port that nobody listens on, below those that outgoing connections use, so that it stays free over a restart."""
    for _ in range(100):
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Missing("no free port was found on 127.0.0.1")


def within(path: Path) -> list[int]:
    """The processes that work in this folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                where = os.readlink(f"/proc/{entry}/cwd")
            except OSError:  # it has ended, or is somebody else's
                continue
            if where == str(path) or where.startswith(f"{path}/"):
                found.append(int(entry))
    return found


def end(path: Path) -> None:
    """Kill what works in the folder, and remove it."""
    until = time.monotonic() + 10
    while (running := within(path)) and time.monotonic() < until:
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)
    shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()
    end(Path(sys.argv[1]))
