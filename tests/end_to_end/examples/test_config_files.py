"""The example that keeps ConfigMaps of all projects as files, as a process whose API server's watches fall silent."""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from milo_sandbox.resources import CONFIG_MAPS
from milo_sandbox.store import Store
from tests.end_to_end.examples.building import EXAMPLES
from tests.end_to_end.examples.test_config_map_operators import running
from tests.end_to_end.kubeconfigs.workspace import open_workspace
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(900)

COMMAND = [sys.executable, str(EXAMPLES / "python/config_files.py")]
LISTENS = re.compile(r"http://(127\.0\.0\.1:[0-9]+)")
# A silent watch is noticed after 90 seconds, and resumed.
seen = partial(eventually, within_s=300)


def put(project: Store, name: str, *, label: str = "example.com/files", **data: str) -> None:
    metadata = {"name": name, "labels": {label: ""}}
    project.create(CONFIG_MAPS, {"metadata": metadata, "data": data}, namespace="default")


def write(project: Store, name: str, **data: str) -> None:
    project.modify(CONFIG_MAPS, name, lambda live: {**live, "data": data}, namespace="default")


class Files:
    """The directory that the example keeps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, project: str) -> dict[str, str]:
        found = (path for path in (self.path / project).rglob("*") if path.is_file())
        return {str(path.relative_to(self.path / project)): path.read_text() for path in found}

    def status(self, project: str) -> dict[str, Any]:
        try:
            projects: Mapping[str, dict[str, Any]] = json.loads((self.path / "status.json").read_text())["projects"]
        except FileNotFoundError:
            return {}
        return projects.get(project, {})

    def is_in_state(self, project: str, state: str) -> Callable[[], bool]:
        return lambda: self.status(project).get("state") == state


async def test_files_of_config_maps_are_kept_and_stale_while_watches_are_silent(tmp_path: Path) -> None:
    files, log = Files(tmp_path / "files"), tmp_path / "log"
    left = files.path / "alpha/default/of-an-earlier-run"
    left.mkdir(parents=True)
    (left / "panel.json").write_text("old")
    (files.path / "gone/default/panel").mkdir(parents=True)
    (tmp_path / "w").mkdir()
    async with open_workspace(tmp_path / "w") as workspace:
        sandbox = workspace.sandbox
        alpha = sandbox.control_plane("alpha")
        put(alpha, "panel", **{"panel.json": "one", "rows.json": "1"})
        put(alpha, "other", label="of-another-program", **{"panel.json": "no"})
        environ = {
            "FILES": str(files.path),
            "MILO_DISCOVERY_ADDRESS": workspace.address,
            "MILO_OPERATOR_LISTEN": "127.0.0.1:0",
        }
        async with running(COMMAND, environ, log):
            one = {"default/panel/panel.json": "one", "default/panel/rows.json": "1"}
            await seen(lambda: files.of("alpha") == one)
            await seen(files.is_in_state("alpha", "SYNCED"))
            await seen(lambda: not (files.path / "gone").exists())
            write(alpha, "panel", **{"panel.json": "two"})
            await seen(lambda: files.of("alpha") == {"default/panel/panel.json": "two"})
            sandbox.projects.create("beta", ready=True)
            put(sandbox.control_plane("beta"), "panel", **{"panel.json": "of beta"})
            await seen(lambda: files.of("beta") == {"default/panel/panel.json": "of beta"})

            sandbox.silence_watches("alpha")  # they stay open
            sandbox.faults.unreachable("alpha")
            write(alpha, "panel", **{"panel.json": "three"})
            await seen(files.is_in_state("alpha", "STALE"))
            stale = files.status("alpha")
            assert stale["problem"]
            assert datetime.fromisoformat(stale["as_of"]) < datetime.now(UTC)
            assert files.is_in_state("beta", "SYNCED")()
            assert await asyncio.to_thread(ready, LISTENS.findall(log.read_text())[0]), "as in k8s-sidecar"
            assert files.of("alpha") == {"default/panel/panel.json": "two"}, "what is held is kept"

            sandbox.faults.clear()
            sandbox.silence_watches("alpha", silent=False)
            await seen(lambda: files.of("alpha") == {"default/panel/panel.json": "three"})
            await seen(files.is_in_state("alpha", "SYNCED"))
            alpha.discard(CONFIG_MAPS, "default/panel")
            await seen(lambda: files.of("alpha") == {})
            sandbox.projects.delete("beta")
            await seen(lambda: not (files.path / "beta").exists())


def ready(address: str) -> bool:
    with closing(HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
