"""``tidings relay --database …``: an outbox table that an application writes, of which Tidings knows nothing, to a broker."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..errors import ConfigurationError
from .options import debug_option
from .output import count

if TYPE_CHECKING:
    from ..brokers.port import Broker
    from ..relay.outbox import OutboxRelay

PROGRESS_SECONDS = 5.0


_COMMON = (
    click.option(
        "--database", required=True, metavar="URL", envvar="TIDINGS_DATABASE", help="The application's database [TIDINGS_DATABASE]."
    ),
    click.option("--table", default="outbox", show_default=True, help="The table, as SQL names it."),
    click.option(
        "--layout", type=click.Choice(["simple", "debezium"]), default="simple", show_default=True, help="How the table is laid out."
    ),
    click.option(
        "--columns",
        multiple=True,
        metavar="NAME=COLUMN",
        help="Another column for id, key, payload, type, time, published or route, or header.NAME; several with commas or again. "
        "NAME=COLUMN|EARLIER: one that was renamed.",
    ),
    click.option(
        "--mode",
        type=click.Choice(["poll", "cdc"]),
        default="poll",
        show_default=True,
        help="Read the table, or the server's stream of changes.",
    ),
    click.option(
        "--after",
        type=click.Choice(["flag", "delete", "nothing"]),
        help="What is done to rows that were sent; flag where there is a column for it.",
    ),
    click.option("--name", help="Of the relay; one leader at a time has it. The table's name unless given."),
    click.option("--slot", help="CDC: the replication slot; tidings_NAME unless given."),
)


def common_options(command: Any) -> Any:
    """Which table, and whose relay."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


@click.command(
    "table",
    epilog="Example: tidings relay table --database postgresql://shop@127.0.0.1/shop --broker kafka://127.0.0.1:9092 --create-topics 8",
)
@common_options
@click.option(
    "--broker", "broker_url", required=True, metavar="URL", envvar="TIDINGS_BROKER", help="Where to: kafka://host:9092 [TIDINGS_BROKER]."
)
@click.option(
    "--broker-settings",
    metavar="FILE",
    envvar="TIDINGS_KAFKA_SETTINGS",
    help="Settings of the broker's client, name=value in each line, user and password among them [TIDINGS_KAFKA_SETTINGS].",
)
@click.option(
    "--topic",
    metavar="TOPIC",
    help="Where rows go; {route} and {type} stand for what is in those columns. The table's name, or outbox.event.{route}, unless given.",
)
@click.option("--create-topics", type=click.IntRange(1), metavar="N", help="Make topics that aren't there, with so many partitions.")
@click.option(
    "--content-type", metavar="TYPE", help="What payloads are, said by the CloudEvents of the layout simple; application/json unless given."
)
@click.option("--source", default="", help="The CloudEvents source; database/table unless given.")
@click.option("--skip-unsendable", is_flag=True, help="Report rows that can't be sent, and leave them out, instead of stopping.")
@click.option(
    "--resume-from",
    type=click.Choice(["table", "broker"]),
    help="The answer where the relay asks how to go on after a failover, a restore or a lost slot.",
)
@click.option("--publication", help="CDC: the publication; tidings_NAME unless given.")
@click.option("--unlimited-wal", is_flag=True, help="CDC: accept that a relay that is down keeps WAL without limit.")
@click.option(
    "--batch", type=click.IntRange(1, 100_000), default=2_000, show_default=True, help="Rows in one transaction of the broker's, at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print what happens as JSON lines.")
@debug_option
def relay_table(broker_url: str, broker_settings: str | None, as_json: bool, **given: Any) -> None:
    """Relay an outbox table to a broker, each row once and in order, without a change to the application that writes it.

    Rows are sent as CloudEvents (layout simple) or as Debezium's outbox event router sends them (layout debezium). Rows that are already
    there go first. It can be stopped and started at any time; several with one --name stand by for each other. Ctrl-C drains.
    """
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    options = options_of(**given)
    broker = _broker(broker_url, broker_settings)
    try:
        _run(options, broker, as_json)
    finally:
        broker.close()


