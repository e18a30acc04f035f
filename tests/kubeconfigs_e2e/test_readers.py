"""Both forms, as client libraries load them."""

import asyncio
from pathlib import Path

import kubernetes.aio.client
import kubernetes.aio.config
import kubernetes.client
import kubernetes.config
import pytest

from tests.kubeconfigs_e2e.conftest import COMMANDS, Start

EXPECTED = ["default", "kube-system"]


async def blocking(path: Path) -> list[str]:
    def read() -> list[str]:
        with kubernetes.config.new_client_from_config(str(path)) as api:
            return [each.metadata.name for each in kubernetes.client.CoreV1Api(api).list_namespace().items]

    return await asyncio.to_thread(read)


async def aio(path: Path) -> list[str]:
    async with await kubernetes.aio.config.new_client_from_config(str(path)) as api:
        return [each.metadata.name for each in (await kubernetes.aio.client.CoreV1Api(api).list_namespace()).items]


@pytest.mark.parametrize("read", [blocking, aio])
@pytest.mark.parametrize("form", ["--token", "--exec"])
async def test_the_kubernetes_package_reads_both_forms(
    start: Start, monkeypatch: pytest.MonkeyPatch, read: object, form: str
) -> None:
    monkeypatch.setenv("PATH", str(COMMANDS), prepend=":")
    async with start() as place:
        assert callable(read)
        assert await read(await place.kubeconfig(form)) == EXPECTED
