"""Counts and logs changes of the fleet and its source, and keeps recent changes."""

import time
from collections import deque
from collections.abc import Collection, Iterator
from datetime import datetime
from heapq import nsmallest

from milo_discoveryd.engagement.subscriber import SubscriberKey
from milo_discoveryd.fleet.source import NOT_READY_HELD, RESTORED
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.model.observation import NotWanted
from milo_discoveryd.objects.collection import REMOVALS_HELD
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.metrics import SourceMetrics
from milo_discoveryd.telemetry.status import EngagementChange, when
from milo_kube.reflect.view_status import ViewState, ViewStatus

RECENT_CHANGES_KEPT = 50
_NAMES_LOGGED = 10


class RecentChanges:
    """Recent engagements and disengagements, newest first. Updates are not kept, because connectivity probes cause too
    many."""

    def __init__(self) -> None:
        self._changes: deque[tuple[float, EventType, str, DisengageReason | None, str]] = deque(
            maxlen=RECENT_CHANGES_KEPT
        )
        self.synced_at: dict[str, float] = {}
        """When the first complete list of each source was applied."""

    def note(self, done: Event, wall: float) -> None:
        # Without the cluster: its users decide how large it is.
        self._changes.appendleft((wall, done.type, done.cluster.target.name, done.reason, done.message))

    def __iter__(self) -> Iterator[EngagementChange]:
        for wall, change, name, reason, message in self._changes:
            yield EngagementChange(
                at=when(wall),
                type=change.value,
                cluster=name,
                reason="" if reason is None else reason.value,
                message=message,
            )


class Journal:
    """The receiver of the fleet's notifications."""

    def __init__(self, metrics: SourceMetrics, audit: Audit) -> None:
        self._metrics = metrics
        self._audit = audit
        self._source = ""
        self._was_reached = False
        self._about: dict[str, str] = {}
        """The fields that every log line about the source contains."""
        self.recent = RecentChanges()

    def of_source(self, name: str) -> "Journal":
        """Return the journal for one of several sources; this journal if the name is empty."""
        if not name:
            return self
        journal = Journal(self._metrics, self._audit)
        journal.recent, journal._source, journal._about = self.recent, name, {"source": name}
        return journal

    def changed(self, done: Event, *, is_live: bool) -> None:
        self._metrics.transition(done, self._source)
        if not is_live:
            return  # the first list is logged as a whole
        target = done.cluster.target
        if done.type is EventType.UPDATED:
            log.debug("updated", cluster=target.name, uid=target.uid)
            return
        self.recent.note(done, time.time())
        if (duration := _time_to_ready(done)) is not None:
            self._metrics.project_became_ready(duration, self._source)
        if done.type is EventType.ENGAGED:
            log.info("engaged", cluster=target.name, uid=target.uid)
        elif done.reason is not DisengageReason.OWNERSHIP_LOST:  # these are logged together: there can be very many
            reason = done.reason.value if done.reason else ""
            log.info("disengaged", cluster=target.name, uid=target.uid, reason=reason, detail=done.message)

    def synced(self, engaged: int) -> None:
        self.recent.synced_at.setdefault(self._source, time.time())
        log.info("synced", engaged=engaged, **self._about)

    def relisting(self, reason: str) -> None:
        self._metrics.relisting(reason, self._source)
        log.info("listing again", reason=reason, **self._about)

    def event_ignored(self, problem: str) -> None:
        self._metrics.event_ignored(self._source)
        log.debug("event ignored", problem=problem, **self._about)

    def object_reported(self, observation: NotWanted) -> None:
        self._audit.object_reported(observation.name, observation.uid, observation.message)

    def drained(self, cluster: Cluster, unreleased: Collection[SubscriberKey]) -> None:
        self._metrics.drained("expired" if unreleased else "released", self._source)
        if unreleased:
            names = nsmallest(_NAMES_LOGGED, [key.name for key in unreleased])
            others = {"others": len(unreleased) - len(names)} if len(unreleased) > len(names) else {}
            log.warning("drain deadline passed", cluster=cluster.target.name, unreleased=names, **others)

    def accepted(self, holds: bool) -> None:
        log.warning("held removals accepted" if holds else "no removals held")

    def confirmations_refused(self, problem: str) -> None:
        log.warning("deletions cannot be confirmed", problem=problem, **self._about)

    def confirmations_accepted(self) -> None:
        log.info("deletions can be confirmed again", **self._about)

    def confirmed(self, result: str) -> None:
        self._metrics.confirmed(result, self._source)

    def liveness_checked(self, result: str) -> None:
        self._metrics.liveness_checked(result, self._source)

    def source_duplicated(self, other: str) -> None:
        log.warning("two sources follow the same projects", other=other, fix="remove one of them", **self._about)

    def source_status_changed(self, status: ViewStatus) -> None:
        if status.reason == RESTORED:
            log.info("clusters restored", detail=status.message, **self._about)
        elif status.state is ViewState.STALE:
            if self._was_reached:
                log.warning("source lost", reason=status.reason, detail=status.message, **self._about)
            else:
                log.warning("source unreachable", reason=status.reason, detail=status.message, **self._about)
        elif status.reason == REMOVALS_HELD:
            log.warning("removals held", detail=status.message, **self._about)
        elif status.reason == NOT_READY_HELD:
            log.warning("not-ready clusters held", detail=status.message, **self._about)
        else:
            self._was_reached = self._was_reached or status.state is ViewState.STREAMING
            log.info("source state changed", state=status.state.value, reason=status.reason, **self._about)


def _time_to_ready(done: Event) -> float | None:
    """Return the seconds from the creation of an object to its readiness, if the event contains both times."""
    if done.readiness is None:
        return None
    try:
        created, ready = map(datetime.fromisoformat, done.readiness)
        return max(0.0, (ready - created).total_seconds())
    except (ValueError, TypeError):  # one of the times is missing, or only one has a time zone
        return None
