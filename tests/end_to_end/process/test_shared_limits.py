"""Shared limits: two callers, or two organizations, at their own limits leave capacity for a third."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc
from cryptography import x509

from milo_discovery import DiscoveryClient, TimedOut, Unavailable
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1 import discovery_pb2_grpc as pb_grpc
from milo_sandbox import Sandbox
from tests.end_to_end.process.conftest import Workspace
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.ports import free_address

OPERATOR = "system:serviceaccount:milo:operator"
HANG_S = 20
PLUGIN = """#!/bin/sh
case "$KUBERNETES_EXEC_INFO" in
  */quick/*) ;;
  *) touch "{asked}/$$"; exec sleep 120 ;;
esac
echo '{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",'
echo ' "status": {{"token": "secret", "expirationTimestamp": "{expires}"}}}}'
"""


class Caller:
    """A caller with certificates of one name, on any number of connections."""

    def __init__(self, sandbox: Sandbox, address: str, authority: Authority, name: str) -> None:
        pair = authority.issue(x509.DNSName(name))
        self._sandbox, self._address = sandbox, address
        self._credentials = grpc.ssl_channel_credentials(authority.pem, pair.key, pair.certificate)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[pb_grpc.DiscoveryServiceStub]:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.secure_channel(self._address, self._credentials, options) as channel:
            yield pb_grpc.DiscoveryServiceStub(channel)

    async def call(self, stub: pb_grpc.DiscoveryServiceStub) -> grpc.StatusCode:
        """Call with a token that no earlier call had; return the status."""
        token = self._sandbox.token(OPERATOR, audiences=["milo-discovery"])
        try:
            await stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=(("authorization", f"Bearer {token}"),))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def calls(self, connections: int, each: int) -> Counter[grpc.StatusCode]:
        async with AsyncExitStack() as stack:
            stubs = [await stack.enter_async_context(self.connection()) for _ in range(connections)]
            return Counter(await asyncio.gather(*(self.call(stub) for stub in stubs for _ in range(each))))


async def test_two_callers_at_their_limit_leave_token_reviews_for_a_third_caller(workspace: Workspace) -> None:
    authority = Authority()
    certificate, key = authority.server().write(workspace.directory, "server")
    ca = workspace.directory / "ca.crt"
    ca.write_bytes(authority.pem)
    address = free_address()
    tls = {"certificate": str(certificate), "key": str(key), "client_ca": str(ca)}
    listen: list[object] = [workspace.address, {"name": "net", "address": address, "tls": tls, "tokens": True}]
    review = {"kubeconfig": str(workspace.kubeconfig), "audiences": ["milo-discovery"]}
    async with workspace.daemon(listen=listen, token_review=review) as daemon:
        await daemon.start()
        mallory, oscar, alice = (
            Caller(workspace.sandbox, address, authority, f"{name}.example.com")
            for name in ("mallory", "oscar", "alice")
        )
        for statuses in await asyncio.gather(mallory.calls(5, 20), oscar.calls(5, 20)):
            assert statuses[grpc.StatusCode.UNAVAILABLE], "the callers have not reached their limits"
        *_, of_alice = await asyncio.gather(mallory.calls(5, 20), oscar.calls(5, 20), alice.calls(1, 10))
        assert of_alice == {grpc.StatusCode.OK: 10}


async def test_two_organizations_at_their_limit_delay_no_kubeconfig_of_a_third_organization(
    workspace: Workspace,
) -> None:
    asked, plugin = workspace.directory / "asked", workspace.directory / "plugin"
    asked.mkdir()
    expires = (datetime.now(UTC) + timedelta(minutes=10)).isoformat().replace("+00:00", "Z")
    plugin.write_text(PLUGIN.format(asked=asked, expires=expires))
    plugin.chmod(0o755)
    for number in range(20):
        for organization in ("shop", "bank"):
            workspace.sandbox.projects.create(f"{organization}-{number}", ready=True, organization=organization)
    workspace.sandbox.projects.create("quick", ready=True, organization="farm")
    issuer = {"name": "plugin", "type": "exec", "command": str(plugin), "per_cluster": True, "timeout": f"{HANG_S}s"}
    async with workspace.daemon(kubeconfigs={"issuers": [issuer]}) as daemon, workspace.client() as client:
        await daemon.start()
        async with asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(_kubeconfig(client, f"{organization}-{number}"))
                for organization in ("shop", "bank")
                for number in range(20)
            ]
            await daemon.during(eventually(partial(_has_several, asked)))
            async with asyncio.timeout(HANG_S / 2):
                assert (await client.issue_kubeconfig("quick")).cluster == "quick"
            for task in waiting:
                task.cancel()


async def _kubeconfig(client: DiscoveryClient, name: str) -> None:
    with suppress(Unavailable, TimedOut):
        await client.issue_kubeconfig(name)


def _has_several(asked: Path) -> bool:
    """Return whether the plugin was started for five credentials or more."""
    return len([*asked.iterdir()]) >= 5
