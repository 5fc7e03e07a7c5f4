"""``tidings completion``: the script that lets a shell complete commands, options and subscriptions."""

from __future__ import annotations

import click


@click.command(epilog='Example: eval "$(tidings completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    Put it into the shell's start-up file: ~/.bashrc or ~/.zshrc as in the example; for fish,
    `tidings completion fish > ~/.config/fish/completions/tidings.fish`.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from . import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(ShellComplete.source(found(cli, {}, "tidings", "_TIDINGS_COMPLETE")))
