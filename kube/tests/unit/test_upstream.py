"""Parsing of a kubeconfig into an API server and a credential, with all of its problems reported."""

import asyncio
import base64
import json
import os
import re
import threading
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milo_kube import kubeconfig
from milo_kube.credential import Credential, CredentialError, Secret
from milo_kube.credential_providers import RenewedCredential
from milo_kube.upstream import KubeconfigOrigin, Upstream, UpstreamError, load_kubeconfig
from tests.support.certificates import Authority
from tests.support.renamed_file import replace

Write = Callable[..., Path]
SERVER = "https://milo.example.com:6443"
WORDS = (
    *("current-context", "contexts", "clusters", "users", "name", "context", "cluster", "user", "server", "token"),
    *("exec", "command", "apiVersion", "tokenFile", "proxy-url", "certificate-authority-data", "client-key-data"),
)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **top: Any) -> Path:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "preferences": {},
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
            "clusters": [{"name": "c", "cluster": {"server": SERVER} | (cluster or {})}],
            "users": [{"name": "u", "user": {"token": "s3cret"} if user is None else user}],
        } | top
        path = tmp_path / "kubeconfig"
        replace(path, yaml.safe_dump(content))
        return path

    return write


async def credential(upstream: Upstream) -> Credential:
    async with aclosing(upstream):
        return await upstream.credentials.credential(within_s=20)


def replaced(path: Path) -> KubeconfigOrigin:
    """Return the origin of the credential in a kubeconfig that will be replaced."""
    provider = load_kubeconfig(path).credentials
    assert isinstance(provider, RenewedCredential)
    assert isinstance(provider.origin, KubeconfigOrigin)
    return provider.origin


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(UpstreamError) as raised:
        load_kubeconfig(path)
    found = raised.value.problems
    assert all(problem.startswith(f"kubeconfig {path}: ") for problem in found)
    assert not any("s3cret" in problem for problem in found)
    return tuple(problem.removeprefix(f"kubeconfig {path}: ") for problem in found)


async def test_kubeconfig_current_context_has_server_ca_and_token(write: Write) -> None:
    cluster = {"certificate-authority-data": encoded("PEM"), "tls-server-name": "milo", "server": f"{SERVER}/prefix/"}
    path = write(cluster=cluster)
    upstream = load_kubeconfig(path)
    assert upstream.server == f"{SERVER}/prefix"
    assert upstream.origin == str(path)
    assert upstream.trusted() == b"PEM"
    assert upstream.tls_server_name == "milo"
    assert upstream.proxy is None
    assert await credential(upstream) == Credential(token=Secret("s3cret"))


async def test_files_referenced_by_kubeconfig_are_relative_to_it_and_reloaded(write: Write, tmp_path: Path) -> None:
    pair = Authority().issue()
    files = {"token": b"token", "ca.crt": b"ca.crt", "tls.crt": pair.certificate, "tls.key": pair.key}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    path = write(
        cluster={"certificate-authority": "ca.crt"},
        user={"tokenFile": "token", "token": "older", "client-certificate": "tls.crt", "client-key": "tls.key"},
    )
    upstream, origin = load_kubeconfig(path), replaced(path)
    found = await origin.obtain(refused=None, is_due=True)
    assert upstream.trusted() == b"ca.crt"
    assert found.token == Secret("token")
    assert found.certificate is not None
    assert found.certificate.chain == pair.certificate
    assert not origin.has_changed()
    replace(tmp_path / "token", "another")
    replace(tmp_path / "ca.crt", pair.certificate.decode())
    assert origin.has_changed()
    assert (await origin.obtain(refused=None, is_due=False)).token == Secret("another")
    assert upstream.trusted() == pair.certificate


def test_last_good_authorities_are_used_while_their_file_has_anything_else(write: Write, tmp_path: Path) -> None:
    noted: list[tuple[str, str]] = []
    first, second = Authority(), Authority()
    file = tmp_path / "ca.crt"
    file.write_bytes(first.pem)
    path = write(cluster={"certificate-authority": "ca.crt"})
    upstream = load_kubeconfig(path, note=lambda *note: noted.append(note))
    for wrong in ("half a certificate", second.pem[:-40].decode(), first.pem.decode() + second.pem[:-40].decode()):
        replace(file, wrong)
        assert upstream.trusted() == first.pem
    problem = f"{file} was replaced, and its former content is used: "
    assert noted == [(str(file), f"{problem}the certificate authority is not a list of PEM certificates")]
    for right in (first.pem, second.pem):
        replace(file, right.decode())
        assert upstream.trusted() == right
    assert noted[1:] == [(str(file), "")]


