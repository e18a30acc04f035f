"""The HTTP service in Go that finds the project of a namespace, as a process, beside the real daemon."""

import asyncio
import json
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from milo_sandbox.faults import Injected
from milo_sandbox.resources import NAMESPACES
from tests.end_to_end.examples.building import EXAMPLES, go_program
from tests.end_to_end.examples.program import LINE_WITHIN_S, Program
from tests.end_to_end.kubeconfigs.workspace import open_workspace

pytestmark = [pytest.mark.builds, pytest.mark.timeout(1200)]  # the first build compiles Kubernetes libraries
MOST_LINES = 60


def test_example_is_short() -> None:
    assert len((EXAMPLES / "go-namespaces/main.go").read_text().splitlines()) <= MOST_LINES


async def test_namespaces_are_found_and_told_apart_from_unknown_ones(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    command = await asyncio.to_thread(go_program, EXAMPLES / "go-namespaces", "namespaces")
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:  # short, since a socket's path has 107 bytes at most
        async with open_workspace(Path(directory)) as workspace:
            projects, faults = workspace.sandbox.projects, workspace.sandbox.faults
            projects.create("beta", ready=True)
            faults.inject(Injected(project="beta", verb="list", kind="v1/namespaces", status="hang", times=None))
            environ = {"MILO_DISCOVERY_ADDRESS": workspace.address, "LISTEN": "127.0.0.1:0"}
            async with Program(command, environ) as program:
                url = "http://" + (await program.line()).rpartition(" ")[2] + "/namespaces/"
                uid = workspace.sandbox.control_plane("alpha").get(NAMESPACES, "default").uid
                status, body = await until(url + uid, 200)
                assert (status, json.loads(body)) == (200, {"project": "alpha", "namespace": "default"})
                status, body = await until(url + "unknown", 503)
                missing = "v1/namespaces of 1 of 2 clusters were not read: beta (PENDING: not read yet)"
                assert (status, body.strip()) == (503, missing)
                faults.stop_injected()
                status, body = await until(url + "unknown", 404)
                assert (status, body.strip()) == (404, "no project has this namespace")


def answer(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=LINE_WITHIN_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


async def until(url: str, wanted: int) -> tuple[int, str]:
    async with asyncio.timeout(LINE_WITHIN_S):
        while True:
            status, body = await asyncio.to_thread(answer, url)
            if status == wanted:
                return status, body
            await asyncio.sleep(0.05)
