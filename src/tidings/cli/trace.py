"""``tidings trace``: what happened to order 42."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ..envelope import iso_time
from ..errors import NotFound
from ..story import Handling, Story, Told, story_of
from .options import Target, store_options
from .output import clock_time, console, count, cut, duration, print_json

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from ..store.port import Store

STYLES = {"handled": "green", "dead": "red", "dropped": "red"}
"""Others are yellow."""


@click.command(epilog="Example: tidings trace order_id 42 --store sqlite:///shop.db")
@store_options
@click.argument("key_name")
@click.argument("value")
@click.option("--limit", type=click.IntRange(1), default=500, show_default=True, help="The newest so many events of the key.")
@click.option("--no-data", is_flag=True, help="Leave out what the events say.")
def trace(target: Target, as_json: bool, key_name: str, value: str, limit: int, no_data: bool) -> None:
    """Tell what happened to one key: every event of it and of the same stories, as a tree by causation.

    Below each event stands every subscription that reads its type: handled, pending, parked, dead or skipped, with failed attempts and
    what it published. `order 42` finds order_id 42 too.
    """
    with target.reading() as store:
        story = _find(store, key_name, value, limit)
    if as_json:
        print_json(
            {
                "key_name": story.key_name,
                "key": story.key,
                "events": story.events,
                "complete": not story.more,
                "stories": [told_json(root) for root in story.roots],
                "scheduled": [{"due": iso_time(one.due), "event": one.envelope.to_cloudevent()} for one in story.scheduled],
            }
        )
        return
    console().print(tree_of(story, None if no_data else 2_000))
    if story.more:
        click.echo(f"there are older events of this key; --limit {limit * 10} shows more of them", err=True)


def _find(store: Store, key_name: str, value: str, limit: int) -> Story:
    for name in (key_name, f"{key_name}_id"):
        story = store.query(lambda unit, name=name: story_of(unit, name, value, limit=limit))  # type: ignore[misc]
        if story.events or story.scheduled:
            return story
    recent = store.query(lambda unit: unit.select(limit=1000, newest=True))
    names = sorted({row.key_name for row in recent if row.key_name is not None})
    known = f"recent events have the keys {', '.join(names)}" if names else "the log has no events with a key"
    raise NotFound(f"there is no event with {key_name} {value}; {known}", key_name=key_name, key=value)


def tree_of(story: Story, data: int | None) -> Tree:
    """``data``: so many characters of what each event says, or None for nothing."""
    from rich.text import Text
    from rich.tree import Tree

    head = f"{story.key_name} {story.key}: {count(story.events, 'event')}"
    if len(story.roots) > 1:
        head += f" in {count(len(story.roots), 'story', 'stories')}"
    tree = Tree(Text(head, style="bold"), guide_style="dim")
    for root in story.roots:
        _add_event(tree, root, data)
    now = time.time()
    for one in story.scheduled:
        left = one.due / 1e6 - now
        when = f"in {duration(left)}" if left > 0 else "as soon as a worker runs"
        tree.add(Text.assemble(("scheduled ", "yellow"), (one.envelope.type, "bold"), f"  {clock_time(one.due)[:19]}, {when}"))
    return tree


def _add_event(tree: Tree, told: Told, data: int | None) -> None:
    from rich.text import Text

    row = told.envelope
    key = "" if row.key is None else f"  {row.key_name}={row.key}"
    line = Text.assemble(
        (str(row.position), "cyan"), " ", (row.type, "bold"), f"{key}  ", (f"{clock_time(row.time)} by {row.source}", "dim")
    )
    if told.missing:
        line.append("  (trimmed from the log)", "yellow")
    if data is not None:
        line.append("\n" + cut(row.data.decode(errors="replace"), data), "dim")
    branch = tree.add(line)
    for handling in told.handlings:
        under = branch.add(_line(handling))
        for published in handling.published:
            _add_event(under, published, data)
    for other in told.others:
        _add_event(branch, other, data)


def _line(handling: Handling) -> Text:
    from rich.text import Text

    row, state, failed = handling.parked, handling.state, handling.failed
    text = Text.assemble((handling.subscription.name, ""), ": ", (_words(handling), STYLES.get(state, "yellow")))
    for one in failed:
        text.append(f"\nattempt {one.attempt} failed {clock_time(one.time)}: {one.error or 'no error was kept'}", "dim")
    if row is not None and row.error and not failed:
        text.append(f"\n{row.error}", "dim")
    return text


def _words(handling: Handling) -> str:
    row, state, failed = handling.parked, handling.state, handling.failed
    if state == "handled":
        return f"handled at attempt {failed[-1].attempt + 1}" if failed else "handled"
    if state == "pending":
        subscription = handling.subscription
        return "pending, it is paused" if subscription.paused else f"pending, held: {subscription.held}" if subscription.held else "pending"
    if state in ("skipped", "unread"):
        return "skipped by a rewind" if state == "skipped" else "not read: the subscription got this type later"
    if state == "dropped" or row is None:
        return "dropped by an operator"
    if state == "retry":
        left = row.due / 1e6 - time.time()
        return f"parked, attempt {row.attempts + 1} " + (
            f"in {duration(left)} ({clock_time(row.due, day=False)})" if left > 0 else "is due"
        )
    if state == "waiting":
        return "parked behind an earlier event of its key"
    return f"dead letter after {count(row.attempts, 'attempt')}" + ("; its key waits for you" if row.holds else "")


def told_json(told: Told) -> dict[str, Any]:
    return {
        "position": told.envelope.position,
        "event": told.envelope.to_cloudevent(),
        "trimmed": told.missing,
        "handlings": [
            {
                "subscription": one.subscription.name,
                "state": one.state,
                "next_attempt": iso_time(one.parked.due) if one.parked is not None and one.state == "retry" else None,
                "error": None if one.parked is None else one.parked.error,
                "failed_attempts": [
                    {"attempt": failed.attempt, "time": iso_time(failed.time), "worker": failed.worker, "error": failed.error}
                    for failed in one.failed
                ],
                "published": [told_json(child) for child in one.published],
            }
            for one in told.handlings
        ],
        "led_to": [told_json(child) for child in told.others],
    }
