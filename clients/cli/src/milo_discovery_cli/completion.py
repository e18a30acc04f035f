"""The command `completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    bash: source <(milo-discovery completion bash)
    zsh:  source <(milo-discovery completion zsh)
    fish: milo-discovery completion fish | source

    Cluster names are completed with those that the daemon lists.
    """
    script_class = get_completion_class(shell)
    assert script_class is not None, f"click does not support the shell {shell}"
    group = click.get_current_context().find_root().command
    click.echo(script_class(group, {}, "milo-discovery", "_MILO_DISCOVERY_COMPLETE").source())
