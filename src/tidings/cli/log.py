"""``tidings log``: rows of the log."""

from __future__ import annotations

import time
from datetime import datetime

import click
import msgspec

from ..envelope import Envelope
from .options import Moment, Target, micros, store_options
from .output import clock_time, cut, width

FOLLOW_SECONDS = 0.1
CHUNK = 1000


@click.command(epilog="Example: tidings log --store sqlite:///shop.db --key order_id 42 --since 10m")
@store_options
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only this type, as in shop.OrderPlaced; may be given several times.")
@click.option("--key", nargs=2, metavar="NAME VALUE", help="Only events of this key, as in order_id 42.")
@click.option("--since", type=Moment(), help="Published at this time or later: ISO 8601, or 10m for ten minutes ago.")
@click.option("--until", type=Moment(), help="Published before this time.")
@click.option("--after", type=click.IntRange(0), default=None, metavar="POSITION", help="Behind this position, the oldest first.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest so many; with --after the oldest.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is published from now on, until Ctrl-C.")
def log(
    target: Target,
    as_json: bool,
    types: tuple[str, ...],
    key: tuple[str, str] | None,
    since: datetime | None,
    until: datetime | None,
    after: int | None,
    limit: int,
    follow: bool,
) -> None:
    """Print events of the log, ascending.

    With --json each line is an event in CloudEvents 1.0 JSON format, as `tidings publish --cloudevent` reads it.
    """
    with target.reading() as store:

        def rows(behind: int, most: int, newest: bool) -> tuple[list[Envelope], int]:
            return store.query(
                lambda unit: (
                    unit.select(after=behind, limit=most, types=types, key=key, since=micros(since), until=micros(until), newest=newest),
                    unit.head(),
                )
            )

        found, head = rows(after or 0, limit, newest=after is None)
        _print(found, as_json)
        if not follow:
            if not found and (types or key or since or until):
                click.echo("no event fits that; `tidings log` alone shows the newest", err=True)
            return
        seen = found[-1].position if len(found) == limit and after is not None else head
        try:
            while True:
                found, head = rows(seen, CHUNK, newest=False)
                _print(found, as_json)
                seen = found[-1].position if len(found) == CHUNK else max(head, seen)
                if len(found) < CHUNK:
                    time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            return


def _print(rows: list[Envelope], as_json: bool) -> None:
    columns = width()
    for row in rows:
        if as_json:
            click.echo(msgspec.json.encode(row.to_cloudevent()))
        else:
            key = "" if row.key is None else f"{row.key_name}={row.key}  "
            data = row.data.decode(errors="replace")
            click.echo(cut(f"{row.position:>8}  {clock_time(row.time)}  {row.type}  {key}{data}", columns))
