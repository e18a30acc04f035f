"""Kubeconfigs of both forms, loaded by client libraries in several languages."""

import asyncio
import json
from pathlib import Path

import kubernetes.aio.client
import kubernetes.aio.config
import kubernetes.client
import kubernetes.config
import pytest

from tests.end_to_end.kubeconfigs.conftest import Start
from tests.end_to_end.kubeconfigs.reading import READERS, Command
from tests.end_to_end.kubeconfigs.workspace import COMMANDS
from tests.support.eventually import eventually

EXPECTED = ["default", "milo-system"]
FORMS = ("--token", "--exec")


async def blocking(path: Path) -> list[str]:
    def read() -> list[str]:
        with kubernetes.config.new_client_from_config(str(path)) as api:
            return [namespace.metadata.name for namespace in kubernetes.client.CoreV1Api(api).list_namespace().items]

    return await asyncio.to_thread(read)


async def aio(path: Path) -> list[str]:
    async with await kubernetes.aio.config.new_client_from_config(str(path)) as api:
        return [
            namespace.metadata.name for namespace in (await kubernetes.aio.client.CoreV1Api(api).list_namespace()).items
        ]


async def test_kubernetes_package_reads_embedded_and_exec_kubeconfigs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(COMMANDS), prepend=":")
    async with start() as workspace:
        for form in FORMS:
            path = await workspace.kubeconfig(form)
            assert [await blocking(path), await aio(path)] == [EXPECTED, EXPECTED]


@pytest.fixture(scope="session", params=sorted(READERS))
def reader(request: pytest.FixtureRequest) -> Command:
    """The program that reads a kubeconfig, in each language."""
    return READERS[request.param]()


@pytest.mark.builds
@pytest.mark.timeout(600)  # the reader's packages may have to be downloaded and compiled
async def test_kubernetes_clients_of_other_languages_read_embedded_and_exec_kubeconfigs(
    start: Start, reader: Command
) -> None:
    program, *arguments = reader
    async with start() as workspace:
        for form in FORMS:
            async with workspace.running(program, *arguments, str(await workspace.kubeconfig(form))) as process:
                out, err = await process.communicate(b"")
            assert (out.decode().split(), err.decode()) == (["200", *EXPECTED], "")


@pytest.mark.builds
@pytest.mark.timeout(600)
async def test_exec_kubeconfig_renews_credential_of_long_running_client(start: Start, reader: Command) -> None:
    async with start(token_life=20) as workspace:
        program, *arguments = reader
        async with workspace.running(program, *arguments, str(await workspace.kubeconfig("--exec"))) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            first = await process.stdout.readline()
            held = json.loads((await workspace.discovery("credential", "--cluster", "alpha")).out)["status"]["token"]
            await eventually(lambda: workspace.has_ended(held))
            process.stdin.write(b"again\n")
            assert await process.stdout.readline() == first
    assert workspace.refused == []
