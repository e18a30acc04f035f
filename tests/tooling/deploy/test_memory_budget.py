"""The defaults of the daemon fit the memory limit of the shipped manifest, if every limit is reached at once."""

from contextlib import suppress

import pytest

from milo_discoveryd.config import load
from milo_discoveryd.log.change_log import MAX_FRAME_BYTES
from milo_discoveryd.rights.quota import HELD_BYTES
from milo_discoveryd.server.calls.grpc_errors import TooManyCallsError
from milo_discoveryd.server.calls.in_flight import InFlightCalls
from milo_discoveryd.server.calls.large_batches import COPIES, LEAST, MAX_BYTES
from milo_discoveryd.server.calls.requests import MAX_REQUEST_BYTES, MAX_VALUES, VALUE_BYTES
from milo_discoveryd.server.connections.connection_budget import ConnectionSlots
from milo_discoveryd.telemetry.http import CONNECTIONS
from milo_discoveryd.wiring.listeners import listeners
from milo_kube.http.server import HELD_LIMIT, LARGEST_HELD, REQUEST_LIMIT
from tests.support.memory_limit import shipped_limit

_KIB, _MIB = 1 << 10, 1 << 20
PROCESS = 90 * _MIB
"""The peak with 10,000 projects (`sync_10k.peak_mib` of `./dev bench`)."""
FULL_PROCESS = 165 * _MIB + MAX_FRAME_BYTES
"""The peak with projects of many labels whose size is `watch.objects_limit`."""
CONNECTION = 48 * _KIB
"""An authenticated, proxied and idle TLS connection."""
HANDSHAKE = 192 * _KIB
"""A TLS handshake of which as many bytes were received as are accepted."""
STREAM = 36 * _KIB
"""An open stream without a filter."""
CALL = 50 * _KIB
"""A denied call whose response is delayed."""
BATCHES = MAX_BYTES // LEAST * COPIES
"""Large batches that are being sent while open streams hold as much else as they may. Together they take the most
then."""
LARGE_REQUEST = 8 * MAX_REQUEST_BYTES + MAX_VALUES * VALUE_BYTES
"""The message of a request, in which a name of one character takes 16 bytes instead of three, and its filter."""
HTTP_REQUEST_FACTOR = 4
REPLY = 2 * _MIB
"""The metrics with the names of 1000 clusters and organizations, or the status page's rows of 2000 streams."""


@pytest.mark.parametrize("count", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("fleet", "times"),
    [
        pytest.param(PROCESS, 1.25, id="10,000 projects, with a fourth to spare"),
        pytest.param(FULL_PROCESS, 1.0, id="projects up to watch.objects_limit"),
    ],
)
def test_defaults_of_all_listeners_fit_the_shipped_memory_limit(
    monkeypatch: pytest.MonkeyPatch, count: int, fleet: int, times: float
) -> None:
    monkeypatch.setattr("milo_discoveryd.process_hardening.descriptor_limit", lambda: 1 << 20)
    settings = load({}, {"MILO_DISCOVERYD_LISTEN": ",".join(f"unix:///run/{number}" for number in range(count))}, None)
    found = listeners(settings)
    handshakes = sum(unauthenticated(listener.connections) for listener in found)
    connections = sum(listener.connections for listener in found) - handshakes
    others = (
        connections * CONNECTION
        + handshakes * HANDSHAKE
        + settings.limits.streams * STREAM
        + HELD_BYTES
        + BATCHES
        + count * calls_in_flight(count) * CALL
        + count * calls_in_flight(count, MAX_REQUEST_BYTES) * LARGE_REQUEST
        + CONNECTIONS * REQUEST_LIMIT * HTTP_REQUEST_FACTOR
        + max(HELD_LIMIT, LARGEST_HELD * REPLY)
        + 3 * REPLY  # a reply that is being rendered, with its copies
    )
    assert fleet + times * others < shipped_limit()


@pytest.mark.parametrize("held", [0, HELD_BYTES // 2, HELD_BYTES])
async def test_large_batches_leave_to_open_streams_what_these_hold(held: int) -> None:
    assert held + COPIES * max(MAX_BYTES // LEAST, MAX_BYTES - held // COPIES) <= HELD_BYTES + BATCHES


def calls_in_flight(listeners: int, request_bytes: int = 0) -> int:
    """Return how many calls of different callers a listener keeps in flight."""
    calls = InFlightCalls(listeners)
    with suppress(TooManyCallsError):
        for number in range(1 << 20):
            calls.slot([f"uid {number}"], request_bytes)
    return len(calls)


def unauthenticated(limit: int) -> int:
    """Return how many unauthenticated connections from different networks a listener keeps."""
    slots: ConnectionSlots[int] = ConnectionSlots(limit)
    evicted = (slots.admit(number, str(number)) for number in range(limit + 1))
    return sum(connection is None for connection in evicted)
