"""Short descriptions of events and notices, for assertions in tests."""

from __future__ import annotations

from typing import assert_never

from milo_discovery import Connected, Disconnected, Event, Refreshed, StreamNotice, Synced


def summary(item: Event | StreamNotice) -> str:
    match item:
        case Event():
            return f"{item.type.name} {item.cluster.name}"
        case Synced(clusters=clusters):
            return f"synced {clusters}"
        case Connected(resumed=resumed):
            return "resumed" if resumed else "connected"
        case Disconnected(error=error):
            return f"disconnected by {type(error).__name__}"
        case Refreshed(cluster=cluster):
            return f"refreshed {cluster.name}"
        case _:
            assert_never(item)
