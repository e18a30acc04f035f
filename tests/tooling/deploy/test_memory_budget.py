"""The defaults of the daemon fit the memory limit of the shipped manifest, if every limit is reached at once."""

import pytest

from milo_discoveryd.config import load
from milo_discoveryd.rights.quota import FILTER_BYTES
from milo_discoveryd.server.connections.connection_budget import ConnectionSlots
from milo_discoveryd.wiring.listeners import listeners
from tests.end_to_end.process.test_memory_attacks import shipped_limits

_KIB, _MIB = 1 << 10, 1 << 20
PROCESS = 90 * _MIB
"""The peak with 10,000 projects (`sync_10k.peak_mib` of `./dev bench`)."""
CONNECTION = 96 * _KIB
"""A TLS connection that is authenticated, proxied and idle costs half of this."""
HANDSHAKE = 192 * _KIB
"""A TLS handshake of which the maximum of bytes was received."""
STREAM = 32 * _KIB
FILTER_FACTOR = 20
"""A filter in memory, as a multiple of its size in the request."""


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_defaults_of_all_listeners_fit_the_shipped_memory_limit(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("milo_discoveryd.process_hardening.descriptors", lambda: 1 << 20)
    settings = load({}, {"MILO_DISCOVERYD_LISTEN": ",".join(f"unix:///run/{number}" for number in range(count))}, None)
    found = listeners(settings)
    connections = sum(each.connections for each in found)
    handshakes = sum(unauthenticated(each.connections) for each in found)
    worst = (
        PROCESS
        + connections * CONNECTION
        + handshakes * HANDSHAKE
        + settings.limits.streams * STREAM
        + FILTER_BYTES * FILTER_FACTOR
    )
    assert worst < min(shipped_limits())


def unauthenticated(limit: int) -> int:
    """Return how many unauthenticated connections from different networks a listener keeps."""
    slots: ConnectionSlots[int] = ConnectionSlots(limit)
    evicted = (slots.admit(number, str(number)) for number in range(limit + 1))
    return sum(each is None for each in evicted)
