"""What our index, our sequence and our NOTIFY cost those who write: eight clients of pgbench that each commit one event at a time."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from servers.postgres import programs
from tidings.store.postgres.waker import Notifier

from ..byhand import COLUMNS, order, row
from ..measure import Row, folder, thousands
from .byhand import connect, database, store

CLIENTS = 8


def run(quick: bool) -> Iterator[Row]:
    seconds, rounds = (1, 3) if quick else (3, 7)
    with database() as url, folder() as path:
        store(url).close()
        values = ", ".join(_literal(value) for value in row(order(1)))
        with connect(url) as conn:
            # The same columns and the same key, with nothing that only Tidings needs.
            conn.execute("CREATE TABLE plain (LIKE tidings_log); ALTER TABLE plain ALTER position DROP DEFAULT")
            conn.execute("ALTER TABLE plain ALTER position ADD GENERATED ALWAYS AS IDENTITY; ALTER TABLE plain ADD PRIMARY KEY (position)")
        scripts: dict[str, str] = {
            "plain": f"INSERT INTO plain ({COLUMNS}) VALUES ({values}) RETURNING position;\n",
            "log": f"INSERT INTO tidings_log ({COLUMNS}) VALUES ({values}) RETURNING position;\n",
        }
        scripts["inside"] = f"BEGIN;\n{scripts['log']}NOTIFY bench;\nCOMMIT;\n"
        for name, text in scripts.items():
            (path / name).write_text(text)
        rates: dict[str, list[float]] = {"plain": [], "log": [], "told": [], "inside": []}
        for turn in range(rounds + 1):
            for name in sorted(rates, key=lambda name: (turn + list(rates).index(name)) % len(rates)):
                found = _told(url, path, seconds) if name == "told" else _rate(url, path / name, seconds)
                if turn:  # the first is thrown away
                    rates[name].append(found)
        for name, words, goal in (
            ("log", "the log's index and sequence", None),
            ("told", "the same, and NOTIFY from a side connection of each of 8 processes, with a listener", 0.95),
            ("inside", "the same, with NOTIFY inside the writers' transactions instead", None),
        ):
            ratios = [ours / plain for ours, plain in zip(rates[name], rates["plain"], strict=True)]
            ratio = statistics.median(ratios)
            yield Row(
                f"PostgreSQL: commits of {CLIENTS} writers with {words}",
                f"{thousands(statistics.median(rates[name]))} (a plain table {thousands(statistics.median(rates['plain']))})",
                "" if goal is None else f"≥ {100 * goal:.0f} %",
                None if goal is None else ratio >= goal,
                ratio,
                (min(ratios), max(ratios)),
            )


def _told(url: str, path: Path, seconds: int) -> float:
    """While eight processes' notifiers are told of a publish all the time."""
    notifiers = [Notifier(url, "bench") for _ in range(CLIENTS)]
    over = threading.Event()

    def tell() -> None:
        while not over.wait(0.001):
            for notifier in notifiers:
                notifier.hint()

    def listen() -> None:
        with connect(url) as conn:
            conn.execute("LISTEN bench")
            while not over.is_set():
                for _ in conn.notifies(timeout=0.2, stop_after=1000):
                    pass

    threads = [threading.Thread(target=tell), threading.Thread(target=listen)]
    for thread in threads:
        thread.start()
    try:
        return _rate(url, path / "log", seconds)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for notifier in notifiers:
            notifier.close()


def _rate(url: str, script: Path, seconds: int) -> float:
    """Transactions a second, by the server's own benchmark program."""
    program = programs()[max(programs())]
    environment = {**os.environ, **({"LD_LIBRARY_PATH": str(program.base / program.libraries)} if program.libraries else {})}
    command = [
        str(program.bin / "pgbench"),
        "-n",
        "-M",
        "prepared",
        "-c",
        str(CLIENTS),
        "-j",
        "2",
        "-T",
        str(seconds),
        "-f",
        str(script),
        url,
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found = re.search(r"^tps = ([0-9.]+)", printed, re.MULTILINE)
    assert found is not None, printed
    return float(found[1])


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return str(value) if isinstance(value, int) else f"'{value}'"
