"""A daemon with a listener of each kind, each with its own callers."""

import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec

import pytest

from milo_discovery import ClientCredentials, DiscoveryClient, PermissionDenied, Unauthenticated
from tests.end_to_end.process.conftest import Workspace
from tests.integration.grpc_server.test_tls import SPIFFE
from tests.support.certificates import LOOPBACK, Authority
from tests.support.ports import free_address

OPERATOR = "system:serviceaccount:milo:operator"
RULES = [
    {"name": "by-kernel", "who": {"listener": "peers", "uid": os.getuid()}, "clusters": {"names": ["alpha"]}},
    {"name": "by-certificate", "who": {"san": "uri:spiffe://example.com/ns/milo/*"}, "clusters": {"names": ["beta"]}},
    {"name": "by-token", "who": {"user": OPERATOR}, "clusters": "all"},
]


async def test_listeners_identify_their_callers_and_apply_their_rules(workspace: Workspace) -> None:
    authority = Authority()
    certificate, key = authority.server().write(workspace.directory, "server")
    ours, our_key = authority.issue(SPIFFE).write(workspace.directory, "operator")
    nobodys, nobodys_key = authority.issue(*LOOPBACK).write(workspace.directory, "nobody")
    ca = workspace.directory / "ca.crt"
    ca.write_bytes(authority.pem)
    token = workspace.directory / "token"
    token.write_text(workspace.sandbox.token(OPERATOR, audiences=["milo-discovery"]))
    network = free_address()
    tls = {"certificate": str(certificate), "key": str(key), "client_ca": str(ca)}
    listen = [
        {"name": "peers", "address": f"unix://{workspace.directory}/peers.sock", "peer_credentials": True},
        {"name": "net", "address": network, "tls": tls, "tokens": True},
        {"name": "tokens", "address": workspace.address, "tokens": True},
    ]
    for name in ("alpha", "beta"):
        workspace.sandbox.projects.create(name, ready=True)
    async with workspace.daemon(listen=listen, rights=RULES) as daemon:
        daemon.address = workspace.address
        await daemon.start()
        await daemon.wait_for_output('"synced"')

        async def seen(address: str, **files: object) -> list[str]:
            async with DiscoveryClient(address, credentials=ClientCredentials(**files)) as client:  # type: ignore[arg-type]
                return [cluster.name for cluster in await client.list()]

        assert await seen(f"unix://{workspace.directory}/peers.sock") == ["alpha"]
        assert await seen(network, ca_file=ca, certificate_file=ours, key_file=our_key) == ["beta"]
        nobody = {"ca_file": ca, "certificate_file": nobodys, "key_file": nobodys_key}
        assert await refused(seen(network, **nobody)) is PermissionDenied
        assert await seen(network, **nobody, token_file=token) == ["alpha", "beta"]
        assert await seen(workspace.address, token_file=token) == ["alpha", "beta"]
        assert await refused(seen(workspace.address)) is PermissionDenied
        token.write_text("made up")
        assert await refused(seen(workspace.address, token_file=token)) is Unauthenticated
        await daemon.terminate()
    refusals = [line for line in map(json.loads, daemon.output.splitlines()) if line.get("message") == "refused"]
    assert [line["reason"] for line in refusals] == ["NO_RULE", "NO_RULE", "TOKEN_REJECTED"]
    assert refusals[0]["caller"]["sans"] == ["dns:localhost", "ip:127.0.0.1"]


async def refused(call: object) -> type[Exception]:
    try:
        await call  # type: ignore[misc]
    except (PermissionDenied, Unauthenticated) as error:
        return type(error)
    raise AssertionError("the call was not rejected")


USERS = 1000
GROUP = "4242"
IDLE_USERS = """
import os, socket, sys, time
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connections = []
os.setgid(int(sys.argv[4]))
for uid in range(first, first + count):
    connections.append(socket.socket(socket.AF_UNIX))
    os.seteuid(uid)
    connections[-1].connect(path)
    os.seteuid(0)
    # After the preface and the settings, the client may be idle.
    connections[-1].sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + b"\\0\\0\\0\\4\\0\\0\\0\\0\\0")
    connections[-1].recv(1)
print("connected", flush=True)
time.sleep(3600)
"""
AS_USER = """
import asyncio, os, sys
from tests.support.ports import free_address
from milo_discovery import DiscoveryClient

async def main(address, call):
    async with DiscoveryClient(address) as client:
        if call == "list":
            print(*[cluster.name for cluster in await client.list()], flush=True)
            return
        async with client.watch() as watch:
            async for event in watch:
                print(event.cluster.name, flush=True)

os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
asyncio.run(main(*sys.argv[3:]))
"""


async def python(program: str, *arguments: str) -> Process:
    return await create_subprocess_exec(sys.executable, "-c", program, *arguments, stdout=PIPE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")
async def test_idle_connections_of_a_thousand_users_lock_out_no_new_user(workspace: Workspace) -> None:
    """The idle connections reach the listener's default limit; two further users still watch and list."""
    workspace.directory.chmod(0o711)
    peers = f"unix://{workspace.directory}/peers/d.sock"
    listen = [
        workspace.address,
        {"name": "peers", "address": peers, "peer_credentials": True, "mode": "0660", "group": GROUP},
    ]
    rights = [{"name": "all", "who": "everybody", "clusters": "all"}]
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(listen=listen, rights=rights) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        watching = await python(AS_USER, "60001", GROUP, peers, "watch")
        assert watching.stdout is not None
        assert b"alpha" in await watching.stdout.readline()
        crowd = await python(IDLE_USERS, peers.removeprefix("unix://"), "20000", str(USERS), GROUP)
        try:
            assert crowd.stdout is not None
            assert await daemon.during(crowd.stdout.readline()) == b"connected\n"
            listing = await python(AS_USER, "60002", GROUP, peers, "list")
            assert await daemon.during(listing.communicate()) == (b"alpha\n", None)
            workspace.sandbox.projects.create("beta", ready=True)
            assert b"beta" in await daemon.during(watching.stdout.readline()), "the stream did not report beta"
        finally:
            for process in (crowd, watching):
                process.send_signal(signal.SIGKILL)
                await process.communicate()
