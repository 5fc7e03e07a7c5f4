"""What the demonstration shows while it runs: a live picture on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from apps.checkout.reconcile import Reconciliation
from apps.checkout.watch import Snapshot

LINE_SECONDS = 3.0
_RATE_SECONDS = 3.0
_NEWS = 7


class Display:
    """Call ``show`` with each snapshot and ``tell`` for what is worth a line of its own."""

    def __init__(self, console: Console, orders: int) -> None:
        self._console = console
        self._orders = orders
        self._began = time.monotonic()
        self._news: deque[tuple[float, str]] = deque(maxlen=_NEWS)
        self._past: deque[tuple[float, int]] = deque()
        self._last_line = 0.0
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def tell(self, text: str) -> None:
        self._news.append((self.seconds, text))
        if self._live is None:
            self._console.print(f"{self.seconds:5.1f} s  * {text}", highlight=False, soft_wrap=True)

    def show(self, snapshot: Snapshot, placed: int) -> None:
        now = self.seconds
        self._past.append((now, snapshot.events))
        while self._past[0][0] < now - _RATE_SECONDS:
            self._past.popleft()
        span = now - self._past[0][0]
        rate = (snapshot.events - self._past[0][1]) / span if span > 0 else 0.0
        if self._live is not None:
            self._live.update(self._picture(snapshot, placed, rate))
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            behind = sum(reader.behind for reader in snapshot.readers)
            parked = sum(reader.parked for reader in snapshot.readers)
            self._console.print(
                f"{now:5.1f} s  placed {placed}/{self._orders}, ended {snapshot.ended}, events {snapshot.events} ({rate:.0f}/s),"
                f" deliveries behind {behind}, parked {parked}{_sagas(snapshot)}",
                highlight=False,
                soft_wrap=True,
            )

    def _picture(self, snapshot: Snapshot, placed: int, rate: float) -> Panel:
        bars = Table.grid(padding=(0, 1))
        for name, done, colour in (("placed", placed, "cyan"), ("ended", snapshot.ended, "green")):
            bars.add_row(
                name, ProgressBar(total=self._orders, completed=done, width=46, complete_style=colour), f"{done:,} of {self._orders:,}"
            )
        states = snapshot.states
        line = (
            f"{states.get('shipped', 0):,} shipped · {states.get('cancelled', 0):,} cancelled · {snapshot.events:,} events in the log ·"
            f" {rate:,.0f} events/s · {snapshot.scheduled:,} scheduled{_sagas(snapshot)}"
        )
        readers = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("subscription", "of", "behind", "parked", "dead", "workers"):
            readers.add_column(column, justify="left" if column in ("subscription", "of") else "right")
        for reader in snapshot.readers:
            readers.add_row(
                reader.name,
                Text(reader.app, style="dim"),
                Text(f"{reader.behind:,}", style="yellow" if reader.behind > 500 else ""),
                Text(f"{reader.parked:,}", style="yellow" if reader.parked else "dim"),
                Text(f"{reader.dead:,}", style="red" if reader.dead else "dim"),
                str(reader.workers),
            )
        news = Table.grid(padding=(0, 1))
        for at, text in self._news:
            news.add_row(Text(f"{at:5.1f} s", style="dim"), text)
        return Panel(Group(bars, Text(line), Text(), readers, Text(), news), title=f"checkout, {self.seconds:.0f} s", border_style="dim")


def _sagas(snapshot: Snapshot) -> str:
    found = ", ".join(f"{count:,} {state}" for state, count in snapshot.sagas.items())
    return f"; sagas: {found}" if found else ""


def show_reconciliation(console: Console, result: Reconciliation, *, problems: int = 5) -> None:
    """The checks as a table, and the first problems of those that failed."""
    table = Table(title="Reconciliation", title_justify="left")
    table.add_column("check")
    table.add_column("looked at", justify="right")
    table.add_column("result")
    for check in result.checks:
        verdict = Text("ok", style="green") if check.passed else Text(f"{len(check.problems):,} wrong", style="bold red")
        table.add_row(check.name, f"{check.examined:,}", verdict)
    console.print(table)
    for check in result.checks:
        for problem in check.problems[:problems]:
            console.print(f"  {check.name}: {problem}", style="red", highlight=False, soft_wrap=True)
        if len(check.problems) > problems:
            console.print(f"  … and {len(check.problems) - problems:,} more", style="red")
