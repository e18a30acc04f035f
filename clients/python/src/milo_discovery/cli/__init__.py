"""The command `milo-discovery`: what the daemon tells, for people and scripts.

Data goes to stdout, messages to stderr. Help and usage errors load neither gRPC nor asyncio.
"""

from __future__ import annotations

import sys

import click

from milo_discovery.cli.answers import explain, get_cluster, list_clusters, status
from milo_discovery.cli.endings import Exit, end_by_broken_pipe
from milo_discovery.cli.following import watch


class Pipeable(click.Group):
    """As other tools of a pipeline do: when the reader has seen enough, it ends without a word."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            end_by_broken_pipe()


@click.group(cls=Pipeable, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="milo-discovery-client", prog_name="milo-discovery")
def command() -> None:
    """See which Milo project control planes are engaged, and follow them as they come and go.

    Exit statuses: 0 all well, 1 failed, 2 wrong usage, 3 not found, 4 not allowed, 5 no connection, 6 timed out,
    7 the daemon has no complete and fresh view, 130 interrupted.
    """


for each in (watch, list_clusters, get_cluster, explain, status):
    command.add_command(each)


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
