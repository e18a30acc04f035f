"""A real kubectl on the sandbox, as a user runs it."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from milo_sandbox import Rule, Sandbox, kubeconfigs

DEADLINE_S = 60.0
PROJECT = """
apiVersion: resourcemanager.miloapis.com/v1alpha1
kind: Project
metadata: {name: hello, labels: {env: dev}}
spec: {ownerRef: {kind: Organization, name: acme}}
"""


class Result(msgspec.Struct, frozen=True):
    status: int
    out: str
    err: str


class Kubectl:
    def __init__(self, program: str, home: Path, kubeconfig: Path) -> None:
        self._program = program
        self._home = home
        self._kubeconfig = kubeconfig

    def on(self, kubeconfig: Path) -> "Kubectl":
        return Kubectl(self._program, self._home, kubeconfig)

    async def run(self, *arguments: str, stdin: str = "") -> Result:
        process = await self._start(*arguments)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())

    async def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run a command; return its output."""
        result = await self.run(*arguments, stdin=stdin)
        assert result.status == 0, result.err
        return result.out

    @asynccontextmanager
    async def printing(self, *arguments: str) -> AsyncIterator[Callable[[str], "asyncio.Future[str]"]]:
        """Run a command in the background; the block can wait for lines with a prefix."""
        process = await self._start(*arguments)
        assert process.stdout is not None
        stdout = process.stdout

        async def line(start: str) -> str:
            async with asyncio.timeout(DEADLINE_S):
                while not (found := (await stdout.readline()).decode()).startswith(start):
                    assert found, f"ended before a line that begins with {start!r}"
            return " ".join(found.split())

        try:
            yield lambda start: asyncio.ensure_future(line(start))
        finally:
            process.terminate()
            await process.communicate()

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            self._program,
            *arguments,
            env={"HOME": str(self._home), "KUBECONFIG": str(self._kubeconfig), "PATH": "/nonexistent"},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )


@pytest.fixture
async def kubectl(sandbox: Sandbox, tmp_path: Path) -> Kubectl:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not on PATH")
    return Kubectl(program, tmp_path, sandbox.write_kubeconfig(tmp_path / "kubeconfig"))


async def test_kubectl_creates_watches_and_deletes_a_project(kubectl: Kubectl, sandbox: Sandbox) -> None:
    async with kubectl.printing("get", "projects", "-w") as printed:
        sandbox.projects.create("first", ready=True)
        assert (await printed("first")).startswith("first True")

        assert await kubectl("create", "-f", "-", stdin=PROJECT) == (
            "project.resourcemanager.miloapis.com/hello created\n"
        )
        assert (await printed("hello")).startswith("hello")

        status = {"conditions": [sandbox.projects.condition(reason="ByHand")]}
        patch = json.dumps({"status": status})
        await kubectl("patch", "project", "hello", "--subresource=status", "--type=merge", "-p", patch)
        assert (await printed("hello")).startswith("hello True")

    assert "condition met" in await kubectl("wait", "--for=condition=Ready", "project/hello", "--timeout=10s")
    assert await kubectl("get", "project", "hello", "-o", "jsonpath={.status.conditions[0].reason}") == "ByHand"
    await kubectl("delete", "project", "hello")
    assert "hello" not in sandbox.projects


