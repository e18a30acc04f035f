"""A real kubectl in a project's control plane, with kubeconfigs of both forms."""

import json

import pytest

from tests.end_to_end.kubeconfigs.conftest import Start, token_in
from tests.support.eventually import eventually


@pytest.mark.parametrize("form", ["--token", "--exec"])
async def test_kubectl_reads_and_writes_in_the_control_plane(start: Start, kubectl: str, form: str) -> None:
    async with start() as workspace:
        path = await workspace.kubeconfig(form)
        namespaces = await workspace.run(kubectl, f"--kubeconfig={path}", "get", "namespaces", "-o", "name")
        assert (namespaces.out, namespaces.err) == ("namespace/default\nnamespace/milo-system\n", "")
        created = await workspace.run(
            kubectl, f"--kubeconfig={path}", "create", "configmap", "made", "--from-literal=a=b"
        )
        assert (created.out, created.err) == ("configmap/made created\n", "")


async def test_exec_kubeconfig_works_after_first_credential_expires_and_embedded_kubeconfig_does_not(
    start: Start, kubectl: str
) -> None:
    async with start(token_life=8) as workspace:
        lasting, embedded = await workspace.kubeconfig("--exec"), await workspace.kubeconfig("--token")
        get = ("get", "namespaces", "-o", "name")
        assert (await workspace.run(kubectl, f"--kubeconfig={lasting}", *get)).status == 0
        first = json.loads((await workspace.discovery("credential", "--cluster", "alpha")).out)["status"]["token"]
        both = (first, token_in(embedded.read_text()))
        await eventually(lambda: all(workspace.has_ended(token) for token in both))
        after = await workspace.run(kubectl, f"--kubeconfig={lasting}", *get)
        assert (after.status, after.err) == (0, "")
        assert "namespace/default" in after.out
        assert "Unauthorized" in (await workspace.run(kubectl, f"--kubeconfig={embedded}", *get)).err


async def test_kubeconfig_merge_adds_a_working_context_and_keeps_existing_contexts(start: Start, kubectl: str) -> None:
    async with start() as workspace:
        path = workspace.directory / "config"
        path.write_text("apiVersion: v1\nkind: Config\nclusters:\n- {name: other, cluster: {server: 'https://o'}}\n")
        await workspace.discovery("kubeconfig", "alpha", "--merge", "-w", str(path))
        flags = (f"--kubeconfig={path}", "--context=milo-alpha")
        assert "namespace/default" in (await workspace.run(kubectl, *flags, "get", "namespaces", "-o", "name")).out


async def test_synced_kubeconfig_file_opens_its_control_plane(start: Start, kubectl: str) -> None:
    async with start() as workspace:
        await workspace.discovery("sync", "--dir", str(workspace.directory / "clusters"), "--once")
        path = workspace.directory / "clusters" / "alpha.kubeconfig"
        assert (await workspace.run(kubectl, f"--kubeconfig={path}", "get", "namespaces")).status == 0
