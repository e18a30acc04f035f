"""Tests of the commands `credential` and `kubeconfig`: output, files, and secrets that must not leak."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import yaml
from google.rpc.error_details_pb2 import ErrorInfo

from clients.python.tests.kubeconfigs import issued, text
from clients.python.tests.scripted_daemon import Refusal
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery_cli.kubeconfig_merge import default_file

from .command_process import COMMAND, FLEET

CANARY = "canary-7c41e0"
LIFE = timedelta(minutes=10)
EMBEDDED = text(token=CANARY)
EXEC_INFO = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": {"interactive": False}}
NOT_ENGAGED = Refusal(grpc.StatusCode.NOT_FOUND, "alpha is not engaged", (ErrorInfo(reason="NOT_ENGAGED"),))


def encoded(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()


def exec_form() -> pb.IssueKubeconfigResponse:
    call = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "milo-discovery",
        "args": ["credential", "--cluster", "alpha"],
        "env": [{"name": "MILO_DISCOVERY_ADDRESS", "value": "unix:///as/the/daemon/sees/it"}],
        "interactiveMode": "Never",
    }
    return pb.IssueKubeconfigResponse(
        kubeconfig=pb.Kubeconfig(cluster="alpha", kubeconfig=text(exec=call))  # type: ignore[arg-type]
    )


class TestCredential:
    async def test_credential_command_prints_a_token_with_its_expiry(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [issued(EMBEDDED, life=LIFE)]
        outcome = await command("credential", "--cluster", "alpha")
        answer = json.loads(outcome.out)
        end = datetime.fromisoformat(answer["status"].pop("expirationTimestamp"))
        assert answer == {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": CANARY},
        }
        assert LIFE - timedelta(minutes=1) < end - datetime.now(UTC) < LIFE
        assert (outcome.status, outcome.err) == (0, "")
        assert daemon.requests == [pb.IssueKubeconfigRequest(cluster="alpha")]

    async def test_credential_whose_expiry_is_out_of_range_is_printed_without_it(self, command, daemon):
        response = issued(EMBEDDED, life=LIFE)
        response.kubeconfig.expires_at.seconds = 2**62
        daemon.answers["IssueKubeconfig"] = [response]
        outcome = await command("credential", "--cluster", "alpha")
        assert (outcome.status, json.loads(outcome.out)["status"]) == (0, {"token": CANARY})

    async def test_credential_command_for_an_impersonated_user_requires_a_kubeconfig_with_the_same_user(
        self, command, daemon
    ):
        acting = {"as": "system:serviceaccount:milo:operator", "as-groups": ["tenants"]}
        statement = json.dumps(acting, separators=(",", ":"), sort_keys=True)
        for stated, status in (("", 1), ('{"as":"another"}', 1), (statement, 0)):
            daemon.answers["IssueKubeconfig"] = [issued(text(token=CANARY, **acting))]
            outcome = await command("credential", "--cluster", "alpha", MILO_DISCOVERY_ACT_AS=stated)
            assert outcome.status == status
            assert (CANARY in outcome.out) == (status == 0)
            assert CANARY not in outcome.err
        assert outcome.err == ""

    async def test_kubeconfig_of_a_replaced_cluster_gets_no_credential_for_another_server(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        (user,) = json.loads((await command("kubeconfig", "alpha")).out)["users"]
        plugin = {entry["name"]: entry["value"] for entry in user["user"]["exec"]["env"]}
        assert plugin["MILO_DISCOVERY_CLUSTER_SERVER"] == "https://alpha.test"

        daemon.answers["IssueKubeconfig"] = [issued(EMBEDDED), issued(text("https://moved.test", token=CANARY))]
        given, refused = [await command("credential", "--cluster", "alpha", **plugin) for _ in range(2)]
        assert (given.status, CANARY in given.out) == (0, True)
        assert (refused.status, refused.out) == (1, "")
        assert "is for https://moved.test, but this kubeconfig connects to https://alpha.test" in refused.err
        assert "recreate it with `milo-discovery kubeconfig alpha`" in refused.err

    async def test_exec_kubeconfig_contains_the_impersonated_user(self, command, daemon):
        content = json.loads(exec_form().kubeconfig.kubeconfig)
        content["users"][0]["user"]["as"] = "operator"
        daemon.answers["IssueKubeconfig"] = [issued(json.dumps(content).encode())]
        user = json.loads((await command("kubeconfig", "alpha")).out)["users"][0]["user"]
        assert user["as"] == "operator"
        assert {"name": "MILO_DISCOVERY_ACT_AS", "value": '{"as":"operator"}'} in user["exec"]["env"]

    async def test_credential_command_prints_a_certificate_as_pem(self, command, daemon):
        pem = {"client_certificate_data": "CERTIFICATE", "client_key_data": "KEY"}
        content = text(**{key: base64.b64encode(value.encode()).decode() for key, value in pem.items()})
        daemon.answers["IssueKubeconfig"] = [issued(content)]
        status = json.loads((await command("credential", "--cluster", "alpha")).out)["status"]
        assert (status["clientCertificateData"], status["clientKeyData"]) == ("CERTIFICATE", "KEY")
        assert "token" not in status

    @pytest.mark.parametrize("exec_info", ["{", "[]", '{"apiVersion": "client.authentication.k8s.io/v1alpha1"}'])
    async def test_credential_command_refuses_invalid_exec_info(self, command, daemon, exec_info):
        outcome = await command("credential", "--cluster", "alpha", KUBERNETES_EXEC_INFO=exec_info)
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith("milo-discovery: KUBERNETES_EXEC_INFO")
        assert daemon.requests == []

    async def test_credential_command_refuses_a_caller_that_connects_to_a_server_not_in_the_kubeconfig(
        self, command, daemon
    ):
        daemon.answers["IssueKubeconfig"] = [issued(EMBEDDED)] * 2
        elsewhere = {**EXEC_INFO, "spec": {"cluster": {"server": "https://elsewhere.test"}}}
        refused = await command("credential", "--cluster", "alpha", KUBERNETES_EXEC_INFO=json.dumps(elsewhere))
        assert (refused.status, refused.out) == (1, "")
        assert "the caller connects to https://elsewhere.test" in refused.err
        there = {**EXEC_INFO, "spec": {"cluster": {"server": "https://alpha.test"}}}
        given = await command("credential", "--cluster", "alpha", KUBERNETES_EXEC_INFO=json.dumps(there))
        assert given.status == 0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"certificate-authority-data": encoded("OTHER")}, "a different CA"),
            ({"certificate-authority-data": None}, "a different CA"),
            ({"certificate-authority-data": "?"}, "a different CA"),
            ({"insecure-skip-tls-verify": True}, "does not verify it"),
            ({"tls-server-name": "other.test"}, "not for a server named other.test"),
            ({"proxy-url": "http://proxy.test"}, "set HTTPS_PROXY"),
            ({}, ""),
            ({"certificate-authority-data": encoded("PEM\n\n")}, ""),
            ({"tls-server-name": "alpha.internal"}, ""),
        ],
    )
    async def test_credential_command_refuses_callers_whose_tls_settings_differ_from_the_kubeconfig(
        self, command, daemon, change, message
    ):
        daemon.answers["IssueKubeconfig"] = [
            issued(text(token=CANARY, authorities=b"PEM\n", tls_server_name="alpha.internal"))
        ]
        cluster = {"server": "https://alpha.test", "certificate-authority-data": encoded("PEM\n"), **change}
        exec_info = {**EXEC_INFO, "spec": {"cluster": cluster}}
        outcome = await command("credential", "--cluster", "alpha", KUBERNETES_EXEC_INFO=json.dumps(exec_info))
        assert message in outcome.err
        assert (outcome.status, CANARY in outcome.out) == ((1, False) if message else (0, True))

    async def test_credential_command_takes_the_cluster_name_from_exec_info(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [issued(EMBEDDED)]
        cluster = {"server": "https://alpha.test", "config": {"clusterName": "alpha"}}
        outcome = await command(
            "credential", KUBERNETES_EXEC_INFO=json.dumps({**EXEC_INFO, "spec": {"cluster": cluster}})
        )
        assert json.loads(outcome.out)["status"]["token"] == CANARY
        assert daemon.requests == [pb.IssueKubeconfigRequest(cluster="alpha")]

    @pytest.mark.parametrize(
        ("refusal", "status"),
        [
            (NOT_ENGAGED, 3),
            (Refusal(grpc.StatusCode.PERMISSION_DENIED, "no"), 4),
            (Refusal(grpc.StatusCode.UNAVAILABLE, "down", (ErrorInfo(reason="CREDENTIALS_UNAVAILABLE"),)), 7),
            (Refusal(grpc.StatusCode.FAILED_PRECONDITION, "none", (ErrorInfo(reason="NO_CREDENTIAL_ISSUER"),)), 1),
        ],
    )
    async def test_exit_status_of_credential_command_depends_on_the_grpc_status(self, command, daemon, refusal, status):
        daemon.answers["IssueKubeconfig"] = [refusal]
        outcome = await command("credential", "--cluster", "alpha")
        assert (outcome.status, outcome.out) == (status, "")
        assert outcome.err == f"milo-discovery: {refusal.message}\n"

    async def test_credential_command_does_not_quote_a_malformed_kubeconfig(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [issued(f"token: {CANARY}".encode())]
        outcome = await command("credential", "--cluster", "alpha")
        assert outcome.status == 1
        assert CANARY not in outcome.out + outcome.err

    async def test_credential_command_imports_neither_the_blocking_client_nor_the_model(self):
        script = (
            "import sys; import milo_discovery_cli.credential\n"
            "print([m for m in ('milo_discovery.model', 'milo_discovery.sync', 'yaml') if m in sys.modules])"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert out.decode().strip() == "[]"


class TestKubeconfig:
    @pytest.mark.parametrize("name", ["alpa", "ALPHA"])
    async def test_kubeconfig_of_an_unknown_name_suggests_similar_names(self, command, daemon, name):
        daemon.answers["IssueKubeconfig"] = [NOT_ENGAGED]
        daemon.answers["GetCluster"] = [Refusal(grpc.StatusCode.NOT_FOUND, f"{name} is not known")]
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("kubeconfig", name)
        assert outcome.status == 3
        assert "; did you mean alpha?" in outcome.err

    async def test_error_for_a_known_name_that_is_not_engaged_has_no_suggestions(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [NOT_ENGAGED]
        daemon.answers["GetCluster"] = [pb.GetClusterResponse(cluster=pb.Cluster(name="alpha"))]
        outcome = await command("kubeconfig", "alpha")
        assert (outcome.status, outcome.err) == (3, "milo-discovery: alpha is not engaged\n")

    async def test_exec_kubeconfig_has_no_secret_and_uses_the_address_of_the_command(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        outcome = await command("kubeconfig", "alpha", PATH=os.environ["PATH"] + f":{Path(sys.executable).parent}")
        call = json.loads(outcome.out)["users"][0]["user"]["exec"]
        assert {variable["name"]: variable["value"] for variable in call["env"]} == {
            "MILO_DISCOVERY_ADDRESS": daemon.address,
            "MILO_DISCOVERY_CLUSTER_SERVER": "https://alpha.test",
        }
        assert call["command"] == "milo-discovery"
        assert daemon.requests[0].format == pb.KUBECONFIG_FORMAT_EXEC
        assert (outcome.status, outcome.err) == (0, "")

    async def test_exec_kubeconfig_uses_the_full_path_of_a_command_not_on_path(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        outcome = await command("kubeconfig", "alpha", PATH="/nothing/here")
        named = Path(json.loads(outcome.out)["users"][0]["user"]["exec"]["command"])
        assert named.is_absolute()
        assert os.access(named, os.X_OK)

    async def test_token_kubeconfig_embeds_the_issued_token(self, command, daemon):
        daemon.answers["IssueKubeconfig"] = [issued(EMBEDDED)]
        outcome = await command("kubeconfig", "alpha", "--token", "--ttl", "5m")
        assert json.loads(outcome.out) == json.loads(EMBEDDED)
        assert daemon.requests[0].ttl.seconds == 300

    async def test_written_kubeconfig_is_private_and_replaced_atomically(self, command, daemon, tmp_path):
        daemon.answers["IssueKubeconfig"] = [issued(EMBEDDED)]
        path = tmp_path / "alpha"
        path.write_bytes(text(token="an-older-and-longer-token-" * 9))
        path.chmod(0o644)
        before = path.stat().st_ino
        outcome = await command("kubeconfig", "alpha", "--token", "-w", str(path))
        assert json.loads(path.read_text()) == json.loads(EMBEDDED)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_ino != before
        assert [file.name for file in tmp_path.iterdir()] == ["alpha"]
        assert (outcome.status, outcome.out) == (0, "")
        assert CANARY not in outcome.err

    @pytest.mark.parametrize("content", ["a: b", "{}", "[", text(exec={"command": "x"}).decode()])  # type: ignore[arg-type]
    async def test_kubeconfig_write_refuses_to_overwrite_a_foreign_file_without_force(
        self, command, daemon, tmp_path, content
    ):
        daemon.answers["IssueKubeconfig"] = [exec_form()] * 2
        (path := tmp_path / "config").write_text(content)
        refused = await command("kubeconfig", "alpha", "-w", str(path))
        assert (refused.status, path.read_text()) == (1, content)
        assert "--merge" in refused.err
        assert "--force" in refused.err
        assert (await command("kubeconfig", "alpha", "-w", str(path), "--force")).status == 0
        assert "milo-discovery" in path.read_text()

    async def test_exec_kubeconfig_contains_connection_options_of_the_client(self, command, daemon, tmp_path):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        (token := tmp_path / "token").write_text("t")
        outcome = await command("kubeconfig", "alpha", "--token-file", str(token), "--server-uid", str(os.geteuid()))
        [user] = json.loads(outcome.out)["users"]
        assert {variable["name"]: variable["value"] for variable in user["user"]["exec"]["env"]} == {
            "MILO_DISCOVERY_ADDRESS": daemon.address,
            "MILO_DISCOVERY_TOKEN_FILE": str(token),
            "MILO_DISCOVERY_SERVER_UID": str(os.geteuid()),
            "MILO_DISCOVERY_CLUSTER_SERVER": "https://alpha.test",
        }

    @pytest.mark.parametrize("arguments", [[], ["--token"]])
    @pytest.mark.parametrize(
        "user",
        [
            {"exec": {"command": "/bin/sh", "args": ["credential", "--cluster", "alpha"]}},
            {"exec": {"command": "milo-discovery", "args": ["sync", "--dir", "/"]}},
            {"exec": {"command": "milo-discovery", "args": ["credential", "--cluster", "alpha"], "extra": 1}},
            {"token": CANARY, "exec": {"command": "/bin/sh"}},
            {"token": CANARY, "auth-provider": {"name": "x"}},
            {"tokenFile": "/etc/passwd"},
        ],
    )
    async def test_kubeconfig_from_the_daemon_with_a_credential_plugin_or_unknown_field_is_refused(
        self, command, daemon, arguments, user
    ):
        content = text(**{key.replace("-", "_"): value for key, value in user.items()})
        daemon.answers["IssueKubeconfig"] = [issued(content)]
        outcome = await command("kubeconfig", "alpha", *arguments)
        assert (outcome.status, outcome.out) == (1, "")
        assert "the kubeconfig is not of the form that the daemon writes: " in outcome.err
        assert CANARY not in outcome.err

    @pytest.mark.parametrize("option", ["--force", "--merge"])
    async def test_written_kubeconfig_does_not_replace_a_special_file(self, command, daemon, tmp_path, option):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        os.mkfifo(path := tmp_path / "fifo")
        # With an open writer, the command does not block in open() for reading.
        writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            outcome = await command("kubeconfig", "alpha", "-w", str(path), option)
        finally:
            os.close(writer)
        assert (outcome.status, outcome.err) == (1, f"milo-discovery: {path} is not a regular file\n")
        assert path.is_fifo()

    async def test_exec_kubeconfig_written_by_python_m_runs_the_installed_command(self, daemon):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "milo_discovery_cli", "kubeconfig", "alpha", "--address", daemon.address),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PATH": "/nothing/here"},
        )
        out, _ = await process.communicate()
        assert json.loads(out)["users"][0]["user"]["exec"]["command"] == COMMAND


MINE = """\
apiVersion: v1
kind: Config
current-context: mine
clusters:
- {name: mine, cluster: {server: "https://mine", insecure-skip-tls-verify: true}}
users:
- {name: mine, user: {token: "0123", username: 2026-11-20}}
contexts:
- {name: mine, context: {cluster: mine, user: mine}}
preferences: {}
"""


class TestMerge:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        (path := tmp_path / "config").write_text(MINE)
        return path

    @pytest.mark.parametrize(("existing", "chosen"), [([], "b"), (["b"], "b"), (["a", "b"], "a")])
    def test_kubeconfig_merge_writes_to_the_file_that_kubectl_would_write_to(
        self, tmp_path, monkeypatch, existing, chosen
    ):
        files = [tmp_path / name for name in ("a", "b")]
        monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, files)))
        for name in existing:
            (tmp_path / name).write_text(MINE)
        assert default_file() == tmp_path / chosen

    async def test_kubeconfig_merge_adds_a_context_and_keeps_other_contexts(self, command, daemon, path):
        daemon.answers["IssueKubeconfig"] = [exec_form()] * 2
        for _ in range(2):
            outcome = await command("kubeconfig", "alpha", "-w", str(path), "--merge")
            assert outcome.status == 0, outcome.err
        merged = yaml.safe_load(path.read_text())
        assert [context["name"] for context in merged["contexts"]] == ["mine", "milo-alpha"]
        assert merged["contexts"][1]["context"] == {"cluster": "milo-alpha", "user": "milo-alpha"}
        assert merged["current-context"] == "mine"
        assert merged["clusters"][0]["cluster"] == {"server": "https://mine", "insecure-skip-tls-verify": True}
        assert merged["users"][0]["user"] == {"token": "0123", "username": "2026-11-20"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    async def test_kubeconfig_merge_keeps_a_symlink(self, command, daemon, path, tmp_path):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        (link := tmp_path / "link").symlink_to(path)
        await command("kubeconfig", "alpha", "--merge", "-w", str(link))
        assert link.is_symlink()
        assert "milo-alpha" in path.read_text()

    async def test_kubeconfig_merge_fails_while_the_file_is_locked(self, command, daemon, path):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        (lock := path.with_name("config.lock")).touch()
        outcome = await command("kubeconfig", "alpha", "--merge", "-w", str(path))
        assert outcome.status == 1
        assert f"remove {lock}" in outcome.err
        assert path.read_text() == MINE

    @pytest.mark.parametrize("content", ["[1]", "a: [", f"contexts: {CANARY}", f"users: ['{CANARY}']"])
    async def test_kubeconfig_merge_neither_changes_nor_quotes_a_malformed_file(self, command, daemon, path, content):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        path.write_text(content)
        outcome = await command("kubeconfig", "alpha", "--merge", "-w", str(path))
        assert outcome.status == 1
        assert "was not changed" in outcome.err
        assert CANARY not in outcome.err
        assert path.read_text() == content
        assert not path.with_name("config.lock").exists()

    async def test_kubeconfig_merge_reads_utf8_in_any_locale(self, command, daemon, path):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        path.write_text(MINE.replace("preferences: {}", "preferences: {note: schön}"), encoding="utf-8")
        environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        outcome = await command("kubeconfig", "alpha", "--merge", "-w", str(path), **environment)
        assert outcome.status == 0, outcome.err
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["preferences"] == {"note": "schön"}

    async def test_kubeconfig_merge_does_not_change_a_file_that_is_not_utf8(self, command, daemon, path):
        daemon.answers["IssueKubeconfig"] = [exec_form()]
        path.write_bytes(b"apiVersion: \xff\xff")
        outcome = await command("kubeconfig", "alpha", "--merge", "-w", str(path))
        assert (outcome.status, outcome.err) == (
            1,
            f"milo-discovery: {path} was not changed: line 1: is not UTF-8 text (byte 12)\n",
        )
        assert path.read_bytes() == b"apiVersion: \xff\xff"
