"""``tidings status``: how far each subscription is, and who runs it."""

from __future__ import annotations

import operator
import re
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..store.port import Holder, holder_text
from . import intake
from .options import Target, store_options
from .output import console, duration, print_json, table, width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from ..store.port import Store

COMPARE = {">": operator.gt, ">=": operator.ge, "=": operator.ge}
NARROW = 90
"""With fewer columns each subscription gets a line instead of a row in a table."""
CONDITIONS = ("behind", "seconds", "parked", "waiting", "dead")
FLAGS = ("paused", "held", "lapsed", "alarm", "trouble", "stuck", "alone")
OF_THE_STORE = ("horizon", "sagas")
HELD_SECONDS = 1.0
"""Transactions that hold readers back for less are everyday."""
_CONDITION = re.compile(rf"({'|'.join(CONDITIONS + OF_THE_STORE)})\s*(>=|=|>)\s*(\d+(?:\.\d+)?)|({'|'.join(FLAGS)})")


if TYPE_CHECKING:
    _ConditionType = click.ParamType[tuple[str, str, float]]
else:
    _ConditionType = click.ParamType


class Condition(_ConditionType):
    """``behind=1000`` (that many or more), ``behind>1000``, or one of the flags alone."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, float]:
        if isinstance(value, tuple):
            return value
        found = _CONDITION.fullmatch(value.strip())
        if found is None:
            self.fail(
                f"{value!r}: write one of {', '.join(CONDITIONS + OF_THE_STORE)} with a number, as in behind=1000, or {', '.join(FLAGS)}",
                param,
                ctx,
            )
        return (found[1], found[2], float(found[3])) if found[1] else (found[4], ">", 0.0)


@click.command(epilog="Example: tidings status --store sqlite:///shop.db --fail-if behind=1000 --fail-if dead=1")
@store_options
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--every", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between two looks of --watch.")
@click.option(
    "--fail-if",
    "conditions",
    type=Condition(),
    multiple=True,
    metavar="CONDITION",
    help="Exit with 1 if a subscription has so many: behind=1000, seconds=60, parked=10, waiting=100, dead=1; or is paused, held, "
    "lapsed, "
    "in trouble, stuck, alone (no worker has all of its lanes), or raises an alarm "
    "(it keeps too much of the log from going away). horizon=60: a transaction that published holds readers back for so "
    "many seconds (PostgreSQL). sagas=1: so many sagas are stuck or parked.",
)
def status(target: Target, as_json: bool, watch: bool, every: float, conditions: tuple[tuple[str, str, float], ...]) -> None:
    """Tell for each subscription how many events and seconds it is behind, what is parked and dead, and who holds its lanes."""
    with target.reading() as store:
        if watch and not as_json:
            from rich.live import Live

            with Live(console=console(), auto_refresh=False, screen=False) as live:
                try:
                    while True:
                        live.update(_shown(gather(store)), refresh=True)
                        time.sleep(every)
                except KeyboardInterrupt:
                    return
        found = gather(store)
    if as_json:
        print_json(found)
    else:
        console().print(_shown(found))
    rows = (*found["subscriptions"], *_as_subscriptions(found["intake"], found["intakes"]))
    failed = [text for row in rows for text in _failing(row, conditions)] + _held_back(found["horizon"], conditions)
    failed += _sagas_failing(found["sagas"], conditions)
    for text in failed:
        click.echo(text, err=True)
    if failed:
        raise SystemExit(1)


def gather(store: Store) -> dict[str, Any]:
    """Everything that ``status`` tells, in one snapshot, as JSON would show it. Times are seconds."""
    now = store.clock.time()

    def look(unit: Any) -> dict[str, Any]:
        workers, lanes, head = unit.workers(), unit.lanes(), unit.head()
        alive = {row.worker for row in workers if row.alive}
        subscriptions = []
        for row in unit.subscriptions():
            behind = unit.behind(row.name)
            parked, waiting, dead = unit.count_parked(row.name)
            held_by = Counter(lane.worker if lane.worker in alive else None for lane in lanes if lane.subscription == row.name)
            infos = [(worker.worker, worker.info) for worker in workers if worker.alive]
            subscriptions.append(
                {
                    "name": row.name,
                    "app": row.app,
                    "types": row.types,
                    "behind": behind.events,
                    "behind_exact": behind.exact,
                    "seconds_behind": None if behind.oldest is None else max(0.0, round(now - behind.oldest / 1e6, 3)),
                    "parked": parked,
                    "waiting": waiting,
                    "dead": dead,
                    "paused": row.paused,
                    "held": row.held,
                    "held_seconds": None if row.held_since is None else max(0.0, round(now - row.held_since / 1e6, 3)),
                    "lapsed_seconds": None if row.lapsed is None else max(0.0, round(now - row.lapsed[0] / 1e6, 3)),
                    "lapsed_behind": None if row.lapsed is None else row.lapsed[1],
                    "alarm": next((info["alarm"][row.name] for _, info in infos if row.name in info.get("alarm", {})), None),
                    "lanes": {worker: lanes_held for worker, lanes_held in held_by.items() if worker is not None},
                    "lanes_free": held_by[None],
                    "stuck": [{"worker": name, **one} for name, info in infos for one in info.get("stuck", {}).get(row.name, ())],
                    "trouble": sorted({info["trouble"][row.name] for _, info in infos if row.name in info.get("trouble", {})}),
                }
            )
        next_due = unit.next_due()
        return {
            "store": store.label,
            "head": head,
            "retained": unit.retained(),
            "sagas": [{"saga": saga, "state": state, "count": number} for saga, state, number in unit.sagas().alarms()],
            "next_scheduled_seconds": None if next_due is None else round(next_due / 1e6 - now, 3),
            "subscriptions": subscriptions,
            "intakes": intake.unread(unit),
            "workers": [
                {
                    "worker": row.worker,
                    "app": row.app,
                    "host": row.host,
                    "pid": row.pid,
                    "alive": row.alive,
                    "lease_seconds_left": round(row.seconds_left, 1) if row.alive else 0.0,
                    "lanes": sum(lane.worker == row.worker for lane in lanes),
                    "running": row.info.get("running", 0),
                    "up_seconds": max(0.0, round(now - row.started / 1e6, 1)),
                }
                for row in workers
            ],
        }

    found = store.query(look)
    found["intake"] = intake.partitions(store)
    found["store_bytes"] = store.size()
    found["horizon"] = [asdict(holder) for holder in store.holders()]
    return found


def _as_subscriptions(found: list[dict[str, Any]], intakes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Topics that come in, and intakes with their dead letters, to be judged by the same conditions."""
    nothing: dict[str, Any] = {
        **dict.fromkeys(("behind", "seconds_behind", "parked", "waiting", "dead", "paused", "lanes_free"), 0),
        **dict.fromkeys(("held", "alarm", "lapsed_seconds")),
        "trouble": [],
        "stuck": [],
    }
    rows = [{**nothing, "name": f"intake {one['intake']}", "dead": one["dead"]} for one in intakes]
    for topic in sorted({row["topic"] for row in found}):
        parts = [row for row in found if row["topic"] == topic]
        rows.append(
            {
                **nothing,
                "name": f"topic {topic}",
                "behind": sum(row["behind"] for row in parts),
                "seconds_behind": max(row["seconds_behind"] or 0 for row in parts),
                "trouble": [row["trouble"] for row in parts if row["trouble"]],
                "lanes_free": sum(row["owner"] is None for row in parts),
            }
        )
    return rows


