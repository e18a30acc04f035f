"""Writes the events of reconcilers to the API server of their cluster."""

from __future__ import annotations

import logging
from datetime import datetime

from milo_controllers.cluster_api import MERGE_PATCH, ClusterApi
from milo_controllers.errors import ControllerError, NotServed
from milo_controllers.event_log import CreateEvent, EventContent, EventLog, PatchEvent, in_core
from milo_controllers.kinds import CORE_EVENTS, EVENTS, Document, Kind
from milo_discovery.errors import DiscoveryError

log = logging.getLogger("milo_controllers")


class EventRecorder:
    """Records events about the objects of one cluster."""

    __slots__ = ("_api", "_kind", "_recent")

    def __init__(self, api: ClusterApi, recent: EventLog) -> None:
        self._api = api
        self._recent = recent
        self._kind = EVENTS
        """The kind under which the API server serves events: EVENTS, or CORE_EVENTS."""

    async def record(self, regarding: Document, content: EventContent, now: datetime) -> None:
        """Record an event. A failure is logged, and not raised."""
        write = self._recent.record(self._api.name, regarding, content, now)
        if write is None:
            return
        try:
            await self._send(write)
        except (ControllerError, DiscoveryError) as error:
            self._recent.forget(self._api.name, regarding, content)
            log_lost(self._api.name, content.reason, regarding["metadata"]["name"], error)

    async def _send(self, write: CreateEvent | PatchEvent) -> None:
        kind = self._kind  # another reconcile may change self._kind during the request
        try:
            await self._send_as(kind, write)
        except NotServed:
            if kind is CORE_EVENTS:
                raise
            # events.k8s.io is not served, as in Milo, or a proxy responded: only a successful write to the core group
            # shows which.
            await self._send_as(CORE_EVENTS, write)
            self._kind = CORE_EVENTS

    async def _send_as(self, kind: Kind[Document], write: CreateEvent | PatchEvent) -> None:
        match write:
            case CreateEvent(namespace, body):
                event = in_core(body) if kind is CORE_EVENTS else body
                await self._api.send("POST", kind.collection(namespace), (), event)
            case PatchEvent(namespace, name, body):
                await self._api.send("PATCH", kind.path(name, namespace), (), body, content_type=MERGE_PATCH)


def log_lost(cluster: str, reason: str, name: str, error: Exception) -> None:
    log.warning("%s: event %s of %s was not recorded: %s", cluster, reason, name, error)
