"""The command `webhooks`: prints the registration of an operator's webhooks, or compares it with the installed one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

import click
import yaml

from milo_controllers.kinds import Document
from milo_controllers.single_cluster import SingleCluster
from milo_controllers.webhook_registration import EXPLANATION, RESOURCES, configurations, differences, no_configurations
from milo_controllers.webhooks import DESCRIBE_VARIABLE, Webhook, from_description
from milo_discovery.errors import DiscoveryError
from milo_discovery_cli.exit_status import CommandFailure, print_message

_TIMEOUT_S = 60.0


@click.command("webhooks")
@click.argument("program", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--url", required=True, help="Where the API server reaches the operator, such as https://HOST:9443.")
@click.option("--name", required=True, help="Name of the configuration: a DNS name, such as widgets.example.com.")
@click.option(
    "--ca-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CA that signs the operator's serving certificate.",
)
@click.option("--check", is_flag=True, help="Compare with what is installed; exit with 1 if it differs.")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Kubeconfig of Milo's core API, for --check.",
)
@click.option("--context", help="Context of the kubeconfig.")
def webhooks(
    program: Path, *, url: str, name: str, ca_file: Path, check: bool, kubeconfig: Path | None, context: str | None
) -> None:
    """Print the registration of the webhooks of the operator in FILE, for Milo's core API."""
    if not url.startswith("https://"):
        raise click.UsageError(f"--url {url!r}: an API server calls webhooks over https:// only")
    found = _described(program)
    if not found:
        raise CommandFailure(f"{program} registers no webhooks: use @controllers.validate or @controllers.mutate")
    wanted = list(configurations(found, name=name, url=url, ca_bundle=ca_file.read_bytes()))
    if not check:
        click.echo(EXPLANATION + "---\n".join(yaml.safe_dump(one, sort_keys=False) for one in wanted), nl=False)
        return
    wanted += no_configurations(wanted, name=name)
    installed = asyncio.run(_installed(wanted, kubeconfig, context))
    problems = [problem for one, other in zip(wanted, installed, strict=True) for problem in differences(one, other)]
    for problem in problems:
        print_message(problem)
    if problems:
        sys.exit(1)
    click.echo(f"{len(found)} webhooks of {name} are installed as this operator answers them")


def _described(program: Path) -> list[Webhook]:
    """Run the program so that it prints its webhooks. Raises CommandFailure."""
    environment = {**os.environ, DESCRIBE_VARIABLE: "webhooks"}
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, str(program)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandFailure(f"{program} has not called main(controllers) within {_TIMEOUT_S:g} s") from None
    *_, last = done.stdout.splitlines() or [""]
    if done.returncode or not last.startswith("["):
        raise CommandFailure(f"{program} has not called main(controllers):\n{done.stderr.strip()}")
    return [from_description(entry) for entry in json.loads(last)]


async def _installed(wanted: Sequence[Document], kubeconfig: Path | None, context: str | None) -> list[Document | None]:
    """Return the installed configurations of the same names. Raises CommandFailure."""
    found: list[Document | None] = []
    try:
        async with SingleCluster(kubeconfig, context=context).requests() as core:
            for one in wanted:
                path = RESOURCES[one["kind"]].path(one["metadata"]["name"])
                status, body = await core.request("GET", path)
                if status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
                    raise CommandFailure(f"{one['kind']} {one['metadata']['name']} cannot be read: {body['message']}")
                found.append(body if status == HTTPStatus.OK else None)
    except (OSError, DiscoveryError) as error:
        raise CommandFailure(f"Milo's core API cannot be asked: {error}; check --kubeconfig") from error
    return found
