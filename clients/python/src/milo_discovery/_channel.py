"""Opens gRPC channels to the daemon, and verifies which user runs the server of a Unix socket."""

from __future__ import annotations

import os
import socket
import stat
import struct
import weakref
from pathlib import Path

import grpc

from milo_discovery.address import CHANNEL_OPTIONS
from milo_discovery.client_credentials import ClientCredentials
from milo_discovery.errors import Unavailable, UntrustedServer

_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_CONNECT_LIMIT_S = 5.0


def open_channel(target: str, credentials: ClientCredentials) -> grpc.Channel:
    """Open a blocking channel. Raises UntrustedServer if another user runs the server."""
    verified, directory = _verified_target(target, credentials.server_uid)
    channel_credentials = credentials.channel_credentials()
    if channel_credentials is None:
        channel = grpc.insecure_channel(verified, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.secure_channel(verified, channel_credentials, options=CHANNEL_OPTIONS)
    _close_with(channel, directory)
    return channel


def open_aio_channel(target: str, credentials: ClientCredentials) -> grpc.aio.Channel:
    """Open a channel on the running event loop. Raises UntrustedServer if another user runs the server."""
    verified, directory = _verified_target(target, credentials.server_uid)
    channel_credentials = credentials.channel_credentials()
    if channel_credentials is None:
        channel = grpc.aio.insecure_channel(verified, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(verified, channel_credentials, options=CHANNEL_OPTIONS)
    _close_with(channel, directory)
    return channel


def _verified_target(target: str, server_uid: int | None) -> tuple[str, int | None]:
    """Return a target relative to a file descriptor of the socket's directory, and that descriptor.

    gRPC makes its own connections, so verifying one connection does not cover the next. Instead, the directory is
    opened once, and only the expected user (or root) may be able to create or rename files in it. The descriptor keeps
    referring to that directory even if another directory takes its path.
    """
    if server_uid is None:
        return _escaped(target), None
    path = Path(target.removeprefix("unix://"))
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            pinned = f"/proc/self/fd/{directory}/{path.name}"
            problem = _directory_problem(directory, server_uid) or _server_problem(pinned, server_uid)
        except BaseException:
            os.close(directory)
            raise
    except OSError as error:
        raise Unavailable(f"cannot connect to {path}: {error.strerror or error}", code="UNAVAILABLE") from error
    if problem is not None:
        os.close(directory)
        raise UntrustedServer(f"{path}: {problem}")
    return _escaped(f"unix://{pinned}"), directory


def _escaped(target: str) -> str:
    """Escape the characters of a socket path that gRPC would parse as parts of a URL."""
    if not target.startswith("unix:"):
        return target
    return target.replace("%", "%25").replace("#", "%23").replace("?", "%3F")


def _directory_problem(directory: int, server_uid: int) -> str | None:
    status = os.fstat(directory)
    trusted = sorted({0, server_uid})
    if status.st_uid not in trusted:
        return f"its directory is owned by uid {status.st_uid}, expected {' or '.join(map(str, trusted))}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"its directory is writable by users other than uid {server_uid}: run chmod go-w on it"
    return None


def _server_problem(path: str, server_uid: int) -> str | None:
    found = _peer_uid(path)
    return None if found == server_uid else f"the server runs as uid {found}, expected {server_uid}"


def _peer_uid(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_LIMIT_S)
        connection.connect(path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
    return int(uid)


def _close_with(channel: object, directory: int | None) -> None:
    if directory is not None:
        weakref.finalize(channel, os.close, directory)
