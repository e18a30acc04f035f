"""Whose process is at the other end of a Unix socket, by the kernel's word."""

import os
import socket
import struct
from pathlib import Path

import msgspec

_SO_PEERGROUPS = 59  # Linux 4.13; the socket module of Python 3.11 has no name for this one and the next
_MOST_GROUPS = 256  # that getsockopt of Python has room for
_SO_PEERPIDFD = 77  # Linux 6.5
_UCRED = struct.Struct("iII")
_GID = struct.Struct("I")


class Peer(msgspec.Struct, frozen=True):
    uid: int
    gid: int
    gids: tuple[int, ...]
    """Of the groups that it is a member of besides. None where there are more of them than we can be told."""
    pid: int | None
    """None when that process has ended since: its number may be another's by now."""


def peer(connected: socket.socket) -> Peer:
    """Of who connected: whoever was handed the connection since, acts in that one's name."""
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(uid, gid, _groups(connected, gid), pid if pid > 0 and _is_alive(connected) else None)


def _groups(connected: socket.socket, own: int) -> tuple[int, ...]:
    try:
        found = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * _GID.size)
    except OSError:
        # More than that, or a kernel that has no such option. Rules only ever give: who is known less of, has less.
        return ()
    return tuple(gid for (gid,) in _GID.iter_unpack(found) if gid != own)


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
