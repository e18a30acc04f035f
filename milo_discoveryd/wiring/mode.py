"""Builds the mode, and what it watches, from settings."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from milo_discoveryd.config import Settings
from milo_discoveryd.credentials import Credential, Upstream, load_discovery_upstream, load_project_upstream
from milo_discoveryd.credentials.authentication.credential_provider import StaticCredential
from milo_discoveryd.model.claims import ClaimingObject, ObjectClaim
from milo_discoveryd.model.cluster import Cluster, Target, key_of, local_name
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.objects import KubeObject, Metadata
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready, Refused, fields
from milo_discoveryd.model.resource import NAMES, ObjectKeys, Resource
from milo_discoveryd.model.selector import parse as parse_selector
from milo_discoveryd.modes import mode as modes
from milo_discoveryd.modes.context import MiloContext, context_of
from milo_discoveryd.modes.mode import (
    FileMode,
    FileObject,
    ReducedMode,
    ReferencedWatch,
    Setting,
    Watch,
    WatchedMode,
)
from milo_discoveryd.modes.reading import MalformedError
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.reduction import Reduce, Reduction
from milo_discoveryd.registry.registry import Registry
from milo_discoveryd.watchers.driver import WatchedCollection
from milo_discoveryd.wiring.source import FollowedCollection, PlaceOf
from milo_kube.reflect.wire import Decoder


def mode_of(settings: Settings, project: Upstream, discovery: Upstream | None) -> modes.Mode:
    """Build the mode of one source. `settings` are those of the source: see `Settings.by_source`.

    `discovery` is what `discovery_of` returns.
    """
    server = urlsplit(project.server)
    single = settings.cluster
    settings_type = modes.settings_type(settings.mode)
    given = settings.sources[0].settings if settings.sources else {}
    return modes.load(settings.mode)(
        Setting(
            project_endpoint=f"{server.scheme}://{server.netloc}",
            context=MiloContext() if discovery is None else context_of(discovery.server),
            internal_address_template=settings.internal_address_template,
            internal_namespace_template=settings.internal_namespace_template,
            annotation_prefixes=settings.annotation_prefixes,
            definition=None if settings.declarative is None else settings.declarative.definition(),
            settings=None if settings_type is None else modes.parse_settings(settings_type, given),
            clusters=(
                Target(
                    name=single.name,
                    uid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{project.server}#{single.name}")),
                    place=(project.server,),
                    organization=single.organization,
                    labels=tuple(sorted(single.labels.items())),
                ),
            ),
        )
    )


def discovery_of(settings: Settings, environ: Mapping[str, str]) -> Upstream | None:
    """Load the API server that a source watches; None if it watches none."""
    if modes.reads_files(settings.mode) or modes.is_fixed(settings.mode):
        return None
    return load_discovery_upstream(
        settings.discovery_kubeconfig, environ, settings.exec_plugins, plain_loopback=settings.plain_loopback
    )


def project_of(settings: Settings, environ: Mapping[str, str]) -> Upstream:
    """Load the API server that serves a source's clusters, or whose identity and CA are used for them.

    A source in files has none: its clusters have their own addresses, CAs and credentials.
    """
    if modes.reads_files(settings.mode):
        (given,) = [each.settings for each in settings.sources] or [{}]
        origin = str(given.get("path", settings.mode))
        return Upstream(server=f"file:{origin}", origin=origin, credentials=StaticCredential(Credential()))
    return load_project_upstream(
        settings.project_kubeconfig,
        settings.discovery_kubeconfig,
        environ,
        settings.exec_plugins,
        plain_loopback=settings.plain_loopback,
    )


def probes_hosts(settings: Settings) -> bool:
    """Return whether connectivity is probed per host instead of per cluster."""
    connectivity = settings.connectivity
    if connectivity.per != "auto":
        return connectivity.per == "host"
    return settings.mode == "project" and connectivity.disengage_unreachable_after is None


def collections_of(settings: Settings, mode: WatchedMode | ReducedMode, source: str = "") -> list[FollowedCollection]:
    """Return what a mode watches, within the label selector. `source` is the source's name if there are several."""
    if isinstance(mode, ReducedMode):
        return [_of_objects(each, settings.label_selector, source) for each in mode.watches]
    return [_of_clusters(mode, settings.label_selector, source)]


def engaged(
    mode: WatchedMode | ReducedMode | FileMode, listed: Sequence[Sequence[Observation]], source: str = ""
) -> list[Target]:
    """Return the clusters that complete lists of a mode's collections engage."""
    if isinstance(mode, WatchedMode):
        return [seen.target for seen in listed[0] if isinstance(seen, Ready)]
    registry = Registry(ChangeLog(lambda _: b"", Retention()))
    reduction = Reduction(reduce_of(mode, source), registry)
    for watch, observations in enumerate(listed):
        objects = [_present(seen) for seen in observations if isinstance(seen, Ready)]
        reduction.commit(reduction.apply(watch, objects, 0), Moment(0.0, 0.0))
    return [cluster.target for cluster in registry.clusters()]


def _present(seen: Ready) -> Event:
    cluster = Cluster(target=seen.target, source_version=seen.version, engaged_at=0.0, incarnation=0)
    return Event(EventType.ENGAGED, cluster)


