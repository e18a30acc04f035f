"""Kubernetes Events about objects. Repetitions of an event are combined into a series.

Does no I/O: callers pass the time and send the returned requests.
"""

from __future__ import annotations

from collections import OrderedDict
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
_REPORT_EVERY_S = 30.0
"""Minimum time between two writes of a series. Only its first repetition is written at once."""
_CAPACITY = 4096
_LONGEST_NOTE = 1024


class EventContent(NamedTuple):
    """The content of an event, without the object that it is about."""

    type: EventType
    reason: str
    action: str
    note: str


_Key = tuple[str, str, EventContent]
"""Cluster, UID of the object, and content. Events with the same key belong to one series."""


class CreateEvent(msgspec.Struct, frozen=True):
    namespace: str
    body: Document


class PatchEvent(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    body: Document


class _Series(msgspec.Struct):
    namespace: str
    name: str
    count: int
    seen_at: float
    written_at: float


def in_core(event: Document) -> Document:
    """Convert an event of events.k8s.io to one of the core group."""
    return {**{_CORE_FIELDS.get(field, field): value for field, value in event.items()}, "apiVersion": "v1"}


class EventLog:
    """The recent events of every cluster."""

    def __init__(self, controller: str, instance: str) -> None:
        self._controller = controller
        self._instance = instance
        self._series: OrderedDict[_Key, _Series] = OrderedDict()

    def record(
        self, cluster: str, regarding: Document, content: EventContent, now: datetime
    ) -> CreateEvent | PatchEvent | None:
        """Record an event. Return the request to send; None if a repetition is only counted for now."""
        metadata = regarding["metadata"]
        key = cluster, metadata["uid"], content
        at = now.timestamp()
        series = self._series.get(key)
        if series is not None and at - series.seen_at < SERIES_S:
            self._series.move_to_end(key)
            series.count += 1
            series.seen_at = at
            if series.count > 2 and at - series.written_at < _REPORT_EVERY_S:
                return None
            series.written_at = at
            body = {"series": {"count": series.count, "lastObservedTime": rfc3339(now, "microseconds")}}
            return PatchEvent(series.namespace, series.name, body)
        namespace = metadata.get("namespace") or "default"
        name = f"{metadata['name'][:200]}.{int(at * 1_000_000):x}"
        self._series[key] = _Series(namespace, name, 1, at, at)
        self._series.move_to_end(key)
        if len(self._series) > _CAPACITY:
            self._series.popitem(last=False)
        reference = {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        if metadata.get("namespace"):
            reference["namespace"] = metadata["namespace"]
        return CreateEvent(
            namespace,
            {
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "eventTime": rfc3339(now, "microseconds"),
                "reportingController": self._controller,
                "reportingInstance": self._instance,
                "action": content.action,
                "reason": content.reason,
                "type": content.type,
                "note": content.note[:_LONGEST_NOTE],
                "regarding": reference,
            },
        )

    def forget(self, cluster: str, regarding: Document, content: EventContent) -> None:
        """Drop a series after a write of it failed: the next event with the same content starts a new series."""
        self._series.pop((cluster, regarding["metadata"]["uid"], content), None)
