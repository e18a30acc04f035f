"""Programs of Debian packages, unpacked into the user's cache directory without an installation."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_DOWNLOAD_WITHIN_S = 100


def program(name: str, package: str) -> Path:
    """Return the path of a program; skip the test if it cannot be downloaded."""
    if found := shutil.which(name):
        return Path(found)
    return unpacked(package) / "usr" / "bin" / name


def unpacked(*packages: str) -> Path:
    """Return a directory with the files of packages; skip the test if they cannot be downloaded."""
    directory = _cache() / packages[0]
    for tool in ("apt-get", "dpkg-deb"):
        if not (directory / "usr").exists() and shutil.which(tool) is None:
            pytest.skip(f"Debian's package {packages[0]} cannot be downloaded: {tool} is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may unpack the same packages
        if not (directory / "usr").exists():
            _unpack(packages, directory)
    return directory


def _unpack(packages: Sequence[str], directory: Path) -> None:
    got = subprocess.run(
        ["apt-get", "download", "--quiet", *packages],
        cwd=directory, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_WITHIN_S,
    )  # fmt: skip
    if got.returncode:
        pytest.skip(f"Debian's packages {' '.join(packages)} can't be downloaded: {got.stderr.strip()}")
    unfinished = directory / "unfinished"
    for archive in directory.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, unfinished], check=True)
        archive.unlink()
    # `usr` is last: its presence means that the package is complete
    for part in sorted(unfinished.iterdir(), key=lambda part: part.name == "usr"):
        part.rename(directory / part.name)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "debian"
