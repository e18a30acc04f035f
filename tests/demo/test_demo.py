"""The demo as a person runs it, but for the terminal."""

import signal
import subprocess
import sys

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
    assert sum("  ENGAGED" in line for line in shown) >= 12


def test_the_demo_ends_by_itself_when_its_time_is_up() -> None:
    done = subprocess.run([*DEMO, "--seconds", "1"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("The subscriber was told: ")
