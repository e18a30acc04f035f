"""Two daemons with one service account on one infrastructure cluster: neither revokes the other's credentials."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.recorder import Recorder
from tests.end_to_end.process.test_churn import is_good, token_source
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy

NAMES = [f"p-{number:02}" for number in range(20)]
FLAPPING, MOVING, STEADY = NAMES[:8], NAMES[8:12], NAMES[12:]
ROUNDS = 4


class Replica:
    """A daemon with a subscriber, behind connections of its own to Milo and to the infrastructure cluster."""

    def __init__(self, workspace: Workspace, source: Mapping[str, Any], name: str, **settings: Any) -> None:
        self._workspace = workspace
        self._source = source
        self._directory = workspace.directory / name
        self._settings = settings
        self.proxy = TcpProxy(workspace.sandbox.port)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Replica"]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.proxy)
            self._directory.mkdir()
            address = f"unix://{self._directory}/discovery.sock"
            source = {**self._source, "kubeconfig": str(self._rerouted(Path(self._source["kubeconfig"])))}
            settings = {
                "discovery_kubeconfig": str(self._rerouted(self._workspace.kubeconfig)),
                "listen": [address],
                "http_listen": "off",
                "connectivity": {"interval": "off"},
                "kubeconfigs": {"issuers": [source]},
                "removals": {"hold_not_ready": False},
                **self._settings,
            }
            config = self._directory / "config.yaml"
            config.write_text(yaml.safe_dump(settings))
            self.daemon = await stack.enter_async_context(
                DaemonProcess(address, "--config", str(config), is_forked=True)
            )
            await self.daemon.start()
            self.recorder = Recorder(self._directory.name, address, with_kubeconfigs=True)
            task = asyncio.create_task(self.recorder.run())
            stack.callback(task.cancel)
            yield self

    def _rerouted(self, kubeconfig: Path) -> Path:
        """Return a copy of a kubeconfig with the address of the replica's own connection."""
        text = kubeconfig.read_text()
        path = self._directory / kubeconfig.name
        path.write_text(text.replace(f":{self._workspace.sandbox.port}", f":{self.proxy.port}"))
        return path

    @property
    def engaged(self) -> set[str]:
        return set(self.recorder.view)

    @property
    def dead(self) -> list[str]:
        """The engaged clusters of which the subscriber has no kubeconfig, or one that was revoked."""
        held = {(given.cluster, given.uid): given.token for given in self.recorder.given}
        tokens = {name: held.get((name, uid)) for name, (uid, _) in self.recorder.view.items()}
        return [name for name, token in tokens.items() if token is None or not is_good(self._workspace, token)]


def replicas(workspace: Workspace, **settings: Mapping[str, Any]) -> list[Replica]:
    """Create the projects, and return daemons with the same service account, by their names."""
    for name in NAMES:
        workspace.sandbox.projects.create(name, labels={"env": "prod"}, ready=True)
    source = token_source(workspace)
    return [Replica(workspace, source, name, **given) for name, given in settings.items()]


def set_ready(workspace: Workspace, names: list[str], status: str) -> None:
    for name in names:
        workspace.sandbox.projects.set_condition(name, status)


async def agree(*expected: tuple[Replica, set[str]]) -> None:
    """Wait until each replica's subscriber has these clusters, each with a kubeconfig that its cluster accepts."""
    await eventually(
        lambda: all(replica.engaged == names and not replica.dead for replica, names in expected), within_s=60
    )


async def test_replicas_do_not_revoke_each_others_credentials_while_clusters_flap(workspace: Workspace) -> None:
    first, second = replicas(workspace, first={}, second={})
    async with first.running(), second.running():
        await agree((first, set(NAMES)), (second, set(NAMES)))
        steady = {replica: kubeconfigs_of(replica, STEADY) for replica in (first, second)}
        for _ in range(ROUNDS):
            set_ready(workspace, FLAPPING, "False")
            await agree((first, set(NAMES) - set(FLAPPING)), (second, set(NAMES) - set(FLAPPING)))
            set_ready(workspace, FLAPPING, "True")
            await agree((first, set(NAMES)), (second, set(NAMES)))
        assert {replica: kubeconfigs_of(replica, STEADY) for replica in (first, second)} == steady
        await second.daemon.terminate()
        # The check before may have passed with tokens of previous engagements, which were revoked since.
        await agree((first, set(NAMES)))


async def test_replica_whose_selector_loses_clusters_revokes_only_its_own_credentials(workspace: Workspace) -> None:
    every, prod = replicas(workspace, every={}, prod={"label_selector": "env=prod"})
    async with every.running(), prod.running():
        await agree((every, set(NAMES)), (prod, set(NAMES)))
        before = kubeconfigs_of(every, NAMES)
        for env, remaining in (("dev", set(NAMES) - set(MOVING)), ("prod", set(NAMES))):
            for name in MOVING:
                workspace.sandbox.projects.label(name, {"env": env})
            await agree((every, set(NAMES)), (prod, remaining))
            assert kubeconfigs_of(every, NAMES) == before


async def test_disconnected_replica_keeps_valid_credentials_while_clusters_flap(workspace: Workspace) -> None:
    first, second = replicas(workspace, first={}, second={})
    async with first.running(), second.running():
        await agree((first, set(NAMES)), (second, set(NAMES)))
        async with second.proxy.refusing():
            for status, names in (("False", set(NAMES) - set(FLAPPING)), ("True", set(NAMES))):
                set_ready(workspace, FLAPPING, status)
                await agree((first, names))
            # For clusters that flapped, the other replica has revoked only its own credentials.
            assert (second.engaged, second.dead) == (set(NAMES), [])
        await agree((first, set(NAMES)), (second, set(NAMES)))


def kubeconfigs_of(replica: Replica, names: list[str]) -> dict[str, str]:
    """Return the latest token of each cluster."""
    return {given.cluster: given.token for given in replica.recorder.given if given.cluster in names}
