"""``tidings relay lag``: how far behind the relay of an outbox table is, for people and for alarms."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..store.port import holder_text, size_text
from .options import debug_option
from .output import count, duration, print_json
from .relay_table import common_options, options_of

if TYPE_CHECKING:
    from ..store.outbox import Lag

LIMITS = ("behind", "seconds", "retained", "horizon")
FLAGS = ("alone", "lost")
_CONDITION = re.compile(rf"({'|'.join(LIMITS)})=(\d+(?:\.\d+)?)|({'|'.join(FLAGS)})")


def _condition(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, float]]:
    found = []
    for value in values:
        match = _CONDITION.fullmatch(value.strip())
        if match is None:
            raise click.BadParameter(
                f"{value!r}: write one of {', '.join(LIMITS)} with a number, as in behind=1000, or {', '.join(FLAGS)}", ctx, param
            )
        found.append((match[1], float(match[2])) if match[1] else (match[3], 0.0))
    return found


@click.command("lag", epilog="Example: tidings relay lag --database postgresql://shop@127.0.0.1/shop --fail-if behind=1000 --fail-if alone")
@common_options
@click.option(
    "--fail-if",
    "conditions",
    callback=_condition,
    multiple=True,
    metavar="CONDITION",
    help="Exit with 1 if so many rows wait, behind=1000, or the oldest for so long, seconds=60; if the slot keeps so many MB of WAL, "
    "retained=1000, or was lost; if a transaction holds readers back for so many seconds, horizon=60; if no relay leads: alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def relay_lag(as_json: bool, conditions: list[tuple[str, float]], **given: Any) -> None:
    """Tell how far behind the relay of an outbox table is: rows and seconds, who leads, what the replication slot keeps.

    Asks the database alone, so it also tells where no relay runs. Options are those of tidings relay table.
    """
    from ..relay.lag import look

    found = look(options_of(**given))
    if as_json:
        print_json(asdict(found))
    else:
        for line in _lines(found):
            click.echo(line)
    failed = [text for name, limit in conditions if (text := _failing(found, name, limit)) is not None]
    for text in failed:
        click.echo(text, err=True)
    if failed:
        raise SystemExit(1)


def _lines(lag: Lag) -> list[str]:
    who = "nobody relays it" if lag.leader is None else f"relayed from {lag.leader} (server process {lag.leader_pid})"
    lines = [f"{lag.relay}: {lag.table} by {lag.mode}, {who}"]
    if lag.behind is not None:
        age = "" if lag.seconds is None else f", the oldest written {duration(lag.seconds)} ago"
        lines.append(f"  {'' if lag.exact else 'more than '}{count(lag.behind, 'row')} to be sent{age}")
    if (slot := lag.slot) is not None:
        state = "the relay streams from it" if slot.streaming else "nobody streams from it"
        left = "" if slot.left is None else f", {size_text(slot.left)} more until it may be lost"
        kept = f"{size_text(slot.behind)} of WAL not confirmed, {size_text(slot.retained)} kept ({slot.wal}){left}"
        lines.append(f"  slot {slot.name}: {state}; {kept}")
    lines += [f"  {holder_text(holder)}" for holder in lag.horizon]
    return lines


def _failing(lag: Lag, name: str, limit: float) -> str | None:
    """An age that can't be seen is no reason for silence."""
    over = False
    text = name
    if name == "alone":
        over = lag.leader is None
    elif name == "lost":
        over = lag.slot is not None and lag.slot.wal == "lost"
    elif name == "horizon":
        over = any(holder.seconds is None or holder.seconds >= limit for holder in lag.horizon)
    elif name == "retained":
        over = lag.slot is not None and lag.slot.retained >= limit * 1_000_000
        text = f"retained {0 if lag.slot is None else lag.slot.retained / 1e6:.0f} MB"
    elif name == "behind":
        over = lag.behind is not None and lag.behind >= limit
        text = f"behind {lag.behind}"
    else:
        over = lag.seconds is not None and lag.seconds >= limit
        text = f"seconds {lag.seconds or 0:.1f}"
    if not over:
        return None
    return f"{lag.relay}: {text}" + (f", the limit is {limit:g}" if name in LIMITS else "")
