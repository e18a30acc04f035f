"""The `milo-discovery` command line.

Data goes to stdout, messages to stderr. Help and usage errors load neither gRPC nor asyncio.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from milo_discovery.cli.exit_status import ExitStatus, exit_by_sigpipe
from milo_discovery.cli.options import address_option, credential_options, timeout_option

_MODULE_OF = {
    "credential": "credential",
    "explain": "queries",
    "get": "queries",
    "kubeconfig": "kubeconfig",
    "list": "queries",
    "status": "queries",
    "sync": "sync",
    "watch": "watch",
}
"""The module of each command, imported when the command runs: `credential` has to start fast."""


class LazyGroup(click.Group):
    """Imports each command on use, and exits by SIGPIPE when the reader of its output is closed."""

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
            exit_by_sigpipe()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="milo-discovery-client", prog_name="milo-discovery")
@address_option
@credential_options
@timeout_option(None, "How long to wait for the daemon. Each command has its own default.")
def command(**_: object) -> None:  # the commands read these options: see options.connecting
    """List and watch engaged Milo project control planes, and get kubeconfigs for them.

    Exit statuses: 0 success, 1 failure, 2 usage error, 3 not found, 4 not allowed, 5 no connection, 6 timeout,
    7 the daemon is not synced or its source is stale, 130 interrupted.
    """


def main() -> None:
    """Run the command line and exit."""
    try:
        status = command.main(prog_name="milo-discovery", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(ExitStatus.INTERRUPTED)
    sys.exit(status)
