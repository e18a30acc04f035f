"""Faults of real servers, by row of the fault matrix: subscribers receive all changes and no false disengagement.

Most tests check the events of a subscriber up to a cluster that is created after the fault.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from milo_discovery import EngagementReason
from tests.end_to_end.real.bearers import await_bearer
from tests.end_to_end.real.daemon_observer import DaemonObserver, disengaged, engaged
from tests.end_to_end.real.rights import Rights, service_account, shipped_role, user
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready, delete, set_ready
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import MODES, Mode

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(params=["project-control-plane", pytest.param("project", marks=pytest.mark.nightly)])
def mode(request: pytest.FixtureRequest) -> Mode:
    """The mode: one per merge and both each night, since the servers of both modes share the tested code."""
    asked: Mode = request.param
    return asked


NAMES = ("alpha", "beta", "gamma")
ADVANCE = 500
"""More revisions than a starting server writes by itself."""
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
SECRETS = "/api/v1/namespaces/default/secrets"


async def test_f1_killed_server_disengages_nothing(server: RealApi, directory: Path) -> None:
    await create_ready(server, *NAMES)
    async with DaemonObserver(server, directory) as observer:
        await observer.expect(*map(engaged, NAMES))

        await server.stop()
        await observer.source("STALE")
        await server.start()
        await observer.source("STREAMING")

        await delete(server, "beta")
        await observer.expect_last(disengaged("beta", "DELETED"))


async def test_f1_terminated_server_disengages_nothing(servers: RealServers) -> None:
    """A server continues open watches for some time after SIGTERM, so both modes are tested concurrently."""

    async def in_mode(mode: Mode, directory: Path) -> None:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(servers.acquire(mode, directory))
            await create_ready(server, *NAMES)
            observer = await stack.enter_async_context(DaemonObserver(server, directory))
            await observer.expect(*map(engaged, NAMES))

            await server.terminate()
            await observer.source("STALE")
            await server.start()
            await observer.source("STREAMING")

            await observer.expect_last()

    with TemporaryDirectory(prefix="milo-") as one, TemporaryDirectory(prefix="milo-") as other:
        async with asyncio.TaskGroup() as both:
            for mode, directory in zip(MODES, (one, other), strict=True):
                both.create_task(in_mode(mode, Path(directory)))


async def test_f11_changes_lost_by_compaction_are_found_by_list(server: RealApi, directory: Path) -> None:
    await create_ready(server, *NAMES)
    async with DaemonObserver(server, directory) as observer:
        await observer.expect(*map(engaged, NAMES))

        await server.cut_off()
        await delete(server, "alpha")
        await create_ready(server, "delta")
        await delete(server, "beta")
        await create_ready(server, "beta")
        await observer.source("STALE")
        await server.compact()

        await observer.expect_last(
            disengaged("alpha", "DELETED"),
            disengaged("beta", "REPLACED"),
            engaged("beta"),
            engaged("delta"),
        )
        assert '"Expired"' in observer.daemon.output


@pytest.mark.parametrize("mode", ["project-control-plane"])
async def test_f17_revoked_token_makes_source_stale_until_renewed(server: RealApi, directory: Path) -> None:
    """The token is bound to a Secret, as with TokenRequest, and is revoked with it."""
    async with server.api() as api:
        for path in (f"{ACCOUNTS}/discovery", f"{SECRETS}/first", f"{SECRETS}/second"):
            await api.forget(path)
        await api.call("POST", ACCOUNTS, {"metadata": {"name": "discovery"}})
    await Rights(server, service_account("default", "discovery")).give(shipped_role(server.mode))
    file = directory / "token"
    file.write_text(token := await bound_token(server, "first"))
    kubeconfig = server.kubeconfig_with({"tokenFile": str(file)}, "by-token-file")
    await create_ready(server, *NAMES)
    async with DaemonObserver(server, directory, kubeconfig=kubeconfig) as observer:
        await observer.expect(*map(engaged, NAMES))

        async with server.api() as api:
            await api.forget(f"{SECRETS}/first")
        await await_bearer(server, token, None)
        await server.drop_watches()
        await observer.source("STALE", "Unauthorized")
        await delete(server, "gamma")
        assert await observer.engaged_names() == list(NAMES)

        file.write_text(await bound_token(server, "second"))
        await observer.source("STREAMING")
        await observer.expect_last(disengaged("gamma", "DELETED"))
        assert token not in observer.daemon.output


async def test_f18_revoked_permissions_make_source_stale_until_granted(server: RealApi, directory: Path) -> None:
    rights = Rights(server, user("discovery"))
    await rights.give(shipped_role(server.mode))
    await create_ready(server, *NAMES)
    async with DaemonObserver(server, directory, kubeconfig=server.kubeconfig_as("discovery")) as observer:
        await observer.expect(*map(engaged, NAMES))

        await rights.withdraw()
        await server.drop_watches()
        status = await observer.source("STALE", "Forbidden")
        assert "discovery" in status.message
        await delete(server, "alpha")
        assert await observer.engaged_names() == list(NAMES)

        await rights.give(shipped_role(server.mode))
        await observer.source("STREAMING")
        await observer.expect_last(disengaged("alpha", "DELETED"))


async def test_f19_deleted_crd_makes_source_stale_and_recreated_objects_are_new_clusters(
    server: RealApi, directory: Path
) -> None:
    await create_ready(server, *NAMES)
    async with DaemonObserver(server, directory, removals={"verify_after": "2s"}) as observer:
        await observer.expect(*map(engaged, NAMES))

        await server.cut_off()  # otherwise the daemon would observe the deletion of each object
        definition = await server.delete_definition()
        await server.reconnect()
        await observer.source("STALE", "NotServing")
        assert await observer.engaged_names() == list(NAMES)

        await server.cut_off()
        await server.define_again(definition)
        await create_ready(server, *NAMES)
        await server.reconnect()
        await observer.source("CATCHING_UP", "RemovalsHeld")
        await observer.source("STREAMING")
        await observer.expect_last(
            *(event for name in NAMES for event in (disengaged(name, "REPLACED"), engaged(name)))
        )


@pytest.mark.parametrize("backup", ["none", "from-before"])
async def test_f20_f22_server_whose_resource_versions_went_back_disengages_nothing(
    server: RealApi, directory: Path, backup: str
) -> None:
    """An empty or restored etcd behind the same address: its responses are consistent, and all wrong."""
    await create_ready(server, "alpha")
    saved = await server.snapshot(directory.name)
    await create_ready(server, "beta", "gamma")
    for _ in range(ADVANCE):
        await server.etcd.tick()
    await set_ready(server, "gamma", False)
    await set_ready(server, "gamma", True)
    settings = {"watch": {"silence_limit": "5s"}, "removals": {"verify_after": "2s"}}
    async with DaemonObserver(server, directory, **settings) as observer:
        await observer.expect(*map(engaged, NAMES))

        await server.restore(saved if backup == "from-before" else None)

        await observer.source("CATCHING_UP", "RemovalsHeld", within_s=90)
        await observer.explains("beta", EngagementReason.CONFIRMING_DELETION, "versions went back")
        await observer.expect_last()
        assert await observer.engaged_names() == [*NAMES, "the-last"]


async def test_f20_deleted_fleet_is_disengaged_after_second_list(server: RealApi, directory: Path) -> None:
    """All objects are deleted while the daemon is cut off; the server's versions increase."""
    await create_ready(server, *NAMES)
    removals = {"verify_after": "2s"}
    async with DaemonObserver(server, directory, removals=removals) as observer:
        await observer.expect(*map(engaged, NAMES))

        await server.cut_off()
        for name in NAMES:
            await delete(server, name)
        await server.compact()  # so that only a list shows the deletions

        await observer.source("CATCHING_UP", "RemovalsHeld")
        await observer.expect(*(disengaged(name, "DELETED") for name in NAMES))
        await observer.source("STREAMING")


async def bound_token(server: RealApi, secret: str) -> str:
    async with server.api() as api:
        made = await api.call("POST", SECRETS, {"metadata": {"name": secret}})
        reference = {"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": made["metadata"]["uid"]}
        answer = await api.call(
            "POST",
            f"{ACCOUNTS}/discovery/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": 600, "boundObjectRef": reference},
            },
        )
    return str(answer["status"]["token"])
