"""The collections that a source follows. Clusters are identified by keys: `SOURCE#NAME`, or `NAME` for a source
without a name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.model.cluster import Target, key_of
from milo_discoveryd.model.contributions import (
    ContributingObject,
    ObjectContent,
    ObjectContribution,
    ObservedObject,
    Reduce,
)
from milo_discoveryd.model.object_state import STATES_BEYOND_SELECTOR
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready
from milo_discoveryd.model.resource import NAMES, ObjectKeys, Resource, WatchedCollection
from milo_discoveryd.sources.kind import (
    ContributionWatch,
    FileObject,
    Files,
    Follows,
    OneResource,
    ReferencedWatch,
    RestoredPlace,
    SeveralResources,
)
from milo_discoveryd.sources.reading import KubeObject, MalformedError, Metadata, malformed, within_limits
from milo_kube.label_selector import parse as parse_selector
from milo_kube.reflect.wire import Decoder

Decoded = TypeVar("Decoded", Observation, ObservedObject)
Failed = Callable[[str, Exception], None]
"""Called with the key of an object or a cluster for which the source's kind raised an unexpected exception. The object
or cluster is malformed then, and the others are not affected."""


class FollowedCollection(NamedTuple):
    """A watched collection, and the decoder of its objects."""

    watched: WatchedCollection
    decoder: Decoder[Any, ObservedObject]
    server: str = ""
    """URL of the API server that has the collection. Default: the source's."""


