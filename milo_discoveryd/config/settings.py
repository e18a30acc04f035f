"""Every setting, with its default and its limits. One frozen tree; `load` makes it, the composition root reads it."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from milo_discoveryd.config import values
from milo_discoveryd.config.fields import (
    Group,
    ListOf,
    Nested,
    Number,
    Text,
    Whole,
    one_of,
    selector_text,
    size,
    span,
    span_or_off,
)
from milo_discoveryd.config.listeners import Listener, distinct, listener
from milo_discoveryd.config.rights import Rule, ordered
from milo_discoveryd.config.sources import SOURCES, CredentialSource
from milo_discoveryd.modes import mode


def _mode(value: object) -> str:
    return values.one_of(value, choices=mode.names())


def _http_listen(value: object) -> values.TcpAddress | None:
    return None if value is None or value == "off" else values.tcp_address(value)


class Socket(Group, frozen=True, kw_only=True):
    """How the Unix sockets that the daemon makes look to others on the machine."""

    mode: Annotated[int, values.permissions] = 0o660
    """Permissions of the Unix sockets."""
    group: Annotated[str, Text(most=32)] | None = None
    """Name or number of the group that may connect. None is the daemon's own."""


class Source(Group, frozen=True, kw_only=True):
    """How the API server is read."""

    # Pages of 500, the usual size, cost the server minutes at a hundred thousand objects.
    page_size: Annotated[int, Whole(1, 100_000)] = 5_000
    """Objects a page of a list, where streaming lists are not served."""
    streaming_lists: Annotated[str, one_of("auto", "off")] = "auto"
    """`off` where a server serves them badly."""
    silence_limit: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=90)
    """A watch that says nothing for so long is taken for dead. Above 70 s, since API servers are silent for a
    minute."""
    look_interval: Annotated[timedelta, span("100ms", "5m")] = timedelta(seconds=15)
    """While the API server says nothing, it is asked for `/livez` this often, on another connection. After three
    questions without any answer all connections are made anew."""
    connect_timeout: Annotated[timedelta, span("100ms", "5m")] = timedelta(seconds=10)
    """For a connection to the API server."""
    request_timeout: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=60)
    """For a whole answer of it: a page of a list, a look at one object."""
    response_limit: Annotated[int, size(1 << 20, 4 << 30)] = 256 << 20
    """The largest answer that is read."""
    credentials: Annotated[str | None, Text(most=63)] = None
    """The name of one of `kubeconfigs.sources`, to authenticate with where projects are watched. None is the discovery
    kubeconfig's user."""


class Tombstones(Group, frozen=True, kw_only=True):
    """How long the change log remembers clusters that are gone. Who was away for longer gets a snapshot."""

    count: Annotated[int, Whole(0, 1_000_000)] = 10_000
    """Disengaged clusters that the change log remembers, for subscribers that come back. Who was away for longer is
    given a snapshot."""
    age: Annotated[timedelta, span("0s", "720h")] = timedelta(hours=1)
    """And for how long."""


class Removals(Group, frozen=True, kw_only=True):
    """When a list that lacks engaged clusters is not believed at once. See `registry.guard`."""

    count: Annotated[int, Whole(0, 1_000_000)] = 10
    """A list that lacks more engaged clusters than this, and more than their share below, is not believed at once; nor
    is one that lacks more than half, or all."""
    share: Annotated[float, Number(0, 1)] = 0.2
    """Of the engaged clusters."""
    verify_after: Annotated[timedelta, span("1s", "24h")] = timedelta(seconds=30)
    """When a second list is read, to be held against the first."""
    per_second: Annotated[float, Number(0, 10_000, is_above=True)] = 50.0
    """At which pace the missing are then asked about, each by itself."""


class Metrics(Group, frozen=True, kw_only=True):
    # A scrape of 50,000 takes a third of a second of the daemon's time.
    cluster_info_cap: Annotated[int, Whole(0, 100_000)] = 1_000
    """Clusters with time series of their own, where `http_names` allows any."""


def _named_once(sources: tuple[CredentialSource, ...]) -> None:
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError("must give each of its sources another name")


