"""The tutorial is followed word for word: from an empty directory to a green test and a running operator."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from milo_discovery.testing import eventually_blocking

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
_FILE = re.compile(r"^`(\w+\.py|Dockerfile)`[^\n]*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_POD = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ENTERED = ". .venv/bin/activate\n"
"""The reader stays in the environment of the first step."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return an empty directory beside a clone. Its path is short, since socket paths are limited to 107 characters."""
    with tempfile.TemporaryDirectory(prefix="tutorial-") as found:
        (Path(found) / "milo-discoveryd").symlink_to(ROOT)
        (Path(found) / "work").mkdir()
        yield Path(found) / "work"


@contextmanager
def running(commands: str, directory: Path, log: Path, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run commands, whose output goes to `log`, and interrupt them at the end, as Ctrl-C does."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            ["sh", "-ec", commands], cwd=directory, env=environ, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)


def page(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as response:
        return int(response.status)


@pytest.mark.builds
@pytest.mark.timeout(600)
def test_tutorial_leads_to_a_passing_test_and_a_running_operator(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()

    def step(name: str) -> None:
        with capfd.disabled():
            sys.stdout.write(f"\ntutorial: {name} after {time.monotonic() - began:.0f} s")

    files = dict(_FILE.findall(PAGE))
    assert files.keys() == {"my_operator.py", "test_my_operator.py", "Dockerfile"}
    environment, tests, run, build = _COMMANDS.findall(PAGE)
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("MILO_", "PYTHON", "VIRTUAL_"))
    }
    environ["TMPDIR"] = str(directory.parent)  # so that the operator finds this demo, and no other
    subprocess.run(["sh", "-ec", environment], cwd=directory, env=environ, check=True, stdout=subprocess.DEVNULL)
    step("an environment")
    for name, content in files.items():
        (directory / name).write_text(content)
    subprocess.run(["sh", "-ec", _ENTERED + tests], cwd=directory, env=environ, check=True)
    step("a green test")
    demo_log, log = directory.parent / "demo.log", directory.parent / "operator.log"
    demo_environ = environ | {"MILO_DISCOVERYD_HTTP_LISTEN": "127.0.0.1:0"}
    assert "`./dev demo`" in PAGE
    with running("exec ./dev demo", ROOT, demo_log, demo_environ):
        eventually_blocking(lambda: "ENGAGED" in demo_log.read_text(), within_s=300)
        with running(_ENTERED + run, directory, log, environ | {"MILO_OPERATOR_LISTEN": "127.0.0.1:0"}):
            eventually_blocking(lambda: "greeted" in log.read_text(), within_s=120)
            step("a running operator")
        log.write_text("")
        [socket] = directory.parent.glob("milo-demo-*/discovery.sock")
        check_pod(files["Dockerfile"], environment, build)
        pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MILO_OPERATOR_LISTEN": "127.0.0.1:0"}
        entrypoint = f"{_ENTERED}exec python my_operator.py"
        environ |= pod | {"MILO_DISCOVERY_ADDRESS": f"unix://{socket}"}
        with running(entrypoint, directory, log, environ) as process:
            url = eventually_blocking(lambda: re.search(r"metrics on (http://[\d.:]+)", log.read_text()))[1]
            probes: list[Callable[[], int]] = [lambda path=path: page(url + path) for path in ("/livez", "/readyz")]  # type: ignore[misc]
            assert [eventually_blocking(probe) for probe in probes] == [200, 200]
            eventually_blocking(lambda: '"message": "greeted"' in log.read_text())
            process.terminate()
        step("its process as in a pod")


def check_pod(dockerfile: str, environment: str, build: str) -> None:
    """Check, without a container engine, that the image installs what step 1 does, and the paths of the probes."""
    sources = dict(re.findall(r"^COPY --from=milo-discoveryd (\S+) (\S+)$", dockerfile, re.MULTILINE))
    installed = re.search(r"pip install --no-cache-dir (.*?) &&", dockerfile)
    assert installed is not None
    clone = installed[1]
    for source, target in sources.items():
        clone = clone.replace(target, f"../milo-discoveryd/{source}")
    assert f"pip install {clone}\n" in environment
    assert build == "docker build --build-context milo-discoveryd=../milo-discoveryd --tag my-operator:1 .\n"
    [pod] = _POD.findall(PAGE)
    container = yaml.safe_load(pod)
    assert [container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")] == [
        "/livez",
        "/readyz",
    ]
