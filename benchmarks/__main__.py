"""Runs the benchmarks and prints one table."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import sqlite3
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from .measure import Row

NAMES = (
    "publish_in_my_transaction",
    "publish_durably",
    "empty_handler",
    "upsert_handler",
    "slow_handler",
    "many_subscriptions",
    "latency",
    "large_log",
    "start_up",
    "publish_beside_handlers",
    "relay",
    "intake",
    "outbox",
    "debezium",
    "sagas",
    "sagas_at_rest",
    "peers",
    "postgres.publish",
    "postgres.writers",
    "postgres.empty_handler",
    "postgres.upsert_handler",
    "postgres.many_subscriptions",
    "postgres.latency",
    "postgres.peers",
)


ONLY_NAMED = ("debezium",)
"""What takes minutes, and programs that aren't here otherwise."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help="Fewer events and repetitions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the JSON into this file, too.")
def main(names: tuple[str, ...], quick: bool, as_json: bool, markdown: bool, out: str | None) -> None:
    """Measure every path against the same work written by hand, in one run, and print goals beside figures.

    NAMES choose benchmarks, by a part of their names. Exits with 0 whether goals are met or not: it measures, it does not test.

    Example: python -m benchmarks empty upsert --quick
    """
    chosen = [name for name in NAMES if any(part.replace("-", "_") in name for part in names) or not (names or name in ONLY_NAMED)]
    if not chosen:
        raise click.UsageError(f"no benchmark is called {' or '.join(names)}; there are {', '.join(NAMES)}")
    progress = Console(stderr=True)
    rows: list[tuple[str, Row]] = []
    began = time.perf_counter()
    for name in chosen:
        since = time.perf_counter()
        try:
            for row in importlib.import_module(f".{name}", __package__).run(quick):
                rows.append((name, row))
                progress.print(f"[dim]{name}:[/] {row.path}: {_ratio(row)} {row.figure}", highlight=False)
        except Exception as error:  # one that breaks must not hide the others
            traceback.print_exc()
            rows.append((name, Row(name, f"broke: {type(error).__name__}: {error}".split("\n")[0], met=False)))
        progress.print(f"[dim]{name}: {time.perf_counter() - since:.0f} s[/]", highlight=False)
    seconds = time.perf_counter() - began
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "quick": quick,
        "seconds": round(seconds),
        "rows": [{"benchmark": name, **asdict(row)} for name, row in rows],
    }
    if out:
        with open(out, "w") as file:
            json.dump(report, file, indent=1)
    if as_json:
        json.dump(report, sys.stdout, indent=1)
        print()
    elif markdown:
        print("\n".join(lines(rows)))
    else:
        Console(width=None if sys.stdout.isatty() else 170).print(table(rows, seconds))


def machine() -> dict[str, Any]:
    """What the figures depend on, in words that name no machine."""
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def table(rows: list[tuple[str, Row]], seconds: float) -> Table:
    facts = machine()
    title = f"{facts['cores']} cores, load {facts['load']}, Python {facts['python']}, SQLite {facts['sqlite']}, {seconds:.0f} s"
    result = Table(title=title, title_justify="left", show_lines=False, expand=False)
    result.add_column("path")
    result.add_column("goal")
    result.add_column("ratio, spread", justify="right")
    result.add_column("figure", overflow="fold")
    result.add_column("goal met")
    last = ""
    for name, row in rows:
        if last and name != last:
            result.add_section()
        last = name
        met = "" if row.met is None else "[green]met[/]" if row.met else "[red]not met[/]"
        result.add_row(row.path, row.goal, _ratio(row), row.figure, met)
    return result


def lines(rows: list[tuple[str, Row]]) -> Iterator[str]:
    """The table in Markdown."""
    yield "| path | goal | ratio (spread) | figure | goal met |"
    yield "|---|---|---|---|---|"
    for _, row in rows:
        met = "" if row.met is None else "met" if row.met else "**not met**"
        yield f"| {row.path} | {row.goal} | {_ratio(row)} | {row.figure} | {met} |"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    spread = "" if row.spread is None else f" ({row.spread[0]:.2f} to {row.spread[1]:.2f})"
    return f"{row.ratio:.2f}{spread}"


if __name__ == "__main__":
    main()
