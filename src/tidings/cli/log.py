"""``tidings log``: rows of the log."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import click
import msgspec

from ..envelope import Envelope
from .options import Moment, Target, micros, store_options
from .output import clock_time, cut, width

if TYPE_CHECKING:
    from ..store.port import Unit

FOLLOW_SECONDS = 0.1
CHUNK = 1000
NEAR = 1000
"""Positions at the end of the log among which a transaction that is open at the first look may still publish."""


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

        def look(unit: Unit) -> tuple[list[Envelope], int, set[int]]:
            found = unit.select(
                after=after or 0, limit=limit, types=types, key=key, since=micros(since), until=micros(until), newest=after is None
            )
            if after is not None and len(found) == limit:  # there is more at once
                return found, found[-1].position, set()
            begin = max(after or 0, unit.head() - NEAR)
            return found, begin, {row.position for row in unit.select(after=begin, limit=NEAR)} if follow else set()

        found, seen, known = store.query(look)
        _print(found, as_json)
        if not follow:
            if not found and (types or key or since or until):
                click.echo("no event fits that; `tidings log` alone shows the newest", err=True)
            return

        def fits(row: Envelope) -> bool:
            return (
                row.position not in known
                and (not types or row.type in types)
                and (key is None or (row.key_name, row.key) == key)
                and (since is None or row.time >= (micros(since) or 0))
                and (until is None or row.time < (micros(until) or 0))
            )

        try:
            while True:
                # As readers do: no row up to there will come any more.
                rows, upto = store.read(seen, seen + CHUNK)
                _print([row for row in map(Envelope._make, rows) if fits(row)], as_json)
                if upto == seen:
                    time.sleep(FOLLOW_SECONDS)
                seen = upto
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
