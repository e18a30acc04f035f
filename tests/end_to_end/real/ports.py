"""Free ports on loopback."""

import random
import socket

# Below the ephemeral ports: an outgoing connection could take one of those before a server binds it.
_PORTS = range(10_240, 32_768)


def free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
