"""Which clusters a reader of the log sees."""

import hashlib
from functools import cached_property
from typing import Protocol

import msgspec

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.predicate import Predicate, all_of
from milo_discoveryd.model.selector import Selector


class ClusterView(Protocol):
    """What one reader of the log is sent: its filter, within what it may see."""

    @property
    def fingerprint(self) -> str:
        """Equal for two views that show the same clusters."""

    @property
    def is_everything(self) -> bool:
        """True if every cluster matches and is shown, except that draining ones may not be."""

    @property
    def confirms_releases(self) -> bool:
        """True if draining clusters are shown, False if they count as disengaged."""

    @property
    def matches(self) -> Predicate[Cluster]: ...

    def shows(self, cluster: Cluster | None) -> bool:
        """Return whether the reader may learn the state of a cluster that does not match. None: nothing is known."""


class Filter(msgspec.Struct, frozen=True, dict=True):
    """What a subscriber asks for. All that is set must match."""

    selector: Selector = Selector()
    names: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()
    confirms_releases: bool = False
    """Show draining clusters, which wait for the subscriber's release. To others they are disengaged."""

    @cached_property
    def matches(self) -> Predicate[Cluster]:
        names, organizations, labels_match = self.names, self.organizations, self.selector.matches
        tests: list[Predicate[Cluster]] = []
        if names:
            tests.append(lambda cluster: cluster.target.name in names)
        if organizations:
            tests.append(lambda cluster: cluster.target.organization in organizations)
        if self.selector:
            tests.append(lambda cluster: labels_match(cluster.target.labels))
        if not self.confirms_releases:
            tests.append(lambda cluster: cluster.draining is None)
        return all_of(tests)

    def shows(self, cluster: Cluster | None) -> bool:
        """Return True: a filter is a preference and hides nothing."""
        return True

    @property
    def is_everything(self) -> bool:
        return not (self.selector or self.names or self.organizations)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two filters with the same meaning, in every run of the daemon."""
        also = "+draining" if self.confirms_releases else ""
        if self.is_everything:
            return f"all{also}"
        canonical = repr((str(self.selector), sorted(self.names), sorted(self.organizations)))
        return f"{hashlib.sha256(canonical.encode()).hexdigest()[:16]}{also}"


EVERYTHING = Filter()
