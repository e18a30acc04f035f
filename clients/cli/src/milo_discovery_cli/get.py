"""The command `get`: objects of one kind in all engaged clusters."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from milo_discovery_cli.exit_status import CommandFailure
from milo_discovery_cli.names import NAME
from milo_discovery_cli.object_request import ObjectScope, RequestError, Wanted, parse
from milo_discovery_cli.options import ConnectionOptions, connecting, formatted
from milo_kube.api_request import is_segment
from milo_kube.label_selector import SelectorError
from milo_kube.label_selector import parse as parse_selector

if TYPE_CHECKING:
    from milo_discovery.options import FilterOptions


@click.command("get")
@click.argument("arguments", nargs=-1, required=True, metavar="KIND [NAME]... | KIND/NAME...")
@click.option(
    "-n",
    "--namespace",
    default="default",
    show_default=True,
    help="Objects of this namespace.",
)
@click.option(
    "-A",
    "--all-namespaces",
    is_flag=True,
    help="Objects of all namespaces. Clusters are selected by the options below.",
)
@click.option(
    "-l",
    "--selector",
    default="",
    help="Label selector for objects, such as 'app in (web, api),!canary'.",
)
@click.option("--field-selector", default="", help="Field selector for objects, such as 'metadata.name=web'.")
@click.option("--cluster", "clusters", type=NAME, multiple=True, help="Only this cluster. May be repeated.")
@click.option("--cluster-selector", default="", help="Label selector for clusters, such as 'env=prod'.")
@click.option("--organization", multiple=True, help="Only clusters of this organization. May be repeated.")
@click.option("--source", multiple=True, help="Only clusters of this source of the daemon. May be repeated.")
@click.option("-w", "--watch", "watches", is_flag=True, help="Print the objects, and then each change, until Ctrl-C.")
@formatted("table", "wide", "json", "yaml", "name")
@connecting(
    timeout="30s",
    timeout_help="How long to wait for the daemon, and for each response of a cluster.",
    finds_demo=True,
)
@click.pass_context
def get(
    ctx: click.Context,
    connection: ConnectionOptions,
    *,
    arguments: tuple[str, ...],
    namespace: str,
    all_namespaces: bool,
    selector: str,
    field_selector: str,
    clusters: tuple[str, ...],
    cluster_selector: str,
    organization: tuple[str, ...],
    source: tuple[str, ...],
    watches: bool,
    form: str,
    headers: bool,
) -> None:
    """Get objects from all engaged clusters, as kubectl does from one.

    KIND is a plural, singular, kind or short name, as in pods, po, deploy.apps or deployments.v1.apps, or several with
    commas. Each row begins with its cluster. JSON and YAML are one List, which jsonpath reads too; its objects have
    their cluster in the annotation discovery.miloapis.com/cluster. With --watch, they are one event for each change,
    and jsonpath reads each object.

    \b
    milo-discovery get pods -A
    milo-discovery get configmap settings -o yaml --cluster-selector env=prod
    milo-discovery get deployments -A -l app=web -o custom-columns=NAME:.metadata.name,REPLICAS:.spec.replicas
    milo-discovery get namespaces --watch

    Requests are made with your rights: the daemon issues a kubeconfig for each cluster that it permits you to see.
    Clusters that do not answer are named at the end, with the cause; the exit status is then 1, or 4 if the daemon
    permits you none of them. Clusters that do not serve the kind, or do not have the object, are only counted; if that
    is all of them, the exit status is 3.
    """
    scope, wanted = _request(arguments, "" if all_namespaces else namespace or "default", selector, field_selector)
    only: FilterOptions = {
        "label_selector": cluster_selector,
        "names": clusters,
        "organizations": organization,
        "sources": source,
    }
    if sys.stdout is None:
        raise CommandFailure("cannot write to stdout: it is closed")
    if watches:
        _require_one(wanted)
    logging.getLogger("milo_discovery").addHandler(logging.NullHandler())  # clusters' failures are printed at the end
    from milo_discovery_cli.fleet_objects import FleetObjects  # noqa: PLC0415  (loads gRPC)
    from milo_discovery_cli.object_output import form_of  # noqa: PLC0415  (loads protobuf)
    from milo_discovery_cli.object_watch import FleetWatch  # noqa: PLC0415  (loads gRPC)

    has_kinds = sum(len(each.resources) for each in wanted) > 1
    output = form_of(form, namespaces=all_namespaces, kinds=has_kinds, headers=headers, watches=watches)
    objects = (FleetWatch if watches else FleetObjects)(connection, scope, wanted, output)
    ctx.exit(connection.run(lambda client: objects.print(client, only)))


def _require_one(wanted: Sequence[Wanted]) -> None:
    if len(wanted) > 1 or len(wanted[0].resources) > 1 or len(wanted[0].names) > 1:
        raise click.UsageError("--watch takes one KIND, and at most one NAME")


def _request(
    arguments: Sequence[str], namespace: str, selector: str, field_selector: str
) -> tuple[ObjectScope, tuple[Wanted, ...]]:
    """Check what is asked for. Raises click.UsageError."""
    try:
        wanted = parse(arguments)
        parse_selector(selector)
    except RequestError as error:
        raise click.UsageError(str(error)) from error
    except SelectorError as error:
        raise click.UsageError(f"--selector: {error}") from error
    if namespace and not is_segment(namespace):
        raise click.UsageError(f"--namespace {namespace!r} is not the name of a namespace")
    if not field_selector.isprintable():
        raise click.UsageError(f"--field-selector {field_selector!r} contains characters that cannot be printed")
    if (selector or field_selector) and any(each.names for each in wanted):
        raise click.UsageError("a selector and names of objects exclude each other")
    return ObjectScope(namespace=namespace, selector=selector, field_selector=field_selector), wanted