class Kubeconfigs(Group, frozen=True, kw_only=True):
    """What is handed out."""

    sources: Annotated[tuple[CredentialSource, ...], ListOf(SOURCES, split=values.items, check=_named_once)] = ()
    """The sources of the credentials that are handed out; the first that covers a cluster serves it. None hands out
    none."""
    max_ttl: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=15)
    """The longest life that a credential source is asked for, whatever a subscriber asks for."""
    # Ten minutes is also the least that a Kubernetes API server gives.
    default_ttl: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=10)
    """Where a subscriber does not say. No more than `kubeconfigs.max_ttl` counts."""
    concurrent_mints: Annotated[int, Whole(1, 1_000)] = 10
    """How many credentials are asked for at once, of a source that has one for each cluster."""
    # Ten thousand clusters with ten minutes each take 43 in the long run.
    mints_per_second: Annotated[float, Number(0.1, 10_000)] = 50.0
    """And how many are begun a second."""
    address: Annotated[values.ListenAddress, values.client_address] | None = None
    """Where holders of a kubeconfig in the EXEC form, which has no secret in it, find this daemon. None is the first of
    `listen`."""


class TokenReview(Group, frozen=True, kw_only=True):
    """Whose the bearer tokens of callers are, at listeners that take tokens."""

    kubeconfig: Annotated[Path | None, values.file_path] = None
    """Of the cluster that is asked whose the bearer tokens of callers are, at listeners that take tokens. None is where
    projects are watched."""
    audiences: Annotated[tuple[str, ...], ListOf(Text(least=1, most=253))] = ("milo-discovery",)
    """What a token has to be for: one of these. Empty takes those for the API server itself, which nobody should hand
    around."""


class Connectivity(Group, frozen=True, kw_only=True):
    """How the clusters' own API servers are probed."""

    interval: Annotated[timedelta | None, span_or_off("1s", "24h")] = timedelta(minutes=1)
    """Between two probes of a cluster's API server, where the rates allow it."""
    path: Annotated[str, values.url_path] = "/readyz"
    """What is asked for, with the credential that the cluster's operators hold, or else the project kubeconfig's."""
    timeout: Annotated[timedelta, span("100ms", "1m")] = timedelta(seconds=5)
    """For the answer."""
    rate: Annotated[float, Number(0.1, 1_000)] = 50.0
    """Probes a second, of all clusters."""
    host_rate: Annotated[float, Number(0.1, 1_000)] = 20.0
    """And of all clusters behind one host."""
    # An API server that restarts is nobody's news.
    unreachable_after: Annotated[timedelta, span("0s", "1h")] = timedelta(seconds=30)
    """How long a cluster fails before it is called unreachable."""
    # Off: operators see for themselves whom they can't reach, and nothing of theirs is torn down for a network.
    disengage_unreachable_after: Annotated[timedelta | None, span_or_off("1s", "24h")] = None
    """How long a cluster is unreachable before it is disengaged for it, until it is reached again. None is `off`."""


class Traces(Group, frozen=True, kw_only=True):
    """Spans, where the extra `traces` is installed."""

    endpoint: Annotated[str | None, values.receiver] = None
    """An OTLP receiver for traces, over HTTP: `http://localhost:4318`. It takes the extra `traces`."""
    share: Annotated[float, Number(0, 1)] = 1.0
    """Of the calls and requests that are traced, where the caller has not decided it."""


class SingleCluster(Group, frozen=True, kw_only=True):
    """The one cluster of mode `single`."""

    name: Annotated[str, values.cluster_name] = "single"
    """What the one cluster of mode `single` is called."""
    labels: Annotated[dict[str, str], values.pairs] = msgspec.field(default_factory=dict)
    """The labels that it is shown with."""
    organization: Annotated[str, Text(most=253)] = ""
    """The organization that it is shown as of."""


class Limits(Group, frozen=True, kw_only=True):
    """How much callers have of what there is a limited amount of."""

    streams: Annotated[int, Whole(1, 100_000)] = 2_000
    """Open at once, of all callers together."""
    streams_per_caller: Annotated[int, Whole(1, 100_000)] = 600
    """Of one caller, where no rule says otherwise. Callers whom a listener can't tell apart are one."""
    kubeconfigs_per_minute: Annotated[int, Whole(1, 1_000_000)] = 60_000
    """Handed out to one caller, where no rule says otherwise. As many may be had at once."""


class Audit(Group, frozen=True, kw_only=True):
    file: Annotated[Path | None, values.file_path] = None
    """A file that all that is handed out and refused is appended to, a line of JSON each. None is the log alone."""


