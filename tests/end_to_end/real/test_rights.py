"""The shipped roles are sufficient and minimal: each missing verb is reported by name."""

from pathlib import Path

import pytest
import yaml

from milo_discovery import EngagementReason
from milo_discovery.testing import eventually
from tests.end_to_end.real.daemon_observer import DaemonObserver, disengaged, engaged
from tests.end_to_end.real.rights import Rights, shipped_role, user
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create, create_ready, delete

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def kubeconfig(server: RealApi) -> Path:
    return server.kubeconfig_as("operator")


@pytest.fixture
def rights(server: RealApi) -> Rights:
    return Rights(server, user("operator"))


@pytest.mark.parametrize("streaming_lists", ["auto", "off"])
async def test_shipped_role_is_sufficient_to_discover_clusters(
    server: RealApi, directory: Path, kubeconfig: Path, rights: Rights, streaming_lists: str
) -> None:
    await rights.give(shipped_role(server.mode))
    await create_ready(server, "alpha", "beta")
    source = {"streaming_lists": streaming_lists, "page_size": 1}
    async with DaemonObserver(server, directory, kubeconfig=kubeconfig, watch=source) as observer:
        await observer.expect(engaged("alpha"), engaged("beta"))

        await server.cut_off()
        await delete(server, "alpha")
        await server.compact()  # so that the daemon has to list again, and to confirm what is missing

        await observer.expect_last(disengaged("alpha", "DELETED"))


async def test_missing_watch_permission_makes_source_stale(
    server: RealApi, directory: Path, kubeconfig: Path, rights: Rights
) -> None:
    await rights.give(shipped_role(server.mode), without=["watch"])
    await create_ready(server, "alpha")
    async with DaemonObserver(server, directory, kubeconfig=kubeconfig) as observer:
        await observer.expect(engaged("alpha"))  # a paged list is allowed

        status = await observer.source("STALE", "Forbidden")

        assert "cannot watch resource" in status.message


async def test_missing_list_permission_prevents_paged_lists(
    server: RealApi, directory: Path, kubeconfig: Path, rights: Rights
) -> None:
    await rights.give(shipped_role(server.mode), without=["list"])
    await create_ready(server, "alpha")
    async with DaemonObserver(server, directory, kubeconfig=kubeconfig, watch={"streaming_lists": "off"}) as observer:
        status = await observer.source("STALE", "Forbidden")

        assert "cannot list resource" in status.message


async def test_missing_get_permission_leaves_deletions_unconfirmed(
    server: RealApi, directory: Path, kubeconfig: Path, rights: Rights
) -> None:
    await rights.give(shipped_role(server.mode), without=["get"])
    await create_ready(server, "alpha", "beta")
    async with DaemonObserver(server, directory, kubeconfig=kubeconfig) as observer:
        await observer.expect(engaged("alpha"), engaged("beta"))

        await delete(server, "alpha")

        await observer.explains("alpha", EngagementReason.CONFIRMING_DELETION, "cannot get resource")
        await observer.expect_last()

        await rights.give(shipped_role(server.mode))
        await observer.expect(disengaged("alpha", "DELETED"))


async def test_shipped_role_denies_writes_and_other_resources(server: RealApi, rights: Rights) -> None:
    await rights.give(shipped_role(server.mode))
    await create(server, "alpha")
    async with server.client_as("operator") as api:
        assert await api.status(server.collection) == 200
        assert await api.status("/api/v1/namespaces/default/secrets") == 403
        assert await api.status("/api/v1/namespaces") == 403
        for method, path, body in (
            ("PATCH", f"{server.collection}/alpha", {"metadata": {"labels": {"a": "b"}}}),
            ("PATCH", f"{server.collection}/alpha/status", {"status": {}}),
            ("DELETE", f"{server.collection}/alpha", None),
        ):
            assert await api.refusal(method, path, body) == 403


@pytest.mark.parametrize("mode", ["project"])
async def test_shipped_flow_schema_gives_the_daemon_a_priority_level_of_its_own(server: RealApi) -> None:
    """Operators that fill their caches at the level `global-default` then delay no confirming read."""
    schema = yaml.safe_load((ROOT / "deploy" / "overlays" / "core-control-plane" / "flow-schema.yaml").read_text())
    async with server.client() as api:
        made = await api.call("POST", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas", schema)
    daemon = server.client_as("milo-discoveryd")
    async with daemon:
        path = "/apis/resourcemanager.miloapis.com/v1alpha1/projects"

        async def is_matched() -> bool:
            return await daemon.header(path, "X-Kubernetes-PF-FlowSchema-UID") == made["metadata"]["uid"]

        await eventually(is_matched)
