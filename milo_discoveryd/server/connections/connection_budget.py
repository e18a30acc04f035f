"""How many connections there is room for. Pure.

With no descriptor left, whoever waits to be accepted would get each that becomes free: we could not go back to an API
server that has hung up on us, for as long as the crowd stays.
"""

from collections.abc import Sequence

import msgspec

from milo_discoveryd.server.connections.listener import Listener

RESERVED = 512
"""Descriptors that connections never get: for API servers, probes, commands, files, and whoever scrapes us."""


def fit_connections(listeners: Sequence[Listener], descriptors: int) -> list[Listener]:
    """With no more connections than there are descriptors for: each listener has its share of what they ask for."""
    left = descriptors - min(RESERVED, descriptors // 2)
    wanted = sum(each.connections * each.descriptors for each in listeners)
    return [
        msgspec.structs.replace(each, connections=min(each.connections, max(1, each.connections * left // wanted)))
        for each in listeners
    ]