class KeyedSource:
    """The collections that a source follows. Their observations name clusters by key."""

    def __init__(
        self, follows: Follows, name: str = "", label_selector: str = "", failed: Failed = lambda *_: None
    ) -> None:
        self.name = name
        self._failed = failed
        self.files: Files | None = None
        self.targets: tuple[Target, ...] = ()
        """The clusters of a source that watches nothing."""
        self.collections: tuple[FollowedCollection, ...] = ()
        self.objects: Resource | None = None
        """The resource of the clusters' objects, of which each cluster or its target has the name."""
        self.objects_server = ""
        """URL of the API server that has the clusters' objects. Default: the source's."""
        self.keys: Sequence[ObjectKeys] = (ObjectKeys(prefix=key_of("", name)),)
        """The keys of the objects of each collection; all files together count as one collection."""
        self.reduce: Reduce | None = None
        """None if each object represents one cluster, under the object's key."""
        self._restored_place: RestoredPlace | None = None
        self._selector = parse_selector("")
        match follows:
            case OneResource():
                self.collections = (self._cluster_collection(follows, label_selector),)
                self.objects = follows.resource
                self._restored_place = follows.restored_place
                self._selector = parse_selector(follows.resource.label_selector)
            case SeveralResources():
                self.collections = tuple(self._object_collection(watch, label_selector) for watch in follows.watches)
                self.keys = [collection.watched.keys for collection in self.collections]
                self.objects, self.objects_server = follows.objects, follows.objects_server
                self.reduce, self._restored_place = self._keyed_reduce(follows.reduce), follows.restored_place
            case Files():
                self.files, self.keys = follows, [NAMES]
                self.reduce, self._restored_place = self._keyed_reduce(follows.reduce), follows.restored_place
            case _:
                self.targets = tuple(self._target(target) for target in follows.targets)

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        """Return the address of a cluster from the state file. Raises ValueError for a cluster that must not be
        served."""
        is_ours = (stored.source, stored.name) == (self.name, key_of(stored.local_name, self.name))
        if self._restored_place is None or not is_ours:
            raise ValueError(f"{stored.name!r} does not belong to the source {self.name!r}")
        if not self._selector.matches(stored.labels):
            raise ValueError(f"{stored.name!r} does not match the label selector {self._selector}")
        return self._restored_place(replace(stored, name=stored.local_name, source=""))

    def observe_file(self, file: FileObject) -> ObservedObject:
        """Return the contributions of a file or of a part of it, or a malformed observation if it cannot be used."""
        if file.problem:
            return Malformed(file.key, file.uid, "", file.problem)
        contributions = tuple(
            replace(contribution, cluster=key_of(contribution.cluster, self.name))
            for contribution in file.contributions
        )
        return ContributingObject(file.key, file.uid, "", ObjectContent(contributions))

    def _cluster_collection(self, follows: OneResource, label_selector: str) -> FollowedCollection:
        resource = _with_label_selector(follows.resource, label_selector)

        def usable(obj: KubeObject) -> Observation:
            try:
                return follows.observe(obj)
            except MalformedError as error:
                return malformed(obj.metadata, error)

        observe = _checking_selector(resource, usable, lambda obj: obj.metadata.name)
        keys = self.keys[0]
        decoder: Decoder[Any, ObservedObject]
        if not self.name:
            decoder = Decoder(self._checked(follows.object_type), observe, Malformed, failed=self._failed)
            return FollowedCollection(WatchedCollection(resource, keys), decoder)
        decoder = Decoder(
            self._checked(follows.object_type),
            lambda obj: self._keyed(observe(obj)),
            Malformed,
            keys.key,
            self._failed,
        )
        return FollowedCollection(WatchedCollection(resource, keys), decoder)

    def _object_collection(self, watch: ContributionWatch | ReferencedWatch, label_selector: str) -> FollowedCollection:
        # The daemon's label selector applies only to objects that represent clusters.
        resource = (
            _with_label_selector(watch.resource, label_selector)
            if isinstance(watch, ContributionWatch)
            else watch.resource
        )
        keys = ObjectKeys(namespaced=watch.resource.namespaced)

        def key(obj: KubeObject) -> str:
            return keys.key(obj.metadata.namespace, obj.metadata.name)

        def observe(obj: KubeObject) -> ObservedObject:
            metadata, name = obj.metadata, key(obj)
            if not keys.can_be_read(name):
                problem = f"the name {name[:80]!r} is not valid in a URL"
                return Malformed(name, metadata.uid, metadata.resourceVersion, problem)
            try:
                if isinstance(watch, ReferencedWatch):
                    return _referenced(name, metadata, watch.content(obj))
                contributions = tuple(
                    replace(contribution, cluster=key_of(contribution.cluster, self.name))
                    for contribution in watch.contributions(obj)
                )
            except MalformedError as error:
                return Malformed(name, metadata.uid, metadata.resourceVersion, str(error))
            return _contributing(name, metadata, ObjectContent(contributions))

        decoder = Decoder(
            self._checked(watch.object_type),
            _checking_selector(resource, observe, key),
            Malformed,
            keys.key,
            self._failed,
        )
        server = watch.server if isinstance(watch, ReferencedWatch) else ""
        return FollowedCollection(WatchedCollection(resource, keys), decoder, server)

    def _checked(self, object_type: Any) -> Any:
        """Return `object_type` if it has the field `metadata`, which is read from every object. Otherwise raises
        StartError."""
        is_struct = isinstance(object_type, type) and issubclass(object_type, msgspec.Struct)
        types = {field.name: field.type for field in msgspec.structs.fields(object_type)} if is_struct else {}
        metadata = types.get("metadata")
        if not (isinstance(metadata, type) and issubclass(metadata, Metadata)):
            source = f"source {self.name}" if self.name else "source"
            raise StartError(
                f"{source}: object_type {object_type!r} of the source's kind is not a msgspec.Struct with a field "
                "metadata: Metadata; derive it from KubeObject"
            )
        return object_type

    def _keyed_reduce(self, reduce: Reduce) -> Reduce:
        prefix = key_of("", self.name)

        def keyed(cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
            try:
                observation = reduce(cluster.removeprefix(prefix), contributions, uid)
                if observation is None:
                    return None
                is_of_several = len({contribution.watch for contribution in contributions}) < len(contributions)
                if is_of_several:  # the limits of one object were checked when it was read
                    observation = within_limits(observation)
                return self._keyed(observation) if self.name else observation
            except MalformedError as error:
                return Malformed(cluster, uid, "", str(error))
            except Exception as error:  # noqa: BLE001 - what one cluster causes must not affect the others
                self._failed(cluster, error)
                return Malformed(cluster, uid, "", f"internal error ({type(error).__name__})")

        return keyed

    def _keyed(self, observation: Observation) -> Observation:
        """Return the observation with the cluster's key instead of its name."""
        if isinstance(observation, Ready):
            return replace(observation, target=self._target(observation.target))
        keyed = replace(observation, name=key_of(observation.name, self.name))
        if isinstance(keyed, Malformed) or keyed.fields is None:
            return keyed
        fields = keyed.fields
        return replace(
            keyed, fields=self._target(fields) if isinstance(fields, Target) else replace(fields, name=keyed.name)
        )

    def _target(self, target: Target) -> Target:
        return replace(target, name=key_of(target.name, self.name), source=self.name) if self.name else target


def _referenced(key: str, metadata: Metadata, value: object) -> ObservedObject:
    if value is None:
        # Not ready, so that the removal guard does not count it: objects without content could hide a mass removal.
        return NotReady(
            key, metadata.uid, metadata.resourceVersion, "it lacks the fields for which other objects refer to it"
        )
    return _contributing(key, metadata, ObjectContent(value=value))


def _contributing(key: str, metadata: Metadata, content: ObjectContent) -> ContributingObject:
    is_terminating = metadata.deletionTimestamp is not None
    return ContributingObject(key, metadata.uid, metadata.resourceVersion, content, is_terminating)


def _with_label_selector(resource: Resource, label_selector: str) -> Resource:
    both = ",".join(filter(None, (resource.label_selector, label_selector)))
    return replace(resource, label_selector=both)


def _checking_selector(
    resource: Resource, observe: Callable[[Any], Decoded], key: Callable[[KubeObject], str]
) -> Callable[[Any], Decoded | Outside]:
    """Return `observe` with a check of the label selector: a GET by name also returns objects that do not match it."""
    selector = parse_selector(resource.label_selector)
    if not selector:
        return observe

    def checked(obj: KubeObject) -> Decoded | Outside:
        metadata = obj.metadata
        if selector.matches((metadata.labels or {}).items()):
            return observe(obj)
        observation = observe(obj)
        if observation.state in STATES_BEYOND_SELECTOR:
            return observation
        message = f"its labels do not match the daemon's label selector {selector}"
        return Outside(key(obj), metadata.uid, metadata.resourceVersion, message, observation.fields)

    return checked
