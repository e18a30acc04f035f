"""The kubeconfig that the sandbox writes, and its token file, which is renewed while the sandbox runs."""

import asyncio
from base64 import b64decode
from pathlib import Path

import pytest
import yaml

from milo_sandbox import Sandbox
from milo_sandbox.kubeconfigs import RenewedTokenFile, write_secret
from tests.integration.sandbox.client import PROJECTS, Client
from tests.support.eventually import LIMIT_S


async def test_written_kubeconfig_has_server_ca_and_token_file(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    path = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
    config = yaml.safe_load(path.read_text())
    (cluster,) = (entry["cluster"] for entry in config["clusters"])
    assert cluster["server"] == sandbox.url
    assert b64decode(cluster["certificate-authority-data"]) == sandbox.ca_pem
    (user,) = (entry["user"] for entry in config["users"])
    token = Path(user["tokenFile"])
    assert (path.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o600, 0o600)
    client.token = token.read_text()
    assert (await client.get(PROJECTS)).status == 200


async def test_token_file_is_replaced_at_half_its_lifetime(tmp_path: Path) -> None:
    renewed = asyncio.Event()
    issued: list[str] = []

    def issue() -> str:
        issued.append(f"token-{len(issued)}")
        if len(issued) == 3:
            renewed.set()
        return issued[-1]

    file = RenewedTokenFile(tmp_path / "token", issue, life=0.02)
    file.start()
    assert file.path.read_text() == "token-0"
    async with asyncio.timeout(LIMIT_S):
        await renewed.wait()
    file.stop()
    assert file.path.read_text() == "token-2"
    assert list(tmp_path.iterdir()) == [file.path]


async def test_revoked_tokens_are_rejected_and_the_token_file_is_renewed(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    path = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
    sandbox.revoke_tokens()
    assert (await client.get(PROJECTS)).status == 401
    client.token = path.with_name("kubeconfig.token").read_text()
    assert (await client.get(PROJECTS)).status == 200


def test_sandbox_secret_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret(path, "old")
    with path.open() as reader:
        write_secret(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    with pytest.raises(FileNotFoundError):
        write_secret(tmp_path / "missing" / "secret", "new")


async def test_kubeconfig_may_embed_token_and_select_a_project(sandbox: Sandbox) -> None:
    config = sandbox.kubeconfig(token="given", project="alpha")
    assert config["users"][0]["user"] == {"token": "given"}
    assert config["clusters"][0]["cluster"]["server"] == f"{sandbox.url}{PROJECTS}/alpha/control-plane"
