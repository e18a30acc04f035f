"""Whose process is at the other end of a Unix socket, by the kernel's word."""

import os
import socket
import struct
from pathlib import Path

import msgspec

_SO_PEERPIDFD = 77  # Linux 6.5; the socket module of Python 3.11 has no name for it
_UCRED = struct.Struct("iII")


class Peer(msgspec.Struct, frozen=True):
    uid: int
    gid: int
    pid: int | None
    """None when that process has ended since: its number may be another's by now."""


def peer(connected: socket.socket) -> Peer:
    """Of who connected: whoever was handed the connection since, acts in that one's name."""
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(uid, gid, pid if pid > 0 and _is_alive(connected) else None)


def _is_alive(connected: socket.socket) -> bool:
    """Whether the process that connected is still there; True where the kernel can't tell."""
    try:
        descriptor = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except ProcessLookupError:
        return False
    except OSError:  # a kernel that has no such option
        return True
    try:
        return "Pid:\t-1\n" not in Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
