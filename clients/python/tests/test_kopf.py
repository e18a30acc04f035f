"""Tests of kopf operators, one per engaged cluster, with control planes of the sandbox."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf
import pytest

from milo_discovery import BackoffPolicy, Fleet, UnusableKubeconfig
from milo_discovery.kopf import _Sessions, run
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.testing import ControlPlane, FakeDiscovery, MiloSandbox, eventually

pytestmark = pytest.mark.timeout(240)

CONFIG_MAPS = "v1/configmaps"
AT_ONCE = BackoffPolicy(initial=timedelta(milliseconds=1), maximum=timedelta(milliseconds=5))


def config_map(name: str = "one", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"greet": "yes", **labels}},
        "data": {"a": "1"},
    }


@pytest.fixture(autouse=True)
def user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the lookup of the user's name fail, as in a container whose user is only a number."""

    def fail() -> str:
        raise KeyError

    monkeypatch.setattr("getpass.getuser", fail)


@pytest.fixture
def registry() -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.networking.error_backoffs = [0.1]

    @kopf.on.create("v1", "configmaps", labels={"greet": "yes"}, registry=registry)
    async def greet(memo: kopf.Memo, patch: kopf.Patch, **_: Any) -> None:
        patch.metadata.labels["greeted-in"] = memo.cluster.name

    return registry


@asynccontextmanager
async def operating(discovery: FakeDiscovery, registry: kopf.OperatorRegistry) -> AsyncIterator[None]:
    running = asyncio.create_task(run(Fleet(discovery, backoff=AT_ONCE), registry))
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def greeted_in(control_plane: ControlPlane, name: str = "one") -> str:
    labels: dict[str, str] = control_plane.get(CONFIG_MAPS, name)["metadata"]["labels"]
    return labels.get("greeted-in", "")


def move(discovery: FakeDiscovery, to: ControlPlane) -> None:
    """Give the cluster alpha another endpoint."""
    cluster, _ = discovery._engaged["alpha"]
    discovery._engaged["alpha"] = cluster, to
    discovery.update("alpha", endpoint=to.access().server)


def operators() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("kopf ")}


async def test_kopf_handlers_run_in_each_engaged_cluster(milo_sandbox: MiloSandbox, registry: kopf.OperatorRegistry):
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    discovery = FakeDiscovery(alpha)
    alpha.create(config_map())
    beta.create(config_map())
    async with operating(discovery, registry):
        await eventually(lambda: greeted_in(alpha) == "alpha")
        discovery.engage(beta)
        await eventually(lambda: greeted_in(beta) == "beta")
        assert operators() == {"kopf alpha", "kopf beta"}
        discovery.disengage("alpha")
        await eventually(lambda: operators() == {"kopf beta"})
        beta.create(config_map("two"))
        await eventually(lambda: greeted_in(beta, "two") == "beta")
    assert operators() == set()


async def test_kopf_operator_uses_renewed_credentials(milo_sandbox: MiloSandbox, registry: kopf.OperatorRegistry):
    (alpha,) = milo_sandbox.create_control_planes("alpha")
    discovery = FakeDiscovery()
    discovery.engage(alpha, lifetime=timedelta(seconds=2))
    # Renewed credentials are valid for longer: on a busy machine, a request can take two seconds.
    discovery.lifetimes["alpha"] = timedelta(hours=1)
    async with operating(discovery, registry):
        names = (f"next-{number}" for number in count())

        async def is_renewed() -> bool:
            name = next(names)
            alpha.create(config_map(name))
            await eventually(lambda: greeted_in(alpha, name) == "alpha")  # a request makes kopf check the expiry
            return discovery.issued > 0

        await eventually(is_renewed)
        alpha.create(config_map("last"))
        await eventually(lambda: greeted_in(alpha, "last") == "alpha")


