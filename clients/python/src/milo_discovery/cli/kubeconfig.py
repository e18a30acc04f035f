"""The command `kubeconfig`."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from milo_discovery._address import ADDRESS_VARIABLE
from milo_discovery.cli import atomic_files, kubeconfig_merge
from milo_discovery.cli.exit_status import CommandFailure, print_message
from milo_discovery.cli.options import Connection, Duration, unary
from milo_discovery.model import KubeconfigFormat

_COMMAND = "milo-discovery"


@click.command("kubeconfig")
@click.argument("name")
@click.option(
    "--exec/--token",
    "use_exec",
    default=True,
    help="Call `milo-discovery credential` for each credential (the default), or embed a short-lived token.",
)
@click.option("--ttl", type=Duration(), help="Requested lifetime of the token. The daemon may shorten it.")
@click.option("-w", "--write", "path", type=click.Path(path_type=Path), help="Write to this file, with mode 0600.")
@click.option("--merge", is_flag=True, help="Add context milo-NAME to the -w file, by default kubectl's own.")
@unary
def kubeconfig(
    connection: Connection, *, name: str, use_exec: bool, ttl: timedelta | None, path: Path | None, merge: bool
) -> None:
    """Create a kubeconfig for a cluster."""
    if use_exec and ttl is not None:
        raise click.UsageError("--ttl needs --token: an exec kubeconfig does not expire")
    kubeconfig_format = KubeconfigFormat.EXEC if use_exec else KubeconfigFormat.EMBEDDED
    issued = connection.run(lambda client: client.issue_kubeconfig(name, ttl=ttl, kubeconfig_format=kubeconfig_format))
    document = json.loads(issued.kubeconfig)
    if use_exec:
        _set_exec_address(document["users"][0]["user"]["exec"], connection.address)
    try:
        if merge:
            file, context = path or kubeconfig_merge.default_file(), f"milo-{name}"
            kubeconfig_merge.merge_into(file, document, context)
            print_message(f"added context {context}: kubectl --kubeconfig {file} --context {context} get namespaces")
        elif path is not None:
            atomic_files.replace(path, _text(document).encode())
            print_message(f"wrote {path}: kubectl --kubeconfig {path} get namespaces")
        else:
            click.echo(_text(document), nl=False)
    except OSError as error:
        raise CommandFailure(f"cannot write {error.filename or path}: {error.strerror}") from error


def _set_exec_address(call: dict[str, Any], address: str) -> None:
    """Make the plugin call this daemon, by the command's full path if it is not on PATH."""
    others = [each for each in call.get("env") or [] if each["name"] != ADDRESS_VARIABLE]
    call["env"] = [*others, {"name": ADDRESS_VARIABLE, "value": address}]
    if call["command"] == _COMMAND and shutil.which(_COMMAND) is None:
        call["command"] = str(Path(sys.argv[0]).absolute())


def _text(document: dict[str, Any]) -> str:
    # JSON is valid YAML without ambiguous scalars.
    return json.dumps(document, indent=2) + "\n"
