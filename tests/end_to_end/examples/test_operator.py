"""The operator in Python: what it does in the projects."""

import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp

from milo_sandbox import Sandbox
from tests.end_to_end.examples.building import EXAMPLES
from tests.end_to_end.examples.program import Program
from tests.end_to_end.process.daemon import DaemonProcess

PROJECTS = "/apis/resourcemanager.miloapis.com/v1alpha1/projects"


async def welcome_in(sandbox: Sandbox, project: str) -> dict[str, Any] | None:
    url = f"{sandbox.url}{PROJECTS}/{project}/control-plane/api/v1/namespaces/default/configmaps/welcome"
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=sandbox.ca_pem.decode()))
    headers = {"Authorization": f"Bearer {sandbox.token()}"}
    async with aiohttp.ClientSession(connector=connector) as http, http.get(url, headers=headers) as answer:
        return await answer.json() if answer.status == 200 else None


async def test_operator_creates_greeting_and_removes_it_before_deletion(
    sandbox: Sandbox, daemon: DaemonProcess, kubeconfig: Path, socket: Path
) -> None:
    command = [sys.executable, str(EXAMPLES / "python" / "operator_greeter.py")]
    environ = {"MILO_DISCOVERY_ADDRESS": f"unix://{socket}", "KUBECONFIG": str(kubeconfig)}
    sandbox.projects.create("first", ready=True, finalizers=["example.com/wait"])
    async with Program(command, environ) as operator:
        assert await operator.line() == "first: welcomed"
        welcome = await welcome_in(sandbox, "first")
        assert welcome is not None
        assert welcome["data"] == {"text": "Welcome, acme, to first."}

        sandbox.projects.create("second", ready=True)
        assert await operator.line() == "second: welcomed"

        sandbox.projects.delete("first")
        assert await operator.line() == "first: farewell"
        assert await welcome_in(sandbox, "first") is None
