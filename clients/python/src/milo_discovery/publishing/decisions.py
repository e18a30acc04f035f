"""The actions that bring the published objects in line with the engaged clusters. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from milo_discovery.publishing.objects import (
    DesiredObject,
    Document,
    Identity,
    ObservedObject,
    Owner,
    Rendered,
    Resource,
    applied,
    applied_status,
    claim,
    contains,
    with_observed_transition_times,
)


@dataclass(frozen=True, slots=True)
class Create:
    """Create the object, which fails if one of that name exists."""

    body: Document


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply the object, its status, or both."""

    uid: str
    """The UID that the object must have."""
    body: Document | None
    status: Document | None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object, if it is still the observed version."""

    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Delete the object later: the daemon cannot confirm at present that its cluster is disengaged."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Leave the object alone: it is not this publisher's."""

    reason: str


Action = Create | Apply | Delete | Hold | Refuse


class Publication:
    """The objects of one publisher, as desired and as observed."""

    def __init__(self, resource: Resource, identity: Identity) -> None:
        self.resource = resource
        self.identity = identity
        self._desired: dict[str, DesiredObject] = {}
        self._observed: dict[str, ObservedObject] = {}
        self._moved: set[str] = set()

    def desire(self, desired: DesiredObject) -> None:
        """Set the object of an engaged cluster."""
        self._moved.discard(desired.name)
        self._desired[desired.name] = desired

    def withdraw(self, name: str, *, moved: bool) -> None:
        """Remove the object of a disengaged cluster. That of a moved cluster belongs to another publisher now."""
        self._desired.pop(name, None)
        if moved:
            self._moved.add(name)

    def observe_all(self, objects: Iterable[ObservedObject]) -> None:
        """Replace what was observed by a complete list of the publisher's objects."""
        self._observed = {each.name: each for each in objects}

    def observe(self, name: str, observed: ObservedObject | None) -> None:
        """Record one object as returned by the API server; None if it does not exist."""
        if observed is None:
            self._observed.pop(name, None)
        else:
            self._observed[name] = observed

    def names(self) -> set[str]:
        """Return the names of all objects that are desired or observed."""
        return set(self._desired) | set(self._observed)

    def desired(self, name: str) -> DesiredObject | None:
        return self._desired.get(name)

    def is_complete(self) -> bool:
        """Return whether each desired object has its content."""
        return all(each.content is not None for each in self._desired.values())

    def decide(self, name: str, *, may_delete: bool) -> Action | None:
        """Return the next action for an object; None if there is nothing to do.

        After each action the object is observed, and the next decision is made from what was observed.
        """
        match self._desired.get(name), self._observed.get(name):
            case DesiredObject(content=Rendered() as content) as desired, None:
                return Create(claim(self.resource, self.identity, desired, content))
            case None, ObservedObject() as observed:
                is_own = observed.owner(self.identity) is Owner.SELF and name not in self._moved
                return _delete(observed, may_delete=may_delete) if is_own else None
            case DesiredObject() as desired, ObservedObject() as observed:
                return self._decide_existing(desired, observed, may_delete=may_delete)
        return None

    def _decide_existing(self, desired: DesiredObject, observed: ObservedObject, *, may_delete: bool) -> Action | None:
        owner = observed.owner(self.identity)
        if owner is Owner.FOREIGN:
            return Refuse("an object of this name exists that milo-discovery publish did not create")
        if observed.cluster_uid != desired.cluster_uid:
            if owner is Owner.OTHER_PUBLISHER:
                return Refuse(
                    f"the object of this name is of another cluster, published by publisher {observed.publisher!r}"
                )
            # The cluster was replaced: readers must not use what they stored about the former one for this one.
            return _delete(observed, may_delete=may_delete)
        return None if desired.content is None else self._update(desired, desired.content, observed)

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


def _delete(observed: ObservedObject, *, may_delete: bool) -> Delete | Hold:
    return Delete(observed.uid, observed.resource_version) if may_delete else Hold()
