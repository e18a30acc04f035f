"""The command `milo-objects publish` beside a daemon and a nats-server, and programs with nothing but a NATS client."""

import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from milo_objects import Kind, Objects
from milo_objects.jetstream import NatsOptions, open_session
from milo_objects.nats_source import NatsSource
from milo_sandbox import Sandbox
from milo_sandbox.nats_server import NatsServer, running_nats
from milo_sandbox.resources import NAMESPACES
from tests.end_to_end.examples.building import ROOT, Command, java_namespaces, node_namespaces, run, tool
from tests.end_to_end.examples.program import Program
from tests.end_to_end.process.daemon import DaemonProcess
from tests.support.eventually import eventually

PAGE = ROOT / "docs/objects-nats.md"
PERMISSIONS = re.compile(r"^### a consumer of namespaces\n\n```json\n(.*?)^```", re.MULTILINE | re.DOTALL)
Publish = Callable[[], Program]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server with a user that may do anything, and one with the permissions that the page has for namespaces."""
    permissions = json.loads(PERMISSIONS.findall(PAGE.read_text())[0])
    reader = {"user": "reader", "password": "reader", "permissions": permissions}
    users = [{"user": "publisher", "password": "publisher"}, reader]
    async with running_nats(tmp_path, {"authorization": {"users": users}}) as server:
        yield server


def as_publisher(nats: NatsServer) -> str:
    """Return the URL for the user that may do anything."""
    return nats.url.replace("localhost", "publisher:publisher@localhost")


@pytest.fixture
async def issuing_daemon(sandbox: Sandbox, kubeconfig: Path, socket: Path) -> AsyncIterator[DaemonProcess]:
    """A daemon that issues kubeconfigs."""
    token = kubeconfig.with_name("token")
    token.write_text(sandbox.token())
    settings = {
        "discovery_kubeconfig": str(kubeconfig),
        "kubeconfigs": {"issuers": [{"name": "token", "type": "token-file", "path": str(token)}]},
        "listen": [f"unix://{socket}"],
        "http_listen": "off",
    }
    file = kubeconfig.with_name("config.yaml")
    file.write_text(yaml.safe_dump(settings))
    async with DaemonProcess(f"unix://{socket}", "--config", str(file), is_forked=True) as started:
        await started.start()
        yield started


@pytest.fixture
def publish(issuing_daemon: DaemonProcess, socket: Path, nats: NatsServer, tmp_path: Path) -> Publish:
    declaration = tmp_path / "objects.yaml"
    declaration.write_text("objects:\n- resource: v1/namespaces\n  fields: [metadata.labels, status.phase]\n")
    command = (sys.executable, "-m", "milo_objects.command", "publish", str(declaration))
    options = ("--nats", as_publisher(nats), "--create-stream", "--listen", "127.0.0.1:0")
    return lambda: Program([*command, *options], {"MILO_DISCOVERY_ADDRESS": f"unix://{socket}"})


def create_namespace(sandbox: Sandbox, project: str, name: str) -> None:
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    sandbox.control_plane(project).create(NAMESPACES, document)


@asynccontextmanager
async def reading(nats: NatsServer) -> AsyncIterator[Objects]:
    source = NatsSource(NatsOptions(servers=(as_publisher(nats),)))
    async with Objects(source, [Kind("v1/namespaces", ["status.phase"])]) as objects:
        yield objects


def names(objects: Objects, project: str) -> set[str]:
    return {found.object.name for found in objects.list("v1/namespaces", project)}


async def test_namespaces_reach_a_reader_without_the_daemon(
    sandbox: Sandbox, nats: NatsServer, publish: Publish
) -> None:
    sandbox.projects.create("web", ready=True)
    async with reading(nats) as objects:
        async with publish():
            await eventually(lambda: objects.view("v1/namespaces").known == 1 and objects.view("v1/namespaces").synced)
            create_namespace(sandbox, "web", "team")
            await eventually(lambda: "team" in names(objects, "web"))
        create_namespace(sandbox, "web", "while-away")
        async with publish():
            await eventually(lambda: "while-away" in names(objects, "web"))
            sandbox.projects.delete("web")
            await eventually(lambda: not objects.clusters)


@pytest.mark.builds
@pytest.mark.timeout(1200)  # the first build compiles Kubernetes libraries
async def test_readers_in_python_and_go_say_that_a_killed_publisher_is_not_heard(
    sandbox: Sandbox, nats: NatsServer, publish: Publish, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    binary = tmp_path / "natssource.test"
    run([tool("go"), "test", "-c", "-o", str(binary), "."], ROOT / "clients/go/objects/natssource")
    command = [str(binary), "-test.v", "-test.run=^TestModuleReadsARealPublisher$"]
    sandbox.projects.create("web", ready=True)
    async with reading(nats) as objects, Program(command, {"MILO_NATS_TEST_URL": as_publisher(nats)}) as go:
        async with publish():
            await eventually(lambda: "default" in names(objects, "web"))
            await go.until("CURRENT web/default")
        # It was killed.
        await eventually(lambda: objects.view("v1/namespaces").stale_since)
        assert "no publisher has been heard since" in objects.fleet.problem
        await go.until("STALE: no publisher has been heard since")
        create_namespace(sandbox, "web", "while-away")
        async with publish():
            await eventually(lambda: "while-away" in names(objects, "web"))
            await eventually(lambda: objects.view("v1/namespaces").stale_since is None)
            await go.until("CURRENT web/while-away")
            await go.until("PASS: TestModuleReadsARealPublisher")


@pytest.mark.builds
@pytest.mark.parametrize("example", [node_namespaces, java_namespaces])
async def test_example_follows_namespaces_with_the_permissions_of_the_page(
    example: Callable[[], Command], sandbox: Sandbox, nats: NatsServer, publish: Publish
) -> None:
    command = example()
    reader = {"NATS_URL": nats.url, "NATS_USER": "reader", "NATS_PASSWORD": "reader"}
    sandbox.projects.create("web", ready=True)
    async with publish() as publisher, reading(nats) as objects:
        await eventually(lambda: objects.view("v1/namespaces").synced == 1)
        async with Program(command, reader) as program:
            await program.until("web SYNCED")
            create_namespace(sandbox, "web", "team")
            await program.until("web team")
            async with open_session(NatsOptions(servers=(as_publisher(nats),)), "test") as session:
                await session.call("STREAM.DELETE.milo")  # its publisher creates it again
            await program.until("web SYNCED")
            create_namespace(sandbox, "web", "later")
            await program.until("web later")
            publisher.kill()
            await program.until("STALE: no publisher has been heard")
