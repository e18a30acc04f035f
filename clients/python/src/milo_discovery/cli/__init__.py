"""The command `milo-discovery`: what the daemon tells, for people and scripts.

Data goes to stdout, messages to stderr. Help and usage errors load neither gRPC nor asyncio.
"""

from __future__ import annotations

import signal
import sys

import click

from milo_discovery.cli.answers import explain, get_cluster, list_clusters, status
from milo_discovery.cli.endings import Exit
from milo_discovery.cli.following import watch


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    # As other tools of a pipeline do: when the reader has seen enough, end without a word.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        outcome = command.main(prog_name="milo-discovery", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(Exit.INTERRUPTED)
    sys.exit(outcome)
