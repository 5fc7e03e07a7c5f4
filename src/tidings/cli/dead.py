"""``tidings dead``: what has used up its attempts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from operator import methodcaller
from typing import Any, NamedTuple

import click
import msgspec

from ..errors import NotFound
from ..store.port import Parked, Store
from .options import Target, complete_subscription, require_dead_letters, store_options
from .output import clock_time, console, count, print_json, table

CHUNK = 500
"""Dead letters changed by one transaction."""


class Chosen(NamedTuple):
    """Which dead letters are meant."""

    type: str | None
    key: tuple[str, str] | None
    error: str | None

    def __bool__(self) -> bool:
        return any(one is not None for one in self)


def choosing(command: Callable[..., None]) -> Callable[..., None]:
    """The options that make ``chosen``."""

    @click.option("--type", "type_", metavar="TYPE", help="Only events of this type.")
    @click.option("--key", nargs=2, metavar="NAME VALUE", help="Only events of this key, as in order_id 42.")
    @click.option("--error", metavar="TEXT", help="Only those whose last error has this in its text.")
    @functools.wraps(command)
    def wrapped(*args: Any, type_: str | None, key: tuple[str, str] | None, error: str | None, **kwargs: Any) -> None:
        command(*args, chosen=Chosen(type_, key, error), **kwargs)

    return wrapped


@click.group(epilog="Example: tidings dead list --store sqlite:///shop.db")
def dead() -> None:
    """Dead letters: events that used up their attempts, with the error of the last one."""


@dead.command("list", epilog="Example: tidings dead list charge_card --store sqlite:///shop.db")
@store_options
@click.argument("subscription", required=False, shell_complete=complete_subscription)
@choosing
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
def list_(target: Target, as_json: bool, subscription: str | None, chosen: Chosen, limit: int) -> None:
    """List dead letters, of SUBSCRIPTION or of all."""
    with target.reading() as store:
        if subscription is not None:
            require_dead_letters(store, subscription)
        rows = store.query(lambda unit: unit.parked(subscription, ["dead"], limit + 1, **chosen._asdict()))
    more, rows = len(rows) > limit, rows[:limit]
    if as_json:
        print_json([_as_json(row) for row in rows])
        return
    if not rows:
        click.echo("no dead letters that fit" if chosen else "no dead letters")
        return
    made = table("Subscription", "Position", "Type", "Key", "Attempts", "Since", "Error", right=("Position", "Attempts"))
    for row in rows:
        made.add_row(
            row.subscription,
            str(row.envelope.position),
            row.envelope.type,
            _key(row),
            str(row.attempts),
            clock_time(row.since)[:19],
            row.error,
        )
    console().print(made)
    if more:
        click.echo(f"… and more; --limit {limit * 10} shows more of them", err=True)


@dead.command(epilog="Example: tidings dead show charge_card 1234 --store sqlite:///shop.db")
@store_options
@click.argument("subscription", shell_complete=complete_subscription)
@click.argument("position", type=int)
def show(target: Target, as_json: bool, subscription: str, position: int) -> None:
    """Show one dead letter: the event, its attempts, and the last traceback."""
    with target.reading() as store:
        row = store.query(lambda unit: unit.parked_row(subscription, position))
        attempts = [one for one in store.query(lambda unit: unit.attempts([position])) if one.subscription == subscription]
        if row is None or row.state != "dead":
            require_dead_letters(store, subscription)
            raise _missing(subscription, position)
    if as_json:
        print_json({**_as_json(row), "traceback": row.traceback, "failed_attempts": [msgspec.to_builtins(one) for one in attempts]})
        return
    click.echo(f"{row.subscription} at position {position}: {row.envelope.type}  {_key(row)}")
    click.echo(f"event {row.envelope.event_id}, published {clock_time(row.envelope.time)} by {row.envelope.source}")
    click.echo(row.envelope.data.decode(errors="replace"))
    for one in attempts:
        click.echo(f"attempt {one.attempt}  {clock_time(one.time)}  {one.worker}  {one.error or ''}")
    if row.holds:
        click.echo("Its key waits for you: retry or drop it.")
    click.echo(f"\n{(row.traceback or row.error or '').rstrip()}")


@dead.command(epilog="Example: tidings dead retry charge_card 1234 --store sqlite:///shop.db")
@store_options
@click.argument("subscription", shell_complete=complete_subscription)
@click.argument("positions", type=int, nargs=-1)
@choosing
@click.option("--all", "everything", is_flag=True, help="All dead letters of the subscription.")
def retry(target: Target, as_json: bool, subscription: str, positions: tuple[int, ...], chosen: Chosen, everything: bool) -> None:
    """Give dead letters to their handler again: by position, those that fit --type, --key and --error, or --all. Their attempts go on
    counting where they were."""
    _change(target, as_json, subscription, positions, chosen, everything, "retry")


@dead.command(epilog="Example: tidings dead drop charge_card 1234 --store sqlite:///shop.db")
@store_options
@click.argument("subscription", shell_complete=complete_subscription)
@click.argument("positions", type=int, nargs=-1)
@choosing
@click.option("--all", "everything", is_flag=True, help="All dead letters of the subscription.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def drop(target: Target, as_json: bool, subscription: str, positions: tuple[int, ...], chosen: Chosen, everything: bool, yes: bool) -> None:
    """Drop dead letters for good: by position, those that fit --type, --key and --error, or --all. The events stay in the log; trace tells
    that they were dropped."""
    _change(target, as_json, subscription, positions, chosen, everything, "drop", ask=not yes)


def _change(
    target: Target, as_json: bool, subscription: str, positions: tuple[int, ...], chosen: Chosen, everything: bool, action: str,
    ask: bool = False,
) -> None:  # fmt: skip
    if (everything or bool(chosen)) == bool(positions):
        raise click.UsageError("say which: their positions, --type, --key or --error, or --all")
    with target.writing() as store:
        require_dead_letters(store, subscription)
        if not positions:
            positions = tuple(_all_positions(store, subscription, chosen))
        else:
            for position in positions:
                row = store.query(methodcaller("parked_row", subscription, position))
                if row is None or row.state != "dead":
                    raise _missing(subscription, position)
        if ask and positions:
            click.confirm(
                f"Drop {count(len(positions), 'dead letter')} of {subscription}? They won't be handled any more.", abort=True, err=True
            )
        done = 0
        for start in range(0, len(positions), CHUNK):
            now, part = time.time_ns() // 1000, positions[start : start + CHUNK]

            def change(unit: Any, now: int = now, part: tuple[int, ...] = part) -> int:
                act = unit.retry_dead if action == "retry" else unit.drop_dead
                return sum(act(subscription, position, now) for position in part)

            done += store.write(change).result()
    if as_json:
        print_json({"subscription": subscription, "action": action, "changed": done})
    else:
        click.echo(f"{count(done, 'dead letter')} of {subscription} {'will be tried again' if action == 'retry' else 'dropped'}")


def _all_positions(store: Store, subscription: str, chosen: Chosen) -> list[int]:
    positions: list[int] = []
    while True:
        after = positions[-1] if positions else 0
        rows = store.query(methodcaller("parked", subscription, ["dead"], after=after, **chosen._asdict()))
        positions += [row.envelope.position for row in rows]
        if len(rows) < 1000:
            return positions


def _missing(subscription: str, position: int) -> NotFound:
    return NotFound(f"{subscription} has no dead letter at position {position}; `tidings dead list {subscription}` shows those it has")


def _key(row: Parked) -> str:
    return "" if row.envelope.key is None else f"{row.envelope.key_name}={row.envelope.key}"


def _as_json(row: Parked) -> dict[str, Any]:
    return {
        "subscription": row.subscription,
        "position": row.envelope.position,
        "attempts": row.attempts,
        "since": row.since,
        "holds_its_key": row.holds,
        "error": row.error,
        "event": row.envelope.to_cloudevent(),
    }
