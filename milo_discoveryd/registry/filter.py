"""Which clusters a subscriber wants to see."""

import hashlib
from functools import cached_property
from typing import Protocol

import msgspec

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.predicate import Predicate, every
from milo_discoveryd.model.selector import Selector


class ClusterView(Protocol):
    """What a reader of the log is shown."""

    @property
    def fingerprint(self) -> str:
        """The same for two that show the same."""

    @property
    def is_everything(self) -> bool:
        """It matches and shows whatever there is."""

    @property
    def matches(self) -> Predicate[Cluster]: ...

    def shows(self, cluster: Cluster | None) -> bool:
        """Whether the reader may be told what a cluster was when it didn't match. None: nothing is known of it."""


class Filter(msgspec.Struct, frozen=True, dict=True):
    """All that is set must match."""

    selector: Selector = Selector()
    names: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()

    @cached_property
    def matches(self) -> Predicate[Cluster]:
        names, organizations, labelled = self.names, self.organizations, self.selector.matches
        tests: list[Predicate[Cluster]] = []
        if names:
            tests.append(lambda cluster: cluster.target.name in names)
        if organizations:
            tests.append(lambda cluster: cluster.target.organization in organizations)
        if self.selector:
            tests.append(lambda cluster: labelled(cluster.target.labels))
        return every(tests)

    def shows(self, cluster: Cluster | None) -> bool:
        """A filter is what its reader asks for, and keeps nothing from it."""
        return True

    @property
    def is_everything(self) -> bool:
        return not (self.selector or self.names or self.organizations)

    @cached_property
    def fingerprint(self) -> str:
        """The same for two filters that say the same, in this and any other run of the daemon."""
        if self.is_everything:
            return "all"
        said = repr((str(self.selector), sorted(self.names), sorted(self.organizations)))
        return hashlib.sha256(said.encode()).hexdigest()[:16]


EVERYTHING = Filter()
