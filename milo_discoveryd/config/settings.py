"""All settings with their defaults and limits, as one frozen tree. `load` builds the tree; the composition root reads
it."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from milo_discoveryd.config.issuers import parse_issuer
from milo_discoveryd.config.listeners import ListenerSettings, distinct, listener
from milo_discoveryd.config.rights import RuleSettings, ordered
from milo_discoveryd.config.sources import SourceParser, SourceSettings
from milo_discoveryd.credentials.issuers.settings import IssuerSettings
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import (
    Group,
    ListOf,
    Nested,
    Number,
    Text,
    Whole,
    one_of,
    size,
    span,
    span_or_off,
)


def named_once(items: "tuple[SourceSettings | IssuerSettings, ...]") -> None:
    if (name := values.repeated(item.name for item in items)) is not None:
        raise ValueError(f"has several items with the name {name!r}")


def _http_listen(value: object) -> values.TcpAddress | None:
    if value is None or value == "off":
        return None
    try:
        return values.tcp_address(value)
    except ValueError as error:
        raise ValueError(str(error).replace("must be HOST:PORT", 'must be "off" or HOST:PORT')) from None


class Socket(Group, frozen=True, kw_only=True):
    """Permissions and group of the Unix sockets."""

    mode: Annotated[int, values.permissions] = 0o660
    """Permissions of the Unix sockets."""
    group: Annotated[str, Text(most=32)] | None = None
    """Name or number of the group that may connect to the Unix sockets. Default: the daemon's own group."""


class WatchSettings(Group, frozen=True, kw_only=True):
    """Settings of list and watch requests to the API server."""

    # With pages of 500, the usual size, a list of 100,000 objects takes the server minutes.
    page_size: Annotated[int, Whole(1, 100_000)] = 5_000
    """Objects per page of a list, for API servers without streaming lists."""
    streaming_lists: Annotated[str, one_of("auto", "off")] = "auto"
    """`auto`: streaming lists are used if the API server supports them. `off`: for API servers whose streaming lists
    are faulty."""
    silence_limit: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=90)
    """A watch that receives nothing for this long is considered broken. Use more than 70 s, because API servers send
    bookmarks once a minute."""
    liveness_interval: Annotated[timedelta, span("100ms", "5m")] = timedelta(seconds=15)
    """Interval of liveness probes (`/livez`, on another connection) while the API server is silent. After three
    unanswered or failed probes in a row, during one request, the source is stale, and all connections are reopened."""
    connect_timeout: Annotated[timedelta, span("100ms", "5m")] = timedelta(seconds=10)
    """Timeout for connecting to the API server."""
    request_timeout: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=60)
    """Timeout for a complete response, such as a page of a list or a single object."""
    objects_limit: Annotated[int, size(1 << 20, 64 << 30)] = 160 << 20
    """Memory budget for the objects of a source: the size of their kept fields (twice what exceeds 512 bytes), 1024 for
    each object, and 160 for each of its labels and annotations beyond two. Objects of mode `declarative` or
    `service-consumer`, and files, have 2560 more for each of their clusters, and 512 for its Secret. All sources
    together may take 1.75 times that (several tenants: twice), also for unconfirmed deletions; each source has its
    equal part of a quarter in any case. Beyond it, further objects of the namespace, or else organization, with the
    most are malformed. A source that exceeds it all the same, or that has one of these alone, is stale (`OverBudget`).
    It is listed again after five minutes. The default is enough for 100,000 projects with two labels, 57,000 with
    eight, or 31,000 declared clusters. A response may have a fifth of it, divided by the sources, or up to 8 MiB of it
    if that is more."""

    def response_limit(self, sources: int) -> int:
        """Maximum bytes of a response, which is decoded in one step, and is in memory beside the objects."""
        return max(min(self.objects_limit, 8 << 20), self.objects_limit // (5 * sources))


class Tombstones(Group, frozen=True, kw_only=True):
    """Retention of tombstones in the change log. A subscriber that was disconnected for longer gets a snapshot."""

    count: Annotated[int, Whole(0, 1_000_000)] = 10_000
    """Maximum number of past cluster states that the change log keeps, so that subscribers can resume. A subscriber
    that needs a state which is no longer kept gets a snapshot."""
    age: Annotated[timedelta, span("0s", "720h")] = timedelta(hours=1)
    """How long the change log keeps a past state."""


class RemovalSettings(Group, frozen=True, kw_only=True):
    """The mass-removal limit, which decides when removals that a list shows are held. See `objects.trust`."""

    count: Annotated[int, Whole(0, 1_000_000)] = 10
    """Removals are held if the number of engaged clusters that are missing from a list exceeds both this number and the
    share `removals.share`. If at least two clusters are engaged, removals are also held if more than half of them are
    missing."""
    share: Annotated[float, Number(0, 1)] = 0.2
    """Share of the engaged clusters that may be missing from a list before removals are held; the larger of this share
    and `removals.count` applies."""
    verify_after: Annotated[timedelta, span("1s", "24h")] = timedelta(seconds=30)
    """Delay before a second list, which must confirm held removals."""
    per_second: Annotated[float, Number(0, 10_000, is_above=True)] = 50.0
    """Maximum number of held removals that are released per second, once a second list confirms them. Before a cluster
    is disengaged, a GET must also confirm that its object was deleted."""
    hold_not_ready: bool = True
    """Also apply the mass-removal limit to clusters that become not ready: if more clusters than the limit become not
    ready within `removals.verify_after`, those that are still engaged stay engaged for that time. `false` disengages
    each cluster as soon as its `not_ready_grace` is over."""


class MetricsSettings(Group, frozen=True, kw_only=True):
    # A scrape of 50,000 clusters takes a third of a second of CPU time.
    cluster_info_cap: Annotated[int, Whole(0, 100_000)] = 1_000
    """Maximum number of clusters, and of organizations, that have time series of their own. Clients from which
    `http_names` hides names receive none of these."""


class KubeconfigSettings(Group, frozen=True, kw_only=True):
    """The kubeconfigs that the daemon issues."""

    issuers: Annotated[tuple[IssuerSettings, ...], ListOf(parse_issuer, split=values.items, check=named_once)] = ()
    """Issuers of the credentials in kubeconfigs; the first issuer that matches a cluster serves it. Without issuers, no
    kubeconfigs are issued."""
    max_ttl: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=15)
    """Maximum lifetime requested from a credential issuer."""
    # Ten minutes is also the minimum of the Kubernetes TokenRequest API.
    default_ttl: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=10)
    """Lifetime of credentials if a request sets no lifetime; at most `kubeconfigs.max_ttl`."""
    concurrent_mints: Annotated[int, Whole(1, 1_000)] = 10
    """Maximum concurrent requests to an issuer with one credential per cluster; except for commands, 15 times as many
    more may hang."""
    # Ten thousand clusters with a lifetime of ten minutes need 43 per second.
    mints_per_second: Annotated[float, Number(0.1, 10_000)] = 50.0
    """Maximum requests per second to an issuer with one credential per cluster."""
    address: Annotated[values.ListenAddress, values.client_address] | None = None
    """Address of this daemon in kubeconfigs of the EXEC form, which contain no secret. Default: the first address of
    `listen`."""


