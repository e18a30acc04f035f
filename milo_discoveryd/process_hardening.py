"""What the daemon's process lets out of its memory, and what it takes from its environment.

In that memory are credentials. Whoever is root reads them all the same, and Python can't wipe what it has copied.
"""

import ctypes
import os
import resource
import sys
from collections.abc import MutableMapping

from milo_discoveryd.daemon_errors import StartError

_PR_SET_DUMPABLE = 4
_DESCRIPTORS = 65_536

_MISLEADING = (
    "SSLKEYLOGFILE",  # has Python write the keys of its connections there
    "GRPC_TRACE",  # has gRPC print what goes over its connections, tokens with it
    "GRPC_VERBOSITY",
)


def close_off() -> None:
    """Nobody but root reads this process' memory, environment or descriptors, and no core of it is written.

    Raises StartError. It holds for the process, and not for commands that it runs.
    """
    # Sockets and files that it makes are nobody else's until it says otherwise.
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StartError(f"the process can't be closed to others of its user: {os.strerror(ctypes.get_errno())}")


def open_standard_streams() -> None:
    """Have 0, 1 and 2 open: a socket that got one of these numbers would receive what is meant for a terminal."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def take_descriptors() -> None:
    """As many as the system lets it have: connections take up to three each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def descriptors() -> int:
    """That it may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def clean(environ: MutableMapping[str, str]) -> list[str]:
    """Takes out what would have it, or commands that it runs, write secrets somewhere or run other code; says what."""
    found = [name for name in sorted(environ) if name in _MISLEADING or name.startswith("PYTHON")]
    dropped = [name for name in found if environ[name] and name not in _HARMLESS]
    for name in found:
        del environ[name]
    return dropped


_HARMLESS = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
"""Told of nobody: an image has them, and they have done all that they do."""
