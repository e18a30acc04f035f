"""Rendered kubeconfigs: their fields, and how kubectl and other parsers read them."""

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust, IssuedKubeconfig, embedded, exec_form
from milo_kube.act_as import ActAs
from milo_kube.credential import ClientCertificate, Credential, Secret

TOKEN = Credential(token=Secret("t1"))
PLACE = ClusterTrust(b"-----BEGIN CERTIFICATE-----\n", "milo.internal")
# Names that some YAML parsers read as another type.
TREACHEROUS = ["1e3", "no", "null", "~", "0x10", "2026-01-02", "on", "1_000", ".5"]


def parts(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    config = yaml.safe_load(text)
    assert config == json.loads(text)
    (cluster,), (user,), (context,) = config["clusters"], config["users"], config["contexts"]
    assert context["context"] == {"cluster": cluster["name"], "user": user["name"]}
    assert config["current-context"] == context["name"]
    assert set(config) == {"apiVersion", "kind", "clusters", "users", "contexts", "current-context"}
    return cluster["cluster"], user["user"]


def test_embedded_kubeconfig_contains_only_the_server_its_tls_settings_and_the_credential() -> None:
    cluster, user = parts(embedded("alpha", "https://milo/alpha", PLACE, TOKEN))
    assert cluster == {
        "server": "https://milo/alpha",
        "certificate-authority-data": base64.b64encode(PLACE.authorities or b"").decode(),
        "tls-server-name": "milo.internal",
    }
    assert user == {"token": "t1"}


def test_embedded_client_certificate_is_inline_data() -> None:
    pair = ClientCertificate(chain=b"CHAIN", key=Secret("KEY"))
    _, user = parts(embedded("alpha", "https://milo", PLACE, Credential(certificate=pair)))
    assert {key: base64.b64decode(value) for key, value in user.items()} == {
        "client-certificate-data": b"CHAIN",
        "client-key-data": b"KEY",
    }


def test_kubeconfig_without_ca_uses_system_trust() -> None:
    assert parts(embedded("alpha", "https://milo", ClusterTrust(None), TOKEN))[0] == {"server": "https://milo"}


def test_exec_kubeconfig_has_no_secret_and_calls_client_command() -> None:
    cluster, user = parts(exec_form("alpha", "https://milo/alpha", PLACE, "unix:///d.sock"))
    assert cluster["server"] == "https://milo/alpha"
    hint = user["exec"].pop("installHint")
    assert "milo-discovery" in hint
    assert user == {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "milo-discovery",
            "args": ["credential", "--cluster", "alpha"],
            "env": [
                {"name": "MILO_DISCOVERY_CLUSTER_SERVER", "value": "https://milo/alpha"},
                {"name": "MILO_DISCOVERY_ADDRESS", "value": "unix:///d.sock"},
            ],
            "interactiveMode": "Never",
            "provideClusterInfo": False,
        }
    }


def test_exec_kubeconfig_passes_the_impersonated_user_to_its_plugin() -> None:
    acting = ActAs(user="operator", groups=("tenants",))
    user = parts(exec_form("alpha", "https://milo", PLACE, None, acting))[1]
    statement = '{"as":"operator","as-groups":["tenants"]}'
    assert {"name": "MILO_DISCOVERY_ACT_AS", "value": statement} in user["exec"]["env"]


def test_exec_kubeconfig_without_address_uses_default_address() -> None:
    variables = parts(exec_form("alpha", "https://milo", PLACE, None))[1]["exec"]["env"]
    assert variables == [{"name": "MILO_DISCOVERY_CLUSTER_SERVER", "value": "https://milo"}]


def test_kubeconfig_rendering_is_deterministic() -> None:
    assert embedded("a", "https://m", PLACE, TOKEN) == embedded("a", "https://m", PLACE, TOKEN)


@pytest.mark.parametrize("server", ["http://milo", "http://10.0.0.1:8080", "http:///", "ftp://milo"])
def test_credential_over_plain_http_is_refused(server: str) -> None:
    with pytest.raises(UnfitError, match="has no TLS"):
        embedded("alpha", server, PLACE, TOKEN)


@pytest.mark.parametrize("server", ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:1"])
def test_credential_over_plain_http_is_allowed_on_loopback_if_configured(server: str) -> None:
    with pytest.raises(UnfitError, match="has no TLS"):
        embedded("alpha", server, PLACE, TOKEN)
    trust = ClusterTrust(None, plain_loopback=True)
    assert parts(embedded("alpha", server, trust, TOKEN))[0]["server"] == server


@given(st.text(min_size=1), st.text(), st.text(alphabet=st.characters(codec="utf-8")))
def test_rendered_kubeconfig_keeps_any_name_and_token_unchanged(name: str, server: str, token: str) -> None:
    try:
        (name + server + token).encode()
    except UnicodeEncodeError:
        return  # such texts are rejected earlier, as JSON with lone surrogates
    text = embedded(name, f"https://milo/{server}".split("]")[0].split("[")[0], PLACE, Credential(token=Secret(token)))
    config = json.loads(text)
    assert (config["current-context"], config["users"][0]["user"]["token"]) == (name, token)


async def test_kubectl_reads_rendered_kubeconfig(tmp_path: Path) -> None:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not on PATH")
    for name in TREACHEROUS:
        path = tmp_path / "kubeconfig"
        path.write_bytes(embedded(name, "https://milo", PLACE, Credential(token=Secret(name))))
        process = await asyncio.create_subprocess_exec(
            program, f"--kubeconfig={path}", "config", "view", "--raw", "-o", "json",
            env={"HOME": str(tmp_path)}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        viewed = json.loads(out)
        assert (viewed["current-context"], viewed["users"][0]["user"]["token"]) == (name, name)


def test_kubernetes_python_client_reads_rendered_kubeconfig() -> None:
    from kubernetes import config  # noqa: PLC0415 - importing it takes most of a second

    for name in TREACHEROUS:
        text = embedded(name, "https://milo/alpha", ClusterTrust(None), Credential(token=Secret("t1")))
        api = config.new_client_from_config_dict(yaml.safe_load(text))
        assert (api.configuration.host, api.configuration.api_key["BearerToken"]) == (
            "https://milo/alpha",
            "Bearer t1",
        )
        api.close()


def test_issued_kubeconfig_repr_masks_its_text() -> None:
    assert "SECRET" not in repr(IssuedKubeconfig(cluster="alpha", text=b"SECRET", issued_at=0))