class TokenReview(Group, frozen=True, kw_only=True):
    """The API server that reviews callers' bearer tokens, for listeners that accept tokens."""

    kubeconfig: Annotated[Path | None, values.file_path] = None
    """Kubeconfig of the cluster that reviews callers' bearer tokens. Default: that of `discovery_kubeconfig`, or else
    the cluster that the daemon runs in."""
    audiences: Annotated[tuple[str, ...], ListOf(Text(least=1, most=253))] = ("milo-discovery",)
    """Accepted audiences: a caller's token must have one of them. If empty, tokens for the API server itself are
    accepted, which callers should not send to other servers."""


class ConnectivitySettings(Group, frozen=True, kw_only=True):
    """Connectivity probes of the clusters' API servers."""

    interval: Annotated[timedelta | None, span_or_off("1s", "24h")] = timedelta(minutes=1)
    """Interval between probes of a cluster's API server, longer if the rate limits require it."""
    # Each probe is a line in Milo's audit log.
    per: Annotated[str, one_of("auto", "host", "cluster")] = "auto"
    """`cluster`: each cluster is probed. `host`: each host is probed once for all clusters behind that host. `auto`:
    `host` in mode `project`, where all control planes are paths of one API server, unless
    `connectivity.disengage_unreachable_after` is set; else `cluster`."""
    path: Annotated[str, values.url_path] = "/readyz"
    """Path of the probe, relative to the cluster's endpoint or to the host. A probe of a cluster uses the credential
    issued for the cluster, or else that of the project kubeconfig; a probe of a host always uses that of the project
    kubeconfig. In mode `declarative`, the project kubeconfig's credential is never used."""
    timeout: Annotated[timedelta, span("100ms", "1m")] = timedelta(seconds=5)
    """Timeout of a probe."""
    rate: Annotated[float, Number(0.1, 1_000)] = 50.0
    """Maximum number of probes per second, for all clusters together."""
    host_rate: Annotated[float, Number(0.1, 1_000)] = 20.0
    """Maximum number of probes per second, for all clusters behind one host."""
    # Long enough for a restart of the API server.
    unreachable_after: Annotated[timedelta, span("0s", "1h")] = timedelta(seconds=30)
    """How long probes must fail before a cluster is considered unreachable."""
    # Off by default, so that a network failure does not make operators disengage clusters.
    disengage_unreachable_after: Annotated[timedelta | None, span_or_off("1s", "24h")] = None
    """How long a cluster must be unreachable before it is disengaged. It is engaged again once it is reachable."""


