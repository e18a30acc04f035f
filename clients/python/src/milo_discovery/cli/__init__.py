"""The command `milo-discovery`: what the daemon tells, for people and scripts.

Data goes to stdout, messages to stderr. Help and usage errors load neither gRPC nor asyncio.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from milo_discovery.cli.endings import Exit, end_by_broken_pipe
from milo_discovery.cli.options import address_option, credential_options, timeout_option

_MODULE_OF = {
    "credential": "credential",
    "explain": "answers",
    "get": "answers",
    "kubeconfig": "kubeconfig",
    "list": "answers",
    "status": "answers",
    "sync": "sync",
    "watch": "following",
}
"""Where each command is: loaded when it is called, for `credential` is called often, and waited for."""


class Commands(click.Group):
    """Loads each command on use. As other tools of a pipeline do, it ends without a word when the reader does."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULE_OF:
            return None
        module = import_module(f"milo_discovery.cli.{_MODULE_OF[cmd_name]}")
        return next(each for each in vars(module).values() if isinstance(each, click.Command) and each.name == cmd_name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            end_by_broken_pipe()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="milo-discovery-client", prog_name="milo-discovery")
@address_option
@credential_options
@timeout_option(None, "How long to wait for the daemon; each command has its own default.")
def command(**_: object) -> None:  # all are for the commands: see `connecting`
    """See which Milo project control planes are engaged, and follow them as they come and go.

    Exit statuses: 0 all well, 1 failed, 2 wrong usage, 3 not found, 4 not allowed, 5 no connection, 6 timed out,
    7 the daemon has no complete and fresh view, 130 interrupted.
    """


def main() -> None:
    """The entry point. It never returns."""
    try:
        outcome = command.main(prog_name="milo-discovery", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(Exit.INTERRUPTED)
    sys.exit(outcome)
