"""What an import and a command cost before they do anything. In processes of their own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .measure import Row, folder
from .program import compiled

IMPORT = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import tidings
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def run(quick: bool) -> Iterator[Row]:
    times = 7 if quick else 21
    command = str(Path(sys.executable).with_name("tidings"))
    with folder() as path:
        env = compiled(path)
        for line in ((sys.executable, "-c", IMPORT), (command, "--help")):  # compiles
            _seconds(env, *line)
        bare = statistics.median(_seconds(env, sys.executable, "-c", "pass") for _ in range(times)) * 1e3
        walls, cpus = [], []
        for _ in range(times):
            wall, cpu = subprocess.check_output([sys.executable, "-c", IMPORT], text=True, env=env).split()
            walls.append(float(wall) * 1e3)
            cpus.append(float(cpu) * 1e3)
        yield _row("import tidings", walls, 60, f"CPU {statistics.median(cpus):.0f} ms")
        helps = [_seconds(env, command, "--help") * 1e3 for _ in range(times)]
        yield _row("tidings --help", helps, 150, f"an empty Python program {bare:.0f} ms")


def _row(path: str, times: list[float], goal: float, words: str) -> Row:
    median, least = statistics.median(times), min(times)
    figure = f"{median:.0f} ms, at best {least:.0f} ms ({words})"
    return Row(path, figure, f"< {goal:g} ms", median < goal, facts={"median_ms": median, "least_ms": least})


def _seconds(env: dict[str, str], *command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, env=env)
    return time.perf_counter() - began
