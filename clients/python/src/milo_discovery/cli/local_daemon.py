"""The daemon that a command uses if no address is set: the one of this machine, or a demo that this user runs."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from milo_discovery._address import DEFAULT_ADDRESS

_LIMIT_S = 1.0


def local_address() -> str | None:
    """Return the default address if a daemon listens there, or else the address of the newest running demo, if any."""
    if _is_listening(Path(DEFAULT_ADDRESS.removeprefix("unix://"))):
        return DEFAULT_ADDRESS
    demos = sorted(_sockets_of_demos(), key=lambda path: path.lstat().st_mtime, reverse=True)
    return next((f"unix://{path}" for path in demos if _is_listening(path)), None)


def _sockets_of_demos() -> Iterator[Path]:
    """Yield the sockets of this user's demos, also of stopped ones, in directories that other users cannot write to."""
    for directory in Path(tempfile.gettempdir()).glob("milo-demo-*"):
        try:
            holder, found = directory.lstat(), (directory / "discovery.sock").lstat()
        except OSError:
            continue
        is_private = stat.S_ISDIR(holder.st_mode) and not holder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if is_private and stat.S_ISSOCK(found.st_mode) and {holder.st_uid, found.st_uid} == {os.getuid()}:
            yield directory / "discovery.sock"


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_LIMIT_S)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # for example without permission: the caller's connection fails with the reason
    return True
