"""The demo as a person runs it, but for the terminal."""

import subprocess
import sys


def test_the_demo_ends_by_itself_having_shown_clusters_come_and_say_what_to_try_next() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "milo_discoveryd", "demo", "--seconds", "3", "--churn", "30"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "In a second terminal:" in done.stdout
    kinds = [line.split()[1] for line in done.stdout.splitlines() if line[2:3] == ":"]
    assert kinds.count("ENGAGED") >= 12
    assert "DISENGAGED" in kinds
