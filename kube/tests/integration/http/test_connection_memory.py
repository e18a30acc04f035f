"""What connections take together: servers choose the certificates, and tenants the CAs."""

import pytest

from milo_kube.api_request import Access
from milo_kube.api_server import Pools
from milo_kube.credential import Credential
from milo_kube.http.connection_memory import ConnectionMemory
from milo_kube.http.errors import TransportError
from tests.support.certificates import Authority


class Counted:
    """A connection whose memory is counted."""

    def __init__(self, memory: ConnectionMemory) -> None:
        self._memory = memory
        self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True
        self._memory.remove_handshake(self)


def test_largest_connection_in_use_is_closed_beyond_the_limit() -> None:
    memory = ConnectionMemory(limit=54 * 10_000, share=54 * 1_000)
    small, medium, large, largest = connections = [Counted(memory) for _ in range(4)]
    for connection, size in zip(connections, (1_000, 4_000, 5_000, 20_000), strict=True):
        memory.add_handshake(connection, size)
    assert [connection.is_evicted for connection in connections] == [False, False, False, True]
    memory.add_handshake(small, 1)
    assert (large.is_evicted, medium.is_evicted, small.is_evicted) == (True, False, False)
    assert largest.is_evicted


def test_connection_within_its_share_is_kept_whatever_others_take() -> None:
    memory = ConnectionMemory(limit=54 * 10_000, share=54 * 1_000)
    connections = [Counted(memory) for _ in range(100)]
    for connection in connections:
        memory.add_handshake(connection, 1_000)
    assert not any(connection.is_evicted for connection in connections)


async def test_large_authorities_are_refused_while_others_take_all_memory() -> None:
    authority = Authority()
    pools = Pools(user_agent="tests", memory=ConnectionMemory(60 * len(authority.pem), 41 * len(authority.pem)))

    def access(count: int) -> Access:
        return Access(
            server="https://127.0.0.1:1", authorities=authority.pem * count, credential=Credential(token=None)
        )

    pools.pool(access(1))
    with pytest.raises(TransportError, match="the CAs to verify it take too much memory"):
        pools.pool(access(2))
    pools.pool(access(1))
    await pools.aclose()
    pools.pool(access(1))
    await pools.aclose()
