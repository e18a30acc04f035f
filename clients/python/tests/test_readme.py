"""The README's examples are programs that work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from milo_discovery.testing import MiloSandbox

README = Path(__file__).parent.parent / "README.md"
FOLLOW, FLEET, OPERATOR, BLOCKING, TEST = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("program", "first_line"),
    [
        (FOLLOW, "ENGAGED alpha https://"),
        (FLEET, "working on alpha at https://"),
        (OPERATOR, "alpha has ['default', 'kube-system']"),
        (BLOCKING, "ENGAGED alpha"),
    ],
    ids=["follow", "fleet", "operator", "blocking"],
)
def test_readme_example_prints_what_happens(milo_sandbox: MiloSandbox, program: str, first_line: str):
    milo_sandbox.create_project("alpha", labels={"env": "prod"})
    environment = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo_sandbox.address}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().decode().startswith(first_line)
        finally:
            process.kill()


async def test_readme_pytest_sample_passes(milo_sandbox: MiloSandbox):
    names: dict[str, object] = {}
    exec(compile(TEST, str(README), "exec"), names)
    await names["test_my_operator"](milo_sandbox)
