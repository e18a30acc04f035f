"""Every setting, with its default and its limits. One frozen tree; `load` makes it, the composition root reads it."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from milo_discoveryd.config import values
from milo_discoveryd.config.fields import Group, one_of, selector_text, span
from milo_discoveryd.config.listeners import Listener, distinct, listener
from milo_discoveryd.config.rights import Rule, ordered
from milo_discoveryd.config.sources import CredentialSource
from milo_discoveryd.modes import mode


def _mode(value: object) -> str:
    return values.one_of(*mode.names())(value)


def _http_listen(value: object) -> values.TcpAddress | None:
    return None if value is None or value == "off" else values.tcp_address(value)


def _group(make: Callable[[], Any]) -> Any:
    return Field(default_factory=make)


class Socket(Group):
    """How the Unix sockets that the daemon makes look to others on the machine."""

    mode: Annotated[int, BeforeValidator(values.permissions)] = 0o660
    group: Annotated[str, Field(max_length=32)] | None = None
    """Name or number of the group that may connect; none leaves the daemon's own."""


class Source(Group):
    """How the API server is read."""

    page_size: Annotated[int, Field(ge=1, le=100_000)] = 5_000
    """Objects a page of a list. Pages of 500, the usual size, cost the server minutes at a hundred thousand objects."""
    streaming_lists: Annotated[str, one_of("auto", "off")] = "auto"
    silence_limit: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=90)
    """A watch that says nothing for so long is taken for dead. API servers send a bookmark about every 60 s."""
    look_interval: Annotated[timedelta, span("100ms", "5m")] = timedelta(seconds=15)
    """Between two questions to a silent API server whether it is there. After three without an answer it is lost."""
    connect_timeout: Annotated[timedelta, span("100ms", "5m")] = timedelta(seconds=10)
    credentials: Annotated[str | None, Field(max_length=63)] = None
    """The name of one of kubeconfigs.sources: what the daemon authenticates with, instead of the kubeconfig's user."""
    request_timeout: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=60)
    """For a whole answer: a page of a list, a look at one object."""
    response_limit: Annotated[int, BeforeValidator(partial(values.size, least=1 << 20, most=4 << 30))] = 256 << 20


class Tombstones(Group):
    """How long the change log remembers clusters that are gone. Who was away for longer gets a snapshot."""

    count: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    age: Annotated[timedelta, span("0s", "720h")] = timedelta(hours=1)


class Removals(Group):
    """When a list that lacks engaged clusters is not believed at once. See `registry.guard`."""

    count: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    verify_after: Annotated[timedelta, span("1s", "24h")] = timedelta(seconds=30)
    per_second: Annotated[float, Field(gt=0, le=10_000)] = 50.0


class Metrics(Group):
    cluster_info_cap: Annotated[int, Field(ge=0, le=100_000)] = 1_000
    """Series with a cluster's name in them: a scrape of 50,000 takes a third of a second of the daemon's time."""


def _named_once(sources: tuple[CredentialSource, ...]) -> tuple[CredentialSource, ...]:
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError("must give each of its sources another name")
    return sources


def _address(value: object) -> values.ListenAddress | None:
    return None if value is None else values.client_address(value)


def _interval(value: object) -> timedelta | None:
    if value is None or value == "off":
        return None
    return values.duration(value, least=timedelta(seconds=1), most=timedelta(hours=24))


class Kubeconfigs(Group):
    """What is handed out."""

    sources: Annotated[tuple[CredentialSource, ...], BeforeValidator(values.items), AfterValidator(_named_once)] = ()
    """Where credentials come from; the first that covers a cluster serves it. None is the project kubeconfig's user."""
    max_ttl: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=15)
    """The longest that a source is asked for, whatever a subscriber asks for."""
    default_ttl: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=10)
    """Where a subscriber does not say. Ten minutes is also the least that a Kubernetes API server gives."""
    address: Annotated[values.ListenAddress | None, BeforeValidator(_address)] = None
    """Where holders of a kubeconfig without a secret find this daemon; none is what it listens on."""
    concurrent_mints: Annotated[int, Field(ge=1, le=1_000)] = 10
    """At once, of a source that has a credential for each cluster."""
    mints_per_second: Annotated[float, Field(ge=0.1, le=10_000)] = 50.0
    """Begun, of each source: ten thousand clusters with ten minutes each take 43 in the long run."""


class TokenReview(Group):
    """Whose the bearer tokens of callers are, at listeners that take tokens."""

    kubeconfig: Annotated[Path | None, BeforeValidator(values.file_path)] = None
    """Of the cluster that knows them; none is that of discovery."""
    audiences: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], BeforeValidator(values.words)
    ] = ("milo-discovery",)
    """A token has to be for one of them. One that is for the API server itself should be shown to nobody else."""


