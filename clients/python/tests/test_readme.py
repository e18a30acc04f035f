"""Tests that samples of the README run unchanged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from milo_discovery.testing import MiloSandbox

README = Path(__file__).parent.parent / "README.md"
FOLLOW, FLEET, OPERATOR, BLOCKING, LEADER, KOPF = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("program", "first_line"),
    [
        (FOLLOW, "ENGAGED alpha https://"),
        (FLEET, "working on alpha at https://"),
        (OPERATOR, "alpha has ['default', 'milo-system']"),
        (BLOCKING, "ENGAGED alpha"),
        (LEADER, "leading in alpha"),
    ],
    ids=["follow", "fleet", "operator", "blocking", "leader"],
)
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.nightly), pytest.param(signal.SIGTERM, id="SIGTERM")],
)
def test_readme_example_prints_events_and_exits_on_signal(
    milo_sandbox: MiloSandbox, tmp_path: Path, program: str, first_line: str, number: signal.Signals
):
    milo_sandbox.create_project("alpha", labels={"env": "prod"})
    own_cluster = milo_sandbox.control_plane("alpha").write_kubeconfig(tmp_path / "kubeconfig")
    environment = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo_sandbox.address, "KUBECONFIG": str(own_cluster)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().decode().startswith(first_line)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err.decode()) == (0, "")
        finally:
            process.kill()


@contextmanager
def replica(program: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_leader_election_example_elects_a_new_leader(milo_sandbox: MiloSandbox, tmp_path: Path):
    milo_sandbox.create_project("alpha")
    own_cluster = milo_sandbox.control_plane("alpha").write_kubeconfig(tmp_path / "kubeconfig")
    environment = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo_sandbox.address, "KUBECONFIG": str(own_cluster)}
    with replica(LEADER, environment) as leader:
        assert next_line(leader) == "leading in alpha\n"
        with replica(LEADER, environment) as follower:
            leader.send_signal(signal.SIGINT)
            assert leader.wait(timeout=60) == 0
            assert next_line(follower) == "leading in alpha\n"


def test_readme_kopf_operator_runs_its_handler(milo_sandbox: MiloSandbox):
    (alpha,) = milo_sandbox.create_control_planes("alpha")
    labeled = {"name": "one", "labels": {"greet": "yes"}}
    alpha.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": labeled})
    environment = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo_sandbox.address}
    # kopf logs to stderr.
    arguments = [sys.executable, "-c", KOPF]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"greeted one in alpha\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
