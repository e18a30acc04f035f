"""No secret is leaked: every issued token is searched for in all output of the daemon at level debug, under faults."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_sandbox import Sandbox
from tests.end_to_end.process.daemon import DaemonProcess
from tests.support.eventually import eventually


class Secrets:
    """The secrets: issued tokens, and the lines of private keys."""

    def __init__(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: set[str] = set()
        issue = sandbox.tokens.issue

        def noted(*arguments: Any, **options: Any) -> str:
            token = issue(*arguments, **options)
            self.found.add(token.rpartition(".")[2])  # the signature, without which a token is invalid
            return token

        monkeypatch.setattr(sandbox.tokens, "issue", noted)

    def add_key(self, key_file: Path) -> None:
        lines = json.loads(key_file.read_text())["private_key"].splitlines()
        self.found.update(line for line in lines if len(line) > 60)

    def in_(self, text: str) -> list[str]:
        return [secret for secret in self.found if secret in text]


async def calls(address: str, outputs: list[str]) -> list[str]:
    """Send calls whose responses could contain secrets; return the kubeconfigs, and record all other responses."""
    handed: list[str] = []
    async with grpc.aio.insecure_channel(address.replace("unix://", "unix:")) as channel:
        stub = DiscoveryServiceStub(channel)
        requests = [
            pb.IssueKubeconfigRequest(cluster="alpha"),
            pb.IssueKubeconfigRequest(cluster="nobody"),
            pb.IssueKubeconfigRequest(cluster="alpha", incarnation="other"),
        ]
        for request in requests:
            try:
                answer = await stub.IssueKubeconfig(request)
                handed.append(answer.kubeconfig.kubeconfig.decode())
            except grpc.aio.AioRpcError as error:
                outputs.append(str(error) + str(error.trailing_metadata()))
        outputs.append(str(await stub.GetServerInfo(pb.GetServerInfoRequest())))
        outputs.append(str(await stub.GetCluster(pb.GetClusterRequest(name="alpha"))))
    return handed


async def test_secrets_never_appear_in_logs_metrics_errors_arguments_environments_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, config = tmp_path / "daemon", tmp_path / "config.yaml"
    state.mkdir(mode=0o700)
    async with Sandbox(seed=1, token_life=3.0) as sandbox:
        secrets = Secrets(sandbox, monkeypatch)
        sandbox.projects.create("alpha", ready=True)
        upstream = sandbox.write_kubeconfig(tmp_path / "upstream")
        key_file = sandbox.write_service_account_key(tmp_path / "key.json")
        secrets.add_key(key_file)
        (tmp_path / "ca.pem").write_bytes(sandbox.ca_pem)
        source = {
            "name": "datum",
            "type": "datum-service-account",
            "key_file": str(key_file),
            "ca_file": str(tmp_path / "ca.pem"),
        }
        settings = {
            "discovery_kubeconfig": str(upstream),
            "listen": [f"unix://{state}/d.sock"],
            "http_listen": "127.0.0.1:0",
            "kubeconfigs": {"issuers": [source]},
            "log": {"level": "debug", "format": "json"},
        }
        config.write_text(json.dumps(settings))
        outputs: list[str] = []
        async with DaemonProcess(f"unix://{state}/d.sock", "--config", str(config)) as daemon:
            await daemon.start()
            await daemon.wait_for_output('"synced"')
            http = str(daemon.events("started")[0]["http"])
            (handed,) = await calls(daemon.address, outputs)
            token = json.loads(handed)["users"][0]["user"]["token"]
            assert secrets.in_(token), "the token of an issued kubeconfig is not searched for"
            sandbox.faults.unauthorized(seconds=1)
            sandbox.drop_watches()
            sandbox.token_endpoint.revoke_keys()
            await daemon.wait_for_output("invalid_grant")
            sandbox.revoke_tokens()
            async with aiohttp.ClientSession() as session:
                for path in ("/metrics", "/readyz?verbose", "/livez?verbose", "/", "/?json", "/?json&cluster=alpha"):
                    async with session.get(http + path) as response:
                        outputs.append(await response.text())
                assert "datum-service-account" in outputs[-1], "the page does not show the issuer"
            await eventually(lambda: len(secrets.found) > 5)
            await calls(daemon.address, outputs)
            process = Path(f"/proc/{daemon.pid}")
            outputs += [(process / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
            limits = (process / "limits").read_text()
            await sandbox.stop()
            await daemon.wait_for_output("the request to")
            await daemon.terminate()
        outputs.append(daemon.output)
        outputs += [path.read_text(errors="replace") for path in state.rglob("*") if path.is_file()]
    assert len(secrets.found) > 5
    assert [found for text in outputs for found in secrets.in_(text)] == []
    assert "Max core file size        0                    0" in limits
