"""How things are printed: JSON, tables that fit the terminal, times and durations for people."""

from __future__ import annotations

import shutil
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:  # commands that print plain lines don't wait for rich
    from rich.console import Console
    from rich.table import Table

PIPED_WIDTH = 200


def console() -> Console:
    """Of the terminal's width; wide where there is no terminal. Nothing in a text is markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def width() -> int | None:
    """Columns of the terminal; None where there is none, and nothing needs cutting."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without frames; numbers keep together and texts fold."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        numeric = column in right
        made.add_column(column, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return made


def clock_time(microseconds: int | None, *, day: bool = True) -> str:
    """Local time to the millisecond."""
    if microseconds is None:
        return ""
    moment = datetime.fromtimestamp(microseconds / 1e6).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S") + f".{microseconds // 1000 % 1000:03d}"


def duration(seconds: float | None) -> str:
    """``0.3 s``, ``12 s``, ``5 min``, ``3 h``, ``2 d``."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 event``, ``2,000 events``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def cut(text: str, size: int | None) -> str:
    """At most so many columns on one line."""
    text = text.replace("\n", " ")
    return text if size is None or len(text) <= size else text[: max(1, size - 1)] + "…"