def _failing(row: dict[str, Any], conditions: tuple[tuple[str, str, float], ...]) -> list[str]:
    values = {
        **{name: row[name] for name in ("behind", "parked", "waiting", "dead", "paused")},
        "seconds": row["seconds_behind"] or 0,
        "held": row["held"] is not None,
        "lapsed": row["lapsed_seconds"] is not None,
        "alarm": row["alarm"] is not None,
        "trouble": len(row["trouble"]),
        "stuck": len(row["stuck"]),
        "alone": row["lanes_free"],
    }
    return [
        f"{row['name']}: {name}" + ("" if name in FLAGS else f" {values[name]}, the limit is {limit:g}")
        for name, sign, limit in conditions
        if name not in OF_THE_STORE and COMPARE[sign](values[name], limit)
    ]


def _held_back(holders: list[dict[str, Any]], conditions: tuple[tuple[str, str, float], ...]) -> list[str]:
    """An age that can't be seen is no reason for silence."""
    limits = [(sign, limit) for name, sign, limit in conditions if name == "horizon"]
    return [
        f"horizon: {holder_text(Holder(**holder))}, the limit is {limit:g} s"
        for sign, limit in limits
        for holder in holders
        if holder["seconds"] is None or COMPARE[sign](holder["seconds"], limit)
    ]


def _sagas_failing(sagas: list[dict[str, Any]], conditions: tuple[tuple[str, str, float], ...]) -> list[str]:
    number = sum(row["count"] for row in sagas)
    return [
        f"sagas: {number} stuck or parked, the limit is {limit:g}"
        for name, sign, limit in conditions
        if name == "sagas" and COMPARE[sign](number, limit)
    ]


