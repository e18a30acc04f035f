"""A project, an operator that holds finalizers in it, and what may happen to them, on a sandbox or on Milo."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prometheus_client import CollectorRegistry

from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.controllers import Controllers, Kind, Request
from tests.end_to_end.examples.building import EXAMPLES, go_program
from tests.end_to_end.process.daemon import DaemonProcess
from tests.integration.sandbox_conformance import lives
from tests.integration.sandbox_conformance.lives import CONFIG_MAPS, PROJECTS, SUSPENSIONS, Places, Witness

FINALIZER = "example.com/python-operator"
SUSPENSION = "ordered"
GO_OPERATOR = EXAMPLES / "go-operator"
GREETINGS = "/apis/example.miloapis.com/v1alpha1/namespaces/default/greetings"


class Held(NamedTuple):
    """The objects that an operator holds with a finalizer."""

    collection: str
    body: Mapping[str, Any]
    finalizer: str


_WITHIN_S = 240.0


async def reconcile(request: Request) -> None:
    """Hold each labeled ConfigMap, and answer it with another one, until it is deleted."""
    found = await request.get()
    if found is None:
        return
    if found["metadata"].get("deletionTimestamp"):
        await request.delete("v1/configmaps", f"{request.name}-answer")
        await request.remove_finalizer(FINALIZER)
        return
    await request.ensure_finalizer(FINALIZER)
    await request.apply("v1/configmaps", {"kind": "ConfigMap", "metadata": {"name": f"{request.name}-answer"}})


@asynccontextmanager
async def a_python_operator(directory: Path, settings: Mapping[str, Any], _: Places) -> AsyncIterator[None]:
    """Run a daemon with these settings, and an operator beside it."""
    config = directory / "daemon.yaml"
    address = f"unix://{directory / 'd.sock'}"
    config.write_text(yaml.safe_dump({"listen": [address], "http_listen": "off", **settings}))
    async with DaemonProcess(address, "--config", str(config)) as daemon:
        await daemon.start()
        async with DiscoveryClient(address) as client:
            controllers = Controllers(Fleet(client), registry=CollectorRegistry())
            controllers.reconcile(Kind("v1/configmaps", selector="held=yes"))(reconcile)
            async with controllers:
                yield


@asynccontextmanager
async def a_go_operator(directory: Path, settings: Mapping[str, Any], places: Places) -> AsyncIterator[None]:
    """Run a daemon with these settings, and the example in Go beside it, whose kind is defined."""
    definition = yaml.safe_load((GO_OPERATOR / "config" / "crd" / "greetings.yaml").read_text())
    async with Witness(places) as witness:
        status, answer = await witness.send("POST", lives.DEFINITIONS, definition)
        assert status in (201, 409), answer
    config = directory / "daemon.yaml"
    address = f"unix://{directory / 'd.sock'}"
    config.write_text(yaml.safe_dump({"listen": [address], "http_listen": "off", **settings}))
    environ = {"MILO_DISCOVERY_ADDRESS": address, "KUBECONFIG": str(places.core)}
    arguments = ["-metrics-bind-address=0", "-health-probe-bind-address=0"]
    command = await asyncio.to_thread(go_program, GO_OPERATOR / "cmd", "greeting-operator")
    async with DaemonProcess(address, "--config", str(config)) as daemon:
        await daemon.start()
        with (directory / "operator.log").open("wb") as log:
            operator = await asyncio.create_subprocess_exec(
                *command, *arguments, env={**os.environ, **environ}, stderr=log, stdout=log
            )
            try:
                yield
            finally:
                operator.kill()
                await operator.wait()


class Operator(NamedTuple):
    run: Callable[[Path, Mapping[str, Any], Places], AbstractAsyncContextManager[None]]
    held: Held


OPERATORS = {
    "python": Operator(a_python_operator, Held(CONFIG_MAPS, {"metadata": {"labels": {"held": "yes"}}}, FINALIZER)),
    "go": Operator(
        a_go_operator,
        Held(
            GREETINGS,
            {"apiVersion": "example.miloapis.com/v1alpha1", "kind": "Greeting", "spec": {"text": "Hello"}},
            "example.miloapis.com/greeting",
        ),
    ),
}


class World:
    """The steps of a path. Each of them is possible in any state that `possible` names."""

    def __init__(self, places: Places, project: str, held: Held) -> None:
        self._places = places
        self._project = project
        self._held = held
        self._suspension = f"{SUSPENSION}-{project}"
        self._made = 0
        self.exists = self.suspended = self.deleting = False

    @property
    def possible(self) -> list[str]:
        """The names of the steps that are possible now."""
        steps = [] if self.exists else ["create"]
        steps += ["lift"] if self.suspended else ["suspend"]
        if self.exists and not self.deleting:
            steps += ["delete", *([] if self.suspended else ["work"])]
        return steps

    async def do(self, step: str) -> None:
        async with Witness(self._places) as witness:
            await getattr(self, f"_{step}")(witness)

    async def end(self) -> None:
        """Delete the project if it was not yet, and wait until it is gone, with nothing left in it."""
        async with Witness(self._places) as witness:
            if self.exists and not self.deleting:
                await self._delete(witness)
            if self.exists:
                await self._gone(witness)
            if self.suspended:
                await self._lift(witness)
            for path in {CONFIG_MAPS, self._held.collection}:
                _, found = await witness.send("GET", path, project=self._project)
                assert [each["metadata"]["name"] for each in found.get("items", ())] == []

    async def _create(self, witness: Witness) -> None:
        await lives.begin(witness, self._project)
        self.exists = True

    async def _work(self, witness: Witness) -> None:
        """Create an object, and wait until the operator holds it."""
        self._made += 1
        name = f"object-{self._made}"
        collection, body, finalizer = self._held
        document = {**body, "metadata": {**body.get("metadata", {}), "name": name}}

        async def is_created() -> bool:
            # Milo answers 429 until it has opened the storage of a kind in a project.
            status, answer = await witness.send("POST", collection, document, project=self._project)
            assert status in (201, 429), answer
            return status == 201

        path = f"{collection}/{name}"
        await _until(is_created, f"{path} is created")

        async def is_held() -> bool:
            _, found = await witness.send("GET", path, project=self._project)
            return finalizer in found.get("metadata", {}).get("finalizers", ())

        await _until(is_held, f"{path} is held")

    async def _suspend(self, witness: Witness) -> None:
        await lives.suspend(witness, self._suspension, self._project, "Billing")
        self.suspended = True
        if self.exists and not self.deleting:
            await self._shows(witness, "True")

    async def _lift(self, witness: Witness) -> None:
        await witness.send("DELETE", f"{SUSPENSIONS}/{self._suspension}")
        self.suspended = False
        if self.exists and not self.deleting:
            await self._shows(witness, "False")

    async def _delete(self, witness: Witness) -> None:
        """Request the deletion. With nothing that holds it, the project may be gone at once."""
        await witness.send("DELETE", f"{PROJECTS}/{self._project}")
        self.deleting = True

    async def recreate(self) -> None:
        """Wait until a project that is being deleted is gone."""
        async with Witness(self._places) as witness:
            await self._gone(witness)

    async def _gone(self, witness: Witness) -> None:
        async def is_gone() -> bool:
            status, _ = await witness.send("GET", f"{PROJECTS}/{self._project}")
            return status == 404

        await _until(is_gone, f"{self._project} is gone")
        self.exists = self.deleting = False

    async def _shows(self, witness: Witness, status: str) -> None:
        async def shows() -> bool:
            _, project = await witness.send("GET", f"{PROJECTS}/{self._project}")
            return lives.condition(project, "Suspended") == status

        await _until(shows, f"Suspended of {self._project} is {status}")


async def _until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(_WITHIN_S):
            while not await holds():  # noqa: ASYNC110 - another process decides
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {_WITHIN_S:g} s: {what}") from None
