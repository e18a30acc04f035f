"""The cost of changes by kind of source: interpretation of objects, claims, contributions, and the daemon's journal.

The sources of the other paths have no journal, and follow Projects that claim no UID and share no cluster.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourcePolicy
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.sources.declarative import DeclarativeKind
from milo_discoveryd.sources.keyed import FollowedCollection, KeyedSource
from milo_discoveryd.sources.kind import SourceKind, SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.sources.project_control_plane import PROJECT_UID_LABEL, ProjectControlPlaneKind
from milo_discoveryd.sources.service_consumer import ServiceConsumerKind
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from milo_kube.reflect.wire import ObjectSeen
from tests.simulation.cost.elements import count_reads
from tests.simulation.cost.meter import Meter
from tests.simulation.properties.api_server import line

CHANGED = 100
_runs = count(1)
"""Part of all names and values, each used once per process: caches would make later runs cheaper."""
_SERVER = "https://api.example.com"
_OPTIONS = SourceOptions(project_server=_SERVER, discovery_server=_SERVER)


def _conditions(kind: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True"}]}


KINDS: dict[str, tuple[Callable[[], SourceKind], Callable[[str], dict[str, Any]]]] = {
    "declarative": (
        lambda: parse_group(
            DeclarativeKind,
            {
                "resource": {"group": "example.com", "version": "v1", "plural": "clusters", "namespaced": True},
                "name": "{metadata.namespace}.{metadata.name}",
                "ready": {"condition": "Ready"},
                "endpoint": {"template": "https://{spec.host}:{spec.port}/base"},
            },
        ),
        lambda name: {"spec": {"host": f"{name}.example.com", "port": 6443}, "status": _conditions("Ready")},
    ),
    "project": (ProjectKind, lambda _: {"status": _conditions("Ready")}),
    "project_control_plane": (ProjectControlPlaneKind, lambda _: {"status": _conditions("ControlPlaneReady")}),
    "service_consumer": (
        lambda: ServiceConsumerKind(services=("dns.example.com",)),
        lambda name: {
            "spec": {"consumerProjectRef": {"name": f"project-{name}"}},
            "status": {"phase": "Active", "serviceName": "dns.example.com"},
        },
    ),
}
"""For each kind: its settings, and a function from an object's name to its fields besides metadata."""


def measure_kind(name: str, objects: int) -> Meter:
    """Measure changes of a few of many objects. Needs a running event loop."""
    kind, fields = KINDS[name]
    followed = KeyedSource(kind().follow(_OPTIONS))
    source, collection = _new_source(followed), followed.collections[0]
    now = asyncio.get_running_loop().time()

    def apply(events: list[SourceEvent[ObservedObject]]) -> None:
        for _ in source.apply(source.collections[0], events, now):
            pass

    run = next(_runs)
    names = [f"{run:03}-{number:06}" for number in range(objects)]
    listed = _observed(collection, [_line(name, str(number), fields) for number, name in enumerate(names)])
    apply([ListStarted(), *map(Listed, listed), ListEnded()])
    assert source.engagements.engaged == objects
    lines = [_line(names[number % objects], str(objects + number), fields) for number in range(CHANGED)]
    meter = Meter(count_reads(objects // 2, stack_above=64))
    meter.run(lambda: apply([ObjectChanged(observation) for observation in _observed(collection, lines)]))
    return meter


def _new_source(followed: KeyedSource) -> ClusterSource:
    metrics = Metrics()
    fleet = Fleet(ChangeLog(encoder("0" * 16), Retention()))
    source = ClusterSource(
        fleet.changes,
        Journal(metrics.sources, Audit(metrics.audit)),
        SourcePolicy(pending_deletions=lambda: PendingDeletions(lambda: 0.5)),
        keys=followed.keys,
        reduce=followed.reduce,
    )
    return fleet.add(source)


def _observed(collection: FollowedCollection, lines: list[bytes]) -> list[ObservedObject]:
    events = [collection.decoder.line(line) for line in lines]
    return [event.observation for event in events if isinstance(event, ObjectSeen)]


def _line(name: str, version: str, fields: Callable[[str], dict[str, Any]]) -> bytes:
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-{name}",
        "resourceVersion": version,
        "labels": {"content": f"{name}-{version}", PROJECT_UID_LABEL: f"project-{name}"},
    }
    return line("MODIFIED", {"metadata": metadata, **fields(name)})
