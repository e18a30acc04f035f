"""Protects credentials in the process's memory from other processes and from environment variables that leak them.

Root can still read all memory, and Python cannot erase its copies of secrets.
"""

import ctypes
import os
import resource
import sys
from collections.abc import MutableMapping

from milo_discoveryd.daemon_errors import StartError

_PR_SET_DUMPABLE = 4
_WANTED_DESCRIPTORS = 65_536

_UNSAFE_VARIABLES = (
    "SSLKEYLOGFILE",  # Python would write the keys of TLS connections to this file.
    "GRPC_TRACE",  # gRPC would log messages and tokens.
    "GRPC_VERBOSITY",
)


def protect_memory_and_new_files() -> None:
    """Disable core dumps, and access by any user except root to the process's memory and /proc entries. Make new files
    and sockets private to the daemon's user; permissions are granted explicitly.

    Commands that the daemon runs can still be inspected. Raises StartError.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)  # Linux only
    if prctl is not None and prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StartError(
            f"prctl PR_SET_DUMPABLE failed, so core dumps would contain secrets: {os.strerror(ctypes.get_errno())}"
        )


def open_standard_streams() -> None:
    """Open descriptors 0, 1 and 2 if they are closed: otherwise a socket could get one of them, and receive output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def raise_descriptor_limit() -> None:
    """Raise the limit of open files to 65,536, or as far as allowed: a connection takes up to three descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def descriptor_limit() -> int:
    """Return the limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def remove_unsafe_variables(environ: MutableMapping[str, str]) -> list[str]:
    """Remove variables that make this process or its commands leak secrets or run other code. Return the names of the
    removed variables that are worth a warning: not empty, and not usual in images."""
    found = [name for name in sorted(environ) if name in _UNSAFE_VARIABLES or name.startswith("PYTHON")]
    dropped = [name for name in found if environ[name] and name not in _HARMLESS]
    for name in found:
        del environ[name]
    return dropped


_HARMLESS = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
"""Variables that are removed without a warning: images often set them, and they have already taken effect."""