async def test_kopf_operator_follows_a_cluster_that_moves(milo_sandbox: MiloSandbox, registry: kopf.OperatorRegistry):
    former, present = milo_sandbox.create_control_planes("alpha", "other")
    discovery = FakeDiscovery(former)
    async with operating(discovery, registry):
        former.create(config_map())
        await eventually(lambda: greeted_in(former) == "alpha")
        move(discovery, present)
        present.create(config_map())
        await eventually(lambda: greeted_in(present) == "alpha")
        former.create(config_map("two"))
        present.create(config_map("two"))
        await eventually(lambda: greeted_in(present, "two") == "alpha")
    assert greeted_in(former, "two") == ""


async def test_request_of_kopf_is_not_sent_if_the_cluster_moves_while_it_waits_for_a_connection(
    milo_sandbox: MiloSandbox, monkeypatch: pytest.MonkeyPatch
):
    former, present = milo_sandbox.create_control_planes("alpha", "other")
    discovery = FakeDiscovery(former)
    fleet = Fleet(discovery)
    connect = aiohttp.TCPConnector.connect
    async with fleet:
        await fleet.synced()
        alpha = fleet.get("alpha")

        async def connected_late(*given: Any, **named: Any) -> Any:
            connection = await connect(*given, **named)
            move(discovery, present)
            await eventually(lambda: alpha.current.endpoint == present.access().server)
            return connection

        async with alpha.credentials() as renewer:
            sessions = _Sessions(renewer, asyncio.get_running_loop())
            session = await sessions.create()
            monkeypatch.setattr(aiohttp.TCPConnector, "connect", connected_late)
            with pytest.raises(RuntimeError, match="the request was not sent: cluster alpha has moved"):
                await session.aiohttp_session.get(f"{session.server}/api/v1/namespaces")
            assert session.aiohttp_session.closed, "kopf would not log in again"
            again = await sessions.create()
            assert again.server == present.access().server
            await sessions.close()


# kopf leaves coroutines unawaited if the startup of an operator fails.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_failed_kopf_operator_is_restarted(milo_sandbox: MiloSandbox, registry: kopf.OperatorRegistry):
    (alpha,) = milo_sandbox.create_control_planes("alpha")
    starts = 0

    @kopf.on.startup(registry=registry)
    async def fail_once(**_: Any) -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise kopf.PermanentError("failed on purpose")

    async with operating(FakeDiscovery(alpha), registry):
        alpha.create(config_map())
        await eventually(lambda: greeted_in(alpha) == "alpha")
    assert starts == 2


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_unexpected_exit_of_one_operator_does_not_end_others(
    milo_sandbox: MiloSandbox, registry: kopf.OperatorRegistry
):
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    exits = 0

    @kopf.on.startup(registry=registry)
    async def exit_once(memo: kopf.Memo, **_: Any) -> None:
        nonlocal exits
        if memo.cluster.name == "alpha" and exits == 0:
            exits += 1
            sys.exit(3)

    async with operating(FakeDiscovery(alpha, beta), registry):
        for plane in (beta, alpha):
            plane.create(config_map())
        await eventually(lambda: (greeted_in(alpha), greeted_in(beta)) == ("alpha", "beta"))
    assert exits == 1


async def test_kubeconfig_with_a_tls_server_name_is_refused(registry: kopf.OperatorRegistry):
    access = KubeconfigAccess(server="https://10.0.0.1", token="t", tls_server_name="api.test")

    class Renewer:
        async def access(self) -> KubeconfigAccess:
            return access

        @property
        def cache(self) -> Any:
            return SimpleNamespace(current=SimpleNamespace(expires_at=None))

    class Cluster:
        name = "alpha"
        current = SimpleNamespace(endpoint=access.server)

        def credentials(self) -> Any:
            return nullcontext(Renewer())

        def sync_api_client(self) -> Any:
            return nullcontext()

    class OneCluster:
        def on_engage(self, handler: Any) -> None:
            self.handler = handler

        async def run(self) -> None:
            await self.handler(Cluster())

    with pytest.raises(UnusableKubeconfig, match=r"tls-server-name 'api\.test', which kopf does not support"):
        await run(OneCluster(), registry)
    sessions = _Sessions(Renewer(), asyncio.get_running_loop())
    with pytest.raises(kopf.PermanentError, match="tls-server-name"):
        await sessions.create()