class Traces(Group, frozen=True, kw_only=True):
    """OpenTelemetry traces; they require the extra `traces`."""

    endpoint: Annotated[str | None, values.receiver] = None
    """OTLP/HTTP receiver of traces, such as `http://localhost:4318`. Requires the extra `traces`."""
    share: Annotated[float, Number(0, 1)] = 1.0
    """Share of calls and requests that are traced. Calls with a trace context follow the caller's sampling decision."""


class LimitSettings(Group, frozen=True, kw_only=True):
    """Quotas of callers."""

    streams: Annotated[int, Whole(1, 100_000)] = 2_000
    """Maximum open streams of all callers."""
    streams_per_caller: Annotated[int, Whole(1, 100_000)] = 600
    """Maximum open streams of a caller, unless the caller's rule sets another limit. Callers that a listener cannot
    distinguish count as one."""
    kubeconfigs_per_minute: Annotated[int, Whole(1, 1_000_000)] = 60_000
    """Maximum kubeconfigs per minute and caller, and maximum burst, unless the caller's rule sets another limit."""


class ShardingSettings(Group, frozen=True, kw_only=True):
    """The group of daemons that share the clusters."""

    group: Annotated[str | None, values.cluster_name] = None
    """Name of the group of daemons that share the clusters: each cluster is engaged by one of them. Default: no group;
    the daemon engages all clusters."""
    member: Annotated[str | None, Text(least=1, most=170)] = None
    """This daemon's name in the group. Default: the environment variable POD_NAME, or else the hostname."""
    namespace: Annotated[str | None, values.cluster_name] = None
    """Namespace of the group's Leases. Default: the environment variable POD_NAMESPACE, or else the pod's namespace."""
    kubeconfig: Annotated[Path | None, values.file_path] = None
    """Kubeconfig of the cluster with the group's Leases. Default: the cluster that the daemon runs in."""
    weight: Annotated[float, Number(0, 1_000)] = 1.0
    """Weight of this daemon: each member of the group owns clusters in proportion to its weight. 0: this daemon owns
    no clusters."""
    release_timeout: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=30)
    """How long subscribers that confirm releases have to finish their work on a cluster that moves to another
    daemon."""
    hand_over: bool = False
    """Hand the clusters over to the other members whenever this daemon stops. By default, a daemon whose name ends
    with the ordinal of a StatefulSet keeps them for its successor of the same name, for up to 33 seconds; others hand
    them over."""
    fence_credentials: bool = False
    """Before this daemon engages clusters that another member owned, it revokes the kubeconfigs that the former owner
    issued for them, and waits until API servers no longer accept them. All `kubeconfigs.issuers` must be bound and of
    type `token-request`."""


class AuditSettings(Group, frozen=True, kw_only=True):
    file: Annotated[Path | None, values.file_path] = None
    """File to which audit events are appended, one line of JSON each. Default: audit events are only logged."""


class Log(Group, frozen=True, kw_only=True):
    level: Annotated[str, one_of("debug", "info", "warning", "error")] = "info"
    """Minimum level of log messages."""
    format: Annotated[str, one_of("auto", "console", "json")] = "auto"
    """`auto`: `console` on a terminal, `json` elsewhere."""


def _distinguished(sources: tuple[SourceSettings, ...]) -> None:
    if len(sources) > 1 and not all(source.name for source in sources):
        raise ValueError("has several items, each of which needs a `name`")
    named_once(sources)


