"""Ports on loopback that nothing else uses, for servers whose port must be known before they start; and the addresses
of loopback."""

import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

# Below the ephemeral ports, which outgoing connections and servers that listen on port 0 take.
_FIRST, _LAST = 10_240, 32_767
_WORKERS = 16
"""Number of disjoint sets of ports, one for each worker of a test run."""


def _ports() -> Iterator[int]:
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % _WORKERS
    ports = list(range(_FIRST + worker, _LAST + 1, _WORKERS))
    random.shuffle(ports)
    yield from ports


_unused = _ports()


def free_port() -> int:
    """Return a port that is free, and that no other call returns."""
    for port in _unused:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port is left among those of this worker ({_FIRST} to {_LAST})")


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def loopback_addresses() -> list[str]:
    """Return the addresses of `localhost` that this machine has."""
    found = ["127.0.0.1"]
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        found.append("::1")
    return found
