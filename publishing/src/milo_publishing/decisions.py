"""The actions that bring the published objects in line with the engaged clusters. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from milo_discovery._removal_guard import Removal
from milo_publishing.objects import (
    DesiredObject,
    Document,
    Identity,
    ObservedObject,
    Owner,
    PublishedResource,
    Rendered,
    applied,
    applied_status,
    claim,
    contains,
    with_observed_transition_times,
)


@dataclass(frozen=True, slots=True)
class Create:
    """Create the object; fails if an object with its name exists."""

    body: Document


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply the object, its status, or both."""

    uid: str
    """The UID that the object must have."""
    body: Document | None
    status: Document | None


@dataclass(frozen=True, slots=True)
class DeleteObject:
    """Delete the object, if it has not changed since it was observed."""

    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Delete the object later: the daemon cannot confirm at present that its cluster is disengaged."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not change the object: it does not belong to this publisher."""

    reason: str


Action = Create | Apply | DeleteObject | Hold | Refuse


class Publication:
    """The objects of one publisher, as desired and as observed. Only `end` permits the deletion of an object."""

    def __init__(self, resource: PublishedResource, identity: Identity) -> None:
        self.resource = resource
        self.identity = identity
        self._desired: dict[str, DesiredObject] = {}
        self._observed: dict[str, ObservedObject] = {}
        self._ended: dict[str, set[str]] = {}
        """The UIDs of clusters that were passed to `end`, by the name of their object."""

    def desire(self, desired: DesiredObject) -> None:
        """Set the desired object of an engaged cluster."""
        self._ended.get(desired.name, set()).discard(desired.cluster_uid)
        self._desired[desired.name] = desired

    def withdraw(self, name: str) -> None:
        """Remove the object from the desired objects."""
        self._desired.pop(name, None)

    def end(self, name: str, cluster_uid: str) -> None:
        """Record that a cluster is confirmed as no longer engaged, so that its object may be deleted."""
        self._ended.setdefault(name, set()).add(cluster_uid)

    def removals(self) -> list[Removal]:
        """Return this publisher's objects whose clusters are not engaged, and were not passed to `end`."""
        return [
            Removal(name, observed.cluster, observed.cluster_uid, observed.uid)
            for name, observed in self._observed.items()
            if not self._is_desired(observed)
            and not self._has_ended(observed)
            and observed.owner(self.identity) is Owner.SELF
        ]

    @property
    def published(self) -> int:
        """The number of objects that this publisher owns."""
        return sum(observed.owner(self.identity) is Owner.SELF for observed in self._observed.values())

    def observe_all(self, objects: Iterable[ObservedObject]) -> None:
        """Replace all observed objects with a complete list of the publisher's objects."""
        self._observed = {observed.name: observed for observed in objects}
        self._ended = {name: uids for name, uids in self._ended.items() if name in self._observed}

    def observe(self, name: str, observed: ObservedObject | None) -> None:
        """Record one object as returned by the API server; None if it does not exist."""
        if observed is None:
            self._observed.pop(name, None)
            self._ended.pop(name, None)
        else:
            self._observed[name] = observed

    def names(self) -> set[str]:
        """Return the names of all objects that are desired or observed."""
        return set(self._desired) | set(self._observed)

    def desired(self, name: str) -> DesiredObject | None:
        return self._desired.get(name)

    def observed(self, name: str) -> ObservedObject | None:
        return self._observed.get(name)

    def is_complete(self) -> bool:
        """Return whether each desired object has its content."""
        return all(desired.content is not None for desired in self._desired.values())

    def described(self, name: str) -> str:
        return f"{self.resource.kind} {name}"

    def decide(self, name: str, *, may_delete: bool) -> Action | None:
        """Return the next action for an object; None if there is nothing to do.

        After each action, pass the object's new state to `observe`, and decide again.
        """
        match self._desired.get(name), self._observed.get(name):
            case DesiredObject(content=Rendered() as content) as desired, None:
                return Create(claim(self.resource, self.identity, desired, content))
            case None, ObservedObject() as observed:
                is_own = observed.owner(self.identity) is Owner.SELF
                return _delete(observed, may_delete=may_delete) if is_own and self._has_ended(observed) else None
            case DesiredObject() as desired, ObservedObject() as observed:
                return self._decide_existing(desired, observed, may_delete=may_delete)
        return None

    def _decide_existing(self, desired: DesiredObject, observed: ObservedObject, *, may_delete: bool) -> Action | None:
        owner = observed.owner(self.identity)
        if owner is Owner.FOREIGN:
            return Refuse(
                "an object with this name exists, and was not created by this command; delete it, or choose another "
                "--namespace"
            )
        if owner is Owner.OTHER_PUBLISHER:
            # Refused even if the object has the UID of this cluster: tenants of another fleet may choose that UID.
            return Refuse(f"the object of this name belongs to publisher {observed.publisher!r}")
        if observed.cluster_uid != desired.cluster_uid:
            # The cluster was replaced: readers must not apply cached data of the former cluster to this one.
            return _delete(observed, may_delete=may_delete and self._has_ended(observed))
        return None if desired.content is None else self._update(desired, desired.content, observed)

    def _is_desired(self, observed: ObservedObject) -> bool:
        desired = self._desired.get(observed.name)
        return desired is not None and desired.cluster_uid == observed.cluster_uid

    def _has_ended(self, observed: ObservedObject) -> bool:
        return observed.cluster_uid in self._ended.get(observed.name, ())

    def _update(self, desired: DesiredObject, content: Rendered, observed: ObservedObject) -> Apply | None:
        body = applied(self.resource, self.identity, desired, content)
        status: Document | None = None
        fields_changed = not contains(observed.metadata.get("annotations"), body["metadata"]["annotations"])
        if content.status is not None:
            current = with_observed_transition_times(content.status, observed)
            if fields_changed or not contains(observed.document.get("status"), current):
                status = applied_status(self.resource, desired, current)
        if contains(observed.document, body):
            return None if status is None else Apply(observed.uid, None, status)
        return Apply(observed.uid, body, status)


def _delete(observed: ObservedObject, *, may_delete: bool) -> DeleteObject | Hold:
    return DeleteObject(observed.uid, observed.resource_version) if may_delete else Hold()
