"""Published figures: the rows of the tables in documents, and the command that writes each file of results."""

import msgspec


class Row(msgspec.Struct, frozen=True):
    """A figure of the daemon, beside those of its peers from the same run."""

    text: str
    name: str
    """The file of results, without .json."""
    key: str
    unit: str = ""
    peers: dict[str, str] = {}
    """Keys of the same file, by the name of the peer."""


_CLIENTS = {"client-go": "client_go_", "kubernetes.aio": "kubernetes_aio_"}


def _clients(key: str) -> dict[str, str]:
    """Return the keys of the clients that are measured beside a figure of the daemon."""
    measure, _, figure = key.partition(".")
    return {name: f"{measure}.{prefix}{figure}" for name, prefix in _CLIENTS.items()}


PERFORMANCE = (
    Row(
        "1,000 projects, from the start of the process", "sandbox", "sync_1k.seconds", "s", _clients("sync_1k.seconds")
    ),
    Row("100,000 projects", "sandbox", "sync_100k.seconds", "s", _clients("sync_100k.seconds")),
    Row("100,000 projects, memory", "sandbox", "sync_100k.rss_mib", "MiB", _clients("sync_100k.rss_mib")),
    Row(
        "100,000 projects of Milo's API server",
        "real",
        "sync_100k.seconds",
        "s",
        {**_clients("sync_100k.seconds"), "curl": "sync_100k.curl_seconds"},
    ),
    Row("A further cluster, memory", "sandbox", "bytes_per_cluster", "bytes"),
    Row(
        "A change, from the write to the subscriber, p50",
        "sandbox",
        "latency.p50_ms",
        "ms",
        {"raw watch": "latency.raw_watch_p50_ms", **_clients("latency.p50_ms")},
    ),
    Row(
        "A change, p99",
        "sandbox",
        "latency.p99_ms",
        "ms",
        {"raw watch": "latency.raw_watch_p99_ms", **_clients("latency.p99_ms")},
    ),
    Row(
        "A change on Milo's API server, p50",
        "real",
        "latency.p50_ms",
        "ms",
        {"raw watch": "latency.raw_watch_p50_ms", **_clients("latency.p50_ms")},
    ),
    Row(
        "Decoding a change in mode `project`",
        "sandbox",
        "parts.decode_us",
        "µs",
        {"mode `project-control-plane`": "parts.decode_control_plane_us"},
    ),
    Row("CPU time of 1,000 lone changes", "sandbox", "latency.cpu_s_per_1000", "s", _clients("latency.cpu_s_per_1000")),
    Row("The same as a multiple of client-go's", "sandbox", "latency.cpu_ratio_to_client_go"),
    Row("Throughput to 1 subscriber, of a bare gRPC server's", "sandbox", "fanout.1.ratio_to_bare"),
    Row("Throughput to 100 subscribers, of a bare gRPC server's", "sandbox", "fanout.100.ratio_to_bare"),
    Row("500 subscribers that request all 10,000 clusters at once", "sandbox", "herd_500.seconds", "s"),
    Row("Longest callback while 100,000 clusters change", "loop_blocking", "loop_blocking.changes_ms", "ms"),
    Row("CPU at rest, 10,000 clusters, 20 subscribers", "sandbox", "idle.cpu_percent", "%"),
    Row("50,000 clusters, 500 subscribers, 200 changes a second, p99", "fleet", "fleet_50k.p99_ms", "ms"),
    Row("Memory growth in an hour of 200 changes a second", "churn", "churn.growth_percent", "%"),
    Row("A kubeconfig with a held credential, p99", "sandbox", "issue.p99_ms", "ms"),
    Row(
        "Python controllers: a further cluster, memory",
        "controllers",
        "controllers.kib",
        "KiB",
        {"kopf": "controllers.kopf_kib"},
    ),
    Row(
        "Python controllers over HTTP/2: a further cluster, memory",
        "controllers",
        "controllers.http2_kib",
        "KiB",
        {"controller-runtime": "controllers.go_kib"},
    ),
    Row(
        "Python controllers: from a write to the reconcile, p99",
        "controllers",
        "controllers.p99_ms",
        "ms",
        {"bare watch": "controllers.kubernetes_aio_p99_ms"},
    ),
    Row(
        "Go operator, 1,000 projects with 1 informer each",
        "go",
        "go.1_informers.seconds",
        "s",
        {"embedded provider": "go.1_informers.peer_seconds"},
    ),
    Row(
        "Go operator, 3 informers: a further project, memory",
        "go_memory",
        "go_memory.stable_kinds.3_informers.kib",
        "KiB",
        {
            "embedded provider": "go_memory.stable_kinds.3_informers.plain_kib",
            "with one REST mapper": "go_memory.stable_kinds.3_informers.shared_mapper_kib",
        },
    ),
    Row(
        "Milo's controller-manager, 400 projects, all controllers",
        "milo",
        "milo.whole.ours.seconds",
        "s",
        {"embedded provider": "milo.whole.own.seconds"},
    ),
    Row(
        "The same without the two controllers that bypass the provider, memory",
        "milo",
        "milo.provider.ours.rss_mib",
        "MiB",
        {"embedded provider": "milo.provider.own.rss_mib"},
    ),
    Row(
        "All controllers in two replicas, one killed: time until all projects are worked in",
        "milo_groups",
        "milo_groups.2.failover.seconds",
        "s",
    ),
    Row("Shard group: hand-over after a kill, p50", "sharding", "sharding.kill.hand_over_p50_s", "s"),
    Row("Shard group: writes by two owners", "sharding", "sharding.overlaps"),
    Row(
        "Subscriber's p99 beside refused hostile clients, as a ratio",
        "hostile_clients",
        "hostile_clients.refused.p99_ratio",
    ),
    Row(
        "Memory growth in a flood of 23,000 health streams", "floods", "floods.health_watches.memory_growth_mib", "MiB"
    ),
)
"""Figures for users and evaluators of the daemon."""

