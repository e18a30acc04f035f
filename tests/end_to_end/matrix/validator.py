"""The rules that hold in each cell of the matrix, for the existing clusters and the events of consumers. Shares no code
with the daemon.
"""

from collections.abc import Iterable

_OWNERSHIP = ("MOVED", "OWNERSHIP_LOST")
"""Reasons for which one of several consumers may lose a cluster that still exists."""


class Validator:
    """The existing clusters, and the view of each consumer."""

    def __init__(self, *, is_shared: bool) -> None:
        """`is_shared`: whether consumers share the clusters, so that each cluster has one of them at a time."""
        self._is_shared = is_shared
        self.truth: set[str] = set()
        self._ever: set[str] = set()
        self.views: dict[str, set[str]] = {}
        self.breaches: list[str] = []
        self._missing: dict[str, str] = {}
        """The consumer that lost a cluster without a reason, by cluster: the cluster moved while the consumer was
        disconnected, so another consumer is the next to engage it.
        """
        self.told = 0
        """The number of engagements and disengagements."""

    def created(self, name: str) -> None:
        self.truth.add(name)
        self._ever.add(name)

    def deleted(self, name: str) -> None:
        self.truth.discard(name)
        self._missing.pop(name, None)

    def engaged(self, consumer: str, name: str) -> None:
        self.told += 1
        view = self.views.setdefault(consumer, set())
        if name in view:
            self._breach(f"{consumer} engaged {name} twice")
        if name not in self._ever:
            self._breach(f"{consumer} engaged {name}, which never existed")
        others = [other for other, found in self.views.items() if other != consumer and name in found]
        if self._is_shared and others:
            self._breach(f"{name} was engaged for {consumer} and for {', '.join(others)}")
        if self._missing.pop(name, None) == consumer:
            self._breach(f"{consumer} lost {name} without a reason, and engaged it again")
        view.add(name)

    def disengaged(self, consumer: str, name: str, reason: str) -> None:
        self.told += 1
        if name not in self.views.setdefault(consumer, set()):
            self._breach(f"{consumer} disengaged {name}, which it had not engaged")
        self.views[consumer].discard(name)
        if name not in self.truth:
            return
        if self._is_shared and not reason:
            self._missing[name] = consumer
        elif not (self._is_shared and reason in _OWNERSHIP):
            self._breach(f"{consumer} disengaged {name} ({reason}), which exists")

    def listed(self, consumer: str, names: Iterable[str]) -> None:
        """Record the complete view of a consumer that lists, as readers of published objects do."""
        found, before = set(names), self.views.get(consumer, set())
        for name in sorted(before - found):
            self.disengaged(consumer, name, "missing from the list")
        for name in sorted(found - before):
            self.engaged(consumer, name)

    @property
    def is_current(self) -> bool:
        views = list(self.views.values())
        return set().union(*views) == self.truth if self._is_shared else all(view == self.truth for view in views)

    def _breach(self, text: str) -> None:
        self.breaches.append(text)
