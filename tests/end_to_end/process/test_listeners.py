"""A daemon with a listener of each kind, each with its own callers."""

import json
import os
import socket

from milo_discovery import ClientCredentials, DiscoveryClient, PermissionDenied, Unauthenticated
from tests.end_to_end.process.conftest import Workspace
from tests.integration.grpc_server.test_tls import SPIFFE
from tests.support.certificates import LOOPBACK, Authority

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
    with socket.create_server(("127.0.0.1", 0)) as free:
        network = f"127.0.0.1:{free.getsockname()[1]}"
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
