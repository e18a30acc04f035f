"""Access to an API server from local files: the service account of a pod, and kubeconfigs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from milo_discovery import local_kubeconfig
from milo_discovery.credentials import AsyncRenewer
from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.kubeconfig_access import read_access
from milo_discovery.local_kubeconfig import KubeconfigFile, ServiceAccount, default_source, issue

V1 = "client.authentication.k8s.io/v1"
POD = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}


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
    source = ServiceAccount(POD, tmp_path)
    found = source.read()
    assert (found.access.server, found.namespace, found.access.authorities) == ("https://[fd00::1]:443", "ns", "PEM")
    assert found.access.token == "first"
    (tmp_path / "token").write_text("second")
    assert source.read().access.token == "second"


def test_service_account_outside_a_pod_is_rejected(tmp_path: Path):
    with pytest.raises(UnusableKubeconfig, match="pod"):
        ServiceAccount({}, tmp_path).read()
    with pytest.raises(UnusableKubeconfig, match="cannot read"):
        ServiceAccount(POD, tmp_path).read()


def test_kubeconfig_with_inline_data_is_read(tmp_path: Path):
    user = {"client-certificate-data": encoded("CERT"), "client-key-data": encoded("KEY")}
    cluster = {
        "certificate-authority-data": encoded("CA"),
        "tls-server-name": "api.internal",
        "proxy-url": "http://me:secret@proxy:3128",
        "insecure-skip-tls-verify": False,
    }
    found = KubeconfigFile(kubeconfig(tmp_path, cluster=cluster, user=user)).read()
    access = found.access
    assert (access.server, found.namespace) == ("https://api.test:6443", "n")
    assert (access.authorities, access.certificate, access.key, access.token) == ("CA", "CERT", "KEY", None)
    assert access.tls_server_name == "api.internal"
    assert found.proxy == "http://me:secret@proxy:3128"
    assert "secret" not in repr(found)


@pytest.mark.parametrize("user", [{"token": "t"}, {"exec": {"apiVersion": V1, "command": "login"}}, {}])
@pytest.mark.parametrize("host", ["api.test:8080", "127.0.0.1:8080", "[::1]:8080", "localhost"])
def test_credential_is_sent_without_tls_only_to_loopback(tmp_path: Path, host: str, user: dict[str, Any]):
    """Found by a reader: a token was sent unencrypted."""
    source = KubeconfigFile(kubeconfig(tmp_path, cluster={"server": f"http://{host}"}, user=user))
    if user and host == "api.test:8080":
        with pytest.raises(UnusableKubeconfig, match="server without TLS, to which the credential would be sent"):
            source.read()
    else:
        assert source.read().access.server == f"http://{host}"


def test_kubeconfig_is_read_again_with_the_context_and_server_of_the_first_read(tmp_path: Path):
    path = kubeconfig(tmp_path)
    document = json.loads(path.read_text())
    source = KubeconfigFile(path)
    server = source.read().access.server
    document["clusters"].append({"name": "other", "cluster": {"server": "https://other.test"}})
    document["contexts"].append({"name": "other", "context": {"cluster": "other", "user": "u"}})
    document["current-context"] = "other"
    document["users"][0]["user"]["token"] = "renewed"
    path.write_text(json.dumps(document))
    access = source.read().access
    assert (access.server, access.token) == (server, "renewed")
    document["clusters"][0]["cluster"]["server"] = "https://other.test"
    path.write_text(json.dumps(document))
    with pytest.raises(UnusableKubeconfig, match=r"the context 'x' of .* has a different server .* restart it"):
        source.read()


def test_kubeconfig_with_relative_file_references_is_read(tmp_path: Path):
    (tmp_path / "token").write_text("from a file\n")
    (tmp_path / "ca").write_text("CA")
    path = kubeconfig(tmp_path, cluster={"certificate-authority": "ca"}, user={"tokenFile": "token", "token": "old"})
    access = KubeconfigFile(path, "x").read().access
    assert (access.token, access.authorities) == ("from a file", "CA")


@pytest.mark.parametrize("encoding", ["utf-8", "iso8859-2"])
@pytest.mark.parametrize("inline", [False, True], ids=["file", "data"])
async def test_comment_beyond_ascii_in_a_ca_is_accepted(tmp_path: Path, encoding: str, inline: bool):
    authority = trustme.CA().cert_pem.bytes()
    bundle = "# Főtanúsítvány\n".encode(encoding) + authority
    (tmp_path / "ca").write_bytes(bundle)
    cluster = {"certificate-authority-data": base64.b64encode(bundle).decode()}
    source = KubeconfigFile(kubeconfig(tmp_path, cluster=cluster if inline else {"certificate-authority": "ca"}))
    issued = await issue("here", source)
    assert read_access(issued.kubeconfig).authorities.strip().endswith(authority.decode().strip())


@pytest.mark.parametrize("inline", [False, True], ids=["file", "data"])
def test_ca_that_is_not_pem_is_refused(tmp_path: Path, inline: bool):
    (tmp_path / "ca").write_bytes(b"0\x82")
    cluster = {"certificate-authority-data": base64.b64encode(b"0\x82").decode()}
    source = KubeconfigFile(kubeconfig(tmp_path, cluster=cluster if inline else {"certificate-authority": "ca"}))
    with pytest.raises(UnusableKubeconfig, match="not PEM"):
        source.read()


@pytest.mark.parametrize("file", ["ca", "token"])
async def test_credential_and_ca_stay_while_a_file_is_empty(tmp_path: Path, file: str):
    authority = trustme.CA().cert_pem.bytes()
    (tmp_path / "token").write_text("good")
    (tmp_path / "ca").write_bytes(authority)
    source = KubeconfigFile(kubeconfig(tmp_path, cluster={"certificate-authority": "ca"}, user={"tokenFile": "token"}))
    async with AsyncRenewer("target", lambda: issue("target", source)) as renewer:
        (tmp_path / file).write_bytes(b"")
        with pytest.raises(UnusableKubeconfig, match=f"{file} is empty"):
            await renewer.start_renewal()
        access = await renewer.access()
    assert (access.token, access.authorities) == ("good", authority.decode().strip())


async def test_client_certificate_stays_while_its_key_is_not_replaced_yet(tmp_path: Path):
    pairs = [trustme.CA().issue_cert("client") for _ in range(2)]
    [old, new] = [pair.cert_chain_pems[0].bytes() for pair in pairs]
    (tmp_path / "client.crt").write_bytes(old)
    (tmp_path / "client.key").write_bytes(pairs[0].private_key_pem.bytes())
    user = {"client-certificate": "client.crt", "client-key": "client.key"}
    source = KubeconfigFile(kubeconfig(tmp_path, user=user))
    async with AsyncRenewer("target", lambda: issue("target", source)) as renewer:
        (tmp_path / "client.crt").write_bytes(new)
        with pytest.raises(UnusableKubeconfig, match="the client certificate and its key do not match"):
            await renewer.start_renewal()
        assert (await renewer.access()).certificate == old.decode().strip()
        (tmp_path / "client.key").write_bytes(pairs[1].private_key_pem.bytes())
        await renewer.start_renewal()
        assert (await renewer.access()).certificate == new.decode().strip()


def test_yaml_kubeconfig_is_read(tmp_path: Path):
    path = kubeconfig(tmp_path)
    yaml = pytest.importorskip("yaml")
    path.write_text(yaml.safe_dump(json.loads(path.read_text())))
    assert KubeconfigFile(path).read().access.token == "t"


def test_credential_plugin_gives_the_credential_and_its_expiry(tmp_path: Path):
    plugin = tmp_path / "plugin"
    status = {"token": "from-the-plugin", "expirationTimestamp": "2999-01-01T00:00:00Z"}
    printed = {"apiVersion": V1, "kind": "ExecCredential", "status": status}
    script = f"import os\nassert os.environ['KUBERNETES_EXEC_INFO']\nprint('''{json.dumps(printed)}''')\n"
    plugin.write_text(f"#!{sys.executable}\n{script}")
    plugin.chmod(0o755)
    path = kubeconfig(tmp_path, user={"exec": {"command": "./plugin", "apiVersion": V1}})
    issued = asyncio.run(issue("here", KubeconfigFile(path)))
    assert read_access(issued.kubeconfig).token == "from-the-plugin"
    assert issued.expires_at is not None
    assert issued.expires_at.year == 2999


def test_credential_plugin_error_contains_its_command_but_not_its_output(tmp_path: Path):
    path = kubeconfig(tmp_path, user={"exec": {"apiVersion": V1, "command": "echo", "args": ["secret"]}})
    with pytest.raises(UnusableKubeconfig, match="exec plugin echo") as caught:
        asyncio.run(issue("here", KubeconfigFile(path)))
    assert "secret" not in str(caught.value)


def test_credential_plugin_that_waits_for_a_child_process_ends_at_its_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(local_kubeconfig, "_PLUGIN_TIMEOUT_S", 0.1)
    os.mkfifo(tmp_path / "pipe")
    # The child inherits the output, and ends when the test closes the pipe, which it holds open for writing.
    call = {"apiVersion": V1, "command": "sh", "args": ["-c", f"cat <'{tmp_path / 'pipe'}' & wait"]}
    source = KubeconfigFile(kubeconfig(tmp_path, user={"exec": call}))
    with (
        (tmp_path / "pipe").open("r+b", buffering=0),
        pytest.raises(UnusableKubeconfig, match="exec plugin sh did not finish"),
    ):
        asyncio.run(issue("here", source))


@pytest.mark.parametrize(
    "status",
    [
        {"token": "secret", "expirationTimestamp": "2999-01-01T00:00:00"},
        {"token": "secret", "expirationTimestamp": 5},
        {"clientCertificateData": 5, "clientKeyData": "secret"},
    ],
    ids=["expiry without time zone", "expiry of another type", "certificate of another type"],
)
def test_invalid_credential_plugin_output_is_rejected_without_quoting_it(tmp_path: Path, status: Any):
    call = {
        "apiVersion": V1,
        "command": "echo",
        "args": [json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})],
    }
    with pytest.raises(UnusableKubeconfig, match="exec plugin echo") as caught:
        asyncio.run(issue("here", KubeconfigFile(kubeconfig(tmp_path, user={"exec": call}))))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"insecure-skip-tls-verify": True}, None, "insecure-skip-tls-verify"),
        ({"proxy-url": "socks5://proxy:1080"}, None, "proxy-url"),
        ({}, {"token": "t", "as": "someone"}, "as"),
        ({}, {"auth-provider": {"name": "gcp"}}, "auth-provider"),
    ],
)
def test_kubeconfig_with_unsupported_fields_is_rejected(tmp_path: Path, cluster: Any, user: Any, words: str):
    with pytest.raises(UnusableKubeconfig, match=words):
        KubeconfigFile(kubeconfig(tmp_path, cluster=cluster, user=user)).read()


def test_unknown_kubeconfig_context_is_rejected(tmp_path: Path):
    with pytest.raises(UnusableKubeconfig, match="no context 'other'"):
        KubeconfigFile(kubeconfig(tmp_path), "other").read()


@pytest.mark.parametrize("content", ["", "[]", "{}", "clusters: [", '"text"', '{"current-context": ""}'])
def test_file_that_is_not_a_kubeconfig_is_refused_without_quoting_it(tmp_path: Path, content: str):
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(UnusableKubeconfig, match=str(path)) as refused:
        KubeconfigFile(path).read()
    assert not content or content not in str(refused.value)


def test_missing_kubeconfig_file_and_invalid_data_are_rejected(tmp_path: Path):
    with pytest.raises(UnusableKubeconfig, match="cannot read"):
        KubeconfigFile(tmp_path / "missing").read()
    with pytest.raises(UnusableKubeconfig, match="not valid base64"):
        KubeconfigFile(kubeconfig(tmp_path, cluster={"certificate-authority-data": "!"})).read()


@pytest.mark.parametrize(("path", "authority"), [("kubeconfig\0", "ca.crt"), ("kubeconfig", "ca\0.crt")])
def test_path_with_a_nul_character_is_rejected(tmp_path: Path, path: str, authority: str):
    (tmp_path / "kubeconfig").write_text(
        json.dumps(
            {
                "current-context": "a",
                "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                "clusters": [
                    {"name": "a", "cluster": {"server": "https://a.test", "certificate-authority": authority}}
                ],
                "users": [{"name": "a", "user": {"token": "t"}}],
            }
        )
    )
    with pytest.raises(UnusableKubeconfig, match=r"cannot read .*null byte"):
        KubeconfigFile(tmp_path / path).read()


def test_kubeconfig_files_listed_in_the_environment_are_merged_as_by_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, server, token in (("one", "https://one.test", "1"), ("two", "https://two.test", "2")):
        (tmp_path / name).mkdir()
        path = kubeconfig(tmp_path / name, cluster={"server": server}, user={"tokenFile": "token"})
        (tmp_path / name / "token").write_text(token)
        document = json.loads(path.read_text())
        document["contexts"].append({"name": f"only-{name}", "context": {"cluster": "c", "user": "u"}})
        path.write_text(json.dumps(document))
    paths = [tmp_path / "missing", tmp_path / "one" / "kubeconfig", tmp_path / "two" / "kubeconfig"]
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, paths)))
    # The first file that has an entry of a name determines that entry, with paths relative to that file.
    for context in (None, "only-one", "only-two"):
        access = default_source(context=context).read().access
        assert (access.server, access.token) == ("https://one.test", "1")


async def test_files_are_read_while_the_program_occupies_the_threads_of_asyncio(tmp_path: Path) -> None:
    may_end = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    waiting = asyncio.create_task(asyncio.to_thread(may_end.wait, 60))
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(10):
            issued = await issue("here", KubeconfigFile(kubeconfig(tmp_path, user={"token": "t"})))
        assert read_access(issued.kubeconfig).token == "t"
        assert not waiting.done()
    finally:
        may_end.set()
        await waiting
