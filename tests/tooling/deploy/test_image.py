"""The images, without a container engine: their contents are installed, and run as in a pod."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd import __version__
from tests.end_to_end.process.conftest import Workspace, directory, workspace
from tests.support.eventually import LIMIT_S
from tests.tooling.deploy.manifests import DEPLOY, ROOT, arguments, environment, pod

__all__ = ["directory", "workspace"]

DEMO = DEPLOY / "overlays" / "demo"
OURS = {
    "milo-discoveryd", "milo-discovery-client", "milo-discovery-cli", "milo-objects", "milo-controllers",
    "milo-publishing", "milo-kube",
}  # fmt: skip

# An installation takes about a minute, and several minutes on a machine that runs other tests.
INSTALLED_WITHIN_S = 800
pytestmark = [pytest.mark.builds, pytest.mark.timeout(900)]

NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")


class Installed:
    """The contents of one image."""

    def __init__(self, directory: Path, what: str) -> None:
        self.venv = directory / "venv"
        self.wheels = directory / "wheels"
        subprocess.run(
            ["sh", ROOT / "deploy" / "image" / "install.sh", ROOT, self.venv, what, self.wheels],
            env={**os.environ, "PYTHON": sys.executable}, check=True, timeout=INSTALLED_WITHIN_S,
        )  # fmt: skip

    @property
    def packages(self) -> set[str]:
        [library] = self.venv.glob("lib/python*/site-packages")
        return {package.metadata["Name"].lower().replace("_", "-") for package in distributions(path=[str(library)])}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("image"), "daemon")


@pytest.fixture(scope="module")
def sandbox_image(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("sandbox-image"), "sandbox")


def test_dockerfile_uses_the_tested_install_script_and_the_user_of_the_manifests() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^RUN (.*)$", text, re.MULTILINE) == [
        "sh deploy/image/install.sh /src /opt/venv",
        "sh deploy/image/install.sh /src /opt/venv sandbox",
    ]
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["65532:65532"]
    assert re.findall(r"^ARG VERSION=(.*)$", text, re.MULTILINE) == [__version__]


def test_dockerfile_default_stage_is_the_daemon_without_the_sandbox() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert stages[-1].startswith("runtime AS daemon\n")
    assert "--from=install-daemon" in stages[-1]
    assert all(
        "sandbox" not in stage for stage in stages[1:] if " AS sources" in stage or " AS install-daemon" in stage
    )


def test_dockerfile_pins_its_base_image_by_digest_and_tag() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    [image] = {base for base, _ in stages} - {name for _, name in stages}
    assert re.fullmatch(r"python:3\.\d+-slim-\w+@sha256:[0-9a-f]{64}", image)


def test_renovate_pins_digests() -> None:
    assert "docker:pinDigests" in json.loads((ROOT / "renovate.json").read_text())["extends"]


def test_dockerignore_includes_what_the_dockerfile_copies() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source for sources in copied for source in sources.split()} == admitted


def test_wheels_contain_their_package_and_nothing_else(installed: Installed) -> None:
    holds = {path.name.split("-")[0]: zipfile.ZipFile(path).namelist() for path in installed.wheels.iterdir()}
    assert set(holds) == {name.replace("-", "_") for name in OURS}
    for names in holds.values():
        assert any(name.endswith("/py.typed") for name in names)
    pages = f"milo_discoveryd-{__version__}.data/data/share/man/man1/"
    others = [name for name in holds["milo_discoveryd"] if not name.startswith(pages)]
    assert {name.partition("/")[0] for name in others} == {
        "milo_discoveryd",
        f"milo_discoveryd-{__version__}.dist-info",
    }


def test_daemon_image_has_neither_the_sandbox_nor_its_dependencies(installed: Installed) -> None:
    assert installed.packages >= OURS
    assert not installed.packages & {"milo-sandbox", "rich", "pygments", "pip", "setuptools"}
    done = subprocess.run(
        [installed.venv / "bin" / "milo-discoveryd", "sandbox"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "milo-sandbox" in done.stderr


def test_daemon_image_has_no_package_that_is_not_locked(installed: Installed) -> None:
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / "daemon.txt").read_text(), re.MULTILINE))
    assert installed.packages - OURS <= locked


def test_documented_size_of_the_image_layer_matches_the_measured_size(installed: Installed) -> None:
    report = subprocess.check_output(
        [sys.executable, ROOT / "tools" / "image_size.py", installed.venv], text=True, timeout=120
    )
    size, compressed = map(float, re.findall(r"([\d.]+) MiB", report.splitlines()[0]))
    page = (ROOT / "docs" / "deploying.md").read_text()
    documented = re.search(r"adds (\d+) MiB to `python[^(]*\((\d+) MiB compressed\)", page)
    assert documented is not None
    # The sizes of wheels differ a little by Python version and platform.
    assert [size, compressed] == [pytest.approx(float(group), rel=0.2) for group in documented.groups()]
    assert re.search(r"MiB  grpcio ", report)


def test_commands_are_installed_and_the_daemon_prints_its_version(installed: Installed) -> None:
    for command in ("milo-discoveryd", "milo-discovery"):
        done = subprocess.run(
            [installed.venv / "bin" / command, "--help"], capture_output=True, text=True, check=True, timeout=60
        )
        assert "Usage:" in done.stdout
    said = subprocess.check_output([installed.venv / "bin" / "milo-discoveryd", "--version"], text=True, timeout=60)
    assert said.split()[-1] == __version__


@pytest.fixture(scope="module")
def copied(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("volume")
    commands = installed.venv / "bin"
    subprocess.run([commands / "python", commands / "copy-client", target], check=True, timeout=60)
    return target


def test_copied_client_loads_nothing_from_the_image(copied: Path) -> None:
    program = """if True:
        import sys, milo_discovery_cli.queries, milo_discovery_cli.credential, milo_discovery_cli.kubeconfig
        print(*(each.__file__ for each in sys.modules.values() if getattr(each, "__file__", None)), sep="\\n")
    """
    loaded = subprocess.check_output(
        [copied / "bin" / "python3", "-I", "-c", program], env={"LD_LIBRARY_PATH": str(copied / "lib")}, text=True
    )
    assert [path for path in loaded.splitlines() if not path.startswith(f"{copied}/lib/")] == []


async def test_copied_client_returns_credentials(copied: Path, workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    own = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
    async with workspace.daemon(kubeconfigs={"issuers": [own]}) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        process = await asyncio.create_subprocess_exec(
            copied / "milo-discovery", "credential", "--cluster", "alpha",
            env={"MILO_DISCOVERY_ADDRESS": workspace.address}, stdout=PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
    assert json.loads(said)["kind"] == "ExecCredential"


def test_image_contains_the_bytecode_of_every_module(installed: Installed) -> None:
    [package] = (installed.venv / "lib").glob("python*/site-packages/milo_discoveryd")
    for source in package.rglob("*.py"):
        assert list(source.parent.glob(f"__pycache__/{source.stem}.*.pyc")), source


@asynccontextmanager
async def running(installed: Installed, root: Path, directory: Path) -> AsyncIterator["Pod"]:
    """Start the pod of these manifests, with every container from one installation."""
    spec: dict[str, Any] = json.loads(json.dumps(pod(directory)))
    for container in (*spec["initContainers"], *spec["containers"]):
        variables = environment(directory, container)
        container["args"] = arguments(directory, container)
        container["env"] = [{"name": name, "value": value} for name, value in variables.items()]
    # From this machine: the C library and tools, and the Python that the environment was made with.
    tree = [path for path in ("/usr", "/bin", "/lib", "/lib64", "/etc") if Path(path).exists()]
    tree += [str(installed.venv), sys.base_prefix]
    given = {
        "spec": spec,
        "root": str(root),
        "tree": list(dict.fromkeys(path for path in tree if not path.startswith("/usr/"))),
        "path": f"{installed.venv}/bin:/usr/bin:/bin",
    }
    process = await asyncio.create_subprocess_exec(
        *NAMESPACES, sys.executable, Path(__file__).with_name("pod.py"), stdin=PIPE, stdout=PIPE, stderr=STDOUT
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(given).encode() + b"\n")
    try:
        yield Pod(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Pod:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[str] = []

    async def until(self, words: str) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while not any(words in line for line in self.said):
                line = await self._process.stdout.readline()
                assert line, "\n".join(self.said[-30:])
                self.said.append(line.decode().rstrip())

    async def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        async with asyncio.timeout(LIMIT_S):
            rest = await self._process.stdout.read()
        self.said += rest.decode().splitlines()


@pytest.fixture
def namespaces() -> None:
    """Skip the test where a pod cannot be isolated in namespaces."""
    for tool in ("unshare", "setpriv", "mount", "chroot"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool}, which isolates the pod, is not installed")
    tried = subprocess.run([*NAMESPACES, "mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    if os.geteuid() or tried.returncode:
        pytest.skip(f"isolating a pod needs root and namespaces: {tried.stderr.strip() or 'not root'}")


@pytest.mark.usefixtures("namespaces")
async def test_demo_pod_runs_unprivileged_on_a_read_only_root(sandbox_image: Installed, tmp_path: Path) -> None:
    async with running(sandbox_image, tmp_path, DEMO) as demo:
        await demo.until("pod subscriber started")
        order = [line for line in demo.said if line.startswith("pod ")]
        assert order == ["pod sandbox started", "pod milo-discoveryd started", "pod subscriber started"]
        await demo.until("ENGAGED")
        await demo.end()
    assert "pod milo-discoveryd exited with status 0" in demo.said
    assert not [line for line in demo.said if "Traceback" in line or "Permission denied" in line], demo.said
