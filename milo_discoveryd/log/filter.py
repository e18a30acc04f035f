"""Filters and views: the clusters that a reader of the log sees."""

import hashlib
from functools import cached_property
from typing import Protocol

import msgspec

from milo_discoveryd.model.cluster import Cluster
from milo_kube.label_selector import Predicate, Selector, all_of

RECORDS_PER_STEP = 1000
"""How many records one step examines: a reader with a narrow filter yields to the event loop after each step."""
_CHEAP_REQUIREMENTS = 2
"""With more requirements, a step examines fewer records: callers choose them, and objects may have many labels."""


def records_per_step(*selectors: Selector) -> int:
    """Return how many records one step compares with all of these selectors."""
    requirements = sum(len(selector.requirements) for selector in selectors)
    return RECORDS_PER_STEP * _CHEAP_REQUIREMENTS // max(_CHEAP_REQUIREMENTS, requirements)


class ClusterView(Protocol):
    """The view of one reader of the log: its filter, restricted by its authorization rules."""

    @property
    def fingerprint(self) -> str:
        """A string that is equal only for views that show the same clusters."""

    @property
    def is_everything(self) -> bool:
        """Whether every cluster matches and is shown, except that draining clusters may be hidden."""

    @property
    def confirms_releases(self) -> bool:
        """Whether draining clusters are shown; if not, they appear as disengaged."""

    @property
    def records_per_step(self) -> int:
        """How many records one step examines."""

    @property
    def matches(self) -> Predicate[Cluster]: ...

    @property
    def unfiltered(self) -> "ClusterView":
        """The view of the same reader without its filter, which takes no memory that the reader determines."""

    def shows(self, cluster: Cluster | None) -> bool:
        """Return whether the reader may see the state of a cluster that does not match. None stands for an unknown
        cluster."""


class Filter(msgspec.Struct, frozen=True, dict=True):
    """The filter that a subscriber requests. All fields that are set must match."""

    selector: Selector = Selector()
    names: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()
    confirms_releases: bool = False
    """Show draining clusters, which wait for this subscriber's release. Other subscribers see them as disengaged."""
    sources: frozenset[str] = frozenset()

    @cached_property
    def records_per_step(self) -> int:
        return records_per_step(self.selector)

    @cached_property
    def matches(self) -> Predicate[Cluster]:
        names, organizations, labels_match = self.names, self.organizations, self.selector.matches
        tests: list[Predicate[Cluster]] = []
        if names:
            tests.append(lambda cluster: cluster.target.name in names)
        if organizations:
            tests.append(lambda cluster: cluster.target.organization in organizations)
        if sources := self.sources:
            tests.append(lambda cluster: cluster.target.source in sources)
        if self.selector:
            tests.append(lambda cluster: labels_match(cluster.target.labels))
        if not self.confirms_releases:
            tests.append(lambda cluster: cluster.draining is None)
        return all_of(tests)

    def shows(self, cluster: Cluster | None) -> bool:
        """Return True: a subscriber may see the clusters that its own filter does not match."""
        return True

    @property
    def unfiltered(self) -> "Filter":
        return Filter(confirms_releases=self.confirms_releases)

    @property
    def is_everything(self) -> bool:
        return not (self.selector or self.names or self.organizations or self.sources)

    @cached_property
    def fingerprint(self) -> str:
        """A string that is equal for two filters with the same meaning, in every run of the daemon."""
        also = "+draining" if self.confirms_releases else ""
        if self.is_everything:
            return f"all{also}"
        asked = (str(self.selector), sorted(self.names), sorted(self.organizations))
        canonical = repr((*asked, sorted(self.sources)) if self.sources else asked)
        return f"{hashlib.sha256(canonical.encode()).hexdigest()[:16]}{also}"


EVERYTHING = Filter()


class WithoutSources(msgspec.Struct, frozen=True, dict=True):
    """A view without the clusters of some sources."""

    view: ClusterView
    hidden: frozenset[str]

    @property
    def confirms_releases(self) -> bool:
        return self.view.confirms_releases

    @property
    def unfiltered(self) -> ClusterView:
        return self.view.unfiltered

    @property
    def is_everything(self) -> bool:
        return False

    @property
    def records_per_step(self) -> int:
        return self.view.records_per_step

    @cached_property
    def matches(self) -> Predicate[Cluster]:
        hidden, matches = self.hidden, self.view.matches
        return lambda cluster: cluster.target.source not in hidden and matches(cluster)

    def shows(self, cluster: Cluster | None) -> bool:
        return self.view.shows(cluster)

    @cached_property
    def fingerprint(self) -> str:
        return f"{self.view.fingerprint}-{','.join(sorted(self.hidden))}"


def without_sources(view: ClusterView, hidden: frozenset[str]) -> ClusterView:
    return WithoutSources(view, hidden) if hidden else view
