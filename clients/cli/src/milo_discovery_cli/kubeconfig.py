"""The command `kubeconfig`."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milo_discovery.errors import ClusterNotFound, DiscoveryError, UnusableKubeconfig
from milo_discovery.kubeconfig_access import EXEC_COMMAND, exec_arguments, read_exec_access, render_kubeconfig
from milo_discovery.kubeconfig_access import read_access as read_token_access
from milo_discovery.model import KubeconfigFormat
from milo_discovery_cli import atomic_files, kubeconfig_merge
from milo_discovery_cli.exit_status import CommandFailure, print_message
from milo_discovery_cli.names import NAME, suggestion
from milo_discovery_cli.options import ConnectionOptions, Duration, unary
from milo_discovery_cli.text_output import format_duration
from milo_kube.act_as import STATEMENT_VARIABLE
from milo_kube.kubeconfig import SERVER_VARIABLE

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.model import Kubeconfig


@click.command("kubeconfig")
@click.argument("name", type=NAME)
@click.option(
    "--exec/--token",
    "use_exec",
    default=True,
    help="Call `milo-discovery credential` for each credential (the default), or embed a short-lived one.",
)
@click.option("--ttl", type=Duration(), help="Requested lifetime of the credential. The daemon may shorten it.")
@click.option("-w", "--write", "path", type=click.Path(path_type=Path), help="Write to this file, with mode 0600.")
@click.option(
    "--merge", is_flag=True, help="Add context milo-NAME to the -w file, by default $KUBECONFIG or ~/.kube/config."
)
@click.option("--force", is_flag=True, help="With -w: overwrite the file, even if this command did not write it.")
@unary
def kubeconfig(
    connection: ConnectionOptions,
    *,
    name: str,
    use_exec: bool,
    ttl: timedelta | None,
    path: Path | None,
    merge: bool,
    force: bool,
) -> None:
    """Create a kubeconfig for a cluster."""
    if use_exec and ttl is not None:
        raise click.UsageError("--ttl needs --token: an exec kubeconfig does not expire")
    if force and (merge or path is None):
        raise click.UsageError("--force needs -w, and cannot be combined with --merge")
    file, context = path or kubeconfig_merge.default_file(), f"milo-{name}"
    if merge or path is not None:
        _require_regular(file)
    if path is not None and not merge and not force:
        _require_replaceable(path)
    kubeconfig_format = KubeconfigFormat.EXEC if use_exec else KubeconfigFormat.EMBEDDED
    issued = connection.run(lambda client: _issued(client, name, ttl, kubeconfig_format))
    document = _exec_document(name, issued, connection) if use_exec else _token_document(name, issued, ttl)
    try:
        if merge:
            kubeconfig_merge.merge_into(file, document, context)
            print_message(f"added context {context}: kubectl --kubeconfig {file} --context {context} get namespaces")
        elif path is not None:
            atomic_files.replace(path, _text(document).encode())
            print_message(f"wrote {path}: kubectl --kubeconfig {path} get namespaces")
        else:
            click.echo(_text(document), nl=False)
    except OSError as error:
        raise CommandFailure(f"cannot write {file}: {error.strerror}") from error


async def _issued(
    client: DiscoveryClient, name: str, ttl: timedelta | None, kubeconfig_format: KubeconfigFormat
) -> Kubeconfig:
    """Issue a kubeconfig; for an unknown name, suggest names of engaged clusters."""
    try:
        return await client.issue_kubeconfig(name, ttl=ttl, kubeconfig_format=kubeconfig_format)
    except ClusterNotFound as error:
        if not await _is_known(client, name):
            error.args = (f"{error}{await suggestion(client, name)}",)
        raise


async def _is_known(client: DiscoveryClient, name: str) -> bool:
    """Return whether the daemon has the cluster, engaged or not. Errors other than NOT_FOUND count as True."""
    try:
        await client.get(name)
    except ClusterNotFound:
        return False
    except DiscoveryError:
        pass
    return True


def _exec_document(name: str, issued: Kubeconfig, connection: ConnectionOptions) -> dict[str, Any]:
    """Return a kubeconfig whose exec plugin is this program, configured to use the same daemon as this call.

    The exec entry is built here: one taken from the response could run any program.
    """
    # The full path of this program if it is not on PATH; `python -m` runs a module, which is not executable.
    program = Path(sys.argv[0]).absolute()
    if program.name == "__main__.py":
        program = Path(sys.executable).with_name(EXEC_COMMAND)
    access = read_exec_access(issued.kubeconfig, name)
    variables = connection.environment() | {SERVER_VARIABLE: access.server}
    if access.act_as is not None:
        variables[STATEMENT_VARIABLE] = access.act_as.statement()
    command = EXEC_COMMAND if shutil.which(EXEC_COMMAND) else str(program)
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": command,
        "args": exec_arguments(name),
        "env": [{"name": variable, "value": value} for variable, value in variables.items()],
        "installHint": f"{EXEC_COMMAND} is not on PATH. It is part of the Python package milo-discovery-cli.",
        "interactiveMode": "Never",
        "provideClusterInfo": False,
    }
    return render_kubeconfig(name, access, {"exec": plugin})


def _token_document(name: str, issued: Kubeconfig, requested: timedelta | None) -> dict[str, Any]:
    if issued.expires_at is not None:
        lifetime = format_duration(issued.expires_at - datetime.now(UTC))
        note = "" if requested is None else f" ({format_duration(requested)} requested)"
        print_message(f"the credential is valid for {lifetime}{note}")
    return render_kubeconfig(name, read_token_access(issued.kubeconfig))


def _require_regular(path: Path) -> None:
    """Raise CommandFailure for a device such as /dev/null, which must not be replaced, or a pipe, which could block."""
    with suppress(OSError):  # a missing file is created, and other errors are reported by the write
        if not stat.S_ISREG(path.stat().st_mode):
            raise CommandFailure(f"{path} is not a regular file")


def _require_replaceable(path: Path) -> None:
    """Refuse to replace a file unless it is empty or a kubeconfig that this command wrote."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandFailure(f"cannot read {path}: {error.strerror}") from error
    if content.strip() and not _is_own(content):
        raise CommandFailure(
            f"{path} was not written by this command; add to it with --merge, or replace it with --force"
        )


def _is_own(content: bytes) -> bool:
    try:
        document = json.loads(content)
        name = document["current-context"]
        if "exec" not in document["users"][0]["user"]:
            read_token_access(content)
            return True
        # The file may name the plugin by its full path.
        plugin = document["users"][0]["user"]["exec"]
        plugin["command"] = Path(plugin["command"]).name
        read_exec_access(json.dumps(document).encode(), name)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, UnusableKubeconfig):
        return False
    return True


def _text(document: dict[str, Any]) -> str:
    # JSON is valid YAML, and has no ambiguous scalars.
    return json.dumps(document, indent=2) + "\n"
