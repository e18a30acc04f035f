"""Scopes: the clusters that a caller may see, and how they limit the filters of requests."""

import hashlib
from functools import cached_property

import msgspec

from milo_discoveryd.log.filter import ClusterView, Filter, records_per_step
from milo_discoveryd.model.cluster import Cluster, Target, source_of
from milo_discoveryd.model.observation import ObjectFields
from milo_discoveryd.rights.name_patterns import NamePatterns
from milo_kube.label_selector import Predicate, Selector, all_of


class ClusterScope(msgspec.Struct, frozen=True, dict=True):
    """The clusters that a rule covers. A cluster must match everything that is set."""

    selector: Selector = Selector()
    organizations: frozenset[str] = frozenset()
    names: NamePatterns = NamePatterns()
    sources: frozenset[str] = frozenset()
    is_empty: bool = False
    """Whether the scope covers no cluster at all, regardless of the other fields."""

    @cached_property
    def matches(self) -> Predicate[Cluster]:
        covers = self.covers
        return lambda cluster: covers(cluster.target)

    @cached_property
    def covers(self) -> Predicate[Target | ObjectFields]:
        if self.is_empty:
            return lambda _: False
        sources = self.sources
        names_match, organizations, labels_match = self.names.matches, self.organizations, self.selector.matches
        tests: list[Predicate[Target | ObjectFields]] = []
        if self.sources:
            tests.append(lambda target: source_of(target.name) in sources)
        if organizations:
            tests.append(lambda target: target.organization in organizations)
        if self.names:
            tests.append(lambda target: names_match(target.name))
        if self.selector:
            tests.append(lambda target: labels_match(target.labels))
        return all_of(tests)

    def covers_by_name(self, name: str) -> bool:
        """Return whether the scope covers every object of that name, regardless of its labels and organization."""
        if self.is_empty or self.selector or self.organizations:
            return False
        return (not self.sources or source_of(name) in self.sources) and self.names.matches(name)

    def covers_source(self, source: str) -> bool:
        """Return whether the scope can cover clusters of a source. If so, the caller may see the source's name."""
        if self.is_empty or (self.sources and source not in self.sources):
            return False
        return not source or self.names.may_match_source(source)

    @property
    def is_everything(self) -> bool:
        return not (self.is_empty or self.selector or self.organizations or self.names or self.sources)

    @cached_property
    def fingerprint(self) -> str:
        """A digest that is equal for equal scopes."""
        text = repr(
            (self.is_empty, str(self.selector), sorted(self.organizations), str(self.names), sorted(self.sources))
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        if self.is_empty:
            return "none"
        parts = (
            f"sources {', '.join(sorted(self.sources))}" if self.sources else "",
            f"names {self.names}" if self.names else "",
            f"organizations {', '.join(sorted(self.organizations))}" if self.organizations else "",
            f"labels {self.selector}" if self.selector else "",
        )
        return "; ".join(filter(None, parts)) or "all"


ALL_CLUSTERS = ClusterScope()
NO_CLUSTERS = ClusterScope(is_empty=True)


class ScopedFilter(msgspec.Struct, frozen=True, dict=True):
    """A caller's filter, limited to the caller's scope."""

    asked: Filter
    scope: ClusterScope

    @cached_property
    def records_per_step(self) -> int:
        return records_per_step(self.asked.selector, self.scope.selector)

    @cached_property
    def matches(self) -> Predicate[Cluster]:
        return all_of([self.scope.matches, self.asked.matches])

    def shows(self, cluster: Cluster | None) -> bool:
        return cluster is not None and self.scope.matches(cluster)

    @property
    def unfiltered(self) -> ClusterView:
        return ScopedFilter(self.asked.unfiltered, self.scope)

    @property
    def is_everything(self) -> bool:
        return self.scope.is_everything and self.asked.is_everything

    @property
    def confirms_releases(self) -> bool:
        return self.asked.confirms_releases

    @cached_property
    def fingerprint(self) -> str:
        return f"{self.scope.fingerprint}{self.asked.fingerprint}"


def scoped(asked: Filter, scope: ClusterScope) -> ClusterView:
    return asked if scope.is_everything else ScopedFilter(asked, scope)
