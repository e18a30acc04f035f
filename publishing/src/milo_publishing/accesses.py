"""The servers and trust roots of the engaged clusters, requested from the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from milo_discovery._backoff import BackoffPolicy, StreamBackoff
from milo_discovery._kubeconfig_access import KubeconfigAccess, read_exec_access
from milo_discovery.errors import (
    ClusterNotFound,
    DiscoveryError,
    PreconditionFailed,
    StatusError,
    TimedOut,
    Unavailable,
)
from milo_discovery.model import KubeconfigFormat

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient

_CONCURRENCY = 8
_RETRY = BackoffPolicy(initial=timedelta(milliseconds=500), maximum=timedelta(seconds=30))


class Accesses:
    """The server and CA of each cluster, as received from the daemon; None if the cluster is published without them."""

    def __init__(self, client: DiscoveryClient, changed: Callable[[str], None], report: Callable[[str], None]) -> None:
        self._client = client
        self._changed = changed
        self._report = report
        self._known: dict[str, KubeconfigAccess | None] = {}
        self._requested: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._engagements: dict[str, object] = {}
        """A marker for each requested cluster. `forget` removes it, so that late responses are dropped."""
        self._reported = ""

    def is_known(self, name: str) -> bool:
        return name in self._known

    def get(self, name: str) -> KubeconfigAccess | None:
        return self._known.get(name)

    def set(self, name: str, access: KubeconfigAccess | None) -> None:
        self._known[name] = access

    def forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._engagements.pop(name, None)

    def request(self, name: str) -> None:
        """Queue a request for the cluster's server and CA, which `run` sends."""
        self._engagements.setdefault(name, object())
        if name not in self._queued:
            self._queued.add(name)
            self._requested.put_nowait(name)

    def request_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.request(name)

    async def run(self) -> None:
        """Send the queued requests, some of them concurrently, until canceled."""
        async with asyncio.TaskGroup() as group:
            for number in range(_CONCURRENCY):
                group.create_task(self._work(), name=f"access-{number}")

    async def _work(self) -> None:
        backoff = StreamBackoff(_RETRY)
        while True:
            name = await self._requested.get()
            self._queued.discard(name)
            engagement = self._engagements.get(name)
            if engagement is None:
                continue  # the cluster was forgotten
            try:
                access = await self._issue(name)
            except ClusterNotFound:
                pass  # the cluster is no longer engaged
            except StatusError as error:
                if not isinstance(error, Unavailable | TimedOut) and error.retry_after is None:
                    self._report_once(f"cannot get the server and CA of cluster {name!r}: {error}")
                    continue  # the next resync requests the server and CA again
                if self._engagements.get(name) is engagement:
                    self.request(name)
                await asyncio.sleep(backoff.failed(ran=timedelta(), retry_after=error.retry_after).total_seconds())
            except DiscoveryError as error:
                self._report_once(f"cannot get the server and CA of cluster {name!r}: {error}")
            else:
                backoff = StreamBackoff(_RETRY)
                if self._engagements.get(name) is not engagement:
                    continue
                if name not in self._known or self._known[name] != access:
                    self._known[name] = access
                    self._changed(name)

    async def _issue(self, name: str) -> KubeconfigAccess | None:
        try:
            issued = await self._client.issue_kubeconfig(name, kubeconfig_format=KubeconfigFormat.EXEC)
        except PreconditionFailed as error:
            self._report_once(f"no server and CA to publish: {error}")
            return None
        access = read_exec_access(issued.kubeconfig, name)
        if access.act_as is not None:
            # Readers of the objects run the plugin themselves, and would use its credential without impersonation.
            self._report_once(
                "no server and CA to publish: the rule for this publisher sets `as`, "
                "and a plugin cannot return an impersonated user"
            )
            return None
        return access

    def _report_once(self, message: str) -> None:
        if message != self._reported:
            self._reported = message
            self._report(message)
