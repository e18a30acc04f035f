"""Controllers of a single cluster, with a kubeconfig and without a daemon."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from milo_controllers import (
    Controllers,
    Request,
    SingleCluster,
    single_cluster,
)
from milo_controllers.informer import Informer
from milo_discovery.testing import ControlPlane, eventually
from milo_kube.backoff import BackoffPolicy

from .widgets import (
    WIDGETS,
    Log,
    widget,
)


async def test_controllers_of_a_single_cluster_need_no_daemon(plane: ControlPlane, tmp_path: Path) -> None:
    plane.create(widget("one"))
    kubeconfig = plane.write_kubeconfig(tmp_path / "kubeconfig")
    controllers = Controllers(SingleCluster(kubeconfig, name="here"), registry=CollectorRegistry())
    log = Log()
    controllers.reconcile(WIDGETS)(log)
    assert not controllers.health().ready
    async with controllers:
        await eventually(lambda: log.seen == [("here", "one", {})])
        assert controllers.health().ready


async def test_single_cluster_uses_the_proxy_url_of_its_kubeconfig(plane: ControlPlane, tmp_path: Path) -> None:
    plane.create(widget("one"))
    async with tunnel() as (proxy, requests):
        kubeconfig = plane.write_kubeconfig(tmp_path / "kubeconfig")
        document = json.loads(kubeconfig.read_text())
        document["clusters"][0]["cluster"]["proxy-url"] = proxy
        kubeconfig.write_text(json.dumps(document))
        controllers = Controllers(SingleCluster(kubeconfig), registry=CollectorRegistry())

        @controllers.reconcile(WIDGETS)
        async def reconcile(request: Request) -> None:
            await request.patch(WIDGETS, request.name, {"metadata": {"labels": {"seen": "yes"}}})

        async with controllers:
            await eventually(lambda: plane.get(WIDGETS, "one")["metadata"].get("labels") == {"seen": "yes"})
        server = document["clusters"][0]["cluster"]["server"].split("/")[2]
        assert set(requests) == {f"CONNECT {server} HTTP/1.1"}


async def test_failure_of_a_single_cluster_restarts_it(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: an error of a watch, such as of a credential's renewal, ended the operator."""
    plane.create(widget("one"))
    controllers = Controllers(
        SingleCluster(plane.write_kubeconfig(tmp_path / "kubeconfig")), registry=CollectorRegistry()
    )
    log, run, failures = Log(), Informer.run, [RuntimeError("can't start new thread")]
    controllers.reconcile(WIDGETS)(log)

    async def failing_once(informer: Informer) -> None:
        if failures:
            raise failures.pop()
        await run(informer)

    monkeypatch.setattr(Informer, "run", failing_once)
    monkeypatch.setattr(single_cluster, "RESTARTS", BackoffPolicy(initial=timedelta(0)))
    async with controllers:
        await eventually(lambda: log.seen == [("cluster", "one", {})])
    assert not failures


async def test_second_controllers_of_a_single_cluster_and_its_second_run_are_refused(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """Found by a reader: both ran, and each reconciled the same objects."""
    cluster = SingleCluster(plane.write_kubeconfig(tmp_path / "kubeconfig"))
    controllers = Controllers(cluster, registry=CollectorRegistry())
    with pytest.raises(RuntimeError, match="a SingleCluster has only one Controllers"):
        Controllers(cluster, registry=CollectorRegistry())
    async with controllers:
        await eventually(lambda: controllers.health().synced)
    with pytest.raises(RuntimeError, match="a SingleCluster can run only once"):
        await cluster.run()


@asynccontextmanager
async def tunnel() -> AsyncIterator[tuple[str, list[str]]]:
    """Run a proxy; yield its URL and the request lines that it receives. Clients have to disconnect in the block."""
    requests: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, _, _ = (await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")
        requests.append(request)
        host, _, port = request.split()[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(pass_on(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
        await asyncio.gather(*tasks)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
