"""The command that makes a kubeconfig for one cluster."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from milo_discovery._address import ADDRESS_VARIABLE
from milo_discovery.cli import files, merging
from milo_discovery.cli.endings import Failed, say
from milo_discovery.cli.options import Connection, Duration, one_call
from milo_discovery.model import KubeconfigFormat

_COMMAND = "milo-discovery"


@click.command("kubeconfig")
@click.argument("name")
@click.option(
    "--exec/--token",
    "calls",
    default=True,
    help="With a call of `milo-discovery credential` in it, which lasts (the default); or with a short-lived token.",
)
@click.option("--ttl", type=Duration(), help="With --token: how long it should live. The daemon may give less.")
@click.option("-w", "--write", "path", type=click.Path(path_type=Path), help="Write it to this file, with mode 0600.")
@click.option("--merge", is_flag=True, help="Add it to that file as context milo-NAME; to kubectl's own without -w.")
@one_call
def kubeconfig(
    connection: Connection, *, name: str, calls: bool, ttl: timedelta | None, path: Path | None, merge: bool
) -> None:
    """Make a kubeconfig for a project's control plane."""
    if calls and ttl is not None:
        raise click.UsageError("--ttl is for --token: a kubeconfig without a credential doesn't end")
    wanted = KubeconfigFormat.EXEC if calls else KubeconfigFormat.EMBEDDED
    made = connection.run(lambda client: client.issue_kubeconfig(name, ttl=ttl, kubeconfig_format=wanted))
    document = json.loads(made.kubeconfig)
    if calls:
        _point_back(document["users"][0]["user"]["exec"], connection.address)
    try:
        if merge:
            file, context = path or merging.default_file(), f"milo-{name}"
            merging.merge_into(file, document, context)
            say(f"{file} has the context {context}: kubectl --kubeconfig {file} --context {context} get namespaces")
        elif path is not None:
            files.replace(path, _text(document).encode())
            say(f"wrote {path}: kubectl --kubeconfig {path} get namespaces")
        else:
            click.echo(_text(document), nl=False)
    except OSError as error:
        raise Failed(f"can't write {error.filename or path}: {error.strerror}") from error


def _point_back(call: dict[str, Any], address: str) -> None:
    """To this daemon, as it was reached just now, and to this program, where PATH doesn't lead to it."""
    others = [each for each in call.get("env") or [] if each["name"] != ADDRESS_VARIABLE]
    call["env"] = [*others, {"name": ADDRESS_VARIABLE, "value": address}]
    if call["command"] == _COMMAND and shutil.which(_COMMAND) is None:
        call["command"] = str(Path(sys.argv[0]).absolute())


def _text(document: dict[str, Any]) -> str:
    # JSON is YAML, in which nothing can be read as something else.
    return json.dumps(document, indent=2) + "\n"
