"""Credentials from exec plugins, which are real shell scripts here."""

import asyncio
import base64
import json
import os
import signal
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from milo_kube.credential import Credential, CredentialError, Secret
from milo_kube.credential_providers import ExecOrigin
from milo_kube.exec_plugin import ExecCommand, redacted
from milo_kube.upstream import load_kubeconfig
from tests.support.certificates import Authority

V1 = "client.authentication.k8s.io/v1"


class Script:
    """A plugin that logs its runs to a file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "login"
        self.log = directory / "runs"
        self.does("true")

    def does(self, lines: str) -> None:
        self.path.write_text(f"#!/bin/sh\necho run >>'{self.log}'\n{lines}\n")
        self.path.chmod(0o700)

    def prints(self, status: dict[str, Any] | None, **top: Any) -> None:
        answer = {"apiVersion": V1, "kind": "ExecCredential", "status": status} | top
        self.does(f"cat <<'JSON'\n{json.dumps(answer)}\nJSON")

    @property
    def runs(self) -> int:
        return self.log.read_text().count("run") if self.log.exists() else 0

    def plugin(self, *, timeout_s: float = 20, **differing: Any) -> ExecOrigin:
        given = {"api_version": V1, "argv": (str(self.path),), "environment": {}} | differing
        return ExecOrigin(ExecCommand(**given), timeout_s)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


async def failure(plugin: ExecOrigin) -> str:
    with pytest.raises(CredentialError) as raised:
        await plugin.obtain()
    return str(raised.value)


async def test_exec_plugin_token_is_read(script: Script) -> None:
    script.prints({"token": "t1"})
    assert await script.plugin().obtain() == Credential(token=Secret("t1"))


async def test_fields_that_are_null_in_an_exec_credential_are_absent(script: Script) -> None:
    optional = ("clientCertificateData", "clientKeyData", "expirationTimestamp")
    script.prints({"token": "t1", **dict.fromkeys(optional)}, spec=None)
    assert await script.plugin().obtain() == Credential(token=Secret("t1"))
    script.prints({"token": None})
    assert "printed neither a token nor a client certificate" in await failure(script.plugin())


async def test_exec_plugin_client_certificate_is_read(script: Script) -> None:
    pair = Authority().issue()
    script.prints({"clientCertificateData": pair.certificate.decode(), "clientKeyData": pair.key.decode()})
    certificate = (await script.plugin().obtain()).certificate
    assert certificate is not None
    assert (certificate.chain, certificate.key.reveal().encode()) == (pair.certificate, pair.key)


async def test_exec_plugin_gets_arguments_environment_and_cluster_info(script: Script) -> None:
    script.does(
        'printf \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}\' '
        '"$(printf "%s" "$1 $COLOUR $KUBERNETES_EXEC_INFO" | base64 | tr -d "\\n")"'
    )
    cluster = {"server": "https://milo", "config": {"audience": "milo"}}
    plugin = script.plugin(argv=(str(script.path), "first"), environment={"COLOUR": "blue"}, cluster=lambda: cluster)
    token = (await plugin.obtain()).token
    assert token is not None
    argument, colour, info = base64.b64decode(token.reveal()).decode().split(" ", 2)
    assert (argument, colour) == ("first", "blue")
    assert json.loads(info) == {
        "apiVersion": V1,
        "kind": "ExecCredential",
        "spec": {"interactive": False, "cluster": cluster},
    }


async def test_exec_plugin_with_path_relative_to_kubeconfig_gets_cluster_info(script: Script, tmp_path: Path) -> None:
    script.does(
        'printf \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}\' '
        '"$(printf "%s" "$KUBERNETES_EXEC_INFO" | base64 | tr -d "\\n")"'
    )
    config = tmp_path / "kubeconfig"
    config.write_text(f"""
