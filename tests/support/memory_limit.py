"""A cgroup with a memory limit, for processes that must stay within it."""

import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

_SIDECAR = Path(__file__).parents[2] / "deploy/components/sidecar/sidecar.yaml"
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def shipped_limit() -> int:
    """Return the memory limit of the daemon's container in the shipped manifest, in bytes."""
    [container] = yaml.safe_load(_SIDECAR.read_text())["spec"]["template"]["spec"]["initContainers"]
    return int(container["resources"]["limits"]["memory"].removesuffix("Mi")) << 20


@contextmanager
def memory_limit(limit: int) -> Iterator[Path | None]:
    """Create a cgroup with a memory limit in bytes, and yield its file of processes; None, with a warning, where this
    user or machine cannot create one.
    """
    name = f"milo-test-{os.getpid()}-{secrets.token_hex(4)}"
    parent, file = (_V1, "memory.limit_in_bytes") if _V1.is_dir() else (_V2, "memory.max")
    directory = parent / name
    try:
        directory.mkdir()
    except OSError as error:
        _warn(error)
        yield None
        return
    try:
        try:
            (directory / file).write_text(str(limit))
        except OSError as error:  # cgroup v2 without the memory controller in this directory
            _warn(error)
            yield None
        else:
            yield directory / "cgroup.procs"
    finally:
        directory.rmdir()


def _warn(error: OSError) -> None:
    warnings.warn(f"no cgroup here, only peaks of memory are compared ({error}); run as root", stacklevel=4)


def peak_bytes(pid: int) -> int:
    """Return the largest resident size that the process has had."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10
