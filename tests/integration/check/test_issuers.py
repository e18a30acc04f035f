"""Findings of `check` about credential issuers."""

import io
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd.check import check
from milo_discoveryd.config import load
from milo_sandbox import Sandbox
from milo_sandbox.rights import Rule
from tests.unit.credentials.tokens import jwt


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with Sandbox(projects=1, seed=1, token_life=600) as running:
        running.write_kubeconfig(tmp_path / "kubeconfig")
        (tmp_path / "ca.pem").write_bytes(running.ca_pem)
        yield running


async def lines(tmp_path: Path, *sources: dict[str, Any], **settings: Any) -> list[str]:
    """Return the lines about kubeconfigs, identities and invalid credentials of issuers."""
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"kubeconfigs": {"issuers": list(sources)}, **settings}))
    flags = {
        "discovery_kubeconfig": str(tmp_path / "kubeconfig"),
        "listen": (f"unix://{tmp_path}/d.sock",),
        "http_listen": "off",
    }
    out = io.StringIO()
    await check(load(flags, {}, file), out, {})
    return [
        line
        for line in out.getvalue().splitlines()
        if re.search("kubeconfigs|identity|of the issuer .* not valid", line)
    ]


async def test_check_reports_the_credential_of_a_project_kubeconfig_with_a_short_lived_token(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    found = await lines(tmp_path, {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True})
    line, reach, identity = found[-3:]
    assert line.startswith("ok    kubeconfigs own: minted a credential of type project-kubeconfig, valid for")
    assert reach.startswith("ok    kubeconfigs own reach: ")
    assert identity == "ok    kubeconfigs own identity: authenticated as sandbox-admin"


async def test_check_requests_credentials_of_issuers_without_creating_secrets(sandbox: Sandbox, tmp_path: Path) -> None:
    key = sandbox.write_service_account_key(tmp_path / "key.json")
    sandbox.add_service_account("milo", "operators")
    (tmp_path / "infrastructure").write_text(json.dumps(sandbox.infrastructure_kubeconfig()))
    found = await lines(
        tmp_path,
        {"name": "datum", "type": "datum-service-account", "key_file": str(key), "ca_file": str(tmp_path / "ca.pem")},
        {
            "name": "requested",
            "type": "token-request",
            "kubeconfig": str(tmp_path / "infrastructure"),
            "namespace": "milo",
            "service_account": "operators",
        },
        {"name": "file", "type": "token-file", "path": str(tmp_path / "missing")},
        credentials="datum",
    )
    assert "ok    discovery identity: authenticated as sandbox-admin" in found
    assert [line[:30] for line in found if line.startswith(("ok    kube", "fail  kube")) and " datum " not in line] == [
        "ok    kubeconfigs datum: minte",
        "ok    kubeconfigs requested: m",
        "ok    kubeconfigs requested re",
        "ok    kubeconfigs requested id",
        "fail  kubeconfigs file: no cre",
    ]
    assert sandbox.token_endpoint.answered
    assert not sandbox.infrastructure.secret_names()


async def test_check_reports_a_requested_token_that_the_project_does_not_accept(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with Sandbox() as another:
        another.add_service_account("milo", "operators")
        (tmp_path / "infrastructure").write_text(json.dumps(another.infrastructure_kubeconfig()))
        found = await lines(
            tmp_path,
            {
                "name": "requested",
                "type": "token-request",
                "kubeconfig": str(tmp_path / "infrastructure"),
                "namespace": "milo",
                "service_account": "operators",
            },
        )
        assert not another.infrastructure.secret_names()
    assert "fail  kubeconfigs requested identity: the server rejects the credential (401)" in found


async def test_rejected_credential_of_an_issuer_for_discovery_is_reported_with_its_issuer(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(jwt(exp=time.time() + 600))
    issuer = {"name": "file", "type": "token-file", "path": str(tmp_path / "token")}
    found = await lines(tmp_path, issuer, credentials="file")
    at = found.index("fail  discovery identity: the server rejects the credential (401)")
    assert "with credentials of the issuer file is missing, or not valid for this server" in found[at + 1]


async def test_per_cluster_issuer_cannot_authenticate_discovery(sandbox: Sandbox, tmp_path: Path) -> None:
    source = {"name": "secret", "type": "kubeconfig-secret"}
    (line, _) = await lines(tmp_path, source, credentials="secret")
    assert line == (
        "fail  kubeconfigs: the issuer secret mints a credential for each cluster, and has none for discovery: name a "
        "different issuer in the setting `credentials` of the source"
    )


async def test_check_reports_that_no_kubeconfigs_are_issued(sandbox: Sandbox, tmp_path: Path) -> None:
    key = sandbox.write_service_account_key(tmp_path / "key.json")
    source = {"name": "datum", "type": "datum-service-account", "key_file": str(key), "hand_out": "false"}
    none = "ok    kubeconfigs: none are issued: kubeconfigs.issuers is empty, or each issuer has hand_out: false"
    assert none in await lines(tmp_path, source)
    assert none in await lines(tmp_path)


def acting(user: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": "shop", "who": "everybody", "clusters": "all", "kubeconfigs": True, "as": {"user": user, **more}},
    ]


OWN = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}


async def test_granted_impersonation_passes_the_check(sandbox: Sandbox, tmp_path: Path) -> None:
    found = await lines(tmp_path, OWN, rights=acting("shop", groups=["shops"], extra={"tier": ["one"]}))
    assert found[-1] == "ok    kubeconfigs own impersonation: impersonation of shop allowed"


async def test_denied_impersonation_fails_the_check(sandbox: Sandbox, tmp_path: Path) -> None:
    mine = Rule(verbs=frozenset({"impersonate"}), resources=frozenset({"serviceaccounts"}), names=frozenset({"shop"}))
    reading = Rule(verbs=frozenset({"get", "list", "watch"}))
    sandbox.rights.grant("sandbox-admin", [reading, mine])
    found = await lines(tmp_path, OWN, rights=acting("shop", groups=["shops"]))
    assert found[-1] == (
        "fail  kubeconfigs own impersonation: requests as shop are refused: the issuer's identity may not impersonate "
        "user shop and group shops"
    )
    found = await lines(tmp_path, OWN, rights=acting("system:serviceaccount:milo:shop"))
    assert found[-1].startswith("ok    kubeconfigs own impersonation")
