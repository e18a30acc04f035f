"""Findings of `check` about the clusters of a declarative definition, and about a credential for one of them."""

import io
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd.check import check
from milo_discoveryd.config import load
from milo_sandbox import Sandbox
from milo_sandbox.resources import SECRETS
from milo_sandbox.rights import EVERYTHING
from tests.support.platforms import SHOOTS, Garden

SETTINGS: dict[str, Any] = {
    "mode": "declarative",
    "settings": {
        "resource": {"group": SHOOTS.group, "version": SHOOTS.version, "plural": SHOOTS.plural, "namespaced": True},
        "ready": {"condition": "APIServerAvailable"},
        "secret": {"name": "{metadata.name}-kubeconfig"},
        "endpoint": {"secret_key": "value"},
    },
}
ISSUER = {
    "name": "secrets",
    "type": "kubeconfig-secret",
    "secret": "{secret}",
    "namespace_template": "{secret_namespace}",
    "key": "value",
}


@pytest.fixture
async def garden(tmp_path: Path) -> AsyncIterator[Garden]:
    async with Sandbox(seed=1, token_life=600) as sandbox:
        garden = Garden(sandbox)
        (tmp_path / "kubeconfig").write_text(json.dumps(garden.kubeconfig()))
        yield garden


def put(garden: Garden, name: str, *, content: str | None = None, is_available: bool = True) -> None:
    """Create a Shoot with its project's control plane, and the Secret that the Shoot names."""
    sandbox = garden.sandbox
    sandbox.projects.create(name, ready=True)
    garden.create("garden-team", name, is_available=is_available)
    if content is None:
        content = json.dumps(sandbox.kubeconfig(project=name, token=sandbox.token("operator", rules=[EVERYTHING])))
    data = {"value": b64encode(content.encode()).decode()}
    secret = f"{name}-kubeconfig"
    document = {"metadata": {"name": secret}, "data": data}
    garden.api.store.apply(SECRETS, secret, document, namespace="garden-team", manager="test")


async def findings(tmp_path: Path, **issuer: Any) -> tuple[int, list[str]]:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({**SETTINGS, "kubeconfigs": {"issuers": [{**ISSUER, **issuer}]}}))
    flags = {
        "discovery_kubeconfig": str(tmp_path / "kubeconfig"),
        "listen": (f"unix://{tmp_path}/d.sock",),
        "http_listen": "off",
    }
    out = io.StringIO()
    status = await check(load(flags, {}, file), out, {})
    lines = [line for line in out.getvalue().splitlines() if not line.startswith(" ")]
    return status, [line for line in lines if line.split()[1] in ("clusters:", "kubeconfigs")]


async def test_check_counts_engaged_clusters_and_tries_the_credential_of_one_cluster(
    garden: Garden, tmp_path: Path
) -> None:
    put(garden, "alpha")
    put(garden, "beta", is_available=False)
    put(garden, "gamma")
    status, (clusters, minted, reach, identity) = await findings(tmp_path)
    assert clusters == "ok    clusters: 2 of 3 engaged, 1 not ready"
    assert minted.startswith(
        "ok    kubeconfigs secrets: minted a credential of type kubeconfig-secret for alpha, valid"
    )
    assert reach.startswith(f"ok    kubeconfigs secrets reach: {garden.sandbox.url}")
    assert identity == "ok    kubeconfigs secrets identity: authenticated as operator"
    assert status == 0


async def test_source_with_a_malformed_object_and_no_engaged_cluster_fails_the_check(
    garden: Garden, tmp_path: Path
) -> None:
    put(garden, "alpha", content="{}")
    status, (clusters, minted) = await findings(tmp_path)
    assert clusters.startswith("fail  clusters: 0 of 2 engaged")
    assert (
        "1 malformed, 1 not ready; first problem: garden-team/alpha-kubeconfig: the key 'value' of Secret" in clusters
    )
    assert minted == "ok    kubeconfigs secrets: not checked: kubeconfig-secret issues credentials per cluster, " + (
        "and no cluster that it serves is ready"
    )
    assert status == 1


async def test_secret_without_the_configured_key_fails_the_check(garden: Garden, tmp_path: Path) -> None:
    put(garden, "alpha")
    status, (_, minted) = await findings(tmp_path, key="kubeconfig")
    assert minted.startswith(
        "fail  kubeconfigs secrets: no credential for alpha: Secret garden-team/alpha-kubeconfig has"
    )
    assert status == 1


async def test_credential_without_an_expiry_is_a_warning(garden: Garden, tmp_path: Path) -> None:
    config = garden.sandbox.kubeconfig(project="alpha", token="opaque")
    put(garden, "alpha", content=json.dumps(config))
    _, (_, minted) = await findings(tmp_path)
    assert "without an expiry, which may be valid forever; set allow_long_lived" in minted
    _, (_, minted, _, identity) = await findings(tmp_path, allow_long_lived=True)
    assert minted.startswith(
        "warn  kubeconfigs secrets: minted a credential of type kubeconfig-secret for alpha, without"
    )
    assert identity.startswith("fail  kubeconfigs secrets identity: the server rejects the credential (401)")
