"""A configured source of clusters: its mode, the API server of its clusters, and the task that follows it."""

import asyncio
import random
from collections.abc import Iterable, Mapping
from contextlib import aclosing

from milo_discoveryd.config import Settings
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.modes import mode as modes
from milo_discoveryd.modes.context import context_of
from milo_discoveryd.modes.mode import FileMode, FixedMode
from milo_discoveryd.registry.direct_fleet import DirectFleet
from milo_discoveryd.registry.fleet import SourceFleet
from milo_discoveryd.registry.reduced_fleet import ReducedFleet
from milo_discoveryd.state_file.encoding import StateOrigin
from milo_discoveryd.state_file.state_file import StateFile
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.issuers import Issuers
from milo_discoveryd.wiring.mode import (
    collections_of,
    discovery_of,
    keyed_target,
    mode_of,
    observe_file,
    place_of,
    project_of,
)
from milo_discoveryd.wiring.source import Discovery, FileDiscovery
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.reflector import ReflectorPolicy


class ConfiguredSource:
    def __init__(self, name: str, settings: Settings, environ: Mapping[str, str]) -> None:
        """`settings` are those of the source; `name` is empty if there is only one source: see `Settings.by_source`."""
        self.name = name
        self.settings = settings
        self._environ = environ
        self.project: Upstream = project_of(settings, environ)
        """The API server that serves the clusters, or whose identity and CA are used for them."""
        self._discovery = discovery_of(settings, environ)
        self.mode = mode_of(settings, self.project, self._discovery)
        self.files = KubeconfigFiles(self.mode) if isinstance(self.mode, FileMode) else None
        """The files of a source that has no API server."""

    @property
    def context(self) -> str:
        """The context of Milo that is watched; empty for a mode that does not depend on it."""
        if self._discovery is None or not modes.contexts(self.settings.mode):
            return ""
        return str(context_of(self._discovery.server))

    async def follow(self, fleet: SourceFleet, credentials: Issuers, epoch: str) -> None:
        """Follow the source until canceled. `epoch` identifies the run of the daemon."""
        if isinstance(self.mode, FixedMode):
            assert isinstance(fleet, DirectFleet)
            targets = [keyed_target(each, self.name) for each in self.mode.targets()]
            fleet.set_targets(targets, asyncio.get_running_loop().time())
            return
        assert isinstance(fleet, DirectFleet | ReducedFleet)
        if isinstance(self.mode, FileMode):
            assert self.files is not None
            assert isinstance(fleet, ReducedFleet)
            discovery_of_files = FileDiscovery(fleet, self._state_file(self.project), epoch)
            await discovery_of_files.run(self.files, observe_file(self.name), place_of(self.mode, self.name))
            return
        watch = self.settings.watch
        assert self._discovery is not None
        upstream = credentials.authenticated(self._discovery, watch.credentials)
        transport = Transport(
            upstream,
            response_limit=watch.response_limit,
            connect_timeout_s=watch.connect_timeout.total_seconds(),
            environ=self._environ,
        )
        policy = ReflectorPolicy(
            streaming_lists=watch.streaming_lists == "auto",
            page_size=watch.page_size,
            silence_s=watch.silence_limit.total_seconds(),
            liveness=LivenessPolicy(every_s=watch.liveness_interval.total_seconds()),
        )
        discovery = Discovery(
            fleet,
            self._state_file(upstream),
            epoch=epoch,
            policy=policy,
            jitter=random.random,
            connect_timeout_s=watch.connect_timeout.total_seconds(),
            request_timeout_s=watch.request_timeout.total_seconds(),
        )
        async with aclosing(transport):
            await discovery.run(
                transport, collections_of(self.settings, self.mode, self.name), place_of(self.mode, self.name)
            )

    def _state_file(self, upstream: Upstream) -> StateFile | None:
        directory = self.settings.state_directory
        origin = StateOrigin(upstream.server, self.settings.mode)
        return None if directory is None else StateFile(directory, origin, self.name)


def files_of(sources: Iterable[ConfiguredSource]) -> dict[str, KubeconfigFiles]:
    """Return the files of the sources that have no API server, by the source's name."""
    return {each.name: each.files for each in sources if each.files is not None}
