"""Faults of real servers, by their rows in the fault matrix: nobody is disengaged by mistake, and what is true is told.

Each is judged by what a subscriber is given from the first cluster to one that is made when all is over.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from milo_discovery import EngagementReason
from tests.end_to_end.real.bearers import until_bearer_is
from tests.end_to_end.real.rights import Rights, service_account, shipped_role, user
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready, delete, set_ready
from tests.end_to_end.real.witness import Witness, disengaged, engaged
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import MODES, Mode

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAMES = ("alpha", "beta", "gamma")
ADVANCE = 500
"""More revisions than a server writes of its own accord while it starts."""
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
SECRETS = "/api/v1/namespaces/default/secrets"


async def test_f1_killed_server_disengages_nothing(server: RealApi, folder: Path) -> None:
    await create_ready(server, *NAMES)
    async with Witness(server, folder) as witness:
        await witness.told(*map(engaged, NAMES))

        await server.stop()
        await witness.source("STALE")
        await server.start()
        await witness.source("STREAMING")

        await delete(server, "beta")
        await witness.told_in_the_end(disengaged("beta", "DELETED"))


async def test_f1_terminated_server_disengages_nothing(servers: RealServers) -> None:
    """It lets open watches live for a minute, so both modes have it at the same time."""

    async def in_mode(mode: Mode, folder: Path) -> None:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(servers.lend(mode, folder))
            await create_ready(server, *NAMES)
            witness = await stack.enter_async_context(Witness(server, folder))
            await witness.told(*map(engaged, NAMES))

            await server.terminate()
            await witness.source("STALE")
            await server.start()
            await witness.source("STREAMING")

            await witness.told_in_the_end()

    with TemporaryDirectory(prefix="milo-") as one, TemporaryDirectory(prefix="milo-") as other:
        async with asyncio.TaskGroup() as both:
            for mode, folder in zip(MODES, (one, other), strict=True):
                both.create_task(in_mode(mode, Path(folder)))


async def test_f11_changes_lost_by_compaction_are_found_by_list(server: RealApi, folder: Path) -> None:
    await create_ready(server, *NAMES)
    async with Witness(server, folder) as witness:
        await witness.told(*map(engaged, NAMES))

        await server.cut_off()
        await delete(server, "alpha")
        await create_ready(server, "delta")
        await delete(server, "beta")
        await create_ready(server, "beta")
        await witness.source("STALE")
        await server.compact()

        await witness.told_in_the_end(
            disengaged("alpha", "DELETED"),
            disengaged("beta", "REPLACED"),
            engaged("beta"),
            engaged("delta"),
        )
        assert '"Expired"' in witness.daemon.said


@pytest.mark.parametrize("mode", ["project-control-plane"])
async def test_f17_revoked_token_is_stale_until_renewed(server: RealApi, folder: Path) -> None:
    """The token is bound to a Secret, as TokenRequest has it, and dies with it."""
    async with server.api() as api:
        for path in (f"{ACCOUNTS}/discovery", f"{SECRETS}/first", f"{SECRETS}/second"):
            await api.forget(path)
        await api.call("POST", ACCOUNTS, {"metadata": {"name": "discovery"}})
    await Rights(server, service_account("default", "discovery")).give(shipped_role(server.mode))
    file = folder / "token"
    file.write_text(token := await bound_token(server, "first"))
    kubeconfig = server.kubeconfig_with({"tokenFile": str(file)}, "by-token-file")
    await create_ready(server, *NAMES)
    async with Witness(server, folder, kubeconfig=kubeconfig) as witness:
        await witness.told(*map(engaged, NAMES))

        async with server.api() as api:
            await api.forget(f"{SECRETS}/first")
        await until_bearer_is(server, token, None)
        await server.drop_watches()
        await witness.source("STALE", "Unauthorized")
        await delete(server, "gamma")
        assert await witness.engaged_names() == list(NAMES)

        file.write_text(await bound_token(server, "second"))
        await witness.source("STREAMING")
        await witness.told_in_the_end(disengaged("gamma", "DELETED"))
        assert token not in witness.daemon.said


async def test_f18_withdrawn_rights_are_stale_until_restored(server: RealApi, folder: Path) -> None:
    rights = Rights(server, user("discovery"))
    await rights.give(shipped_role(server.mode))
    await create_ready(server, *NAMES)
    async with Witness(server, folder, kubeconfig=server.kubeconfig_as("discovery")) as witness:
        await witness.told(*map(engaged, NAMES))

        await rights.withdraw()
        await server.drop_watches()
        told = await witness.source("STALE", "Forbidden")
        assert "discovery" in told.message
        await delete(server, "alpha")
        assert await witness.engaged_names() == list(NAMES)

        await rights.give(shipped_role(server.mode))
        await witness.source("STREAMING")
        await witness.told_in_the_end(disengaged("alpha", "DELETED"))


async def test_f19_deleted_crd_is_stale_and_new_objects_are_new_clusters(server: RealApi, folder: Path) -> None:
    await create_ready(server, *NAMES)
    async with Witness(server, folder, removals={"verify_after": "2s"}) as witness:
        await witness.told(*map(engaged, NAMES))

        await server.cut_off()  # else it would see each object deleted, as each then is
        definition = await server.undefine()
        await server.reconnect()
        await witness.source("STALE", "NotServing")
        assert await witness.engaged_names() == list(NAMES)

        await server.cut_off()
        await server.define_again(definition)
        await create_ready(server, *NAMES)
        await server.reconnect()
        await witness.source("CATCHING_UP", "RemovalsHeld")
        await witness.source("STREAMING")
        await witness.told_in_the_end(
            *(event for name in NAMES for event in (disengaged(name, "REPLACED"), engaged(name)))
        )


@pytest.mark.parametrize("backup", ["none", "from-before"])
async def test_f20_f22_server_whose_versions_went_back_disengages_nothing(
    server: RealApi, folder: Path, backup: str
) -> None:
    """An empty etcd, or one from a backup, behind the same address: it answers truthfully, and all wrong."""
    await create_ready(server, "alpha")
    saved = await server.snapshot(folder.name)
    await create_ready(server, "beta", "gamma")
    for _ in range(ADVANCE):
        await server.etcd.tick()
    await set_ready(server, "gamma", False)
    await set_ready(server, "gamma", True)
    async with Witness(server, folder, source={"silence_limit": "5s"}) as witness:
        await witness.told(*map(engaged, NAMES))

        await server.restore(saved if backup == "from-before" else None)

        status = await witness.source("CATCHING_UP", "RemovalsHeld", within_s=90)
        assert "versions went back" in status.message
        await witness.explains("beta", EngagementReason.CONFIRMING_DELETION, "versions went back")
        await witness.told_in_the_end()
        assert await witness.engaged_names() == [*NAMES, "the-last"]


async def test_f20_deleted_fleet_is_disengaged_after_second_list(server: RealApi, folder: Path) -> None:
    """All deleted while the daemon was cut off, on the same server: its versions went on."""
    await create_ready(server, *NAMES)
    removals = {"verify_after": "2s"}
    async with Witness(server, folder, removals=removals) as witness:
        await witness.told(*map(engaged, NAMES))

        await server.cut_off()
        for name in NAMES:
            await delete(server, name)
        await server.compact()  # so that a list is all there is to tell of it

        await witness.source("CATCHING_UP", "RemovalsHeld")
        await witness.told(*(disengaged(name, "DELETED") for name in NAMES))
        await witness.source("STREAMING")


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