def options_of(*, database: str, columns: tuple[str, ...], name: str | None, **given: Any) -> Any:
    """As ``relay.outbox.Options``; what was not given is as it is there."""
    from ..relay.layout import LAYOUTS
    from ..relay.outbox import Options

    named = [one for given_columns in columns for one in given_columns.split(",") if one.strip()]
    table: str = given["table"]
    plain = table.rpartition(".")[2].strip('"')
    name = name or plain
    layout = LAYOUTS[given["layout"]].naming(named, given.get("topic") or (plain if given["layout"] == "simple" else None))
    if given.get("content_type"):
        if not layout.cloudevent:
            raise ConfigurationError("--content-type: records of the layout debezium say nothing of it")
        layout = replace(layout, content_type=given["content_type"])
    after = given["after"] or ("flag" if layout.published else "nothing")
    if after == "flag" and layout.published is None:
        raise ConfigurationError("--after flag needs a boolean or timestamp column for it; name one with --columns published=…")
    slot = "tidings_" + "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name.lower())
    return Options(
        name=name,
        url=database,
        table=table,
        layout=layout,
        mode=given["mode"],
        after=after,
        slot=given["slot"] or slot[:63],
        publication=given.get("publication") or slot[:63],
        **{
            one: given[one]
            for one in ("source", "create_topics", "skip_unsendable", "resume_from", "batch", "unlimited_wal")
            if one in given
        },
    )


def _broker(url: str, settings: str | None) -> Broker:
    from ..brokers import broker_at

    try:
        return broker_at(url, settings)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("broker=", "--broker ", 1)) from error


def _run(options: Any, broker: Broker, as_json: bool) -> None:
    from ..relay.outbox import OutboxRelay

    def say(event: str, text: str, /, **facts: Any) -> None:
        click.echo(msgspec.json.encode({"event": event, **facts}) if as_json else text)
        sys.stdout.flush()

    def tell(event: str, facts: dict[str, Any]) -> None:
        say(event, _text(event, facts), **facts)

    one = OutboxRelay(options, broker, tell=tell)
    signals = 0

    def stop(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(1)
        one.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    ended = threading.Event()
    threading.Thread(target=_tell_progress, args=(one, say, ended), daemon=True).start()
    try:
        one.run()
    finally:
        ended.set()
    progress = one.progress
    say("drained", f"drained: {count(progress.sent, 'row')} sent", sent=progress.sent, late=progress.late, skipped=progress.skipped)


def _text(event: str, facts: dict[str, Any]) -> str:
    if event == "leading":
        text = f"relaying {facts['table']} by {facts['mode']}; Ctrl-C drains"
        if facts["pooled"]:
            text += "\nids are not drawn one by one, so rows may come late; those are sent as out of order"
        if facts["advice"] and facts["mode"] == "poll":
            text += f"\nan index would make rows that come late cheaper to find: {facts['advice']}"
        return text
    if event == "standby":
        return f"another process leads the relay {facts['relay']}; standing by"
    if event == "trouble":
        return f"waiting: {facts['error']}"
    if event == "skipped":
        return f"left out: row {facts['id']}: {facts['why']}"
    return str(facts.get("text", event))


def _tell_progress(one: OutboxRelay, say: Any, ended: threading.Event) -> None:
    sent, at = 0, time.monotonic()
    while not ended.wait(PROGRESS_SECONDS):
        progress, now = one.progress, time.monotonic()
        rate, at = (progress.sent - sent) / (now - at), now
        if progress.sent != sent or progress.facts.get("retained_bytes", 0) > 64 << 20:
            kept = progress.facts.get("retained_bytes")
            more = "" if kept is None else f"; the slot keeps {kept >> 20:,} MiB of WAL"
            text = f"{count(progress.sent, 'row')} sent, {rate:,.0f}/s{f', {progress.late:,} out of order' if progress.late else ''}{more}"
            say("progress", text, sent=progress.sent, late=progress.late, skipped=progress.skipped, rate=round(rate), **progress.facts)
        sent = progress.sent
