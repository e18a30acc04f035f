"""Probes `/livez` of a daemon until standard input ends, in a process of its own, and prints the durations as JSON.

    python -m tests.support.livez_prober PORT PID

A duration has two parts: all of it, and without the time for which the daemon's event loop could have run but got no
CPU. The latter is what the daemon is responsible for, also on a machine that other work keeps busy.
"""

import json
import os
import select
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

INTERVAL_S = 0.05
LONGEST_S = 120.0
_REQUEST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def waited_for_cpu_s(pid: int) -> float:
    """Return how long the main thread has waited for a CPU; 0 where the kernel does not count that."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def probe(port: int, pid: int) -> tuple[float, float]:
    waited, began = waited_for_cpu_s(pid), time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S) as connection:
        connection.sendall(_REQUEST)
        answer = connection.recv(1 << 10)
    took = time.monotonic() - began
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"/livez answered {answer!r}")
    return took, max(0.0, took - (waited_for_cpu_s(pid) - waited))


def run(port: int, pid: int) -> None:
    with suppress(OSError):  # only root: the probes themselves hardly wait for a CPU
        os.nice(-10)
    probed = [probe(port, pid)]
    sys.stdout.write("probing\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], INTERVAL_S)[0]:
        probed.append(probe(port, pid))
    sys.stdout.write(json.dumps(probed))


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
