"""Each measurement runs at a small size and returns its figures; only counts have expected values."""

import shutil

import pytest

from bench import bars
from bench.__main__ import MEASURES, QUICK_ONES
from bench.measures import go, shared_objects
from bench.report import medians
from bench.scale import TINY
from bench.setting import Setting

SLOPES = {f"{key}_per_cluster{few}" for key in ("bytes", "cpu_us") for few in ("", ".to_10k")}
CHURNED = ("p50_ms", "p99_ms", "resets", "gaps", "differences", "changes", "cpu_percent", "rss_mib", "growth_percent")
WITH_GO = {
    "sync_100k.ratio_to_client_go",
    "latency.cpu_ratio_to_client_go",
    "controllers.go_kib_ratio",
}
EXACTLY = {
    "rotation.mints": 1,
    "rotation.clusters": TINY.clusters,
    **{f"{key}.{name}": 0 for key in ("churn", "fleet_50k") for name in ("resets", "gaps", "differences")},
}
KEYS = {
    "startup": {"startup.import_ms", "startup.python_ms", "startup.ratio_to_python"},
    "cli": {"cli.list_ms", "cli.credential_ms"},
    "log_caches": {
        f"log_caches.{name}_us"
        for name in (
            *("first_snapshot", "second_snapshot", "shared_snapshot"),
            *("normative_changes", "first_changes", "second_changes"),
        )
    },
    "parts": {
        f"parts.{name}"
        for name in (
            *("decode_us", "decode_control_plane_us", "commit_us", "encode_us", "slice_us", "frame_bytes"),
            *("reduced_us", "reduced_bytes"),
        )
    },
    "cluster_memory": {
        f"cluster_memory.{kind}_bytes" for kind in ("record", "cluster", "target", "text", "places", "other")
    }
    | {"cluster_memory.bytes", "cluster_memory.objects", "cluster_memory.characters"},
    "small": {f"small.{name}" for name in ("rss_mib", "start_s", "start_ratio", "rss_1k_mib")},
    "controllers": {
        f"controllers.{key}"
        for key in (
            *("seconds", "rss_mib", "kib", "reconciles_per_s", "kopf_seconds", "kopf_kib", "kopf_threads"),
            *(f"{reader}{cut}_ms" for cut in ("p50", "p99") for reader in ("", "kubernetes_aio_")),
            *("p50_ratio", "p99_ratio"),
            *("tenants_p99_ms", "tenants_alone_p99_ms", "tenants_p99_ratio"),
        )
    },
    "tenants": {f"controllers.tenants_{key}" for key in ("p99_ms", "alone_p99_ms", "p99_ratio")},
    "objects": {
        *(f"objects.{way}.{key}" for way in ("objects", "caches") for key in ("seconds", "cpu_s", "rss_mib")),
        *(f"objects.{way}.kib_per_scope" for way in ("objects", "caches")),
        *(f"objects.{key}_ratio" for key in ("cpu_s", "rss_mib", "kib_per_scope")),
    },
    "handover": {"handover.seconds", "handover.objects", "handover.unreconciled"},
    "sync_1k": {"sync_1k.seconds", "sync_1k.ratio_to_curl", "sync_1k.ratio_to_kubernetes_aio", "sync_1k.rss_mib"},
    "sync_10k": {"sync_10k.seconds", "sync_10k.ratio_to_curl", "sync_10k.rss_mib"},
    "sync_100k": {"sync_100k.seconds", "sync_100k.ratio_to_curl", "sync_100k.rss_mib", *SLOPES},
    "single_change": {
        f"single_change.{leg}us" for leg in ("", "grpc_", "threads_", "tls_", "http_", "decode_", "commit_", "frame_")
    },
    "latency": {"latency.p50_ms", "latency.p99_ms", "latency.over_raw_watch_ms", "latency.cpu_s_per_1000"},
    "fanout": {f"fanout.{count}.{key}" for count in TINY.subscribers for key in ("events_per_s", "ratio_to_bare")},
    "slow_reader": {"fanout.slow_reader_effect"},
    "herd": {"herd_500.seconds"},
    "loop_blocking": {
        f"loop_blocking.{doing}_ms" for doing in ("sync", "snapshot", "changes", "resume", "relist", "answer")
    },
    "idle": {"idle.cpu_percent", "idle.probed.cpu_percent"},
    "rotation": {"rotation.mints", "issue.p99_ms"},
    "listeners": {
        f"listeners.{place}.{figure}"
        for place in ("plain", "peers", "tls")
        for figure in ("call_p50_ms", "call_p99_ms", "snapshot_clusters_per_s")
    },
    "rights": {"rights.events_per_s", "rights.fanout_ratio", "rights.caught_up_ratio"},
    "hostile_clients": {
        f"hostile_clients.{name}.{figure}"
        for name in ("guessing", "revisions", "wrong_ca", "expired", "nobody", "junk", "refused", "all")
        for figure in ("p99_ms", "elsewhere_p99_ms", "p99_ratio", "turned_away_per_s", "daemon_cpu_percent")
    },
    "floods": {
        f"floods.{kind}.{figure}"
        for kind in ("health_watches", "calls", "identified_calls")
        for figure in (
            *("memory_before_mib", "memory_growth_mib", "denied_per_s", "turned_away_per_s"),
            *("audit_mib_per_day", "other_caller_p99_ms", "daemon_cpu_percent"),
        )
    }
    | {f"floods.filters.{figure}" for figure in ("open_streams", "memory_before_mib", "memory_growth_mib")}
    | {"floods.idle_connections.served_after_s"}
    | {"floods.silent_connections.per_s", "floods.silent_connections.others_percent"}
    | {
        f"floods.client_hellos.{figure}"
        for figure in ("limit_mib", "memory_before_mib", "memory_growth_mib", "peak_mib", "survived", "others_percent")
    },
    "churn": {f"churn.{key}" for key in CHURNED},
    "fleet_50k": {f"fleet_50k.{key}" for key in CHURNED},
    "status_page": {
        f"status_page.{key}"
        for key in ("answer_p99_ms", "subscriber_p99_ms", "elsewhere_subscriber_p99_ms", "subscriber_p99_ratio")
    },
    "capacity": {f"capacity.20.2.20.{key}" for key in ("cpu_percent", "rss_mib", "requests_per_s")},
    "go": set(go.KEYS),
    "go_memory": set(go.MEMORY_KEYS),
    "shared_objects": set(shared_objects.KEYS),
    "sharding": set(),
    "milo_cost": set(),
    "milo": set(),
    "milo_groups": set(),
}
ON_REAL_SERVERS = {
    f"sharding.{key}"
    for key in (
        "overlaps",
        "1000_projects.lease_requests",
        "imbalance",
        "scale_up.ratio_to_ideal",
        "rolling_update.moved",
        "short_outage.moved",
    )
} | {
    f"milo_groups.2.failover.{key}"
    for key in (
        *("without_member", "with_several", "moved_without_need", "restarts"),
        *("quota.undecided", "quota.granted_of_limit", "quota.core.granted_over_limit"),
    )
}