class Connectivity(Group):
    """How the clusters' own API servers are probed."""

    interval: Annotated[timedelta | None, BeforeValidator(_interval)] = timedelta(minutes=1)
    """Between two probes of a cluster, where the rates allow it. "off" is none at all."""
    path: Annotated[str, BeforeValidator(values.url_path)] = "/readyz"
    timeout: Annotated[timedelta, span("100ms", "1m")] = timedelta(seconds=5)
    rate: Annotated[float, Field(ge=0.1, le=1_000)] = 50.0
    """Probes a second, of all clusters."""
    host_rate: Annotated[float, Field(ge=0.1, le=1_000)] = 20.0
    """And of all clusters behind one host."""
    unreachable_after: Annotated[timedelta, span("0s", "1h")] = timedelta(seconds=30)
    """An API server that restarts is nobody's news."""
    disengage_unreachable_after: Annotated[timedelta | None, BeforeValidator(_interval)] = None
    """"off": operators see for themselves whom they can't reach, and nothing of theirs is torn down for a network."""


class Traces(Group):
    """Spans, where the extra `traces` is installed."""

    endpoint: Annotated[str | None, BeforeValidator(values.receiver)] = None
    """An OTLP receiver, by HTTP: "http://localhost:4318". None is no traces."""
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the calls and requests that nobody traces already."""


class SingleCluster(Group):
    """The one cluster of mode `single`."""

    name: Annotated[str, BeforeValidator(values.cluster_name)] = "single"
    labels: Annotated[dict[str, str], BeforeValidator(values.pairs)] = Field(default_factory=dict)
    organization: Annotated[str, Field(max_length=253)] = ""


class Limits(Group):
    """How much callers have of what there is a limited amount of."""

    streams: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Open at once, of all callers together."""
    streams_per_caller: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Of one caller, where no rule says otherwise. Where a listener can't tell its callers apart, they are one."""
    kubeconfigs_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 60_000
    """Handed out to one caller, where no rule says otherwise; as many may be had at once."""


class Audit(Group):
    file: Annotated[Path | None, BeforeValidator(values.file_path)] = None
    """Where all that is handed out and refused is written to as well, a line of JSON each; none is the log alone."""


class Log(Group):
    level: Annotated[str, one_of("debug", "info", "warning", "error")] = "info"
    format: Annotated[str, one_of("auto", "console", "json")] = "auto"
    """auto: console on a terminal, json elsewhere."""


class Settings(Group):
    mode: Annotated[str, BeforeValidator(_mode)] = "project"
    discovery_kubeconfig: Annotated[Path | None, BeforeValidator(values.file_path)] = None
    """Where projects are watched; none is the cluster this daemon runs in."""
    project_kubeconfig: Annotated[Path | None, BeforeValidator(values.file_path)] = None
    """Whose scheme, CA and identity lead to the projects' control planes; none is the cluster this daemon runs in."""
    exec_plugins: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...], BeforeValidator(values.words)
    ] = ()
    """Commands that kubeconfigs may have the daemon run for a credential, as they write them; "*" is any. Else whoever
    can write a kubeconfig runs what they like, as the daemon."""
    label_selector: Annotated[str, BeforeValidator(selector_text)] = ""
    listen: Annotated[
        tuple[Annotated[Listener, BeforeValidator(listener)], ...],
        BeforeValidator(values.words),
        AfterValidator(distinct),
    ] = (Listener(address=values.UnixAddress(Path("/run/milo-discovery/discovery.sock"))),)
    http_listen: Annotated[values.TcpAddress | None, BeforeValidator(_http_listen)] = values.TcpAddress("", 9464)
    """Metrics and health. All interfaces: Prometheus and the kubelet come to the pod's address, never to its loopback.
    It tells names of clusters (up to metrics.cluster_info_cap) to who can reach it, and no more. "off" is none."""
    socket: Socket = _group(Socket)
    internal_address_template: Annotated[str, BeforeValidator(values.address_template)] = (
        "milo-apiserver.{namespace}.svc.cluster.local:6443"
    )
    """Where mode `project-control-plane` finds a project's API server."""
    internal_namespace_template: Annotated[str, BeforeValidator(values.namespace_template)] = "project-{name}"
    """What {namespace} stands for. Some installations of Milo have "project-{uid}"."""
    annotation_prefixes: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=317)], ...], BeforeValidator(values.words)
    ] = ()
    """Annotations handed on to subscribers: those that begin with one of these. None by default: annotations hold
    anything, and what leaves the API server should be somebody's decision."""
    state_directory: Annotated[Path | None, BeforeValidator(values.file_path)] = None
    """Where the fleet is remembered, so that a restart without the source serves it, as stale. None: not at all."""
    not_ready_grace: Annotated[timedelta, span("0s", "1h")] = timedelta()
    heartbeat_interval: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=30)
    stalled_timeout: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=5)
    source: Source = _group(Source)
    tombstones: Tombstones = _group(Tombstones)
    removals: Removals = _group(Removals)
    metrics: Metrics = _group(Metrics)
    cluster: SingleCluster = _group(SingleCluster)
    connectivity: Connectivity = _group(Connectivity)
    kubeconfigs: Kubeconfigs = _group(Kubeconfigs)
    token_review: TokenReview = _group(TokenReview)
    rights: Annotated[tuple[Rule, ...], BeforeValidator(values.items), AfterValidator(ordered)] = ()
    """Who may see and have what. The first rule that a caller meets counts; none is that everybody may everything."""
    limits: Limits = _group(Limits)
    audit: Audit = _group(Audit)
    log: Log = _group(Log)
    traces: Traces = _group(Traces)
