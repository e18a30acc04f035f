"""Kubernetes Events about objects. Repetitions of an event are combined into a series.

Does no I/O: callers pass the time and send the returned writes.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from milo_controllers.kinds import Document
from milo_kube.rfc3339 import rfc3339

EventType = Literal["Normal", "Warning"]

_CORE_FIELDS = {"reportingController": "reportingComponent", "note": "message", "regarding": "involvedObject"}
"""Fields of events.k8s.io that have another name in the core group."""

SERIES_S = 360.0
"""A series ends if its event is not repeated for this long."""
REPORT_EVERY_S = 30.0
"""Time between two writes of a series. Its first repetition is written at once, and its last one after this time."""
_CAPACITY = 4096
_LONGEST_NOTE = 1024
"""Bytes, as API servers count them."""
_LONGEST_NAME = 253
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class EventContent(NamedTuple):
    """The content of an event, without the object that it is about."""

    type: EventType
    reason: str
    action: str
    note: str


class SeriesKey(NamedTuple):
    """Events with the same key belong to one series."""

    cluster: str
    uid: str
    content: EventContent


class EventWrite(msgspec.Struct, frozen=True):
    """An event to create, or to write again with the present count of its series."""

    key: SeriesKey
    event: Document
    recorded_at: float

    @property
    def is_series(self) -> bool:
        return "series" in self.event


class _Series(msgspec.Struct):
    event: Document
    count: int
    seen_at: float
    written_at: float


def in_core(event: Document) -> Document:
    """Convert an event of events.k8s.io to one of the core group."""
    return {**{_CORE_FIELDS.get(field, field): value for field, value in event.items()}, "apiVersion": "v1"}


class EventLog:
    """The recent events of every cluster. Each call takes the wall clock for timestamps, or the time of a clock that
    measures intervals."""

    def __init__(self, controller: str, instance: str) -> None:
        self._controller = controller
        self._instance = instance
        self._series: OrderedDict[SeriesKey, _Series] = OrderedDict()
        self._counts: Counter[str] = Counter()
        """The number of series of each cluster."""
        self._unreported: dict[str, dict[SeriesKey, str]] = {}
        """The series of each cluster with repetitions that are not written yet, each with the time of the last one."""
        self._last_name = 0

    def record(
        self, cluster: str, regarding: Document, content: EventContent, now: datetime, at: float
    ) -> EventWrite | float:
        """Record an event. Return what to write or, for a repetition that is only counted for now, when to."""
        note = content.note.encode(errors="replace")[:_LONGEST_NOTE].decode(errors="ignore")
        content = content._replace(note=note)  # in the key too: an author's note may have all of a tenant's object
        key = SeriesKey(cluster, regarding["metadata"]["uid"], content)
        series = self._series.get(key)
        if series is None or at - series.seen_at >= SERIES_S:
            self.forget(key)
            event = self._event(regarding, content, now)
            self._series[key] = _Series(event, 1, at, at)
            self._counts[cluster] += 1
            if len(self._series) > _CAPACITY:
                self.forget(self._least_needed(at))
            return EventWrite(key, event, at)
        self._series.move_to_end(key)
        series.count += 1
        series.seen_at = at
        self._unreported.setdefault(cluster, {})[key] = rfc3339(now, "microseconds")
        if series.count > 2 and at < (due_at := series.written_at + REPORT_EVERY_S):
            return due_at
        return self._report(key, at)

    def due_at(self, cluster: str) -> float | None:
        """Return when the next series of a cluster has to be written, if nothing is recorded before."""
        written = (self._series[key].written_at for key in self._unreported.get(cluster, ()))
        return min((at + REPORT_EVERY_S for at in written), default=None)

    def due(self, cluster: str, at: float | None = None) -> list[EventWrite]:
        """Return the series of a cluster to write by now, or all that have repetitions which are not written yet."""
        keys = tuple(self._unreported.get(cluster, ()))
        return [
            self._report(key, at or self._series[key].seen_at)
            for key in keys
            if at is None or at >= self._series[key].written_at + REPORT_EVERY_S  # as in `due_at`, which is rounded
        ]

    def forget(self, key: SeriesKey) -> None:
        """Drop a series, for example after a write of it failed: the next event with this key starts a new one."""
        if self._series.pop(key, None) is not None:
            self._counts[key.cluster] -= 1
            if not self._counts[key.cluster]:
                del self._counts[key.cluster]
        self._reported(key)

    def drop(self, cluster: str) -> None:
        """Write no more series of a cluster unless their events are repeated."""
        self._unreported.pop(cluster, None)

    def _least_needed(self, at: float) -> SeriesKey:
        """Return the oldest series if it has ended, or else the oldest of the cluster that has most, whose objects
        determine how many there are."""
        oldest = next(iter(self._series))
        if at - self._series[oldest].seen_at >= SERIES_S:
            return oldest
        [(cluster, _)] = self._counts.most_common(1)
        return next(key for key in self._series if key.cluster == cluster)

    def _report(self, key: SeriesKey, at: float) -> EventWrite:
        series, seen = self._series[key], self._unreported[key.cluster][key]
        self._reported(key)
        series.written_at = at
        event = {**series.event, "series": {"count": series.count, "lastObservedTime": seen}}
        return EventWrite(key, event, at)

    def _reported(self, key: SeriesKey) -> None:
        unreported = self._unreported.get(key.cluster, {})
        unreported.pop(key, None)
        if not unreported:
            self._unreported.pop(key.cluster, None)

    def _event(self, regarding: Document, content: EventContent, now: datetime) -> Document:
        metadata = regarding["metadata"]
        namespace = metadata.get("namespace") or "default"
        reference = {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        if metadata.get("namespace"):
            reference["namespace"] = metadata["namespace"]
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": self._name(metadata, now), "namespace": namespace},
            "eventTime": rfc3339(now, "microseconds"),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "action": content.action,
            "reason": content.reason,
            "type": content.type,
            "note": content.note,
            "regarding": reference,
        }

    def _name(self, metadata: Document, now: datetime) -> str:
        """Return a name as client-go does: of the object and the time, or of its UID if it cannot name an event."""
        self._last_name = max(self._last_name + 1, int(now.timestamp() * 1_000_000) * 1_000)
        name = f"{metadata['name']}.{self._last_name:x}"
        is_valid = len(name) <= _LONGEST_NAME and _SUBDOMAIN.fullmatch(name)
        return name if is_valid else f"{metadata['uid']}.{self._last_name:x}"
