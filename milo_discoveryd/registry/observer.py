"""The interface to metrics and the log."""

from collections.abc import Sequence
from typing import Protocol

from milo_discoveryd.engagement.pending_releases import AwaitedRelease
from milo_discoveryd.log.events import Event
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.observation import NotWanted
from milo_kube.reflect.view_status import ViewStatus


class Observer(Protocol):
    """The receiver of events for metrics and the log."""

    def changed(self, event: Event, *, is_live: bool) -> None:
        """Record a change. `is_live` is False for the changes of the first complete list."""

    def synced(self, engaged: int) -> None: ...

    def relisting(self, reason: str) -> None: ...

    def event_ignored(self, problem: str) -> None: ...

    def object_refused(self, observation: NotWanted) -> None:
        """Record that an object cannot be used, or must not be, since this observation of it."""

    def source_status_changed(self, status: ViewStatus) -> None:
        """Record that the source's state, or the reason for it, changed."""

    def liveness_checked(self, result: str) -> None: ...

    def drained(self, cluster: Cluster, unreleased: Sequence[AwaitedRelease]) -> None:
        """Record that a drain ended: when the cluster was released, or at its deadline if some subscribers have not
        released it.
        """

    def confirmed(self, result: str) -> None:
        """Record the result of a confirmation read of an apparently deleted object, as a metric label."""

    def confirmations_refused(self, problem: str) -> None:
        """Record that the API server began to refuse confirmation reads, so all of them wait."""

    def confirmations_accepted(self) -> None:
        """Record that the API server answers confirmation reads again."""
