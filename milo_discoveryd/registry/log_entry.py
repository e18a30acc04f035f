"""What the change log keeps of one name: what stands under it now, and what did until lately."""

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.registry.events import EventType


class PastState(msgspec.Struct, frozen=True, gc=False):
    """What a cluster was for filters, from revision `since` up to, not including, `until`."""

    cluster: Cluster
    since: int
    until: int
    reason: DisengageReason | None
    """Why it was disengaged at `until`; None where only its labels or its organization changed."""
    message: str


class LogEntry(msgspec.Struct, gc=False):
    """The log's part of a record, and only the log changes it: an object of its own would cost each cluster more."""

    cluster: Cluster | None = None
    """None unless it is engaged."""
    revision: int = 0
    """When it last changed."""
    same_view_since: int = 0
    """The revision since which the cluster means the same to filters."""
    was: tuple[PastState, ...] = ()
    kind: EventType | None = None
    frame: bytes = b""
    """Of the cluster as it stands, and of the kind that was last asked for. Live readers all ask for the one kind,
    snapshots for the other: neither encodes it twice, and none keeps two."""

    def known_at(self, revision: int) -> Cluster | None:
        """What the cluster was, as far as a filter or an incarnation goes, to who had read up to `revision`."""
        if self.cluster is not None and self.same_view_since <= revision:
            return self.cluster
        for past in reversed(self.was):  # mostly it is what was before the last change
            if past.since <= revision < past.until:
                return past.cluster
        return None

    def needs_place(self, revision: int) -> bool:
        """Whoever reads a part of the log that ends soon after `revision` has to come by it.

        What changed there for filters is to be told even if the entry has moved on, beyond the end of that part.
        """
        if not self.was:  # nearly always, and asked of all places in a row
            return self.cluster is not None and revision in (self.revision, self.same_view_since)
        return revision in (self.revision, self.same_view_since) or any(
            revision in (past.since, past.until) for past in self.was
        )

    def ended(self, cluster: Cluster, revision: int) -> PastState | None:
        """How the cluster's incarnation had ended by `revision`; None where it was still engaged."""
        return next(
            (
                past
                for past in self.was
                if past.reason and past.until <= revision and past.cluster.incarnation == cluster.incarnation
            ),
            None,
        )
