"""The commands `publish cluster-profiles`, `argocd-clusters`, `flux-kubeconfigs` and `flux-configmaps`."""

from __future__ import annotations

import functools
import math
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from milo_discovery.errors import TimedOut, UnusableKubeconfig
from milo_discovery_cli.exit_status import CommandFailure, print_message
from milo_discovery_cli.options import ConnectionOptions, Duration, connecting, filtering

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.local_kubeconfig import LocalSource
    from milo_discovery.options import FilterOptions, WatchOptions
    from milo_publishing.rendering import Renderer

R = TypeVar("R")

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


class LabelValue(click.ParamType[str]):
    """A valid Kubernetes label value."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _LABEL_VALUE.fullmatch(str(value)):
            self.fail(f"{value!r} is not a valid label value", param, ctx)
        return str(value)


class LabelPattern(click.ParamType[str]):
    """A label key, or all keys of a prefix."""

    name = "KEY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from milo_kube import label_selector  # noqa: PLC0415  (not needed for help)

        pattern = str(value)
        key = f"{pattern.removesuffix('*')}name" if pattern.endswith("/*") else pattern
        try:
            is_key = label_selector.parse(key).requirements == (label_selector.Requirement(key, "exists"),)
        except label_selector.SelectorError:
            is_key = False
        if not is_key:
            self.fail(f"{pattern!r} is not a label key, or PREFIX/*", param, ctx)
        return pattern


class Assignment(click.ParamType[tuple[str, str]]):
    """An environment variable and its value."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, separator, content = str(value).partition("=")
        if not name or not separator:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, content


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The options of a publishing command: the target, the name of the publisher, and how to run."""

    kubeconfig: Path | None
    context: str | None
    namespace: str | None
    publisher: str
    resync: timedelta
    once: bool
    accepts_removals: bool

    def target(self) -> tuple[LocalSource, str]:
        """Return how to reach the API server, and the namespace to write to. Raises CommandFailure."""
        from milo_discovery.local_kubeconfig import default_source  # noqa: PLC0415

        source = default_source(self.kubeconfig, self.context)
        try:
            namespace = self.namespace or source.read().namespace
        except UnusableKubeconfig as error:
            raise CommandFailure(f"{error}; check the kubeconfig of the target API server (--kubeconfig)") from error
        if not namespace:
            raise click.UsageError("the kubeconfig's context has no namespace: set one with --namespace")
        return source, namespace


def publishing(command: Callable[..., R]) -> Callable[..., R]:
    """Decorate a publishing command, which receives `connection`, `only`, `destination` and `copy_labels`."""

    @filtering
    @click.option("-n", "--namespace", help="Namespace of the objects. Default: the pod's or the context's namespace.")
    @click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Kubeconfig of the API server to write to. Default: $KUBECONFIG, or else this pod's service account, or "
        "else ~/.kube/config.",
    )
    @click.option("--context", help="Context of the kubeconfig. Default: its current context.")
    @click.option(
        "--publisher",
        type=LabelValue(),
        default="milo",
        show_default=True,
        help="Name of this publisher, if several write to the same namespace. Each deletes only its own objects.",
    )
    @click.option(
        "--copy-label",
        "copy_labels",
        type=LabelPattern(),
        multiple=True,
        help="Copy this label of the clusters, or all labels with a prefix: PREFIX/*. May be repeated.",
    )
    @click.option(
        "--resync-interval",
        "resync",
        type=Duration(),
        default="5m",
        show_default=True,
        help="Interval at which objects that other clients changed or deleted are written again.",
    )
    @click.option(
        "--once",
        is_flag=True,
        help="Exit when each engaged cluster has its object, and all other objects are deleted or held.",
    )
    @click.option(
        "--accept-removals",
        "accepts_removals",
        is_flag=True,
        help="Delete all objects whose clusters the daemon no longer reports, however many they are. The limit applies "
        "again once none is left. Also take over objects that were written for another filter or shard group.",
    )
    @connecting(timeout=None, timeout_help="With --once: time limit for the run. Default: no limit.")
    @functools.wraps(command)
    def with_destination(connection: ConnectionOptions, **options: Any) -> R:
        destination = Destination(**{field.name: options.pop(field.name) for field in fields(Destination)})
        return command(connection, destination=destination, **options)

    return with_destination


@click.group("publish")
def publish() -> None:
    """Publish the engaged clusters as objects in a Kubernetes API.

    There is one object per engaged cluster. It is written by server-side apply, only when something changed, and
    deleted only when the cluster is disengaged: not while the daemon is down, or its source is stale. If the daemon
    lacks many of the published clusters, nothing is deleted without --accept-removals. Objects of the same name that
    this command did not create are reported, and not changed.
    """


@publish.command("cluster-profiles")
@click.option(
    "--cluster-manager",
    type=LabelValue(),
    default="milo",
    show_default=True,
    help="Name of the cluster manager. It is immutable: delete the ClusterProfiles that have another one.",
)
@click.option("--access-provider", default="milo", show_default=True, help="Name of the access provider.")
@publishing
def cluster_profiles(
    connection: ConnectionOptions, *, only: FilterOptions, destination: Destination, **options: Any
) -> None:
    """Publish ClusterProfiles of the Cluster Inventory API.

    Consumers connect with the plugin `milo-discovery credential`, to which the profile gives the cluster's name.
    """
    from milo_publishing.rendering import ClusterProfiles  # noqa: PLC0415

    _run(connection, destination, ClusterProfiles(**options), cast("WatchOptions", {**only}))


@publish.command("argocd-clusters")
@click.option(
    "--plugin-command",
    default="milo-discovery",
    show_default=True,
    help="The milo-discovery command in Argo CD's container, with its path if it is not on PATH.",
)
@click.option(
    "--plugin-env",
    type=Assignment(),
    multiple=True,
    help="Environment variable to set for the plugin, as NAME=VALUE. May be repeated. Default: the variables that tell "
    "this command which daemon to use.",
)
@click.option("--argocd-project", default="", help="The only Argo CD project that may use the clusters.")
@publishing
def argocd_clusters(
    connection: ConnectionOptions,
    *,
    only: FilterOptions,
    destination: Destination,
    plugin_env: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Publish Secrets that register the clusters in Argo CD.

    They hold no credential: Argo CD calls the plugin `milo-discovery credential`.
    """
    from milo_publishing.rendering import ArgoCdClusters  # noqa: PLC0415

    renderer = ArgoCdClusters(plugin_environment=dict(plugin_env) or connection.environment(), **options)
    _run(connection, destination, renderer, cast("WatchOptions", {**only}))


