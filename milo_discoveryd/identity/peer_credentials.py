"""Peer credentials of a Unix socket connection: the process that connected, according to the kernel."""

import os
import socket
import struct
from pathlib import Path

import msgspec

_SO_PEERGROUPS = 59  # Linux 4.13; the socket module of Python 3.11 defines neither this option nor SO_PEERPIDFD
_MAX_GROUPS = 256  # In Python, getsockopt returns at most 1024 bytes.
_SO_PEERPIDFD = 77  # Linux 6.5
_UCRED = struct.Struct("iII")
_GID = struct.Struct("I")


class PeerCredentials(msgspec.Struct, frozen=True):
    uid: int
    gid: int
    gids: tuple[int, ...]
    """Supplementary groups. Empty if getsockopt cannot return the groups: see `_groups`."""
    pid: int | None
    """None if the process has exited (its pid may have been reused), or if it is outside of this PID namespace."""


def peer_credentials(connected: socket.socket) -> PeerCredentials:
    """Return the credentials of the process that connected. A process that inherited the socket has the same
    credentials."""
    pid, uid, gid = _ucred(connected)
    return PeerCredentials(uid, gid, _groups(connected, gid), pid if pid > 0 and _is_alive(connected) else None)


def peer_uid(connected: socket.socket) -> int:
    """Return the user of the process that connected, without reading its groups."""
    return _ucred(connected)[1]


def _ucred(connected: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def _groups(connected: socket.socket, own: int) -> tuple[int, ...]:
    try:
        found = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * _GID.size)
    except OSError:
        # Too many groups, or a kernel without this option. Rules only grant access, so missing groups are safe.
        return ()
    return tuple(gid for (gid,) in _GID.iter_unpack(found) if gid != own)


def _is_alive(connected: socket.socket) -> bool:
    """Return whether the process that connected still runs; True if the kernel does not support SO_PEERPIDFD."""
    try:
        descriptor = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except ProcessLookupError:
        return False
    except OSError:  # a kernel without this option
        return True
    try:
        return "Pid:\t-1\n" not in Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
