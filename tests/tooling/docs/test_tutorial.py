"""The tutorial leads from an empty directory to a green test and a running operator, step by step."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from milo_discovery.testing import MiloSandbox, eventually_blocking

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "tutorial.md"
_FILE = re.compile(r"^`(\w+\.py|Dockerfile)`[^\n]*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
_POD = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(600)
def test_tutorial_leads_to_a_green_test_and_a_running_operator(
    milo_sandbox: MiloSandbox, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()

    def step(name: str) -> None:
        with capfd.disabled():
            sys.stdout.write(f"\ntutorial: {name} after {time.monotonic() - began:.0f} s")

    files = dict(_FILE.findall(PAGE.read_text()))
    assert files.keys() == {"my_operator.py", "test_my_operator.py", "Dockerfile"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    step("files")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path, check=True)
    step("green test")
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    command = [Path(sys.executable).with_name("milo-discovery"), "run", "my_operator.py"]
    environ = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo_sandbox.address, "MILO_OPERATOR_LISTEN": "off"}
    with subprocess.Popen(command, cwd=tmp_path, env=environ) as operator:
        for plane in (alpha, beta):
            made = eventually_blocking(lambda plane=plane: plane.get("v1/configmaps", "greeting"))
            assert made["data"] == {"greeting": f"hello {plane.project}"}
        step("running operator")
        operator.terminate()
        assert operator.wait(60) == 0
    [pod] = _POD.findall(PAGE.read_text())
    container = yaml.safe_load(pod)
    assert [container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")] == [
        "/livez",
        "/readyz",
    ]
