"""A project, an operator that holds finalizers in it, and what may happen to them, on a sandbox or on Milo."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.end_to_end.examples.building import EXAMPLES, go_program
from tests.end_to_end.process.daemon import DaemonProcess
from tests.integration.sandbox_conformance import lives
from tests.integration.sandbox_conformance.lives import CONFIG_MAPS, PROJECTS, SUSPENSIONS, Places, Witness

SUSPENSION = "ordered"
DEFINITION = EXAMPLES / "go-operator" / "config" / "crd" / "greetings.yaml"
GREETINGS = "/apis/example.miloapis.com/v1alpha1/namespaces/default/greetings"
GREETING = {"apiVersion": "example.miloapis.com/v1alpha1", "kind": "Greeting", "spec": {"text": "Hello"}}


_WITHIN_S = 240.0


class Operator(NamedTuple):
    """An example operator of Greetings, and the finalizer with which it holds them."""

    command: Callable[[], list[str]]
    finalizer: str

    @asynccontextmanager
    async def run(self, directory: Path, settings: Mapping[str, Any], places: Places) -> AsyncIterator[None]:
        """Define the kind, and run a daemon with these settings, and the operator beside it."""
        async with Witness(places) as witness:
            status, answer = await witness.send("POST", lives.DEFINITIONS, yaml.safe_load(DEFINITION.read_text()))
            assert status in (201, 409), answer
        config = directory / "daemon.yaml"
        address = f"unix://{directory / 'd.sock'}"
        config.write_text(yaml.safe_dump({"listen": [address], "http_listen": "off", **settings}))
        command = await asyncio.to_thread(self.command)
        environ = {**os.environ, "MILO_DISCOVERY_ADDRESS": address, "KUBECONFIG": str(places.core)}
        async with DaemonProcess(address, "--config", str(config), is_forked=True) as daemon:
            await daemon.start()
            with (directory / "operator.log").open("wb") as log:
                operator = await asyncio.create_subprocess_exec(*command, env=environ, stderr=log, stdout=log)
                try:
                    yield
                finally:
                    operator.kill()
                    await operator.wait()


def _greeter() -> list[str]:
    return [sys.executable, str(EXAMPLES / "python" / "greeter.py")]


def _go_operator() -> list[str]:
    arguments = ["-metrics-bind-address=0", "-health-probe-bind-address=0"]
    return [*go_program(EXAMPLES / "go-operator" / "cmd", "greeting-operator"), *arguments]


OPERATORS = {
    "python": Operator(_greeter, "example.miloapis.com/greeter"),
    "go": Operator(_go_operator, "example.miloapis.com/greeting"),
}


class World:
    """A project, and the steps that can happen to it."""

    def __init__(self, places: Places, project: str, finalizer: str) -> None:
        self._places = places
        self._project = project
        self._finalizer = finalizer
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
        """Delete the project if it still exists, and wait until it is removed, with nothing left in it."""
        async with Witness(self._places) as witness:
            if self.exists and not self.deleting:
                await self._delete(witness)
            if self.exists:
                await self._gone(witness)
            if self.suspended:
                await self._lift(witness)
            for path in (CONFIG_MAPS, GREETINGS):
                _, found = await witness.send("GET", path, project=self._project)
                assert [item["metadata"]["name"] for item in found.get("items", ())] == []

    async def _create(self, witness: Witness) -> None:
        await lives.begin(witness, self._project)
        self.exists = True

    async def _work(self, witness: Witness) -> None:
        """Create an object, and wait until the operator holds it."""
        self._made += 1
        name = f"object-{self._made}"
        document = {**GREETING, "metadata": {"name": name}}

        async def is_created() -> bool:
            # Milo answers 429 until it has opened the storage of a kind in a project.
            status, answer = await witness.send("POST", GREETINGS, document, project=self._project)
            assert status in (201, 429), answer
            return status == 201

        path = f"{GREETINGS}/{name}"
        await _until(is_created, f"{path} is created")

        async def is_held() -> bool:
            _, found = await witness.send("GET", path, project=self._project)
            return self._finalizer in found.get("metadata", {}).get("finalizers", ())

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
        """Request the deletion. Without a finalizer, the project may be removed at once."""
        await witness.send("DELETE", f"{PROJECTS}/{self._project}")
        self.deleting = True

    async def recreate(self) -> None:
        """Wait until a project that is being deleted is removed."""
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
