"""A namespace of a real kube-apiserver with the shipped rights, and the publishing command."""

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from tests.end_to_end.kubeconfigs.workspace import COMMANDS, Workspace
from tests.end_to_end.real.api import RefusedError
from tests.end_to_end.real.builds import GoProgram, source_directory
from tests.end_to_end.real.servers import RealApi
from tests.support.short_memory import with_short_memory

INVENTORY = Path(__file__).parent / "inventory"
INVENTORY_API = GoProgram(
    name="cluster-inventory-api",
    version="v0.1.2",
    module="sigs.k8s.io/cluster-inventory-api",
    package=".",
    definition=INVENTORY,
)
PROFILES_DEFINITION = Path("config/crd/bases/multicluster.x-k8s.io_clusterprofiles.yaml")
_COMPONENTS = Path(__file__).parents[3] / "deploy" / "components"
_COLLECTIONS = {
    "cluster-profiles": "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/{}/clusterprofiles",
    "argocd-clusters": "/api/v1/namespaces/{}/secrets",
    "flux-kubeconfigs": "/api/v1/namespaces/{}/secrets",
    "flux-configmaps": "/api/v1/namespaces/{}/configmaps",
}
_USER = "publisher"
_WITHIN_S = 120.0
"""The longest wait is for the deletion of an object whose cluster belonged to a member that ended: the others judge it
once they own it."""
_LOOK_EVERY_S = 0.05

Document = dict[str, Any]
Holds = Callable[[dict[str, Document]], bool]


class Publication:
    """The objects of one kind in one namespace."""

    def __init__(self, server: RealApi, kind: str, namespace: str) -> None:
        self.server = server
        self.kind = kind
        self.namespace = namespace
        self.collection = _COLLECTIONS[kind].format(namespace)

    async def objects(self) -> dict[str, Document]:
        async with self.server.api() as api:
            return {item["metadata"]["name"]: item for item in (await api.call("GET", self.collection))["items"]}

    async def until(self, holds: Holds) -> dict[str, Document]:
        """Wait until the objects satisfy a condition; return them."""
        found: dict[str, Document] = {}
        try:
            async with asyncio.timeout(_WITHIN_S):
                while not holds(found := await self.objects()):  # noqa: ASYNC110  (another process writes them)
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise AssertionError(
                f"{_WITHIN_S:g} s passed before the expected change; the objects are {json.dumps(found, indent=1)}"
            ) from None
        return found

    async def until_named(self, *names: str) -> dict[str, Document]:
        return await self.until(lambda found: set(found) == set(names))

    async def call(self, method: str, name: str = "", body: object = None) -> Document:
        async with self.server.api() as api:
            return await api.call(method, f"{self.collection}/{name}".rstrip("/"), body)


@asynccontextmanager
async def publication_namespace(server: RealApi, kind: str) -> AsyncIterator[Publication]:
    """Create a namespace in which the publishing user has the shipped rights."""
    namespace = f"publishing-{kind}"
    async with server.api() as api:
        definition = (await asyncio.to_thread(source_directory, INVENTORY_API)) / PROFILES_DEFINITION
        await api.define(yaml.safe_load(await asyncio.to_thread(definition.read_text)))
        await _create(api.call, "/api/v1/namespaces", {"metadata": {"name": namespace}})
        role, binding = yaml.safe_load_all((_COMPONENTS / f"publish-{kind}" / "role.yaml").read_text())
        binding["subjects"] = [{"kind": "User", "name": _USER, "apiGroup": "rbac.authorization.k8s.io"}]
        rights = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        await _create(api.call, f"{rights}/roles", role)
        await _create(api.call, f"{rights}/rolebindings", binding)
    published = Publication(server, kind, namespace)
    async with asyncio.timeout(_WITHIN_S):
        while not await _is_served(published):  # noqa: ASYNC110  (another process serves it)
            await asyncio.sleep(_LOOK_EVERY_S)
    yield published
    await server.start()
    async with server.api() as api:
        await api.call("DELETE", published.collection)


async def _is_served(publication: Publication) -> bool:
    """Return whether the new resource is served and the new rights are effective."""
    async with publication.server.client_as(_USER) as api:
        return await api.status(publication.collection) == 200


async def _create(call: Callable[[str, str, object], Any], path: str, body: object) -> None:
    try:
        await call("POST", path, body)
    except RefusedError as error:
        if error.status != 409:
            raise


class Publishing:
    """A running `milo-discovery publish`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lines: deque[str] = deque()

    @classmethod
    @asynccontextmanager
    async def running(cls, workspace: Workspace, publication: Publication, *arguments: str) -> AsyncIterator[Self]:
        kubeconfig = publication.server.kubeconfig_as(_USER)
        command = (
            *("publish", publication.kind, "--kubeconfig", str(kubeconfig), "--namespace", publication.namespace),
            *("--resync-interval", "1s", *arguments),
        )
        process = await asyncio.create_subprocess_exec(
            COMMANDS / "milo-discovery",
            *command,
            env={
                "HOME": str(workspace.directory),
                "MILO_DISCOVERY_ADDRESS": workspace.address,
                **with_short_memory(workspace.directory),
            },
            stderr=PIPE,
        )
        publishing = cls(process)
        try:
            yield publishing
        except BaseException as error:
            error.add_note(f"output of the publisher:\n{publishing.log_text}")
            raise
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    @property
    def log_text(self) -> str:
        return "".join(self._lines)

    async def says(self, words: str) -> None:
        """Read the output until a line contains these words."""
        assert self.process.stderr is not None
        async with asyncio.timeout(_WITHIN_S):
            while line := (await self.process.stderr.readline()).decode():
                self._lines.append(line)
                if words in line:
                    return
        raise AssertionError(f"the publisher exited without printing {words!r}")

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


async def publish_once(workspace: Workspace, publication: Publication, *arguments: str) -> None:
    """Publish until each engaged cluster has its object."""
    async with Publishing.running(workspace, publication, "--once", *arguments) as publishing:
        assert publishing.process.stderr is not None
        async with asyncio.timeout(_WITHIN_S):
            log_text = (await publishing.process.stderr.read()).decode()
            assert await publishing.process.wait() == 0, log_text


def versions(objects: dict[str, Document]) -> dict[str, str]:
    return {name: obj["metadata"]["resourceVersion"] for name, obj in objects.items()}


def is_complete(published: Document) -> bool:
    """Return whether an object was applied completely; its metadata is applied last."""
    return "discovery.miloapis.com/fields" in published["metadata"]["annotations"]


def condition(profile: Document) -> tuple[str, str]:
    """Return type and status of the profile's condition; empty without one."""
    [found] = profile.get("status", {}).get("conditions") or [{"type": "", "status": ""}]
    return found["type"], found["status"]


def assembled(directory: Path, provider: str) -> Path:
    """Return the sources of the ClusterProfile operator with one of its providers."""
    target = directory / provider
    target.mkdir(parents=True, exist_ok=True)
    sources: Iterable[Path] = (INVENTORY / "main.go", *(INVENTORY / provider).iterdir())
    for source in sources:
        (target / source.name).write_bytes(source.read_bytes())
    return target
