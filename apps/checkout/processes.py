"""Processes that a program started itself: so that it can stop, kill and account for those and no others."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1


class ProcessFailed(RuntimeError):
    """A process ended, or didn't say that it was ready, when it should have been running."""


@dataclass(slots=True)
class Running:
    """One process: its output is in ``log``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self, lines: int = 8) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Processes:
    """Starts processes of this interpreter, with ``directory`` for their output; ends what is left of them on the way out."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self.directory = directory
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), **env}
        self._all: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop_all()

    def start(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Running:
        """Start ``python -m <arguments>``; ``env``: further variables for this one."""
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = self._popen(arguments, stdout=output, stderr=output, env=env)
        return self._keep(name, process, log)

    def start_ready(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[Running, Any]:
        """Start ``python -m <arguments>`` and wait until it says that it is ready; what it said.

        Raises:
            ProcessFailed: it ended before.
        """
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = self._popen(arguments, stdout=subprocess.PIPE, stderr=output, env=env)
        running = self._keep(name, process, log)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise ProcessFailed(f"{name} did not start:\n{running.last_words()}")
        return running, json.loads(line)

    def run(self, name: str, *arguments: str, timeout: float = 30, env: Mapping[str, str] | None = None) -> str:
        """Run ``python -m <arguments>`` to its end; its output.

        Raises:
            ProcessFailed: it took too long or its exit code was not 0.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={**self.env, **(env or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"{name} took more than {timeout:g} s") from error
        if done.returncode:
            raise ProcessFailed(f"{name} failed:\n{done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def named(self, name: str) -> Running:
        """The process of this name that was started last."""
        return next(running for running in reversed(self._all) if running.name == name)

    def check(self) -> None:
        """Raise ProcessFailed if one of them has ended by itself."""
        for running in self._all:
            if not running.alive:
                raise ProcessFailed(f"{running.name} (pid {running.pid}) ended with {running.process.returncode}:\n{running.last_words()}")

    def kill(self, running: Running) -> None:
        """SIGKILL: no goodbye, no chance to tidy up."""
        self._all.remove(running)
        running.process.kill()
        self._wait(running, 10)

    def stop(self, running: Running, timeout: float = 10) -> None:
        """SIGTERM, and SIGKILL for what is still there after ``timeout``."""
        self._stop([running], timeout)

    def stop_all(self, timeout: float = 10) -> None:
        self._stop(list(reversed(self._all)), timeout)

    def _stop(self, these: list[Running], timeout: float) -> None:
        for running in these:
            if running.alive:
                running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout
        for running in these:
            self._wait(running, max(0.1, deadline - time.monotonic()))
            self._all.remove(running)

    def _wait(self, running: Running, timeout: float) -> None:
        try:
            running.process.wait(timeout)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
        for pipe in (running.process.stdin, running.process.stdout):
            if pipe is not None:
                pipe.close()

    def _keep(self, name: str, process: subprocess.Popen[bytes], log: Path) -> Running:
        running = Running(name, process, log)
        self._all.append(running)
        return running

    def _popen(
        self, arguments: tuple[str, ...], stdout: int | IO[bytes], stderr: IO[bytes], env: Mapping[str, str] | None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**self.env, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which stops its children in order
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _end_with_parent() -> None:
    """In the child: ask Linux for SIGTERM when the parent is gone, even if it was killed and could not stop its children."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
