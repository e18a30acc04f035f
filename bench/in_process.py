"""A fleet in this process, decoded from the bytes of projects as in the daemon."""

import random
import time
import uuid
from collections.abc import Callable
from typing import Any

from bench import projects
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourcePolicy
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.events import Encode
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceKind, SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.sources.service_consumer import ServiceConsumerKind
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted
from milo_kube.reflect.wire import Decoder, ObjectSeen

_EPOCH = "0123456789abcdef"


def lines(
    kind: str, count: int, first_version: int, mark: str, body: Callable[..., bytes] = projects.body
) -> list[bytes]:
    """Return the lines of a watch response, one event each."""
    return [
        b'{"type":"%s","object":%s}'
        % (kind.encode(), body(index, uid=str(uuid.UUID(int=index)), version=first_version + index, mark=mark))
        for index in range(count)
    ]


def decoder(kind: SourceKind | None = None) -> Decoder[Any, ObservedObject]:
    options = SourceOptions(project_server="https://127.0.0.1:6443")
    (projects,) = KeyedSource((kind or ProjectKind()).follow(options)).collections
    return projects.decoder


def observed(by: Decoder[Any, ObservedObject], read: list[bytes]) -> list[ObservedObject]:
    events = [by.line(line) for line in read]
    return [event.observation for event in events if isinstance(event, ObjectSeen)]


def encode() -> Encode:
    return encoder(_EPOCH)


def source(listed: list[ObservedObject]) -> ClusterSource:
    """Return a source that has applied a complete list."""
    fleet = Fleet(ChangeLog(encode(), Retention()))
    made = ClusterSource(
        fleet.changes,
        Journal(Metrics().sources, Audit(Metrics().audit)),
        SourcePolicy(pending_deletions=lambda: PendingDeletions(random.random)),
    )
    fleet.add(made)
    for _ in made.apply(made.collections[0], [ListStarted(), *map(Listed, listed), ListEnded()], time.monotonic()):
        pass
    return made


def consumer(index: int) -> bytes:
    """Return a line of a watch response with a ServiceConsumer that references a project of its own."""
    uid, version = str(uuid.UUID(int=index)), 100_000 + index
    return (
        b'{"type":"ADDED","object":{"metadata":{"name":"consumer-%06d","uid":"%s","resourceVersion":"%d",'
        b'"labels":{"env":"prod"}},"spec":{"consumerProjectRef":{"name":"project-%06d"}},'
        b'"status":{"phase":"Active","serviceName":"dns.example.com"}}}'
    ) % (index, uid.encode(), version, index)


def consumers() -> tuple[ClusterSource, Decoder[Any, ObservedObject]]:
    """Return an empty source of ServiceConsumers, and the decoder of its objects."""
    options = SourceOptions(project_server="https://127.0.0.1:6443", discovery_server="https://127.0.0.1:6443")
    followed = KeyedSource(ServiceConsumerKind(services=("dns.example.com",)).follow(options))
    fleet = Fleet(ChangeLog(encode(), Retention()))
    made = ClusterSource(
        fleet.changes,
        Journal(Metrics().sources, Audit(Metrics().audit)),
        SourcePolicy(pending_deletions=lambda: PendingDeletions(random.random)),
        keys=followed.keys,
        reduce=followed.reduce,
    )
    return fleet.add(made), followed.collections[0].decoder
