"""One registration of webhooks in Milo's core API receives the writes of all projects."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from milo_controllers import Controllers, Deny, Review, WebhookServer
from milo_controllers.webhook_registration import RESOURCES, configurations
from milo_controllers.webhook_server import serve_webhooks
from milo_discovery import Fleet
from tests.end_to_end.real import process
from tests.end_to_end.real.api import Api, RefusedError
from tests.end_to_end.real.handing_out import certificates, handing_out
from tests.end_to_end.real.process import Process
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.steps import Mode
from tests.support.eventually import LIMIT_S, eventually
from tests.support.ports import free_port
from tests.support.tcp_proxy import TcpProxy
from tests.tooling.docs.stranger import ROOT, blocks

pytestmark = pytest.mark.asyncio(loop_scope="session")

CORE: list[Mode] = ["project"]
DENIED, UNANSWERED = 422, 500
_PROJECT = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/{}/control-plane"
_PROJECTS = ("alpha", "beta")
NOTES = "/api/v1/namespaces/reviewed/configmaps"
WIDGETS = "/apis/example.com/v1/namespaces/reviewed/widgets"
DEFINITION = """
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Widget, listKind: WidgetList, plural: widgets, singular: widget}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""


class Service(TcpProxy):
    """The address in front of the replicas: each connection goes to the next one that accepts it."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__()
        self._ports = cycle(ports)
        self._tries = len(ports)
        self.reached: list[int] = []

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(self._tries):
            port = next(self._ports)
            try:
                connected = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            self.reached.append(port)
            return connected
        raise ConnectionRefusedError("no replica accepts connections")

    @property
    def open_connections(self) -> int:
        return len(self._connections)


@pytest.mark.parametrize("mode", CORE)
async def test_registration_in_the_core_reviews_the_writes_of_all_projects(
    built: Programs, server: RealApi, directory: Path
) -> None:
    certificate, key, ca = prepare(built, directory)
    await create_ready(server, *_PROJECTS)
    async with handing_out(server, directory, certificates(server)) as client, server.client() as api:
        controllers = Controllers(Fleet(client))

        @controllers.validate("v1/configmaps")
        async def short(review: Review) -> None:
            if len(review.object.get("data", {}).get("note", "")) > 5:
                raise Deny(f"at most 5 letters in {review.cluster.name}", field="data.note")

        @controllers.mutate("v1/configmaps")
        def sign(review: Review) -> None:
            review.object.setdefault("data", {})["project"] = review.cluster.name

        async with serve_webhooks(controllers.webhooks, WebhookServer(certificate, key, "127.0.0.1:0")) as url:
            authority = ca.read_bytes()
            made = configurations(controllers.webhooks.all, name="notes.example.com", url=url, ca_bundle=authority)
            async with registered(api, list(made)):
                for project in _PROJECTS:
                    notes = await in_namespace(api, project, NOTES)
                    await until_answered(api, notes, {"data": {"note": "too long"}}, DENIED)
                    await until_answered(api, notes, {"data": {}}, {"project": project})
                    await api.call("POST", notes, {"metadata": {"name": "a"}, "data": {"note": "short"}})
                    stored = await api.call("GET", f"{notes}/a")
                    assert stored["data"] == {"note": "short", "project": project}
                    refused = {"metadata": {"name": "b"}, "data": {"note": "too long"}}
                    assert await api.refusal("POST", notes, refused) == DENIED
                    assert await api.refusal("GET", f"{notes}/b") == 404


@pytest.mark.parametrize("mode", CORE)
async def test_documented_operator_answers_while_one_replica_is_left_and_then_its_failure_policy_does(
    built: Programs, server: RealApi, directory: Path
) -> None:
    certificate, key, ca = prepare(built, directory)
    await create_ready(server, *_PROJECTS)
    [text] = blocks(ROOT / "docs/admission.md", "python")
    text = text.replace("/tls/", f"{directory}/")
    assert str(certificate) in text
    assert str(key) in text
    operator, ignoring = directory / "my_operator.py", directory / "ignoring.py"
    operator.write_text(text)
    ignoring.write_text(text.replace('/widgets"', '/widgets", failure_policy="Ignore"'))
    ports = [free_port() for _ in range(3)]
    async with (
        handing_out(server, directory, certificates(server)),
        server.client() as api,
        Service(ports) as service,
        AsyncExitStack() as stack,
    ):
        url = f"https://127.0.0.1:{service.port}"
        replicas = {port: await stack.enter_async_context(a_replica(text, directory, port)) for port in ports}
        await api.define(yaml.safe_load(DEFINITION))
        widgets = [await in_namespace(api, project, WIDGETS) for project in _PROJECTS]
        async with registered(api, await printed(operator, url, ca)):
            for path in widgets:
                await until_answered(api, path, widget("big", 9), DENIED)
                await until_answered(api, path, widget("small", 3), {"size": 3, "color": "blue"})
            await write_everywhere(api, widgets, "by-three")

            await replicas.pop(service.reached[-1]).end(signal.SIGKILL)
            await eventually(lambda: not service.open_connections)
            await write_everywhere(api, widgets, "by-two")

            for replica in replicas.values():
                await replica.end(signal.SIGKILL)
            await eventually(lambda: not service.open_connections)
            for path in widgets:
                assert await api.refusal("POST", path, widget("by-none", 3)) == UNANSWERED

            for one in await printed(ignoring, url, ca):
                await api.call("PATCH", RESOURCES[one["kind"]].path(one["metadata"]["name"]), one)
            for path in widgets:
                await until_answered(api, path, widget("big", 9), {"size": 9})
                assert (await api.call("POST", path, widget("unchecked", 9)))["spec"] == {"size": 9}


def prepare(built: Programs, directory: Path) -> tuple[Path, Path, Path]:
    """Write a serving certificate, its key and its CA."""
    if not built.has_milo:
        pytest.skip(f"only Milo's own API server has projects' control planes: {'; '.join(built.missing)}")
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    certificate, key, ca = (directory / name for name in ("tls.crt", "tls.key", "ca.crt"))
    made.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    authority.cert_pem.write_to_path(ca)
    return certificate, key, ca


@asynccontextmanager
async def registered(api: Api, made: Sequence[dict[str, Any]]) -> AsyncIterator[None]:
    """Register webhooks in the core API, which other tests use too."""
    try:
        for one in made:
            await api.call("POST", RESOURCES[one["kind"]].collection(), one)
        yield
    finally:
        for one in made:
            await api.forget(RESOURCES[one["kind"]].path(one["metadata"]["name"]))


async def printed(operator: Path, url: str, ca: Path) -> list[dict[str, Any]]:
    command = ("webhooks", str(operator), "--name", "widgets.example.com", "--url", url, "--ca-file", str(ca))
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "milo_discovery_cli", *command, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await running.communicate()
    assert running.returncode == 0
    return list(yaml.safe_load_all(out))


@asynccontextmanager
async def a_replica(text: str, directory: Path, port: int) -> AsyncIterator[Process]:
    """Run the operator in a process of its own; yield once it accepts reviews."""
    file = directory / f"replica-{port}.py"
    file.write_text(text.replace('tls.key")', f'tls.key", "127.0.0.1:{port}")'))
    environ = (f"MILO_DISCOVERY_ADDRESS=unix://{directory}/d.sock", "MILO_OPERATOR_LISTEN=off")
    command = ["/usr/bin/env", *environ, sys.executable, str(file)]
    replica = process.start(file.stem, command, log=directory / f"replica-{port}.log", tied=True)
    try:
        await replica.until("does not accept reviews", lambda: accepts(port))
        yield replica
    finally:
        await replica.end(signal.SIGKILL)


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def in_namespace(api: Api, project: str, path: str) -> str:
    """Create a namespace that the core lacks; return the path of objects in it."""
    await api.ensure(f"{_PROJECT.format(project)}/api/v1/namespaces", {"metadata": {"name": "reviewed"}})
    return _PROJECT.format(project) + path


async def until_answered(api: Api, path: str, body: dict[str, Any], answer: dict[str, Any] | int) -> None:
    """Wait until the API server has read a registration: until a dry run of the write has this content or refusal."""
    async with asyncio.timeout(LIMIT_S):
        while await dry_run(api, path, body) != answer:  # noqa: ASYNC110 - another process reads it
            await asyncio.sleep(0.05)


async def dry_run(api: Api, path: str, body: dict[str, Any]) -> dict[str, Any] | int:
    try:
        made = await api.call("POST", f"{path}?dryRun=All", {**body, "metadata": {"name": "dry"}})
    except RefusedError as refusal:
        return refusal.status
    content: dict[str, Any] = made["data"] if "data" in made else made["spec"]
    return content


def widget(name: str, size: int) -> dict[str, Any]:
    kind = {"apiVersion": "example.com/v1", "kind": "Widget"}
    return {**kind, "metadata": {"name": name}, "spec": {"size": size}}


async def write_everywhere(api: Api, paths: Sequence[str], name: str) -> None:
    """Expect that each project gets the mutation, and the refusal."""
    for path in paths:
        assert (await api.call("POST", path, widget(name, 3)))["spec"] == {"size": 3, "color": "blue"}
        with pytest.raises(RefusedError, match="at most 5 in"):
            await api.call("POST", path, widget(f"{name}-big", 9))