current-context: x
contexts: [{{name: x, context: {{cluster: x, user: x}}}}]
clusters:
- name: x
  cluster:
    server: https://milo
    certificate-authority-data: UEVN
    tls-server-name: milo.internal
    extensions: [{{name: client.authentication.k8s.io/exec, extension: {{audience: milo}}}}]
users: [{{name: x, user: {{exec: {{apiVersion: {V1}, command: ./login, provideClusterInfo: true}}}}}}]
""")
    async with aclosing(load_kubeconfig(config, plugins=["./login"])) as upstream:
        token = (await upstream.credentials.credential(within_s=20)).token
    assert token is not None
    assert json.loads(base64.b64decode(token.reveal()))["spec"]["cluster"] == {
        "server": "https://milo",
        "certificate-authority-data": "UEVN",
        "tls-server-name": "milo.internal",
        "config": {"audience": "milo"},
    }


async def test_exec_plugin_inherits_only_allowed_environment_variables(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MILO_DISCOVERYD_LOG__LEVEL", "OTEL_EXPORTER_OTLP_HEADERS", "DATABASE_PASSWORD", "XPATH"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_PROFILE", "milo")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    script.does(f"env >'{script.log}.env'")
    await failure(script.plugin(environment={"GIVEN": "1"}))
    names = {line.partition("=")[0] for line in Path(f"{script.log}.env").read_text().splitlines()}
    assert {"PATH", "AWS_PROFILE", "https_proxy", "GIVEN", "KUBERNETES_EXEC_INFO"} <= names
    assert not names & {"MILO_DISCOVERYD_LOG__LEVEL", "OTEL_EXPORTER_OTLP_HEADERS", "DATABASE_PASSWORD", "XPATH"}


async def test_exec_credential_has_its_expiry(script: Script) -> None:
    script.prints({"token": "t1", "expirationTimestamp": "2999-01-01T00:00:00Z"})
    assert (await script.plugin().obtain()).expires_at == 32_472_144_000.0


@pytest.mark.parametrize(
    ("prints", "complaint"),
    [
        (lambda script: script.does("true"), "did not print an ExecCredential"),
        (lambda script: script.does("echo '<html>'"), "did not print an ExecCredential"),
        (lambda script: script.prints({"token": 5}), "did not print an ExecCredential"),
        (lambda script: script.does('printf \'{"kind": "\\377"}\''), "did not print an ExecCredential"),
        (lambda script: script.does("head -c 900000 /dev/zero | tr '\\0' '['"), "did not print an ExecCredential"),
        (lambda script: script.prints({"token": "s3cret", "expirationTimestamp": "soon"}), "did not print an ExecCred"),
        (lambda script: script.prints(None), "neither a token nor a client certificate"),
        (lambda script: script.prints({"clientKeyData": "s3cret"}), "a key without a certificate"),
        (lambda script: script.prints({"clientCertificateData": "x", "clientKeyData": "s3cret"}), "do not match"),
        (lambda script: script.does("kill -9 $$"), "was killed (signal 9): it printed no error"),
        (lambda script: script.does("exit 4"), "exited with status 4: it printed no error"),
        (
            lambda script: script.prints({"token": "s3cret"}, apiVersion="client.authentication.k8s.io/v1beta1"),
            "instead of ExecCredential",
        ),
        (lambda script: script.prints({"token": "s3cret"}, kind="Secret"), "printed Secret"),
        (lambda script: script.prints({"token": "s3cret s3cret"}), "not a bearer token"),
        (
            lambda script: script.prints({"token": "s3cret", "expirationTimestamp": "2020-01-15T08:00:00Z"}),
            "expired at 2020-01-15T08:00:00+00:00",
        ),
    ],
)
async def test_invalid_exec_credential_is_reported_and_not_shown(
    script: Script, prints: Callable[[Script], None], complaint: str
) -> None:
    prints(script)
    message = await failure(script.plugin())
    assert complaint in message
    assert "s3cret" not in message


@pytest.mark.parametrize("kind", ["a " * 100_000, "eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl"], ids=["long", "a token"])
async def test_wrong_kind_of_exec_credential_is_quoted_as_other_output_is(script: Script, kind: str) -> None:
    script.prints({"token": "t1"}, kind=kind)
    message = await failure(script.plugin())
    assert len(message) < 1_000
    assert "eyJ" not in message


async def test_missing_exec_plugin_is_reported_with_install_hint(script: Script) -> None:
    plugin = script.plugin(argv=("/no/such/login",), install_hint="brew install login")
    message = await failure(plugin)
    assert message == "exec plugin /no/such/login cannot be started: No such file or directory (brew install login)"


async def test_hanging_exec_plugin_is_killed_with_its_children(script: Script, tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    script.does(f"exec 3>{held}; sleep 1000 & sleep 1000")
    assert "did not finish within 0.3 s" in await failure(script.plugin(timeout_s=0.3))
    os.set_blocking(reader, True)
    assert await asyncio.to_thread(os.read, reader, 1) == b""  # EOF comes when the last writer ends
    os.close(reader)


async def test_daemonized_child_of_exec_plugin_does_not_block(script: Script, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    script.prints({"token": "t1"})
    lines = script.path.read_text()
    script.path.write_text(f"{lines}\nsetsid sh -c 'echo $$ >{pid}; exec sleep 1000' &\nread ready <{pid}.go\n")
    os.mkfifo(f"{pid}.go")
    asking = asyncio.create_task(script.plugin().obtain())
    daemon = int(await asyncio.to_thread(pid.read_text))
    await asyncio.to_thread(Path(f"{pid}.go").write_text, "go\n")
    assert await asking == Credential(token=Secret("t1"))
    os.kill(daemon, signal.SIGKILL)


async def test_canceled_exec_plugin_is_killed_and_run_again(script: Script, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script.does(f"echo >{started}; sleep 1000")
    os.mkfifo(started)
    plugin = script.plugin()
    asking = asyncio.create_task(plugin.obtain())
    await asyncio.to_thread(started.read_bytes)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    script.prints({"token": "t1"})
    assert await plugin.obtain() == Credential(token=Secret("t1"))


async def test_exec_plugin_with_excessive_output_is_killed(script: Script) -> None:
    script.does(
        "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"
    )
    assert "printed more than 1048576 bytes" in await failure(script.plugin())


async def test_exec_plugin_with_large_stderr_does_not_block(script: Script) -> None:
    script.does("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo ' at last' >&2; exit 1")
    message = await failure(script.plugin())
    assert message.endswith("at last")
    assert len(message) < 1000


async def test_exec_plugin_has_no_stdin(script: Script) -> None:
    script.does('read answer || { echo "no terminal" >&2; exit 1; }')
    assert "no terminal" in await failure(script.plugin())


@pytest.mark.parametrize(
    ("stderr", "shown"),
    [
        ("plain words stay", "plain words stay"),
        ("a\n  b\tc\x1b[31m", "a b c [31m"),
        ("got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl", "got ***"),
        ("Authorization: Bearer hunter2", "Authorization: Bearer ***"),
        ("token=hunter2 rest", "token*** rest"),
        ('{"access_token": "hunter2"}', '{"access_token***'),
        ("password: hunter2", "password***"),
        ("https://user:hunter2@proxy/", "https://***@proxy/"),
        ("0123456789abcdef0123456789abcdef01234567", "***"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY----- after", "*** after"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2", "***"),
        ("\xff".encode("latin-1"), "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_exec_plugin_error_masks_secrets(stderr: str | bytes, shown: str) -> None:
    assert redacted(stderr.encode() if isinstance(stderr, str) else stderr) == shown


def test_long_exec_plugin_error_keeps_only_its_end() -> None:
    assert redacted(b"word " * 1000 + b"last") == "..." + ("word " * 1000 + "last")[-500:]
