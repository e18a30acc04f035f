"""The `milo-discovery` command line.

Data goes to stdout, messages to stderr. Help and usage errors load neither gRPC nor asyncio.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING

import click

from milo_discovery.extras import MissingPackageError
from milo_discovery_cli.exit_status import ExitStatus, exit_by_full_output, exit_by_sigpipe, print_message
from milo_discovery_cli.options import (
    VARIABLES,
    address_option,
    credential_options,
    timeout_option,
    unknown_variables,
    with_own_prefix,
    with_values,
)
from milo_discovery_cli.usage import did_you_mean, print_usage_error

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

_MODULE_OF = {
    "completion": "completion",
    "credential": "credential",
    "explain": "queries",
    "get": "get",
    "kubeconfig": "kubeconfig",
    "list": "queries",
    "objects": "operator",
    "run": "operator",
    "shards": "queries",
    "status": "queries",
    "sync": "sync",
    "version": "version",
    "watch": "watch",
}
"""The module of each command, imported when the command runs: `credential` has to start fast."""
COMMANDS_GROUP = "milo_discovery_cli.commands"
"""Group of the entry points by which other packages add commands."""
_PACKAGE_OF = {"publish": "milo-publishing", "webhooks": "milo-controllers"}

_SIMILAR = 0.85
"""Minimum similarity of a variable to suggest; high, because all variables share a long prefix."""


class LazyGroup(click.Group):
    """A command group that imports each command on use, and exits by SIGPIPE if the read end of stdout is closed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_MODULE_OF, *_added_commands().names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULE_OF:
            module = import_module(f"milo_discovery_cli.{_MODULE_OF[cmd_name]}")
            members = vars(module).values()
            return next(member for member in members if isinstance(member, click.Command) and member.name == cmd_name)
        for entry_point in _added_commands().select(name=cmd_name):
            command: click.Command = entry_point.load()
            return command
        if cmd_name.startswith("-"):
            return None
        if package := _PACKAGE_OF.get(cmd_name):
            raise click.UsageError(
                f"{cmd_name!r} is part of the package {package}, which is not installed: pip install {package}", ctx
            )
        known = [*self.list_commands(ctx), "help"]
        raise click.UsageError(f"No such command {cmd_name!r}{did_you_mean(cmd_name, known)}", ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] == "help":
            if len(args) == 1 or args[1] == "help":
                click.echo(ctx.get_help())
                ctx.exit()
            args = [args[1], "--help"]
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, [*with_values(command, rest)] if command else rest

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            exit_by_sigpipe()
        except click.UsageError as error:
            name = ctx.invoked_subcommand
            if error.ctx is None and name and (command := self.get_command(ctx, name)):  # as of an option's value
                error.ctx = click.Context(command, ctx, name)
            raise


def _added_commands() -> EntryPoints:
    from importlib.metadata import entry_points  # noqa: PLC0415  (`credential` has to start fast)

    return entry_points(group=COMMANDS_GROUP)


def _print_plugin_manifest(ctx: click.Context, _: click.Parameter, is_requested: bool) -> None:
    """Print the plugin manifest for datumctl, which runs an executable `milo-NAME` on the PATH as its command NAME."""
    if not is_requested or ctx.resilient_parsing:
        return
    from importlib.metadata import version  # noqa: PLC0415  (`credential` has to start fast)

    manifest = {
        "name": "discovery",
        "version": f"v{version('milo-discovery-cli')}",
        "description": "List and watch engaged Milo project control planes, and get objects from all of them",
        "api_version": 1,
    }
    click.echo(json.dumps(manifest))
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="milo-discovery-cli", prog_name="milo-discovery")
@click.option(
    "--plugin-manifest", is_flag=True, hidden=True, is_eager=True, expose_value=False, callback=_print_plugin_manifest
)
@address_option
@credential_options
@timeout_option(None, "How long to wait for the daemon. Each command has its own default.")
def command(**_: object) -> None:  # the commands read these options: see options.connecting
    """List and watch engaged Milo project control planes, get their objects, and kubeconfigs for them.

    Exit statuses: 0 success, 1 failure, 2 usage error, 3 not found, 4 not allowed, 5 no connection, 6 timeout,
    7 the daemon is not ready, a source is stale or the shard group is not settled, 130 interrupted.
    """
    for name in unknown_variables(os.environ):
        similar = did_you_mean(with_own_prefix(name), VARIABLES, cutoff=_SIMILAR)
        hint = similar or f"; the variables are {', '.join(VARIABLES)}"
        print_message(f"{name} is not an environment variable of this command, and is ignored{hint}")


def main() -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = command.main(prog_name="milo-discovery", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        print_usage_error("milo-discovery", error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MissingPackageError as error:
        print_message(str(error))
        sys.exit(ExitStatus.FAILED)
    except click.Abort:
        sys.exit(ExitStatus.INTERRUPTED)
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            raise
        print_message(f"{error.object!r} is not valid UTF-8")
        sys.exit(ExitStatus.USAGE)
    except OSError as error:
        if error.filename is None and error.errno == errno.ENOSPC:
            exit_by_full_output(error)
        raise
    sys.exit(status)