async def test_kubeconfig_may_embed_client_certificate(write: Write) -> None:
    pair = Authority().issue()
    chain, key = pair.certificate.decode(), pair.key.decode()
    user = {"client-certificate-data": encoded(chain), "client-key-data": encoded(key)}
    found = await credential(load_kubeconfig(write(user=user)))
    assert found.token is None
    assert found.certificate is not None
    assert (found.certificate.chain, found.certificate.key) == (pair.certificate, Secret(key))


async def test_kubeconfig_context_without_user_is_anonymous(write: Write) -> None:
    path = write(contexts=[{"name": "here", "context": {"cluster": "c"}}])
    assert await credential(load_kubeconfig(path)) == Credential()


def test_kubeconfig_may_be_json(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig.json"
    path.write_text(json.dumps(yaml.safe_load(write().read_text())))
    assert load_kubeconfig(path).server == SERVER


def test_kubeconfig_proxy_is_kept_and_masked(write: Write) -> None:
    upstream = load_kubeconfig(write(cluster={"proxy-url": "http://user:s3cret@proxy:3128"}))
    assert upstream.proxy == Secret("http://user:s3cret@proxy:3128")
    assert "s3cret" not in repr(upstream)


def test_kubeconfig_exec_plugin_is_a_credential_provider(write: Write, tmp_path: Path) -> None:
    for version in ("v1", "v1beta1"):
        spec = {
            "apiVersion": f"client.authentication.k8s.io/{version}",
            "command": "./login",
            "args": ["-x"],
            "env": None,
        }
        assert load_kubeconfig(write(user={"exec": spec}), plugins=["./login"]).server == SERVER
        assert load_kubeconfig(write(user={"exec": spec}), plugins=["*"]).server == SERVER


@pytest.mark.parametrize("allowed", [(), ("login",), ("/bin/login",), ("./login -x",)])
def test_kubeconfig_exec_plugin_that_is_not_allowed_is_not_run(write: Write, allowed: tuple[str, ...]) -> None:
    spec = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login", "args": ["-x"]}
    with pytest.raises(UpstreamError, match=r"exec_plugins` does not allow: \./login"):
        load_kubeconfig(write(user={"exec": spec}), plugins=allowed)


async def test_exec_plugin_of_replaced_kubeconfig_is_not_run_if_not_allowed(write: Write) -> None:
    origin = replaced(write())
    write(user={"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login"}})
    with pytest.raises(CredentialError, match="exec_plugins` does not allow"):
        await origin.obtain(refused=None, is_due=False)


def test_kubeconfig_credential_for_plain_http_server_is_accepted_only_on_loopback_if_configured(write: Write) -> None:
    loopback = write(cluster={"server": "http://127.0.0.1:8001"})
    assert load_kubeconfig(loopback, plain_loopback=True).server == "http://127.0.0.1:8001"
    assert "plain_loopback" in problems(loopback)[0]
    assert load_kubeconfig(write(cluster={"server": "http://127.0.0.1:8001"}, user={})).server
    assert load_kubeconfig(write(cluster={"server": "http://milo.example.com"}, user={})).server
    (problem,) = problems(write(cluster={"server": "http://milo.example.com"}))
    assert "sent unencrypted: use https" in problem


async def test_kubeconfig_may_be_read_from_a_pipe(write: Write, tmp_path: Path) -> None:
    content = write().read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = asyncio.create_task(asyncio.to_thread(pipe.write_bytes, content))
    upstream = await asyncio.to_thread(load_kubeconfig, pipe)
    await writing
    assert await credential(upstream) == Credential(token=Secret("s3cret"))


