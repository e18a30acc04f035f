"""The commits of this repository and of the measured programs, whose paths are in environment variables."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("MILO_APISERVER", "MILO_CONTROLLER_MANAGER", "MILO_CONTROLLER_MANAGER_MOVED")
UNKNOWN = "unknown commit"
_REVISION = re.compile(r"vcs\.revision=([0-9a-f]{12})")


def commits() -> dict[str, str]:
    programs = {name: os.environ[name] for name in PROGRAMS if name in os.environ}
    return {
        "milo-discoveryd": _output(["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty"])
        or UNKNOWN,
        **{name: built_from(_output(["go", "version", "-m", path])) for name, path in programs.items()},
    }


def built_from(build_info: str) -> str:
    """Return the commit that a program in Go was built from, from the output of `go version -m`."""
    revision = _REVISION.search(build_info)
    if revision is None:
        return UNKNOWN
    return revision[1] + ("-dirty" if "vcs.modified=true" in build_info else "")


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
