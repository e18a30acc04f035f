"""Credential issuers that pass on the credential of a kubeconfig's user, a token file or a command."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers import issuer
from milo_discoveryd.credentials.issuers.exec_command import ExecIssuer
from milo_discoveryd.credentials.issuers.issuer import (
    Issuer,
    IssuerOrigin,
    MintRequest,
    Scope,
    TimedIssuer,
)
from milo_discoveryd.credentials.issuers.passthrough import PassthroughIssuer
from milo_discoveryd.daemon_errors import UnfitError
from milo_kube.credential import Credential, CredentialError, Secret
from milo_kube.credential_providers import FileOrigin, RenewedCredential, StaticCredential
from milo_kube.exec_plugin import ExecCommand
from milo_kube.file_content import FileContent
from milo_kube.upstream import Upstream, load_kubeconfig
from tests.support.certificates import Authority
from tests.support.renamed_file import replace
from tests.unit.credentials.backend import ALPHA, engaged
from tests.unit.credentials.tokens import CANARY, jwt

WANTED = MintRequest(ttl_s=600)
V1 = "client.authentication.k8s.io/v1"


def saved(directory: Path, user: dict[str, Any]) -> Path:
    path = directory / "kubeconfig"
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://milo.test"}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(config))
    return path


def own_user(path: Path) -> PassthroughIssuer:
    return PassthroughIssuer(
        load_kubeconfig(path, plugins=["*"]).credentials, name="project", type="project-kubeconfig", origin="its user"
    )


def plugin(directory: Path, status: dict[str, Any]) -> str:
    path = directory / "login"
    answer = {"apiVersion": V1, "kind": "ExecCredential", "status": status}
    # Write a new file and rename it, since a file that is open for writing cannot be executed.
    (directory / "login.new").write_text(f"#!/bin/sh\ncat <<'JSON'\n{json.dumps(answer)}\nJSON\n")
    (directory / "login.new").chmod(0o700)
    (directory / "login.new").replace(path)
    return str(path)


async def test_token_file_is_passed_through_and_reread_when_replaced(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(jwt(exp=time.time() + 600))
    source = own_user(saved(tmp_path, {"tokenFile": str(file)}))
    first = await source.mint(WANTED)
    assert (await source.mint(MintRequest(ttl_s=600, held=first.credential))).credential == first.credential
    renewed = jwt(exp=time.time() + 1200)
    replace(file, renewed)
    second = await source.mint(MintRequest(ttl_s=600, held=first.credential))
    assert second.credential.token is not None
    assert second.credential.token.reveal() == renewed
    assert second.expires_at > first.expires_at


async def test_exec_credential_is_passed_through_with_its_expiry(tmp_path: Path) -> None:
    command = plugin(tmp_path, {"token": "opaque", "expirationTimestamp": "2999-01-01T00:00:00Z"})
    source = own_user(saved(tmp_path, {"exec": {"apiVersion": V1, "command": command}}))
    with pytest.raises(UnfitError, match="are issued"):
        await source.mint(WANTED)
    plugin(tmp_path, {"token": jwt(exp=time.time() + 600)})
    source = own_user(saved(tmp_path, {"exec": {"apiVersion": V1, "command": command}}))
    assert 590 < (await source.mint(WANTED)).expires_at - time.time() <= 600


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"token": CANARY}, "no renewable credential"),
        ({"token": jwt(exp=time.time() + 7200)}, "no renewable credential"),
        ({}, "no renewable credential"),
    ],
)
async def test_inline_or_missing_credential_is_not_passed_through(
    tmp_path: Path, user: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UnfitError, match=f"^its user has {expected}") as raised:
        await own_user(saved(tmp_path, user)).mint(WANTED)
    assert CANARY not in str(raised.value)


async def test_certificate_file_and_token_without_expiry_are_not_passed_through(tmp_path: Path) -> None:
    pair = Authority().issue()
    (tmp_path / "chain").write_bytes(pair.certificate)
    (tmp_path / "key").write_bytes(pair.key)
    user = {"client-certificate": str(tmp_path / "chain"), "client-key": str(tmp_path / "key")}
    with pytest.raises(UnfitError, match="a client certificate"):
        await own_user(saved(tmp_path, user)).mint(WANTED)
    (tmp_path / "token").write_text("opaque")
    with pytest.raises(UnfitError, match="without an expiry"):
        await own_user(saved(tmp_path, {"tokenFile": str(tmp_path / "token")})).mint(WANTED)


async def test_pod_token_valid_for_a_year_is_not_passed_through(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(jwt(exp=time.time() + 365 * 86400))
    source = RenewedCredential(FileOrigin(token=FileContent(tmp_path / "token")))
    with pytest.raises(UnfitError, match="is valid for 365 days"):
        await PassthroughIssuer(source, name="n", type="token-file", origin="it").mint(WANTED)


async def test_kubeconfig_is_passed_through_once_its_static_token_is_replaced_by_exec_plugin(tmp_path: Path) -> None:
    path = saved(tmp_path, {"token": "static"})
    source = own_user(path)
    with pytest.raises(UnfitError):
        await source.mint(WANTED)
    command = plugin(tmp_path, {"token": jwt(exp=time.time() + 600)})
    saved(tmp_path, {"exec": {"apiVersion": V1, "command": command}})
    os.utime(path, ns=(1, 1))
    static = Credential(token=Secret("static"))
    assert (await source.mint(MintRequest(ttl_s=600, held=static))).credential.token is not None


PROJECT = Upstream(
    server="https://milo.test",
    origin="test",
    credentials=StaticCredential(Credential()),
    authorities=b"CA",
    tls_server_name="milo.internal",
)


@pytest.mark.parametrize("per_cluster", [False, True])
async def test_exec_issuer_tells_its_plugin_which_server_the_credential_is_for(
    tmp_path: Path, per_cluster: bool
) -> None:
    script = tmp_path / "login"
    token = jwt(exp=time.time() + 600)
    answer = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": {"token": token}})
    script.write_text(f'#!/bin/sh\nprintf %s "$KUBERNETES_EXEC_INFO" >"{tmp_path}/info"\nprintf %s \'{answer}\'\n')
    script.chmod(0o700)
    command = ExecCommand(api_version=V1, argv=(str(script),), environment={})
    source = ExecIssuer("exec", command, project=PROJECT, per_cluster=per_cluster)
    assert source.scope is (Scope.CLUSTER if per_cluster else Scope.IDENTITY)
    await source.mint(MintRequest(ttl_s=600, cluster=engaged() if per_cluster else None))
    assert json.loads((tmp_path / "info").read_text())["spec"] == {
        "interactive": False,
        "cluster": {
            "server": ALPHA.endpoint if per_cluster else "https://milo.test",
            "certificate-authority-data": "Q0E=",
            "tls-server-name": "milo.internal",
        },
    }


async def test_exec_credential_without_expiry_is_rejected(tmp_path: Path) -> None:
    command = ExecCommand(api_version=V1, argv=(plugin(tmp_path, {"token": "opaque"}),), environment={})
    with pytest.raises(UnfitError, match="without an expiry"):
        await ExecIssuer("exec", command, project=PROJECT).mint(WANTED)


def test_exec_issuer_has_its_configured_timeout() -> None:
    command = ExecCommand(api_version=V1, argv=("/bin/login",), environment={})
    source: Issuer = ExecIssuer("exec", command, project=PROJECT, timeout_s=120.0)
    assert isinstance(source, TimedIssuer)
    assert source.timeout_s == 120.0


class Script:
    """An issuer of numbered tokens."""

    name, type, scope, takes_ttl = "script", "script", Scope.IDENTITY, False
    timeout_s = 0.0

    def __init__(self) -> None:
        self.requests: list[MintRequest] = []
        self.hangs = False

    async def mint(self, wanted: MintRequest) -> IssuedCredential:
        self.requests.append(wanted)
        if self.hangs:
            await asyncio.Event().wait()
        return IssuedCredential(credential=token_number(len(self.requests)), issued_at=1000.0, expires_at=1100.0)


def token_number(number: int) -> Credential:
    return Credential(token=Secret(f"t{number}"))


async def test_own_credential_of_issuer_has_its_expiry_and_replaces_the_former_one() -> None:
    script = Script()
    origin = IssuerOrigin(script, ttl_s=600)
    assert not origin.has_changed()
    minted = [await origin.obtain(refused=None, is_due=True) for _ in range(2)]
    assert minted == [token_number(1), token_number(2)]
    assert minted[0].expires_at == 1100.0
    assert script.requests == [MintRequest(ttl_s=600), MintRequest(ttl_s=600, held=token_number(1))]


async def test_issuer_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "TIMEOUT_MARGIN_S", 0.01)
    script = Script()
    script.hangs = True
    with pytest.raises(CredentialError, match=r"^the issuer script did not answer within 0\.01 s$"):
        await IssuerOrigin(script, ttl_s=600).obtain(refused=None, is_due=True)
