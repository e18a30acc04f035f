"""The demo as a person runs it, but for the terminal."""

import asyncio
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from milo_sandbox import Sandbox

DEMO = (sys.executable, "-m", "milo_discoveryd", "demo")


def test_the_demo_shows_clusters_come_and_go_and_says_what_to_try_next() -> None:
    with subprocess.Popen([*DEMO, "--churn", "50"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        shown = []
        for line in demo.stdout:
            shown.append(line)
            if "DISENGAGED" in line:
                break
        demo.send_signal(signal.SIGINT)
        _, complaints = demo.communicate(timeout=30)
    assert (demo.returncode, complaints) == (0, "")
    assert shown[0] == "In a second terminal:\n"
    assert any("  ENGAGED" in line for line in shown)


def test_the_demo_ends_by_itself_when_its_time_is_up() -> None:
    done = subprocess.run([*DEMO, "--seconds", "1"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("The subscriber was told: ")


async def test_the_demo_watches_an_api_that_there_is(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        sandbox.projects.create("alpha", ready=True)
        kubeconfig = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
        demo = await asyncio.create_subprocess_exec(*DEMO, "--kubeconfig", str(kubeconfig), stdout=PIPE)
        assert demo.stdout is not None
        async with asyncio.timeout(60):
            while "ENGAGED alpha" not in " ".join((await demo.stdout.readline()).decode().split()):
                pass
        demo.send_signal(signal.SIGINT)
        await demo.communicate()
    assert demo.returncode == 0