@publish.command("flux-kubeconfigs")
@click.option("--ttl", type=Duration(), help="Requested lifetime of the credentials. The daemon may shorten it.")
@publishing
def flux_kubeconfigs(
    connection: ConnectionOptions,
    *,
    only: FilterOptions,
    destination: Destination,
    copy_labels: tuple[str, ...],
    ttl: timedelta | None,
) -> None:
    """Publish Secrets NAME-kubeconfig for Flux.

    Each holds a short-lived credential under the key `value`, and is written again before the credential expires.
    """
    from milo_publishing.rendering import FluxKubeconfigs  # noqa: PLC0415

    options = cast("WatchOptions", {**only, "include_kubeconfigs": True})
    if ttl is not None:
        options["kubeconfig_ttl"] = ttl
    _run(connection, destination, FluxKubeconfigs(copy_labels=copy_labels), options)


@publish.command("flux-configmaps")
@publishing
@click.option(
    "--audience",
    "audiences",
    multiple=True,
    help="Audience of Flux's tokens. Default: the server's URL. May be repeated.",
)
@click.option(
    "--service-account",
    default="",
    help="Service account to authenticate as, in the Flux object's namespace. Default: Flux's own service account.",
)
def flux_configmaps(
    connection: ConnectionOptions, *, only: FilterOptions, destination: Destination, **options: Any
) -> None:
    """Publish ConfigMaps NAME-kubeconfig for Flux.

    They hold no credential: Flux authenticates with a token of a service account, which the control planes must accept.
    """
    from milo_publishing.rendering import FluxConfigMaps  # noqa: PLC0415

    _run(connection, destination, FluxConfigMaps(**options), cast("WatchOptions", {**only}))


def _run(connection: ConnectionOptions, destination: Destination, renderer: Renderer, options: WatchOptions) -> None:
    source, namespace = destination.target()
    connection.run(
        lambda client: _publish(
            client, connection, destination, source=source, namespace=namespace, renderer=renderer, options=options
        ),
        limits_calls=False,
    )


async def _publish(
    client: DiscoveryClient,
    connection: ConnectionOptions,
    destination: Destination,
    *,
    source: LocalSource,
    namespace: str,
    renderer: Renderer,
    options: WatchOptions,
) -> None:
    import asyncio  # noqa: PLC0415  (not needed for help and usage errors)

    from milo_discovery.removals import Removals, filter_text  # noqa: PLC0415
    from milo_discovery_cli.watch import StreamMessages  # noqa: PLC0415
    from milo_publishing.api_server import open_api_server  # noqa: PLC0415
    from milo_publishing.objects import Identity  # noqa: PLC0415
    from milo_publishing.publication import Publication  # noqa: PLC0415
    from milo_publishing.publisher import Publisher  # noqa: PLC0415

    publication = Publication(
        renderer,
        Identity(publication=renderer.publication, publisher=destination.publisher, filter=filter_text(options)),
        Removals(
            accepts=destination.accepts_removals,
            began_at=-math.inf if destination.once else asyncio.get_running_loop().time(),
        ),
        resync_s=destination.resync.total_seconds(),
        report=print_message,
    )
    messages, done, terminated = StreamMessages(connection), asyncio.Event(), False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        done.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    limit = connection.timeout if destination.once else None
    try:
        async with (
            asyncio.timeout(None if limit is None else limit.total_seconds()),
            open_api_server(source, renderer.resource, namespace) as server,
        ):
            publisher = Publisher(client, server, publication, report=print_message, notice=messages.print)
            await publisher.run(options, done, once=destination.once)
    except TimeoutError:
        timed_out = TimedOut("objects were not up to date within --timeout", code="DEADLINE_EXCEEDED")
        raise messages.last_error or timed_out from None
    if destination.once and terminated:
        raise CommandFailure("ended by SIGTERM before the objects were up to date")
    if destination.once and (unfinished := publication.unfinished):
        raise CommandFailure(unfinished)
