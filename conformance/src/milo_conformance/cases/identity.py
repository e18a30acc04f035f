"""Cases for authentication of the daemon and of callers: TLS, tokens, client certificates, the owner of a socket."""

from __future__ import annotations

import os
from functools import partial

from milo_conformance.certificates import Authority
from milo_conformance.daemon import ScriptedStream, TlsFiles, kubeconfig
from milo_conformance.failure import CaseFailed
from milo_conformance.run import Feature, Profile, Run, case
from milo_discovery.v1 import discovery_pb2 as pb

identity = partial(case, Profile.IDENTITY)


def write(run: Run, name: str, content: bytes) -> str:
    """Replace a file atomically, as a kubelet does; return its path."""
    path = run.daemon.directory / name
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)
    return str(path)


def expect_token(stream: ScriptedStream, token: str) -> None:
    found = stream.metadata.get("authorization", "")
    if found != f"Bearer {token}":
        raise CaseFailed(f"the stream was opened with the authorization {found!r}, not 'Bearer {token}'")


async def reconnects(run: Run, stream: ScriptedStream) -> None:
    """Cut the connection, and wait for a stream on another one."""
    run.daemon.relay.cut()
    stream = await run.stream(resuming=stream.revision)
    await stream.send()
    await run.nothing_else(stream)


async def trusts_only(run: Run, authority: Authority, false: TlsFiles, why: str) -> None:
    """Serve a certificate that must not be trusted, and then one that must be trusted."""
    run.daemon.use_tls(false)
    await run.start({"MILO_DISCOVERY_CA_FILE": write(run, "ca.pem", authority.certificate)})
    await run.refuses_server(why)
    run.daemon.use_tls(authority.server("localhost"))
    await run.daemon.serve()
    await run.nothing_else(await run.synced("a"))


@identity(
    "A daemon whose certificate was signed by a different CA is not trusted",
    why="Such a server would receive the token, and decide in which clusters the operator works.",
    demands="Verify its certificate",
)
async def tls_of_another_ca(run: Run) -> None:
    why = "although another CA signed the daemon's certificate"
    await trusts_only(run, Authority(), Authority().server("localhost"), why)


@identity(
    "A daemon whose certificate is for a different name is not trusted",
    why="A CA issues certificates to many servers, and this one was issued to a different server.",
    demands="and that it is for the host of the\n// address",
)
async def tls_for_another_name(run: Run) -> None:
    authority = Authority()
    why = "although the daemon's certificate is for another name"
    await trusts_only(run, authority, authority.server("another.example"), why)


@identity(
    "A token is sent with each call",
    why="The token identifies the caller, and so determines which clusters the caller may see.",
    demands="send `authorization: Bearer TOKEN` with each call",
)
async def token(run: Run) -> None:
    await run.start({"MILO_DISCOVERY_TOKEN_FILE": write(run, "token", b"one\n")})
    stream = await run.synced("a")
    expect_token(stream, "one")

    async def issue(_: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        return pb.IssueKubeconfigResponse(kubeconfig=kubeconfig("a", "issued"))

    run.daemon.answers["IssueKubeconfig"] = issue
    await run.answer("kubeconfig a", "ISSUED a token=issued")
    sent = (await run.daemon.wait_for_call("IssueKubeconfig")).metadata.get("authorization", "")
    if sent != "Bearer one":
        raise CaseFailed(f"IssueKubeconfig was called with the authorization {sent!r}, not 'Bearer one'")
    await run.nothing_else(stream)


@identity(
    "After the token file is renewed, the new token is sent",
    why="Tokens of service accounts are replaced in place, about every hour.",
    demands="read a token's file for each call",
)
async def renewed_token(run: Run) -> None:
    await run.start({"MILO_DISCOVERY_TOKEN_FILE": write(run, "token", b"one")})
    stream = await run.synced("a")
    write(run, "token", b"two")
    stream = await run.resumed(stream)
    expect_token(stream, "two")


@identity(
    "A token is never sent without TLS",
    why="Everyone on the network path could read the token, and use it.",
    demands="never over TCP without TLS",
)
async def token_without_tls(run: Run) -> None:
    settings = {"MILO_DISCOVERY_TOKEN_FILE": write(run, "token", b"one")}
    await run.refuses_settings(settings, "although the token would be sent unencrypted", is_tcp=True)


@identity(
    "A client certificate is presented, and read again when it is renewed",
    why="A daemon that requires certificates refuses the expired one on the next connection.",
    demands="or present a client certificate",
)
async def client_certificate(run: Run) -> None:
    servers, first, second = Authority(), Authority(), Authority()
    server = servers.server("localhost")
    run.daemon.use_tls(TlsFiles(server.certificate, server.key, first.certificate))
    own = first.client("operator")
    await run.start(
        {
            "MILO_DISCOVERY_CA_FILE": write(run, "ca.pem", servers.certificate),
            "MILO_DISCOVERY_CERTIFICATE_FILE": write(run, "client.pem", own.certificate),
            "MILO_DISCOVERY_KEY_FILE": write(run, "client.key", own.key),
        }
    )
    stream = await run.synced("a")
    run.daemon.use_tls(TlsFiles(server.certificate, server.key, second.certificate))
    await run.daemon.serve()
    own = second.client("operator")
    write(run, "client.key", own.key)
    write(run, "client.pem", own.certificate)
    await reconnects(run, stream)


@identity(
    "A renewed CA is read again",
    why="CAs are replaced too. A client that keeps the old CA does not trust a daemon whose certificate is signed by "
    "the new one.",
    demands="the others for each connection",
)
async def renewed_ca(run: Run) -> None:
    first, second = Authority(), Authority()
    run.daemon.use_tls(first.server("localhost"))
    await run.start({"MILO_DISCOVERY_CA_FILE": write(run, "ca.pem", first.certificate)})
    stream = await run.synced("a")
    run.daemon.use_tls(second.server("localhost"))
    await run.daemon.serve()
    write(run, "ca.pem", second.certificate)
    await reconnects(run, stream)


@identity(
    "A socket of another user is not trusted",
    why="Another container of the pod can put a socket in the daemon's place.",
    demands="verify which user serves it",
    needs=Feature.SERVER_UID,
)
async def server_uid(run: Run) -> None:
    await run.refuses_settings(
        {"MILO_DISCOVERY_SERVER_UID": str(os.getuid() + 1)}, "although the socket's server runs as another user"
    )


@identity(
    "A socket of the expected user is used",
    why="A check that also refuses the daemon's own user would make the client useless.",
    demands="verify which user serves it",
    needs=Feature.SERVER_UID,
)
async def expected_server_uid(run: Run) -> None:
    await run.start({"MILO_DISCOVERY_SERVER_UID": str(os.getuid())})
    stream = await run.synced("a")
    await reconnects(run, stream)
