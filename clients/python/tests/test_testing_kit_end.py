"""Tests that the processes of the test kit end when the test process is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from milo_discovery.testing import eventually_blocking

TESTS = """\
import sys, time
from milo_discovery.testing import MiloSandbox

with MiloSandbox.start() as milo:
    print(milo.kubeconfig, flush=True)
    time.sleep(600)
"""


def is_running(process: str) -> bool:
    status = Path("/proc", process, "status")
    return status.exists() and "\tZ (zombie)" not in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sandbox_and_daemon_terminate_when_the_test_process_is_killed(number: signal.Signals):
    with subprocess.Popen([sys.executable, "-c", TESTS], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        kubeconfig = Path(tests.stdout.readline().strip())
        children = Path(f"/proc/{tests.pid}/task/{tests.pid}/children").read_text().split()
        assert len(children) == 2
        tests.send_signal(number)
    eventually_blocking(lambda: not any(map(is_running, children)))
    assert not kubeconfig.parent.exists()