async def test_replaced_kubeconfig_is_parsed_in_another_thread(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, threads, parse = replaced(write()), list[threading.Thread](), kubeconfig.parse

    def noting_thread(content: bytes) -> kubeconfig.ParsedKubeconfig:
        threads.append(threading.current_thread())
        return parse(content)

    monkeypatch.setattr(kubeconfig, "parse", noting_thread)
    write(user={"token": "renewed"})
    assert await origin.obtain(refused=None, is_due=True) == Credential(token=Secret("renewed"))
    assert threads
    assert threading.main_thread() not in threads


async def test_new_credential_in_replaced_kubeconfig_is_used(write: Write) -> None:
    origin = replaced(write())
    assert not origin.has_changed()
    assert await origin.obtain(refused=None, is_due=True) == Credential(token=Secret("s3cret"))
    write(user={"token": "renewed"})
    assert origin.has_changed()
    assert await origin.obtain(refused=None, is_due=False) == Credential(token=Secret("renewed"))
    assert not origin.has_changed()


@pytest.mark.parametrize(
    ("top", "problem"),
    [
        ({"cluster": {"server": "https://elsewhere"}}, "now names a different server, https://elsewhere"),
        ({"current-context": ""}, "its new content is invalid: kubeconfig .* current-context"),
        ({"user": {"tokenFile": "nowhere"}}, "the new one has no credential: .*nowhere cannot be read"),
        (
            {"user": {"client-certificate-data": encoded("x"), "client-key-data": encoded("y")}},
            "the new one has no credential: .* do not match",
        ),
    ],
)
async def test_last_good_kubeconfig_is_used_until_it_is_refused(
    write: Write, top: dict[str, Any], problem: str
) -> None:
    good = Credential(token=Secret("s3cret"))
    origin = replaced(write())
    write(**top)
    assert origin.has_changed()
    with pytest.raises(CredentialError, match=problem):
        await origin.obtain(refused=None, is_due=False)
    assert not origin.has_changed()
    assert await origin.obtain(refused=None, is_due=True) == good
    assert re.search(problem, origin.problem)
    with pytest.raises(CredentialError, match=problem):
        await origin.obtain(refused=good, is_due=True)
    write(user={"token": "renewed"})
    assert await origin.obtain(refused=good, is_due=True) == Credential(token=Secret("renewed"))
    assert origin.problem == ""


@pytest.mark.parametrize(
    ("cluster", "named"),
    [
        ({"certificate-authority-data": encoded("another")}, "another certificate-authority:"),
        (
            {"certificate-authority-data": None, "certificate-authority": "another.crt"},
            "another certificate-authority:",
        ),
        (
            {"tls-server-name": "milo.test", "proxy-url": "http://proxy:3128"},
            "another tls-server-name and another proxy-url:",
        ),
    ],
)
async def test_change_of_a_kubeconfig_that_is_used_after_a_restart_is_named(
    write: Write, tmp_path: Path, cluster: dict[str, str], named: str
) -> None:
    (tmp_path / "another.crt").write_text("another")
    given = {"server": SERVER, "certificate-authority-data": encoded("one")}
    origin = replaced(write(cluster=given))
    write(cluster=given | cluster, user={"token": "renewed"})
    assert await origin.obtain(refused=None, is_due=False) == Credential(token=Secret("renewed"))
    assert f"now has {named} restart the daemon to use it" in origin.problem
    assert await origin.obtain(refused=None, is_due=False) == Credential(token=Secret("renewed"))
    write(cluster=given, user={"token": "again"})
    assert await origin.obtain(refused=None, is_due=False) == Credential(token=Secret("again"))
    assert origin.problem == ""


async def test_token_file_of_the_last_good_kubeconfig_is_read_when_it_changes(write: Write, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one")
    origin = replaced(write(user={"tokenFile": "token"}))
    assert await origin.obtain(refused=None, is_due=True) == Credential(token=Secret("one"))
    write(user={"tokenFile": "nowhere"})
    with pytest.raises(CredentialError, match="nowhere cannot be read"):
        await origin.obtain(refused=None, is_due=False)
    assert not origin.has_changed()
    replace(tmp_path / "token", "two")
    assert origin.has_changed()
    assert await origin.obtain(refused=None, is_due=False) == Credential(token=Secret("two"))
    (tmp_path / "nowhere").write_text("three")
    assert origin.has_changed()
    assert await origin.obtain(refused=None, is_due=False) == Credential(token=Secret("three"))
    assert origin.problem == ""


async def test_empty_or_missing_replacement_of_kubeconfig_is_ignored(write: Write) -> None:
    path = write()
    origin = replaced(path)
    replace(path, "")
    assert not origin.has_changed()
    path.unlink()
    assert not origin.has_changed()
    assert await origin.obtain(refused=None, is_due=True) == Credential(token=Secret("s3cret"))


async def test_kubeconfig_behind_the_swapped_symlink_of_a_secret_is_used(tmp_path: Path, write: Write) -> None:
    """The kubelet replaces the symbolic link of a directory, of which the file is part."""
    content = write().read_text()
    volume = tmp_path / "volume"
    for version, text in (("1", content), ("2", content.replace("s3cret", "renewed"))):
        (volume / version).mkdir(parents=True)
        (volume / version / "kubeconfig").write_text(text)
    (volume / "..data").symlink_to("1")
    (volume / "kubeconfig").symlink_to("..data/kubeconfig")
    origin = replaced(volume / "kubeconfig")
    assert await origin.obtain(refused=None, is_due=True) == Credential(token=Secret("s3cret"))
    (volume / "..data_tmp").symlink_to("2")
    (volume / "..data_tmp").rename(volume / "..data")
    assert origin.has_changed()
    assert await origin.obtain(refused=None, is_due=False) == Credential(token=Secret("renewed"))


@pytest.mark.parametrize(
    ("cluster", "user", "complaint"),
    [
        ({"server": ""}, None, "is not https://HOST[:PORT][/PREFIX]"),
        ({"server": "milo.example.com"}, None, "is not https://HOST[:PORT][/PREFIX]"),
        ({"server": "ftp://milo"}, None, "is not https://HOST[:PORT][/PREFIX]"),
        ({"server": "https://milo:port"}, None, "is not a URL"),
        ({"server": "https://user@milo"}, None, "has a user"),
        ({"server": "https://milo/?a=b"}, None, "has a user, a query"),
        ({"server": "https://milo/a/../b"}, None, "an ambiguous path"),
        ({"server": "https://milo/a%2fb"}, None, "an ambiguous path"),
        ({"insecure-skip-tls-verify": True}, None, "set certificate-authority-data"),
        ({"certificate-authority-data": "!!"}, None, "certificate-authority-data that is not valid base64"),
        ({"certificate-authority": "nowhere.crt"}, None, "nowhere.crt cannot be read"),
        ({"proxy-url": "socks5://s3cret@proxy:1080"}, None, "SOCKS is not supported"),
        ({"proxy-url": "http://proxy:port"}, None, "proxy-url that is not http"),
        ({"certificate-authority": "a\0b"}, None, "NUL"),
        ({}, {"tokenFile": "a\0b"}, "NUL"),
        ({}, {"auth-provider": {"name": "oidc"}}, "use an exec credential plugin"),
        ({}, {"username": "u", "password": "s3cret"}, "use a token or a certificate"),
        ({}, {"token": "t", "as": "admin"}, "impersonates another"),
        ({}, {"token": "s3cret s3cret"}, "not a bearer token"),
        ({}, {"client-certificate-data": encoded("x")}, "set both"),
        ({}, {"client-key-data": encoded("x")}, "set both"),
        ({}, {"client-key-data": encoded("x"), "client-certificate": "kubeconfig"}, "use data or files for both"),
        ({}, {"exec": {"apiVersion": "client.authentication.k8s.io/v1alpha1", "command": "x"}}, "v1beta1"),
        ({}, {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": ""}}, "without a command"),
        (
            {},
            {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "x", "interactiveMode": "Always"}},
            "needs a terminal",
        ),
    ],
)
def test_unsupported_kubeconfig_is_rejected_with_the_reason(
    write: Write, cluster: dict[str, Any], user: dict[str, Any] | None, complaint: str
) -> None:
    (problem,) = problems(write(cluster=cluster, user=user))
    assert complaint in problem


@pytest.mark.parametrize(
    ("user", "file"),
    [
        ({"tokenFile": "../token"}, "../token"),
        ({"client-certificate": "a/../../c", "client-key": "k"}, "a/../../c"),
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "../login"}}, "../login"),
    ],
)
def test_path_with_parent_directory_in_kubeconfig_is_rejected(write: Write, user: dict[str, Any], file: str) -> None:
    with pytest.raises(UpstreamError, match=r'must not contain "\.\."') as raised:
        load_kubeconfig(write(user=user), plugins=["*"])
    assert file in str(raised.value)


