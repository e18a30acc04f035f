"""The sample of docs/objects.md answers which project has a namespace, and tells "not found" from "not read yet"."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from milo_discovery.testing import MiloSandbox, eventually
from tests.support.ports import free_port

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "objects.md"
_SAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMESPACES = "v1/namespaces"


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urlopen(url, timeout=10) as response:
            return response.status, json.load(response)
    except HTTPError as refused:
        return refused.code, json.load(refused)


async def test_documented_service_tells_which_project_has_a_namespace(
    milo_sandbox: MiloSandbox, tmp_path: Path
) -> None:
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    beta.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}})
    uid = beta.get(NAMESPACES, "shop")["metadata"]["uid"]
    milo_sandbox.fail("alpha", "list", NAMESPACES, status=403)
    [sample] = _SAMPLE.findall(_PAGE.read_text())
    port = free_port()
    program = tmp_path / "service.py"
    program.write_text(sample.replace("8080", str(port)))
    environ = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo_sandbox.address}
    service = await asyncio.create_subprocess_exec(sys.executable, str(program), env=environ)

    async def answer(uid: str) -> tuple[int, dict[str, Any]]:
        return await asyncio.to_thread(get, f"http://127.0.0.1:{port}/namespaces/{uid}")

    async def is_answered(status: int, uid: str) -> dict[str, Any] | None:
        found, body = await answer(uid)
        return body if found == status else None

    try:
        found = await eventually(lambda: is_answered(200, uid))
        assert (found["project"], found["namespace"]) == ("beta", "shop")
        assert found["metadata"]["labels"]["team"] == "a"
        status, unread = await answer("unknown")
        assert (status, list(unread["missing"])) == (503, ["alpha"])
        milo_sandbox.stop_failing()
        await eventually(lambda: is_answered(404, "unknown"))
        late = alpha.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}})
        found = await eventually(lambda: is_answered(200, late["metadata"]["uid"]))
        assert (found["project"], found["namespace"]) == ("alpha", "late")
    finally:
        service.terminate()
        await service.wait()
