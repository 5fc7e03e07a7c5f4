"""What an import and a command cost before they do anything. In processes of their own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .measure import Row

IMPORT = "import time; t = time.perf_counter(); import tidings; print(time.perf_counter() - t)"


def run(quick: bool) -> Iterator[Row]:
    times = 7 if quick else 21
    bare = statistics.median(_seconds(sys.executable, "-c", "pass") for _ in range(times)) * 1e3
    imports = [float(subprocess.check_output([sys.executable, "-c", IMPORT], text=True)) * 1e3 for _ in range(times)]
    yield _row("import tidings", imports, 60, bare)
    helps = [_seconds(str(Path(sys.executable).with_name("tidings")), "--help") * 1e3 for _ in range(times)]
    yield _row("tidings --help", helps, 150, bare)


def _row(path: str, times: list[float], goal: float, bare: float) -> Row:
    median, least = statistics.median(times), min(times)
    return Row(
        path,
        f"{median:.0f} ms, at best {least:.0f} ms (an empty Python program {bare:.0f})",
        f"< {goal:g} ms",
        median < goal,
        facts={"median_ms": median, "least_ms": least, "python_ms": bare},
    )


def _seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began
