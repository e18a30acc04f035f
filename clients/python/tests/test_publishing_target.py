"""The API server to write to: from a pod, and from kubeconfigs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from milo_discovery.publishing.errors import InvalidTarget
from milo_discovery.publishing.target import from_kubeconfig, in_cluster


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def kubeconfig(tmp_path: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Path:
    path = tmp_path / "kubeconfig"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": "https://api.test:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "n"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return path


def test_pod_uses_its_service_account_and_reads_renewed_tokens(tmp_path: Path):
    for name, content in {"token": "first\n", "ca.crt": "PEM", "namespace": "ns\n"}.items():
        (tmp_path / name).write_text(content)
    target = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, tmp_path)
    assert (target.server, target.namespace, target.authorities()) == ("https://[fd00::1]:443", "ns", "PEM")
    assert target.token() == "first"
    (tmp_path / "token").write_text("second")
    assert target.token() == "second"


def test_outside_of_a_pod_a_kubeconfig_is_required(tmp_path: Path):
    with pytest.raises(InvalidTarget, match="--kubeconfig"):
        in_cluster({}, tmp_path)
    with pytest.raises(InvalidTarget, match="service account"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "1"}, tmp_path)


def test_kubeconfig_with_inline_data(tmp_path: Path):
    user = {"client-certificate-data": encoded("CERT"), "client-key-data": encoded("KEY")}
    cluster = {"certificate-authority-data": encoded("CA"), "tls-server-name": "api.internal"}
    target = from_kubeconfig(kubeconfig(tmp_path, cluster=cluster, user=user), None)
    assert (target.server, target.namespace) == ("https://api.test:6443", "n")
    assert (target.authorities(), target.certificate(), target.token()) == ("CA", ("CERT", "KEY"), None)
    assert target.tls_server_name == "api.internal"


def test_kubeconfig_with_files_beside_it(tmp_path: Path):
    (tmp_path / "token").write_text("from a file\n")
    (tmp_path / "ca").write_text("CA")
    path = kubeconfig(tmp_path, cluster={"certificate-authority": "ca"}, user={"tokenFile": "token"})
    target = from_kubeconfig(path, "x")
    assert (target.token(), target.authorities()) == ("from a file", "CA")


def test_yaml_kubeconfig(tmp_path: Path):
    path = kubeconfig(tmp_path)
    yaml = pytest.importorskip("yaml")
    path.write_text(yaml.safe_dump(json.loads(path.read_text())))
    assert from_kubeconfig(path, None).token() == "t"


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"insecure-skip-tls-verify": True}, None, "insecure-skip-tls-verify"),
        ({"proxy-url": "http://proxy"}, None, "proxy-url"),
        ({}, {"exec": {"command": "aws"}}, "exec"),
    ],
)
def test_unsupported_fields_are_refused(tmp_path: Path, cluster: Any, user: Any, words: str):
    with pytest.raises(InvalidTarget, match=words):
        from_kubeconfig(kubeconfig(tmp_path, cluster=cluster, user=user), None)


def test_unknown_context_is_refused(tmp_path: Path):
    with pytest.raises(InvalidTarget, match="the context 'other'"):
        from_kubeconfig(kubeconfig(tmp_path), "other")


@pytest.mark.parametrize("content", ["", "[]", "{}", "clusters: [", '"text"', '{"current-context": ""}'])
def test_file_that_is_no_kubeconfig_is_refused_without_quoting_it(tmp_path: Path, content: str):
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(InvalidTarget, match=str(path)):
        from_kubeconfig(path, None)


def test_missing_file_and_invalid_data_are_refused(tmp_path: Path):
    with pytest.raises(InvalidTarget, match="cannot read"):
        from_kubeconfig(tmp_path / "missing", None)
    target = from_kubeconfig(kubeconfig(tmp_path, cluster={"certificate-authority-data": "!"}), None)
    with pytest.raises(InvalidTarget, match="base64"):
        target.authorities()
