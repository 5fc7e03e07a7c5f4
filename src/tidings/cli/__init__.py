"""The command line. One file per command, imported only when it is called, so that ``tidings --help`` answers at once."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from ..errors import TidingsError

COMMANDS = {
    "run": "Run the subscriptions of apps until a signal comes.",
    "publish": "Publish an event by hand.",
    "log": "Read the log: by type, key and time; --follow it.",
    "trace": "Tell what happened to one key, as a tree.",
    "status": "Tell how far each subscription is, and who runs it.",
    "dead": "List, show, retry or drop dead letters.",
    "subscription": "List, pause, resume, rewind or remove subscriptions.",
    "saga": "Tell where sagas stand, what they wait for; act on one.",
    "relay": "Tell how far the relay is; relay a foreign outbox table.",
    "intake": "Tell how far a broker's topics were read; resume one.",
    "scheduled": "List or cancel events that are to be published later.",
    "store": "Make, check and trim a store.",
    "completion": "Print the completion script for a shell.",
}
"""Name and one line of each; the module of the same name has a command of the same name."""


class Failed(click.ClickException):
    """One line on stderr, exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"there is no command {args[0]!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TidingsError as error:
            if ctx.meta.get("tidings.debug"):
                raise
            raise Failed(str(error)) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Commands that need a store take --store sqlite:///shop.db, the variable TIDINGS_STORE, or --app module:app.",
)
@click.version_option(package_name="tidings", prog_name="tidings", message="%(prog)s %(version)s")
def cli() -> None:
    """Tidings: announce once; whoever cares reacts."""


def main() -> None:
    """The ``tidings`` program."""
    try:
        cli(prog_name="tidings")
    except BrokenPipeError:  # `tidings log | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(0) from None
