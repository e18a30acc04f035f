"""Programs of Debian packages, unpacked into the user's cache folder without an installation."""

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
    """Return a folder with the files of packages; skip the test if they cannot be downloaded."""
    folder = _cache() / packages[0]
    for tool in ("apt-get", "dpkg-deb"):
        if not (folder / "usr").exists() and shutil.which(tool) is None:
            pytest.skip(f"without {tool}, Debian's package {packages[0]} can't be had")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may do the same
        if not (folder / "usr").exists():
            _unpack(packages, folder)
    return folder


def _unpack(packages: Sequence[str], folder: Path) -> None:
    got = subprocess.run(
        ["apt-get", "download", "--quiet", *packages],
        cwd=folder, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_WITHIN_S,
    )  # fmt: skip
    if got.returncode:
        pytest.skip(f"Debian's packages {' '.join(packages)} can't be downloaded: {got.stderr.strip()}")
    unfinished = folder / "unfinished"
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, unfinished], check=True)
        archive.unlink()
    for part in sorted(unfinished.iterdir(), key=lambda part: part.name == "usr"):  # last: it says that all are there
        part.rename(folder / part.name)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "debian"