class Settings(Group, frozen=True, kw_only=True):
    """The settings of a daemon."""

    sources: Annotated[
        tuple[SourceSettings, ...], ListOf(SourceParser(), split=values.items, least=1, check=_distinguished)
    ] = (SourceSettings(),)
    """Sources of clusters. Default: one of kind `project`."""
    exec_plugins: Annotated[tuple[str, ...], ListOf(Text(least=1, most=4096))] = ()
    """Commands that kubeconfigs may run as exec credential plugins, spelled as in the kubeconfig, such as `datumctl`.
    `*` allows any command: whoever can write a kubeconfig can then run code as the daemon."""
    plain_loopback: bool = False
    """Allow credentials to be sent over plain HTTP to API servers on loopback, such as a proxy in the same pod. To
    other addresses, credentials are sent over TLS only."""
    not_ready_grace: Annotated[timedelta, span("0s", "1h")] = timedelta()
    """How long a project stays engaged after it became not ready."""
    # Off by default, because every project that becomes not ready would wait for a subscriber that died.
    drain_timeout: Annotated[timedelta, span("0s", "1h")] = timedelta()
    """Maximum time that a project which is not ready, or no longer matches `label_selector`, stays engaged while
    subscribers that confirm releases finish their work on it. 0: it is disengaged at once."""
    # None by default: annotations can contain anything, so sharing them has to be a decision.
    annotation_prefixes: Annotated[tuple[str, ...], ListOf(Text(least=1, most=317))] = ()
    """Prefixes of annotations that are sent to subscribers."""
    watch: WatchSettings = WatchSettings()
    removals: RemovalSettings = RemovalSettings()
    state_directory: Annotated[Path | None, values.file_path] = None
    """Directory in which the daemon stores the last known clusters, without credentials. If it restarts while Milo is
    unreachable, it serves these clusters as stale. Default: clusters are not stored."""
    tombstones: Tombstones = Tombstones()
    listen: Annotated[tuple[ListenerSettings, ...], ListOf(Nested(ListenerSettings, listener), check=distinct)] = (
        ListenerSettings(address=values.UnixAddress(Path("/run/milo-discovery/discovery.sock"))),
    )
    """The listeners of the gRPC service."""
    socket: Socket = Socket()
    token_review: TokenReview = TokenReview()
    rights: Annotated[tuple[RuleSettings, ...], ListOf(Nested(RuleSettings), split=values.items, check=ordered)] = ()
    """Authorization rules: which callers see which clusters and get kubeconfigs. The first rule that matches a caller
    applies. Without rules, every caller sees all clusters, and gets kubeconfigs on Unix sockets."""
    limits: LimitSettings = LimitSettings()
    sharding: ShardingSettings = ShardingSettings()
    audit: AuditSettings = AuditSettings()
    heartbeat_interval: Annotated[timedelta, span("1s", "1h")] = timedelta(seconds=30)
    """Interval of heartbeats on an idle stream, unless the subscriber requests a different interval."""
    stalled_timeout: Annotated[timedelta, span("1s", "24h")] = timedelta(minutes=5)
    """A stream is closed if its subscriber accepts nothing for this time."""
    kubeconfigs: KubeconfigSettings = KubeconfigSettings()
    connectivity: ConnectivitySettings = ConnectivitySettings()
    http_listen: Annotated[values.TcpAddress | None, _http_listen] = values.TcpAddress("", 9464)
    """Address of metrics, health checks and the status page, or `off`. All interfaces by default, because Prometheus
    and the kubelet connect to the pod's address. The port has no authentication; `http_names` restricts who sees
    cluster names."""
    http_names: Annotated[str, one_of("loopback", "everyone", "nobody")] = "loopback"
    """Who sees names of clusters and organizations, and messages that may contain such names, on the status page and in
    `/metrics`. `loopback`: clients on loopback, such as `kubectl port-forward`. `everyone`: for ports that a
    NetworkPolicy restricts. `nobody`: for pods with a proxy, through which every client appears to be on loopback."""
    http_hosts: Annotated[tuple[str, ...], ListOf(Text(least=1, most=253))] = ()
    """Additional DNS names that the HTTP port accepts in the Host header. IP addresses, names without a dot, and names
    below `.svc`, `.cluster.local` and `.localhost` need not be listed. Other Host headers are rejected, because DNS
    rebinding would let any web page read the port through a browser."""
    metrics: MetricsSettings = MetricsSettings()
    log: Log = Log()
    traces: Traces = Traces()

    @property
    def title(self) -> str:
        """The kind of the only source, or "sources" if there are several."""
        return self.sources[0].kind if len(self.sources) == 1 else "sources"
