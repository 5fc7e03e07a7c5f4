"""``tidings store``: the tables themselves."""

from __future__ import annotations

import os
import shutil
import time
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import click

from ..store.sqlite import schema
from ..store.sqlite.connect import write_lock_holder
from ..store.sqlite.unit import SQLiteUnit
from .options import Duration, Moment, Target, json_option, micros, store_options
from .output import count, print_json

CHUNK = 5_000
"""Rows deleted by one transaction, so that publishers never wait long."""


@click.group(epilog="Example: tidings store init --store sqlite:///shop.db")
def store() -> None:
    """Make, check, condense and trim a store."""


@store.command(epilog="Example: tidings store init --store sqlite:///shop.db")
@store_options
def init(target: Target, as_json: bool) -> None:
    """Make the tables, or bring those of an older Tidings up to date. Does no harm a second time."""
    made = target.store()
    made.open()
    try:
        facts = made.query(lambda unit: unit.facts())
    finally:
        made.close()
    if as_json:
        print_json({"path": made.path, "schema": int(facts["schema"]), "log_id": facts["log_id"]})
    else:
        click.echo(f"{made.path} is ready: schema {facts['schema']}, log {facts['log_id']}")


@store.command(epilog="Example: tidings store check --store sqlite:///shop.db")
@store_options
@click.option("--full", is_flag=True, help="Check the indexes against the tables too (slower).")
def check(target: Target, as_json: bool, full: bool) -> None:
    """Check the file and say what is in it; exit code 1 if it is damaged."""
    with target.reading() as opened:

        def look(unit: Any) -> dict[str, Any]:
            return {
                "head": unit.head(),
                "searched_plainly": unit.searched_plainly(),
                "scheduled": len(unit.scheduled(1000)),
                "trimmable": unit.trimmable(),
                **unit.facts(),
            }

        facts = opened.query(look)
        conn = opened.connect(read_only=True)
        try:
            problems = [
                row[0] for row in conn.execute("PRAGMA integrity_check(20)" if full else "PRAGMA quick_check(20)") if row[0] != "ok"
            ]
            rows = conn.execute("SELECT count(*) FROM tidings_log").fetchone()[0]
        finally:
            conn.close()
        path = opened.path
    sizes = {
        name: os.path.getsize(path + suffix) if os.path.exists(path + suffix) else 0 for name, suffix in (("file", ""), ("wal", "-wal"))
    }
    holder = write_lock_holder(path)
    result = {
        "path": path,
        "ok": not problems,
        "problems": problems,
        "schema": int(facts["schema"]),
        "log_id": facts["log_id"],
        "incarnation": int(facts["incarnation"]),
        "events": rows,
        "head": facts["head"],
        "retained": int(facts["retained"]),
        "trimmable": facts["trimmable"],
        "searched_plainly": facts["searched_plainly"],
        "file_bytes": sizes["file"],
        "wal_bytes": sizes["wal"],
        "free_bytes": shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free,
        "write_lock": None if holder is None else {"pid": holder[0], "name": holder[1]},
    }
    if as_json:
        print_json(result)
    else:
        click.echo(f"{path}: {'damaged' if problems else 'in order'}")
        for problem in problems:
            click.echo(f"  {problem}")
        click.echo(f"schema {result['schema']}, log {facts['log_id']}, incarnation {facts['incarnation']}")
        click.echo(
            f"{count(rows, 'event')} in the log, the last at position {facts['head']}; {count(facts['scheduled'], 'event')} scheduled"
        )
        if int(facts["retained"]):
            click.echo(f"trimmed up to position {facts['retained']}; every subscription has passed {facts['trimmable']}")
        click.echo(f"{_size(sizes['file'])}, {_size(sizes['wal'])} of write-ahead log, {_size(result['free_bytes'])} free on the disk")
        if facts["searched_plainly"] > 50_000:
            click.echo(
                f"{count(facts['searched_plainly'], 'event')} not condensed for searching: workers do it, or `tidings store condense`"
            )
        if holder is not None:
            click.echo(f"process {holder[0]} ({holder[1]}) holds the write lock")
    if problems:
        click.echo("Restore a backup, or look at it with `sqlite3 FILE .recover`.", err=True)
        raise SystemExit(1)


@store.command(epilog="Example: tidings store sql > migrations.sql")
@json_option
def sql(as_json: bool) -> None:
    """Print the tables as SQL, for those who own their DDL."""
    if as_json:
        print_json([{"number": number, "title": title, "sql": text.strip()} for number, title, text in schema.MIGRATIONS])
    else:
        click.echo(schema.sql())


@store.command(epilog="Example: tidings store trim --older 30d --store sqlite:///shop.db")
@store_options
@click.option("--older", type=Duration(), help="Events older than this, as in 30d.")
@click.option("--before", type=Moment(), help="Events published before this time.")
@click.option("--upto", type=click.IntRange(1), metavar="POSITION", help="Events up to this position.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def trim(target: Target, as_json: bool, older: timedelta | None, before: datetime | None, upto: int | None, yes: bool) -> None:
    """Delete old events, as far as every subscription has passed them. Parked events and dead letters keep their own copies."""
    if sum(given is not None for given in (older, before, upto)) != 1:
        raise click.UsageError("say how far: --older, --before or --upto")
    moment = time.time_ns() // 1000 - round(older.total_seconds() * 1e6) if older is not None else micros(before)
    with target.writing() as opened:

        def look(unit: Any) -> tuple[int, int]:
            return unit.trimmable(), unit.first_position_at(moment) if upto is None else upto

        passed, wanted = opened.query(look)
        last = min(passed, wanted)
        if wanted > passed:
            click.echo(f"asked for positions up to {wanted}, but a subscription has only read up to {passed}; it stops there", err=True)
        if not yes:
            click.confirm(f"Delete the events up to position {last}?", abort=True, err=True)
        deleted = 0
        while part := opened.write(lambda unit: unit.trim(last, CHUNK)).result():
            deleted += part
    if as_json:
        print_json({"deleted": deleted, "upto": last})
    else:
        click.echo(f"deleted {count(deleted, 'event')}; the file keeps its size and fills the room again (VACUUM would shrink it)")


@store.command(epilog="Example: tidings store condense --store sqlite:///shop.db")
@store_options
def condense(target: Target, as_json: bool) -> None:
    """Make trace and log --key quick now; workers do the same, little by little."""
    done = 0
    with target.writing() as opened:
        while (block := opened.query(lambda unit: unit.next_block())) is not None:
            opened.write(partial(SQLiteUnit.add_block, block=block)).result()
            done += 1
        left = opened.query(lambda unit: unit.searched_plainly())
    if as_json:
        print_json({"blocks": done, "searched_plainly": left})
    else:
        click.echo(f"condensed {count(done, 'block')}; {count(left, 'event')} at the end of the log are read one by one")


def _size(size: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
