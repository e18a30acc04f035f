"""From a credential issuer to a project's control plane: the whole daemon, configured by a file, with the sandbox."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_sandbox import Sandbox
from milo_sandbox.rights import EVERYTHING
from tests.integration.kubeconfigs.daemon import a_daemon
from tests.integration.watchers.api_server import ApiServer
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.unit.credentials.tokens import jwt

WORKLOAD = "system:serviceaccount:milo:discovery"


def credential(kubeconfig: bytes) -> tuple[str, str]:
    """Return the server and the token."""
    config = json.loads(kubeconfig)
    return config["clusters"][0]["cluster"]["server"], config["users"][0]["user"].get("token", "")


@asynccontextmanager
async def a_sandbox(tmp_path: Path, *, token_life: float = 600.0) -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=1, token_life=token_life) as sandbox:
        for name in ("alpha", "beta"):
            sandbox.projects.create(name, ready=True)
        sandbox.write_kubeconfig(tmp_path / "upstream")
        (tmp_path / "ca.pem").write_bytes(sandbox.ca_pem)
        yield sandbox


def sources(tmp_path: Path, *given: dict[str, Any], **more: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"kubeconfigs": {"issuers": list(given)}, **more}))
    return path


async def test_service_account_key_authenticates_daemon_and_issued_kubeconfigs(tmp_path: Path) -> None:
    async with a_sandbox(tmp_path) as sandbox:
        key = sandbox.write_service_account_key(tmp_path / "key.json")
        source = {
            "name": "datum",
            "type": "datum-service-account",
            "key_file": str(key),
            "ca_file": str(tmp_path / "ca.pem"),
        }
        config = sources(tmp_path, source, credentials="datum")
        (tmp_path / "upstream.token").write_text("not this one")
        async with a_daemon(tmp_path, file=config, discovery_kubeconfig=str(tmp_path / "upstream")) as stub:
            answers = [
                await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=name)) for name in ("alpha", "beta")
            ]
        servers, tokens = zip(*(credential(answer.kubeconfig.kubeconfig) for answer in answers), strict=True)
        assert servers == (sandbox.control_plane_url("alpha"), sandbox.control_plane_url("beta"))
        assert len(set(tokens)) == 1
        assert sandbox.tokens.subject(tokens[0]) == "sandbox-admin"
        assert sandbox.token_endpoint.answered == ["ok", "ok"]  # one token for the daemon itself


def exchanged(tmp_path: Path, sandbox: Sandbox, name: str, audience: str) -> dict[str, Any]:
    """Return an issuer that exchanges a token which is projected for an audience."""
    sandbox.rights.grant(WORKLOAD, [EVERYTHING])
    subject = tmp_path / f"{name}.token"
    subject.write_text(sandbox.tokens.issue(WORKLOAD, audiences=[audience]))
    return {
        "name": name,
        "type": "token-exchange",
        "token_url": f"{sandbox.url}/oauth/v2/token",
        "ca_file": str(tmp_path / "ca.pem"),
        "subject_token_file": str(subject),
    }


async def test_projected_token_alone_authenticates_daemon_and_issued_kubeconfigs(tmp_path: Path) -> None:
    async with a_sandbox(tmp_path) as sandbox:
        issuer = exchanged(tmp_path, sandbox, "workload", sandbox.url)
        config = sources(tmp_path, issuer, credentials="workload")
        (tmp_path / "upstream.token").write_text("not this one")
        tls = ssl.create_default_context(cadata=sandbox.ca_pem.decode())
        async with (
            a_daemon(tmp_path, file=config, discovery_kubeconfig=str(tmp_path / "upstream")) as stub,
            aiohttp.ClientSession() as session,
        ):
            answer = await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha"))
            server, token = credential(answer.kubeconfig.kubeconfig)
            headers = {"Authorization": f"Bearer {token}"}
            async with session.get(f"{server}/api/v1/namespaces", headers=headers, ssl=tls) as response:
                assert response.status == 200
        assert sandbox.tokens.subject(token) == WORKLOAD
        assert token != (tmp_path / "workload.token").read_text()


async def no_answer(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


EXCHANGE_FAULTS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "wrong audience": ({"aud": ["https://elsewhere.example.com"]}, "does not accept this subject token"),
    "expired": ({"exp": time.time() - 60}, "the process that writes the file must renew it"),
    "clock skew": ({"exp": time.time() + 7200, "nbf": time.time() + 3600}, "check this machine's clock"),
    "endpoint down": ("https://127.0.0.1:1/token", "127.0.0.1:1"),
    "slow": ("", "did not answer within 3 s"),
}


@pytest.mark.parametrize("fault", EXCHANGE_FAULTS)
async def test_failing_token_exchange_issues_nothing_and_affects_no_other_issuer(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milo_discoveryd.credentials.issuers.token_endpoint.TIMEOUT_S", 3.0)
    cause, expected = EXCHANGE_FAULTS[fault]
    async with a_sandbox(tmp_path) as sandbox, ApiServer(no_answer) as slow:
        sandbox.projects.label("alpha", {"issuer": "broken"})
        broken = exchanged(tmp_path, sandbox, "broken", sandbox.url)
        if isinstance(cause, dict):
            token = sandbox.tokens.issue(WORKLOAD, audiences=cause.get("aud", [sandbox.url]))
            (tmp_path / "broken.token").write_text(token if "aud" in cause else jwt(**cause))
        else:
            (tmp_path / "slow.pem").write_bytes(slow.pem)
            broken |= {"token_url": cause or f"{slow.url}/token", "ca_file": str(tmp_path / "slow.pem")}
        working = exchanged(tmp_path, sandbox, "working", sandbox.url)
        config = sources(tmp_path, {**broken, "label_selector": "issuer=broken"}, working)
        async with a_daemon(tmp_path, file=config, discovery_kubeconfig=str(tmp_path / "upstream")) as stub:
            refused = asyncio.ensure_future(stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha")))
            assert (await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="beta"))).kubeconfig.kubeconfig
            if fault == "slow":
                await eventually(lambda: slow.requests)
                assert not refused.done()  # another request was served while this one waits
            with pytest.raises(grpc.aio.AioRpcError, match=expected):
                await refused


async def test_bound_token_is_valid_until_disengagement(tmp_path: Path) -> None:
    async with a_sandbox(tmp_path) as sandbox:
        sandbox.add_service_account("milo", "operators")
        (tmp_path / "infrastructure").write_text(json.dumps(sandbox.infrastructure_kubeconfig()))
        source = {
            "name": "requested",
            "type": "token-request",
            "kubeconfig": str(tmp_path / "infrastructure"),
            "namespace": "milo",
            "service_account": "operators",
            "audiences": ["milo"],
        }
        tls = ssl.create_default_context(cadata=sandbox.ca_pem.decode())
        async with (
            a_daemon(tmp_path, file=sources(tmp_path, source), discovery_kubeconfig=str(tmp_path / "upstream")) as stub,
            aiohttp.ClientSession() as session,
        ):
            answer = await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha"))
            server, token = credential(answer.kubeconfig.kubeconfig)

            async def status() -> int:
                headers = {"Authorization": f"Bearer {token}"}
                async with session.get(f"{server}/api/v1/namespaces", headers=headers, ssl=tls) as response:
                    return response.status

            assert await status() == 200
            sandbox.projects.set_condition("alpha", "False", reason="Broken")
            await eventually(lambda: not sandbox.infrastructure.secret_names())
            assert await status() == 401


@pytest.mark.parametrize("form", [pb.KUBECONFIG_FORMAT_EXEC, pb.KUBECONFIG_FORMAT_EMBEDDED])
async def test_static_token_is_never_issued(tmp_path: Path, form: pb.KubeconfigFormat.ValueType) -> None:
    async with a_sandbox(tmp_path) as sandbox:
        (tmp_path / "static").write_text(json.dumps(sandbox.kubeconfig()))
        config = sources(tmp_path, {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True})
        async with a_daemon(tmp_path, file=config, discovery_kubeconfig=str(tmp_path / "static")) as stub:
            with pytest.raises(Exception, match=r"no renewable credential.*check kubeconfigs.issuers"):
                await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha", format=form))


async def test_daemon_without_credential_issuers_issues_nothing(tmp_path: Path) -> None:
    async with a_sandbox(tmp_path), a_daemon(tmp_path, discovery_kubeconfig=str(tmp_path / "upstream")) as stub:
        for form in (pb.KUBECONFIG_FORMAT_EXEC, pb.KUBECONFIG_FORMAT_EMBEDDED):
            with pytest.raises(Exception, match="no credential issuer is configured"):
                await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha", format=form))


async def test_tcp_listener_issues_no_kubeconfigs_without_a_rule(tmp_path: Path) -> None:
    rule = {"name": "local", "who": "everybody", "clusters": "all", "kubeconfigs": True}
    async with a_sandbox(tmp_path):
        for rights, is_issued in (([], False), ([rule], True)):
            port = free_port()
            config = sources(
                tmp_path,
                {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True},
                rights=rights,
                listen=[f"unix://{tmp_path}/d.sock", f"insecure://127.0.0.1:{port}"],
            )
            async with (
                a_daemon(tmp_path, file=config, discovery_kubeconfig=str(tmp_path / "upstream")) as local,
                grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            ):
                request = pb.IssueKubeconfigRequest(cluster="alpha")
                assert (await local.IssueKubeconfig(request)).kubeconfig.kubeconfig
                calling = DiscoveryServiceStub(channel).IssueKubeconfig(request)
                if is_issued:
                    assert (await calling).kubeconfig.kubeconfig
                else:
                    with pytest.raises(Exception, match="without rules in `rights`, TCP listeners do not grant"):
                        await calling
