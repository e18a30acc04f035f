"""The daemon that a command uses if no address is set: the one at the default address, or a demo of this user."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from milo_discovery.address import DEFAULT_ADDRESS
from milo_discovery_cli.connection_problem import HTTP2_PREFACE

_LIMIT_S = 1.0


def local_address() -> str | None:
    """Return the default address if a daemon listens there, or else the address of a running demo, if any."""
    if _is_listening(Path(DEFAULT_ADDRESS.removeprefix("unix://"))):
        return DEFAULT_ADDRESS
    return demo_address()


def demo_address() -> str | None:
    """Return the address of the newest running demo that answers; if none answers, that of the newest running demo."""
    newest_first = [path for _, path in sorted(_sockets_of_demos(), reverse=True)]
    demos = [path for path in newest_first if _is_listening(path)]
    found = next(filter(_answers, demos), demos[0] if demos else None)
    return None if found is None else f"unix://{found}"


def _sockets_of_demos() -> Iterator[tuple[float, Path]]:
    """Yield the modification times and paths of the sockets of this user's demos, including stopped ones.

    Directories that other users can write to are skipped.
    """
    for directory in Path(tempfile.gettempdir()).glob("milo-demo-*"):
        try:
            holder, found = directory.lstat(), (directory / "discovery.sock").lstat()
        except OSError:
            continue
        is_private = stat.S_ISDIR(holder.st_mode) and not holder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if is_private and stat.S_ISSOCK(found.st_mode) and {holder.st_uid, found.st_uid} == {os.getuid()}:
            yield found.st_mtime, directory / "discovery.sock"


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_LIMIT_S)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # other errors, such as missing permissions, are reported when the caller connects
    return True


def _answers(path: Path) -> bool:
    """Return whether the server answers. A connection is no proof: the kernel accepts it for a suspended process."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_LIMIT_S)
        try:
            connection.connect(str(path))
            connection.sendall(HTTP2_PREFACE)
            return bool(connection.recv(1))
        except OSError:
            return False