SIZING = (
    Row("Daemon, a further cluster", "sandbox", "bytes_per_cluster", "bytes"),
    Row("Daemon with 100,000 clusters, at the first list", "sandbox", "sync_100k.peak_mib", "MiB"),
    Row("Operator in Python, a cluster with one informer, HTTP/1.1", "controllers", "controllers.kib", "KiB"),
    Row("Operator in Python, a cluster with one informer, HTTP/2", "controllers", "controllers.http2_kib", "KiB"),
    Row(
        "Operator in Go, a project with one informer",
        "go_memory",
        "go_memory.stable_kinds.1_informers.kib",
        "KiB",
    ),
    Row(
        "Operator in Go, a project with ten informers",
        "go_memory",
        "go_memory.stable_kinds.10_informers.kib",
        "KiB",
    ),
    Row("Milo's API server, each informer", "milo_cost", "milo_cost.controller.goroutines_per_informer", "goroutines"),
    Row(
        "Milo's API server, each informer: heap and stacks", "milo_cost", "milo_cost.controller.mib_per_informer", "MiB"
    ),
)

HEADLINE = (
    "a second process is not wanted: for 400 projects, Milo's controller-manager takes "
    "{milo milo.provider.own.rss_mib} MiB with the provider, and {milo milo.provider.ours.rss_mib} MiB beside a daemon "
    "of {milo milo.provider.ours.daemon.rss_mib} MiB."
)
"""The one figure of the README; `{FILE KEY}` is a figure."""

COMMANDS = {
    "sandbox": "",
    "again": "startup parts sync_10k latency single_change rights",
    "cluster_memory": "cluster_memory",
    "log_caches": "log_caches",
    "loop_blocking": "loop_blocking",
    "churn": "churn --minutes 60",
    "fleet": "fleet_50k --minutes 10",
    "controllers": "controllers",
    "capacity": "capacity",
    "status_page": "status_page",
    "hostile_clients": "hostile_clients",
    "floods": "floods",
    "go": "go",
    "go_memory": "go_memory",
    "real": "sync_10k latency sync_100k --real",
    "sharding": "sharding --real",
    "milo_cost": "milo_cost --real",
    "milo": "milo --real",
    "milo_groups": "milo_groups --real",
}
"""The arguments of `./dev bench` that write each file of results."""

REASONS = {
    "bytes_per_cluster": "Objects and engaged clusters have separate records, by design. The frames of the first list "
    "are among the bytes, until no reader has read a snapshot for a minute.",
    "fanout.1.ratio_to_bare": "The rounds of one run range from 0.36 to 0.61. The bare server only sends prepared "
    "batches; the daemon also encodes each change, counts the clusters of each source that a subscriber knows, and "
    "signs its revision.",
    "fanout.slow_reader_effect": "The 99th percentiles are a few milliseconds, and the rounds of one run differ by a "
    "factor of four.",
    "hostile_clients.all.p99_ratio": "The rounds overlap: 6.6 to 7.8 ms if the hostile clients attack the measured "
    "daemon, 6.1 to 7.5 ms if they attack another one.",
    "idle.cpu_percent": "Ten times a second, the daemon counts its descriptors, since gRPC does not report connections "
    "of Unix sockets. Each time wakes an idle process.",
    "latency.cpu_ratio_to_client_go": "The daemon forwards each change over gRPC, and client-go's informer forwards "
    "nothing: gRPC, HTTP, the event loop and TLS take most of the time of a lone change.",
    "latency.over_raw_watch_ms": "The limit is absolute, and the CPU time of a lone change is most of the figure "
    "(`single_change.us`): gRPC, HTTP, TLS, the event loop and threads take two thirds of it.",
    "rights.fanout_ratio": "The selectors of ten rules are matched with each change, and the result for one rule is "
    "not valid for another.",
}
"""Why bars are missed, by key."""