async def test_kubectl_get_projects_prints_ready_and_age(kubectl: Kubectl, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha", ready=True)
    sandbox.projects.create("beta", ready=True)
    sandbox.projects.set_condition("beta", "False")
    for wide in ((), ("-o", "wide")):
        heading, *lines = [line.split() for line in (await kubectl("get", "projects", *wide)).splitlines()]
        assert heading == ["NAME", "READY", "AGE"]
        assert [line[:2] for line in lines] == [["alpha", "True"], ["beta", "False"]]
        assert all(re.fullmatch(r"\d+s", age) for _, _, age in lines)


async def test_kubectl_labels_annotates_and_selects_projects(kubectl: Kubectl, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha", labels={"env": "dev"})
    await kubectl("label", "project", "alpha", "env=prod", "--overwrite")
    await kubectl("annotate", "project", "alpha", "example.com/note=hello")
    metadata = sandbox.projects.read("alpha")["metadata"]
    assert (metadata["labels"], metadata["annotations"]) == ({"env": "prod"}, {"example.com/note": "hello"})
    assert await kubectl("get", "projects", "-l", "env in (prod)", "-o", "name") == (
        "project.resourcemanager.miloapis.com/alpha\n"
    )


async def test_kubectl_output_can_be_applied_again(kubectl: Kubectl, sandbox: Sandbox) -> None:
    assert "created" in await kubectl("apply", "-f", "-", stdin=PROJECT)
    shown = await kubectl("get", "project", "hello", "-o", "yaml")
    assert "resourceVersion:" in shown
    assert "unchanged" in await kubectl("apply", "-f", "-", stdin=PROJECT)
    assert "configured" in await kubectl("apply", "-f", "-", stdin=PROJECT.replace("dev", "prod"))
    assert sandbox.projects.read("hello")["metadata"]["labels"] == {"env": "prod"}
    stale = await kubectl.run("replace", "-f", "-", stdin=shown)
    assert "the object has been modified" in stale.err


async def test_kubectl_applies_one_field_of_a_webhook_and_keeps_the_others(kubectl: Kubectl) -> None:
    webhook = {
        "name": "a.example.com",
        "clientConfig": {"url": "https://127.0.0.1:9443"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    for policy in ("Fail", "Ignore"):
        wanted = {**kind, "metadata": {"name": "a"}, "webhooks": [{**webhook, "failurePolicy": policy}]}
        await kubectl("apply", "-f", "-", stdin=json.dumps(wanted))
    stored = json.loads(await kubectl("get", "validatingwebhookconfiguration", "a", "-o", "json"))
    assert stored["webhooks"] == [{**webhook, "failurePolicy": "Ignore"}]


async def test_kubectl_reports_errors(kubectl: Kubectl) -> None:
    unknown = await kubectl.run("create", "-f", "-", stdin=PROJECT + "bogus: 1\n")
    assert (unknown.status, 'unknown field "bogus"' in unknown.err) == (1, True)
    invalid = await kubectl.run("create", "-f", "-", stdin=PROJECT.replace("Organization", "Person"))
    assert "spec.ownerRef.kind: Unsupported value" in invalid.err
    missing = await kubectl.run("get", "project", "nobody")
    assert 'projects.resourcemanager.miloapis.com "nobody" not found' in missing.err


async def test_kubectl_explain_and_api_resources_describe_projects(kubectl: Kubectl) -> None:
    assert "ownerRef" in await kubectl("explain", "project.spec")
    assert "projectcontrolplanes" in await kubectl("api-resources")


async def test_kubectl_auth_can_i_reports_allowed_and_denied_verbs(
    kubectl: Kubectl, sandbox: Sandbox, tmp_path: Path
) -> None:
    assert await kubectl("auth", "can-i", "list", "projects.resourcemanager.miloapis.com") == "yes\n"
    rule = Rule(verbs=frozenset({"list"}), resources=frozenset({"projects"}))
    limited = tmp_path / "limited"
    kubeconfigs.write(limited, sandbox.kubeconfig(token=sandbox.token("reader", rules=[rule])))
    reader = kubectl.on(limited)
    refused = await reader.run("auth", "can-i", "delete", "projects.resourcemanager.miloapis.com")
    assert (refused.status, refused.out) == (1, "no\n")
    forbidden = await reader.run("delete", "project", "alpha")
    assert 'User "reader" cannot delete resource "projects"' in forbidden.err


async def test_kubectl_writes_in_a_project_control_plane_until_it_is_suspended(
    kubectl: Kubectl, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.projects.create("alpha", ready=True)
    inside = kubectl.on(tmp_path / "inside")
    kubeconfigs.write(tmp_path / "inside", sandbox.kubeconfig(project="alpha"))
    await inside("create", "namespace", "work")
    await inside("create", "configmap", "one", "-n", "work", "--from-literal=a=1")
    assert await inside("get", "configmap", "one", "-n", "work", "-o", "jsonpath={.data.a}") == "1"
    sandbox.milo.suspend("alpha", "Billing")
    refused = await inside.run("create", "configmap", "two", "-n", "work")
    assert "is suspended (Billing) and cannot accept new updates" in refused.err
    assert "one" in await inside("get", "configmaps", "-A")
