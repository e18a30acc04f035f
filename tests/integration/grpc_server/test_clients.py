"""The Python client and CLI authenticate at TLS and token listeners."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from milo_discovery import ClientCredentials, DiscoveryClient, SyncDiscoveryClient, Unauthenticated
from milo_discoveryd.identity.caller import Caller
from milo_sandbox import Sandbox
from tests.integration.grpc_server.conftest import Harness, ready
from tests.integration.grpc_server.test_peer_credentials import callers
from tests.integration.grpc_server.test_tls import SPIFFE, TlsFiles, tcp, tls_files
from tests.integration.grpc_server.test_tokens import OPERATOR, taking_tokens
from tests.support.eventually import eventually

__all__ = ["callers", "tls_files"]


def credentials(tls_files: TlsFiles) -> ClientCredentials:
    certificate, key = tls_files.ca.issue(SPIFFE).write(tls_files.directory, "client")
    (tls_files.directory / "serving.crt").write_bytes(tls_files.serving.pem)
    return ClientCredentials(ca_file=tls_files.directory / "serving.crt", certificate_file=certificate, key_file=key)


async def command(*arguments: str) -> str:
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from milo_discovery_cli.command_line import command; command()", *arguments, stdout=PIPE
    )
    output, _ = await run.communicate()
    assert run.returncode == 0
    return output.decode()


async def test_client_authenticates_with_certificate(callers: list[Caller], tls_files: TlsFiles) -> None:
    async with (
        tcp(tls_files) as harness,
        DiscoveryClient(harness.address, credentials=credentials(tls_files)) as client,
    ):
        assert len(await client.list()) == 1
        async with client.watch() as watch:
            await watch.synced()
            harness.seen(ready("beta"))
            assert [(await anext(watch)).cluster.name for _ in range(2)] == ["alpha", "beta"]

        def in_a_thread() -> int:
            with (
                SyncDiscoveryClient(harness.address, credentials=credentials(tls_files)) as client,
                client.watch() as watch,
            ):
                watch.synced()
                return len(client.list())

        assert await asyncio.to_thread(in_a_thread) == 2
    assert {caller.sans for caller in callers} == {("uri:spiffe://example.com/ns/milo/sa/operator",)}


async def test_client_stays_authenticated_after_its_token_file_is_replaced(
    callers: list[Caller], tmp_path: Path
) -> None:
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness:
        file = tmp_path / "token"
        file.write_text(sandbox.token(OPERATOR, audiences=["milo-discovery"], life=1.5))
        async with DiscoveryClient(address(harness), credentials=ClientCredentials(token_file=file)) as client:
            async with client.watch() as watch:
                await watch.synced()
                file.write_text(sandbox.token("another", audiences=["milo-discovery"]))
                await client.list()
                # The first token expires and its stream ends; the client continues with the second.
                await eventually(lambda: not watch.connected)
                harness.seen(ready("beta"))
                assert [(await anext(watch)).cluster.name for _ in range(2)] == ["alpha", "beta"]
            file.write_text("made up")
            with pytest.raises(Unauthenticated, match="rejected"):
                await client.list()
    assert [caller.user for caller in callers] == ["another"]


async def test_cli_authenticates_with_token_file_option(callers: list[Caller], tmp_path: Path) -> None:
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness:
        file = tmp_path / "token"
        file.write_text(sandbox.token(OPERATOR, audiences=["milo-discovery"]))
        assert "alpha" in await command("--address", address(harness), "list", "--token-file", str(file))
    assert [caller.user for caller in callers] == [OPERATOR]


def address(harness: Harness) -> str:
    return harness.address.replace("unix:", "unix://")
