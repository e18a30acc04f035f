"""A configured source of clusters: its API servers, what it follows, and the task that follows it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing

from msgspec.structs import replace

from milo_discoveryd.config import Settings, SourceSettings
from milo_discoveryd.config.settings import RemovalSettings
from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet.changes import Observer
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourceDescription, SourcePolicy
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.logger import log
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.sources.context import context_of, wrong_context
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.state_file.encoding import StateOrigin
from milo_discoveryd.state_file.state_file import StateFile
from milo_discoveryd.watchers.transport import MonitoredTransport
from milo_discoveryd.wiring.source import Discovery, FileDiscovery, set_targets
from milo_discoveryd.wiring.upstreams import discovery_upstream, project_upstream
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.upstream import Upstream

Authenticate = Callable[[Upstream, str | None], Upstream]
"""Returns an API server with the credential of the named issuer."""


class ConfiguredSource:
    def __init__(self, of: SourceSettings, settings: Settings, environ: Mapping[str, str]) -> None:
        """Load the API servers. Raises ConfigError."""
        self.of = of
        self._settings = settings
        self._environ = environ
        self.project: Upstream = project_upstream(of, settings, environ)
        """The API server that serves the clusters, or whose identity and CA are used for them."""
        self.discovery = discovery_upstream(of, settings, environ)
        """The API server that is watched; None if the source watches none."""
        options = SourceOptions(
            project_server=self.project.server,
            discovery_server=self.discovery.server if self.discovery else "",
            annotation_prefixes=settings.annotation_prefixes,
        )
        self.followed = KeyedSource(of.settings.follow(options), of.name, of.label_selector, _log_failure)
        limit = settings.watch.objects_limit
        self.files = KubeconfigFiles(self.followed.files, limit=limit) if self.followed.files else None
        """The files of a source that has no API server."""
        self._transports: dict[str, MonitoredTransport] = {}

    async def aclose(self) -> None:
        """End the renewal of the credentials."""
        for upstream in filter(None, (self.project, self.discovery)):
            await upstream.aclose()

    @property
    def certificate_expires_at(self) -> float | None:
        """When the client certificate for the watched API server expires; None without one, or before its first use."""
        expiries = (transport.certificate_expires_at for transport in self._transports.values())
        return min((expiry for expiry in expiries if expiry is not None), default=None)

    @property
    def context(self) -> str:
        """The context of Milo that is watched; empty for a kind that does not depend on it."""
        if self.discovery is None or not self.of.settings.contexts:
            return ""
        return str(context_of(self.discovery.server))

    @property
    def context_problem(self) -> str:
        """Why the kind cannot be used in the context of Milo that is watched, and how to fix it; empty if it can."""
        if self.discovery is None:
            return ""
        return "; ".join(wrong_context(self.of.kind, self.discovery.server, self.of.settings.contexts) or ())

    async def follow(
        self,
        source: ClusterSource,
        authenticated: Authenticate,
        epoch: str,
        others_restored: Callable[[], Awaitable[object]],
    ) -> None:
        """Follow the source until canceled. `epoch` identifies the run of the daemon. `others_restored`: see
        `Discovery`."""
        if self.discovery is not None:
            upstream = authenticated(self.discovery, self.of.credentials)
            await self._follow_collections(upstream, source, epoch, others_restored)
        elif self.files is not None:
            discovery = FileDiscovery(source, self._state_file(), epoch)
            await discovery.run(self.files, self.followed.observe_file, self.followed.restored_place, others_restored)
        else:
            await others_restored()
            set_targets(source, self.followed.targets, asyncio.get_running_loop().time())

    async def _follow_collections(
        self, upstream: Upstream, source: ClusterSource, epoch: str, others_restored: Callable[[], Awaitable[object]]
    ) -> None:
        watch = self._settings.watch
        policy = ReflectorPolicy(
            streaming_lists=watch.streaming_lists == "auto",
            page_size=watch.page_size,
            silence_s=watch.silence_limit.total_seconds(),
            liveness=LivenessPolicy(every_s=watch.liveness_interval.total_seconds()),
        )
        discovery = Discovery(
            source,
            self._state_file(),
            epoch=epoch,
            policy=policy,
            jitter=random.random,
            connect_timeout_s=watch.connect_timeout.total_seconds(),
            request_timeout_s=watch.request_timeout.total_seconds(),
        )
        async with AsyncExitStack() as closing:
            for server in {collection.server for collection in self.followed.collections}:
                self._transports[server] = transport = MonitoredTransport(
                    at_server(upstream, server),
                    response_limit=watch.response_limit(len(self._settings.sources)),
                    connect_timeout_s=watch.connect_timeout.total_seconds(),
                    environ=self._environ,
                )
                await closing.enter_async_context(aclosing(transport))
            await discovery.run(
                self._transports.__getitem__, self.followed.collections, self.followed.restored_place, others_restored
            )

    @property
    def origin(self) -> StateOrigin:
        """The origin of the clusters, which does not depend on the name of the source."""
        if self.discovery is not None:
            return StateOrigin(self.discovery.server, self.of.kind)
        return StateOrigin(f"file:{self.files.path}" if self.files else self.project.server, self.of.kind)

    def _state_file(self) -> StateFile | None:
        directory = self._settings.state_directory
        if directory is None:
            return None
        # The objects that the file describes weigh at most twice their limit, more than in the file.
        return StateFile(directory, self.origin, self.of.name, max_bytes=2 * self._settings.watch.objects_limit)


def configured_sources(settings: Settings, environ: Mapping[str, str]) -> list[ConfiguredSource]:
    """Return the configured sources. Raises ConfigError, also for a context of Milo in which a kind cannot work."""
    sources = [ConfiguredSource(source, settings, environ) for source in settings.sources]
    problems = [
        ": ".join(filter(None, (source.of.name, source.context_problem)))
        for source in sources
        if source.context_problem
    ]
    if problems:
        raise ConfigError(problems)
    return sources


def at_server(upstream: Upstream, server: str) -> Upstream:
    """Return the API server with another URL and the same identity; unchanged if `server` is empty."""
    return replace(upstream, server=server) if server else upstream


def new_fleet(
    sources: Sequence[ConfiguredSource], settings: Settings, log: ChangeLog, observer: Callable[[str], Observer]
) -> Fleet:
    """Return the fleet of the configured sources. `observer` returns the observer of a source, given its name."""
    limits, grace_s = removal_limits(settings.removals), settings.not_ready_grace.total_seconds()
    fleet = Fleet(log)
    for source in sources:
        made = ClusterSource(
            fleet.changes,
            observer(source.of.name),
            SourcePolicy(
                pending_deletions=lambda: PendingDeletions(random.random),
                removals=limits,
                not_ready=NotReadyClusters(grace_s, limits if settings.removals.hold_not_ready else None),
                objects_limit=settings.watch.objects_limit,
                drain_timeout_s=settings.drain_timeout.total_seconds(),
            ),
            SourceDescription(
                name=source.of.name,
                kind=source.of.kind,
                context=source.context,
                ready_when=source.of.settings.ready_when,
                project_uids=source.of.settings.project_uids,
                states_addresses=source.of.settings.states_addresses,
                server=source.discovery.server if source.discovery else "",
            ),
            keys=source.followed.keys,
            reduce=source.followed.reduce,
        )
        fleet.add(made)
    return fleet


def _log_failure(key: str, error: Exception) -> None:
    del error  # the exception that is being handled
    log.exception("object not understood", object=key)


def removal_limits(removals: RemovalSettings) -> RemovalLimits:
    return RemovalLimits(
        count=removals.count,
        share=removals.share,
        verify_after_s=removals.verify_after.total_seconds(),
        per_second=removals.per_second,
    )