def test_kubeconfig_problems_are_reported_together(write: Write) -> None:
    found = problems(write(cluster={"server": "milo", "insecure-skip-tls-verify": True}, user={"username": "u"}))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("top", "complaint"),
    [
        ({"current-context": ""}, "has no current-context"),
        ({"current-context": "there"}, "has no context 'there'; it has: here"),
        ({"clusters": None}, "has no cluster 'c'; it has: none"),
        ({"users": []}, "has no user 'u'; it has: none"),
        ({"users": [{"name": "u", "user": {"token": 12345}}]}, "token with the wrong type: it must be a string"),
        ({"clusters": {"c": {}}}, "clusters must be a list"),
    ],
)
def test_inconsistent_kubeconfig_is_rejected(write: Write, top: dict[str, Any], complaint: str) -> None:
    (problem,) = problems(write(**top))
    assert complaint in problem


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([SERVER, "here", "c", "u"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents)
def test_upstream_kubeconfig_raises_only_upstream_errors_for_any_document(tmp_path: Path, document: object) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(document))
    with suppress(UpstreamError):
        load_kubeconfig(path)


def test_file_that_is_not_a_kubeconfig_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    assert problems(path) == ("cannot be read: No such file or directory",)
    path.write_text("")
    assert problems(path) == ("is not a kubeconfig: it is empty or not a mapping",)
    path.write_text("a: 1\na: 2\n")
    assert problems(path) == ('line 2: has the key "a" twice (first on line 1)',)
    assert "pass one file" in problems(Path(f"{path}:{path}"))[0]
