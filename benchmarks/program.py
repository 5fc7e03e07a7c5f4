"""A program in a process of its own, which answers line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Self

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv" / "peers"


def compiled(folder: Path) -> dict[str, str]:
    """Variables for programs that find their modules compiled in ``folder`` (after a first run), as an installed program does."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return env | {"PYTHONPYCACHEPREFIX": str(folder)}


class Program:
    """Runs ``benchmarks/programs/<name>.py``. It says ``ready``; afterwards each line written to it is answered by one line of JSON."""

    def __init__(self, name: str, *args: object, peer: bool = False) -> None:
        env = dict(os.environ)
        if peer:
            env["PYTHONPATH"] = str(PEERS)
            command = [sys.executable, str(HERE / "programs" / f"{name}.py")]
        else:
            command = [sys.executable, "-m", f"benchmarks.programs.{name}"]
        self._process = subprocess.Popen(
            [*command, *map(str, args)],
            cwd=HERE.parent,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if peer else None,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ready(self) -> None:
        """Wait until it has said so."""
        self.answer()

    def ask(self, line: str) -> Any:
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """The next line of JSON."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(("{", "[", '"')) or line[:1].isdigit():
                return json.loads(line)
        self._process.wait()
        trouble = "" if self._process.stderr is None else self._process.stderr.read().strip().split("\n")[-1]
        raise RuntimeError(f"{self._process.args[-1] if isinstance(self._process.args, list) else ''} ended early: {trouble}")