@pytest.mark.builds
@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(MEASURES))
async def test_measurement_returns_its_figures(name: str, setting: Setting) -> None:
    figures = medians(await MEASURES[name](setting))

    assert KEYS[name] <= figures.keys()
    without_curl = {key for key in figures if "curl" in key} if shutil.which("curl") is None else set()
    without_go = {key for key in figures if key.startswith(("go.", "go_memory.", "shared_objects."))}
    without_go |= {key for key in figures if key.startswith("small.") and "client_go" in key}
    assert {key for key, value in figures.items() if value is None} == without_curl | without_go
    assert {key: value for key, value in figures.items() if key in EXACTLY} == {
        key: value for key, value in EXACTLY.items() if key in figures
    }


def test_each_bench_target_matches_a_measured_figure() -> None:
    keys = (
        {key for keys in KEYS.values() for key in keys} | WITH_GO | ON_REAL_SERVERS | {"latency.p99_over_raw_watch_ms"}
    )
    for patterns in (bars.FULL, bars.REAL, bars.QUICK):
        assert all(any(bars.bar_of(key, {pattern: bar}) for key in keys) for pattern, bar in patterns.items())


def test_measurements_of_bench_quick_exist() -> None:
    assert set(QUICK_ONES) <= MEASURES.keys()
