"""The README of each client, and the tutorial in Go, lead from an empty directory to the first engaged cluster.

The README of the Go provider is followed beside the demo, in tests/tooling/docs/test_readme.py.
"""

import asyncio
import os
import re
import shutil
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.conformance.clients import CACHE, ROOT
from tests.end_to_end.examples.building import BUILT, MAVEN, NEEDS_KUBERNETES, alone
from tests.end_to_end.kubeconfigs.workspace import open_workspace

ENGAGED_WITHIN_S = 900.0
pytestmark = [pytest.mark.builds, pytest.mark.nightly, pytest.mark.timeout(2700)]  # most of it waits for other builds

FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ENGAGED = re.compile(r'ENGAGED first\b|working in first\b|"greeted".*"project":"first"')


@dataclass(frozen=True, slots=True)
class Readme:
    document: str
    tools: Sequence[str]
    commands: int
    """The number of command blocks that are run, up to the one that starts the program."""


READMES = {
    "go": Readme("clients/go/README.md", ["go"], 2),
    "tutorial": Readme("docs/tutorial-go.md", ["go"], 3),
    "node": Readme("clients/node/README.md", ["node", "npm"], 2),
    "java": Readme("clients/java/README.md", ["java", "mvn"], 2),
    "rust": Readme("examples/rust/README.md", ["cargo"], 1),
}


def clone() -> Path:
    """Return a copy of the packages that users build, so that a build writes nothing into this repository."""
    copy = CACHE / "clone"
    for source in ("clients", "examples/rust", "proto"):
        shutil.copytree(ROOT / source, copy / source, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*BUILT))
    return copy


async def until_engaged(script: str, directory: Path, environ: Mapping[str, str]) -> tuple[str, float]:
    """Run the commands until one prints the engaged cluster, for at most `ENGAGED_WITHIN_S`.

    Return their output, and the seconds that passed.
    """
    began = time.monotonic()
    shell = await asyncio.create_subprocess_exec(
        "sh", "-euc", script, cwd=directory, env={**os.environ, **environ}, stdout=PIPE, stderr=STDOUT, process_group=0
    )
    assert shell.stdout is not None
    printed: list[str] = []
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(ENGAGED_WITHIN_S):
                while line := (await shell.stdout.readline()).decode():
                    printed.append(line)
                    if ENGAGED.search(line):
                        break
        took_s = time.monotonic() - began
    finally:
        if shell.returncode is None:
            os.killpg(shell.pid, 9)
        await shell.communicate()
    return "".join(printed), took_s


@pytest.mark.parametrize("language", READMES)
async def test_following_the_readme_engages_a_first_cluster(
    language: str, directory: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    readme = READMES[language]
    if language in NEEDS_KUBERNETES and not request.config.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    if missing := [tool for tool in readme.tools if shutil.which(tool) is None]:
        pytest.skip(f"there is no {missing[0]} on PATH")
    text = (ROOT / readme.document).read_text()
    own = directory / "own"
    (directory / "milo-discoveryd").symlink_to(clone())
    async with open_workspace(directory) as workspace:
        workspace.sandbox.projects.create("first", ready=True, labels={"env": "prod"})
        with alone(CACHE / "clone"):
            for name, content in FILE.findall(text):
                (own / name).parent.mkdir(parents=True, exist_ok=True)
                (own / name).write_text(content)
            own.mkdir(exist_ok=True)
            commands = [command for command in COMMANDS.findall(text) if "go get" not in command][: readme.commands]
            script = "".join(commands).replace("PATH", str(clone()))
            environ = {
                "MILO_DISCOVERY_ADDRESS": workspace.address,
                "KUBECONFIG": str(directory / "upstream"),
                "CARGO_TARGET_DIR": str(CACHE / "rust"),
                **MAVEN,
            }
            printed, took_s = await until_engaged(script, own, environ)
    assert ENGAGED.search(printed), printed
    with capfd.disabled():
        sys.stdout.write(
            f"\n{readme.document}: the first engaged cluster after {took_s:.0f} s, with the user's caches\n"
        )