def place_of(mode: WatchedMode | ReducedMode | FileMode, source: str = "") -> PlaceOf:
    """Return a function that returns a stored cluster's address. It raises ValueError for a cluster of another
    source."""

    def place(stored: Target) -> tuple[str, ...]:
        if key_of(stored.local_name, source) != stored.name:
            raise ValueError(f"{stored.name!r} is not of the source {source!r}")
        if isinstance(mode, WatchedMode):
            if not parse_selector(mode.resource.label_selector).matches(stored.labels):
                raise ValueError(f"{stored.name!r} is not within {mode.resource.label_selector}")
            return mode.place_of(stored.local_name, stored.uid)
        return mode.restored_place(replace(stored, name=stored.local_name))

    return place


def reduce_of(mode: ReducedMode | FileMode, source: str) -> Reduce:
    """Return the mode's `reduce`, for clusters under their keys."""
    if not source:
        return mode.reduce

    def reduce(cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
        found = mode.reduce(local_name(cluster), claims, uid)
        return None if found is None else keyed(found, source)

    return reduce


def keyed(seen: Observation, source: str) -> Observation:
    """Return an observation of a cluster under its key."""
    if isinstance(seen, Ready):
        return replace(seen, target=keyed_target(seen.target, source))
    found = replace(seen, name=key_of(seen.name, source))
    if isinstance(found, Malformed) or found.fields is None:
        return found
    return replace(found, fields=replace(found.fields, name=found.name))


def keyed_target(target: Target, source: str) -> Target:
    return replace(target, name=key_of(target.name, source)) if source else target


def keys_of(mode: ReducedMode | FileMode) -> list[ObjectKeys]:
    """Return the keys of the objects of each resource; files count as one resource."""
    if isinstance(mode, FileMode):
        return [NAMES]
    return [ObjectKeys(namespaced=each.resource.namespaced) for each in mode.watches]


def _of_clusters(mode: WatchedMode, label_selector: str, source: str) -> FollowedCollection:
    resource = _selecting(mode.resource, label_selector)
    observe = _within(resource, mode.observe, lambda obj: obj.metadata.name)
    if not source:
        return FollowedCollection(WatchedCollection(resource), Decoder(mode.object_type, observe, Malformed))
    keys = ObjectKeys(prefix=key_of("", source))
    decoder = Decoder(mode.object_type, lambda obj: keyed(observe(obj), source), Malformed, keys.key)
    return FollowedCollection(WatchedCollection(resource, keys), decoder)


def _of_objects(watch: Watch | ReferencedWatch, label_selector: str, source: str) -> FollowedCollection:
    # The daemon's label selector applies only to objects that stand for clusters.
    resource = _selecting(watch.resource, label_selector) if isinstance(watch, Watch) else watch.resource
    keys = ObjectKeys(namespaced=watch.resource.namespaced)

    def key(obj: KubeObject) -> str:
        return keys.key(obj.metadata.namespace, obj.metadata.name)

    def observe(obj: KubeObject) -> Observation:
        metadata, name = obj.metadata, key(obj)
        try:
            if isinstance(watch, ReferencedWatch):
                return _content(name, metadata, watch.content(obj))
            claims = tuple(replace(each, cluster=key_of(each.cluster, source)) for each in watch.claims(obj))
        except MalformedError as error:
            return Malformed(name, metadata.uid, metadata.resourceVersion, str(error))
        claiming = ClaimingObject(name=name, uid=metadata.uid, place=(), claims=claims)
        return Ready(metadata.uid, metadata.resourceVersion, claiming)

    decoder = Decoder(watch.object_type, _within(resource, observe, key), Malformed, keys.key)
    return FollowedCollection(WatchedCollection(resource, keys), decoder)


def _content(key: str, metadata: Metadata, content: object) -> Observation:
    if content is None:
        # The removal guard counts objects with content, so that others do not hide a mass removal.
        return NotReady(key, metadata.uid, metadata.resourceVersion, "it has no content that a claim needs")
    referenced = ClaimingObject(name=key, uid=metadata.uid, place=(), content=content)
    return Ready(metadata.uid, metadata.resourceVersion, referenced)


def observe_file(source: str) -> Callable[[FileObject], Observation]:
    """Return a function that turns what a file says into an observation. `source` is the source's name if there are
    several."""

    def observe(found: FileObject) -> Observation:
        if found.problem:
            return Malformed(found.key, found.uid, "", found.problem)
        claims = tuple(replace(each, cluster=key_of(each.cluster, source)) for each in found.claims)
        return Ready(found.uid, "", ClaimingObject(name=found.key, uid=found.uid, place=(), claims=claims))

    return observe


def _selecting(resource: Resource, label_selector: str) -> Resource:
    both = ",".join(filter(None, (resource.label_selector, label_selector)))
    return replace(resource, label_selector=both)


def _within(
    resource: Resource, observe: Callable[[Any], Observation], key: Callable[[KubeObject], str]
) -> Callable[[Any], Observation]:
    """Extend `observe` by a check of the label selector: a GET by name also returns objects that do not match it."""
    selector = parse_selector(resource.label_selector)
    if not selector:
        return observe

    def checked(obj: KubeObject) -> Observation:
        metadata = obj.metadata
        if selector.matches((metadata.labels or {}).items()):
            return observe(obj)
        seen = observe(obj)
        if isinstance(seen, Refused):
            return seen
        message = f"its labels do not match the daemon's label selector {selector}"
        return Outside(key(obj), metadata.uid, metadata.resourceVersion, message, fields(seen))

    return checked