def _shown(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    scheduled = found["next_scheduled_seconds"]
    parts.append(
        Text(
            f"{found['store']}: last position {found['head']:,}"
            + (f", trimmed up to {found['retained']:,}" if found["retained"] else "")
            + (
                ""
                if scheduled is None
                else f"; the next scheduled event is due in {duration(scheduled)}"
                if scheduled > 0
                else "; a scheduled event is due"
            )
        )
    )
    holders = [Holder(**holder) for holder in found["horizon"]]
    long = [holder for holder in holders if holder.seconds is None or holder.seconds >= HELD_SECONDS]
    parts += [Text(holder_text(holder), style="yellow") for holder in long]
    parts += [
        Text(f"{row['saga']}: {row['count']:,} {row['state']}; see tidings saga list {row['saga']} --state {row['state']}", style="red")
        for row in found["sagas"]
    ]
    if not found["subscriptions"]:
        parts.append(Text("no subscriptions yet; `tidings run module:app` makes those of an app"))
        return Group(*parts)
    columns = width()
    narrow = columns is not None and columns < NARROW
    parts += [Text(""), *(_line(row) for row in found["subscriptions"])] if narrow else [Text(""), _table(found["subscriptions"])]
    if found["intake"]:
        parts += [Text(""), intake.shown(found["intake"])]
    parts += [Text(line, style="red") for line in intake.unread_lines(found["intakes"])]
    if found["workers"] and narrow:
        for row in found["workers"]:
            ending = "" if row["alive"] else ", gone: its lease ran out"
            parts.append(Text(f"{row['worker']} on {row['host']}: {row['lanes']} lanes, {row['running']} running{ending}"))
    elif found["workers"]:
        workers = table("Worker", "Host", "Pid", "Lanes", "Running", "Up", "", right=("Pid", "Lanes", "Running", "Up"))
        for row in found["workers"]:
            gone = Text("gone: its lease ran out", style="red") if not row["alive"] else Text("")
            workers.add_row(
                row["worker"], row["host"], str(row["pid"]), str(row["lanes"]), str(row["running"]), duration(row["up_seconds"]), gone
            )
        parts += [Text(""), workers]
    else:
        parts += [Text(""), Text("no worker runs; `tidings run module:app` starts one", style="yellow")]
    return Group(*parts)


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    from rich.text import Text

    made = table(
        "Subscription",
        "Behind",
        "For",
        "Parked",
        "Waiting",
        "Dead",
        "Lanes",
        "State",
        right=("Behind", "For", "Parked", "Waiting", "Dead", "Lanes"),
    )
    for row in rows:
        held = sum(row["lanes"].values())
        made.add_row(
            row["name"],
            ("" if row["behind_exact"] else "~") + f"{row['behind']:,}",
            duration(row["seconds_behind"]),
            *(
                Text(f"{row[name]:,}", style=style if row[name] else "dim")
                for name, style in (("parked", "yellow"), ("waiting", ""), ("dead", "red"))
            ),
            f"{held}/{held + row['lanes_free']}",
            _state(row),
        )
    return made


def _line(row: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    behind = f"{'' if row['behind_exact'] else '~'}{row['behind']:,} behind"
    if row["seconds_behind"]:
        behind += f" for {duration(row['seconds_behind'])}"
    held = sum(row["lanes"].values())
    rest = (
        f": {behind}, {row['parked']:,} parked, {row['waiting']:,} waiting, {row['dead']:,} dead, {held}/{held + row['lanes_free']} lanes, "
    )
    return Text.assemble((row["name"], "bold"), rest, _state(row))


def _state(row: dict[str, Any]) -> Text:
    from rich.text import Text

    lines: list[tuple[str, str]] = []
    if row["paused"]:
        lines.append(("paused", "yellow"))
    if row["held"]:
        lines.append((f"held for {duration(row['held_seconds'])}: {row['held']}", "red"))
    if row["lapsed_seconds"] is not None:
        lines.append(
            (
                f"lapsed {duration(row['lapsed_seconds'])} ago behind position {row['lapsed_behind']:,}; choose where it goes on:"
                f" tidings subscription rewind {row['name']} --to start|now|TIME",
                "red",
            )
        )
    if row["alarm"]:
        lines.append((row["alarm"], "yellow"))
    lines += [(f"trouble: {text}", "red") for text in row["trouble"]]
    lines += [
        (
            f"a thread of {one['handler']} runs past its timeout, {duration(one['seconds'])} now, at position {one['position']}"
            f" in {one['worker']}",
            "red",
        )
        for one in row["stuck"]
    ]
    if not lines and row["lanes_free"] == sum(row["lanes"].values()) + row["lanes_free"]:
        lines.append(("nobody runs it", "yellow"))
    return Text("\n").join(Text(text, style=style) for text, style in lines) if lines else Text("ok", style="green")
