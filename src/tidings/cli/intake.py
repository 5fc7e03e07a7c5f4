"""``tidings intake``: how far the topics of a broker were taken in."""

from __future__ import annotations

from typing import Any

import click

from ..errors import NotFound
from ..store.intakes import Offset
from ..store.port import Store
from .options import Target, store_options
from .output import console, count, duration, print_json, table


@click.group(epilog="Example: tidings intake list --store sqlite:///shop.db")
def intake() -> None:
    """Events that come in from a broker: how far each topic was read, and what to do about one that stopped."""


@intake.command("list", epilog="Example: tidings intake list --store sqlite:///shop.db")
@store_options
def list_(target: Target, as_json: bool) -> None:
    """List the partitions that are read, with how many records are left, and why one isn't read."""
    with target.reading() as store:
        found, lines = partitions(store), unread_lines(store.query(unread))
    if as_json:
        print_json(found)
    elif not found:
        click.echo("nothing comes in from a broker; App(…, broker=…) with subscriptions to other apps' events makes that happen")
    else:
        console().print(shown(found))
        for line in lines:
            click.echo(line)


@intake.command(epilog="Example: tidings intake resume orders --partition 3 --from first --store sqlite:///shop.db")
@store_options
@click.argument("topic")
@click.option("--partition", type=click.IntRange(0), help="Only this one; all of the topic unless given.")
@click.option("--from", "where", required=True, metavar="first|end|OFFSET", help="The oldest record there is, behind the newest, or here.")
@click.option("--name", default="intake", show_default=True, help="Of the intake.")
def resume(target: Target, as_json: bool, topic: str, partition: int | None, where: str, name: str) -> None:
    """Go on with TOPIC somewhere else: behind records that were lost, in a topic that was made anew, or once more from the start.

    The running intake does it within seconds. What was taken already and comes again is dropped, as always.
    """
    if where not in ("first", "end") and not where.isdigit():
        raise click.UsageError(f"--from {where}: write first, end or an offset")
    with target.writing() as store:
        done = store.write(lambda unit: unit.intake(name).resume(topic, partition, where)).result()
        if not done:
            known = sorted({row["topic"] for row in partitions(store)})
            hint = f"there are {', '.join(known)}" if known else "none was read yet"
            raise NotFound(f"no partition of the topic {topic!r} is known to the intake {name!r}; {hint}", topic=topic)
    if as_json:
        print_json({"intake": name, "topic": topic, "partition": partition, "from": where, "partitions": done})
    else:
        click.echo(f"{count(done, 'partition')} of {topic} will go on from {where}")


def partitions(store: Store) -> list[dict[str, Any]]:
    """Every partition of every intake, as JSON would show it."""
    now = store.clock.time()

    def look(unit: Any) -> list[dict[str, Any]]:
        alive = {row.worker for row in unit.workers() if row.alive}
        trouble = {name: said for row in unit.workers() if row.alive for name, said in row.info.get("trouble", {}).items()}
        return [
            {**_row(row, now), "intake": one.name, "broker": one.broker, "owner": row.owner if row.owner in alive else None}
            | ({"trouble": row.trouble or trouble.get(one.name)})
            for one in unit.intakes()
            for row in unit.intake(one.name).offsets()
        ]

    return store.query(look)


def unread(unit: Any) -> list[dict[str, Any]]:
    """How many records each intake could not read and keeps as dead letters, as JSON would show it."""
    return [{"intake": one.name, "app": one.app, "dead": unit.count_parked(one.name)[2]} for one in unit.intakes()]


def unread_lines(found: list[dict[str, Any]]) -> list[str]:
    return [f"{count(row['dead'], 'record')} could not be read: tidings dead list {row['intake']}" for row in found if row["dead"]]


def _row(row: Offset, now: float) -> dict[str, Any]:
    return {
        "topic": row.topic,
        "partition": row.partition,
        "next": row.next,
        "behind": row.behind,
        "seconds_behind": max(0.0, round(now - row.reached / 1e6, 3)) if row.behind and row.reached else None,
        "resume": row.resume,
    }


def shown(found: list[dict[str, Any]]) -> Any:
    from rich.text import Text

    made = table("Topic", "Partition", "Next", "Behind", "For", "Worker", "State", right=("Partition", "Next", "Behind", "For"))
    for row in found:
        state = Text("ok", style="green")
        if row["trouble"]:
            state = Text(row["trouble"], style="red")
        elif row["resume"]:
            state = Text(f"will go on from {row['resume']}", style="yellow")
        elif row["owner"] is None:
            state = Text("nobody reads it", style="yellow")
        made.add_row(
            row["topic"],
            str(row["partition"]),
            f"{row['next']:,}",
            f"{row['behind']:,}",
            duration(row["seconds_behind"]),
            row["owner"] or "",
            state,
        )
    return made
