"""The command `version`."""

from __future__ import annotations

from importlib.metadata import version as distribution_version

import click

from milo_discovery_cli.options import ConnectionOptions, formatted, unary


@click.command("version")
@formatted("table", "json", "yaml")
@click.option("--client", "client_only", is_flag=True, help="Print only the version of this command.")
@unary
def version(connection: ConnectionOptions, *, form: str, headers: bool, client_only: bool) -> None:
    """Print the versions of this command and of the daemon."""
    versions = {"client": distribution_version("milo-discovery-cli")}
    failure: click.ClickException | None = None
    if not client_only:
        try:
            versions["daemon"] = connection.run(lambda client: client.server_info()).version
        except click.ClickException as error:
            failure = error
    if form == "table":
        for name, value in versions.items():
            click.echo(f"{name}: {value}")
    else:
        from milo_discovery_cli import json_output, yaml_output  # noqa: PLC0415  (loads protobuf)

        click.echo(json_output.document(versions) if form == "json" else yaml_output.document(versions))
    if failure is not None:
        raise failure
