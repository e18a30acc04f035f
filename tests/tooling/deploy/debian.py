"""Programs of Debian packages, unpacked into the user's cache folder without an installation."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_DOWNLOAD_WITHIN_S = 100


def program(name: str, package: str) -> Path:
    """Return the path of a program; skip the test if it cannot be downloaded."""
    if found := shutil.which(name):
        return Path(found)
    folder = _cache() / package
    binary = folder / "usr" / "bin" / name
    if not binary.exists():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                pytest.skip(f"{name} is not installed, and without {tool} Debian's package {package} can't be had")
        _unpack(package, folder)
    return binary


def _unpack(package: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may do the same
        if (folder / "usr").exists():
            return
        got = subprocess.run(
            ["apt-get", "download", "--quiet", package],
            cwd=folder, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_WITHIN_S,
        )  # fmt: skip
        if got.returncode:
            pytest.skip(f"Debian's package {package} can't be downloaded: {got.stderr.strip()}")
        unfinished = folder / "unfinished"
        [archive] = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, unfinished], check=True)
        (unfinished / "usr").rename(folder / "usr")
        archive.unlink()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "debian"