class Log(Group, frozen=True, kw_only=True):
    level: Annotated[str, one_of("debug", "info", "warning", "error")] = "info"
    """What is logged: this, and what is graver."""
    format: Annotated[str, one_of("auto", "console", "json")] = "auto"
    """`auto`: `console` on a terminal, `json` elsewhere."""


class Settings(Group, frozen=True, kw_only=True):
    mode: Annotated[str, _mode] = "project"
    """`project`, `project-control-plane`, `single`, or a mode that another package brings."""
    discovery_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Where projects are watched. None is the cluster that the daemon runs in."""
    project_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Whose address, CA and identity lead to the projects. None is the cluster that the daemon runs in; outside of one,
    `discovery_kubeconfig`."""
    exec_plugins: Annotated[tuple[str, ...], ListOf(Text(least=1, most=4096))] = ()
    """Commands that a kubeconfig may have run as exec credential plugins, as it writes them, such as `datumctl`; `*` is
    any. Where any may, whoever writes a kubeconfig runs what they like, as the daemon."""
    label_selector: Annotated[str, selector_text] = ""
    """Which projects, as `kubectl -l` takes it. None is all."""
    not_ready_grace: Annotated[timedelta, span("0s", "1h")] = timedelta()
    """How long a project may be not ready before it is disengaged."""
    # Annotations hold anything, and what leaves the API server should be somebody's decision.
    annotation_prefixes: Annotated[tuple[str, ...], ListOf(Text(least=1, most=317))] = ()
    """Annotations handed on to subscribers: those that begin with one of these."""
    internal_address_template: Annotated[str, values.address_template] = (
        "milo-apiserver.{namespace}.svc.cluster.local:6443"
    )
    """Where mode `project-control-plane` finds a project's API server; `{name}`, `{uid}`, `{namespace}`."""
    internal_namespace_template: Annotated[str, values.namespace_template] = "project-{name}"
    """What `{namespace}` stands for. Some installations of Milo have `project-{uid}`."""
    cluster: SingleCluster = SingleCluster()
    source: Source = Source()
    removals: Removals = Removals()
    state_directory: Annotated[Path | None, values.file_path] = None
    """Where the clusters as last known are kept (no credentials), so that a daemon that restarts while Milo is away
    serves them at once, as stale. None is nowhere."""
    tombstones: Tombstones = Tombstones()
    listen: Annotated[tuple[Listener, ...], ListOf(Nested(Listener, listener), check=distinct)] = (
        Listener(address=values.UnixAddress(Path("/run/milo-discovery/discovery.sock"))),
    )
    """Where callers find the daemon: a list of listeners."""
    socket: Socket = Socket()
    token_review: TokenReview = TokenReview()
    rights: Annotated[tuple[Rule, ...], ListOf(Nested(Rule), split=values.items, check=ordered)] = ()
    """Rules: who may see which clusters, and have kubeconfigs. The first that a caller meets counts. None is everything
    for everybody."""
    limits: Limits = Limits()
    audit: Audit = Audit()
    heartbeat_interval: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=30)
    """Between two signs of life on a stream, where a subscriber does not ask for another."""
    stalled_timeout: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=5)
    """A subscriber that reads nothing for so long is ended."""
    kubeconfigs: Kubeconfigs = Kubeconfigs()
    connectivity: Connectivity = Connectivity()
    http_listen: Annotated[values.TcpAddress | None, _http_listen] = values.TcpAddress("", 9464)
    """Metrics, health and the status page; `off` for none. On all interfaces, since Prometheus and the kubelet connect
    to the pod's address. There is no authentication: `http_names` decides who sees names."""
    http_names: Annotated[str, one_of("loopback", "everyone", "nobody")] = "loopback"
    """Who sees names of clusters and organizations, and messages that may contain some, on the status page and in
    `/metrics`: clients on loopback, such as those of `kubectl port-forward`; everyone, where a NetworkPolicy restricts
    the port; or nobody, where a proxy in the pod makes every client one on loopback."""
    http_hosts: Annotated[tuple[str, ...], ListOf(Text(least=1, most=253))] = ()
    """Further DNS names of the HTTP port, for Prometheus or a browser. IP addresses, names without a dot, and names
    below `.svc`, `.cluster.local` and `.localhost` need not be listed. Other Host headers are refused, because DNS
    rebinding would let any web page read the port through a browser."""
    metrics: Metrics = Metrics()
    log: Log = Log()
    traces: Traces = Traces()
