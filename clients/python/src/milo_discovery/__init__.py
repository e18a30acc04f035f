"""Follow Milo project control planes through milo-discoveryd."""

from importlib import import_module
from typing import TYPE_CHECKING

from milo_discovery._address import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from milo_discovery._backoff import BackoffPolicy
from milo_discovery.errors import (
    CallFailed,
    CertificateRenewed,
    ClusterNotFound,
    DiscoveryError,
    FieldViolation,
    HandlerFailed,
    InvalidAddress,
    InvalidRequest,
    PermissionDenied,
    PreconditionFailed,
    StatusError,
    StreamBroken,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    UnusableKubeconfig,
)
from milo_discovery.events import Connected, Disconnected, Event, Mark, Refreshed, Synced
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    Connectivity,
    ConnectivityState,
    CredentialSource,
    DisengageReason,
    Engagement,
    EngagementReason,
    EventType,
    FleetCounts,
    Kubeconfig,
    KubeconfigFormat,
    Limits,
    Listing,
    ServerInfo,
    SourceState,
    SourceStatus,
    Transition,
)

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.engaged import EngagedCluster
    from milo_discovery.fleet import Fleet
    from milo_discovery.sync import SyncDiscoveryClient, SyncWatch
    from milo_discovery.watch import Watch

# What needs gRPC is loaded when it is first used: the command's help and the pytest plugin do without.
_LOADED_ON_USE = {
    "DiscoveryClient": "milo_discovery.client",
    "EngagedCluster": "milo_discovery.engaged",
    "Fleet": "milo_discovery.fleet",
    "SyncDiscoveryClient": "milo_discovery.sync",
    "SyncWatch": "milo_discovery.sync",
    "Watch": "milo_discovery.watch",
}

__all__ = [
    "ADDRESS_VARIABLE",
    "DEFAULT_ADDRESS",
    "BackoffPolicy",
    "CallFailed",
    "CertificateRenewed",
    "Cluster",
    "ClusterNotFound",
    "ClusterReport",
    "Connected",
    "Connectivity",
    "ConnectivityState",
    "CredentialSource",
    "Disconnected",
    "DiscoveryClient",
    "DiscoveryError",
    "DisengageReason",
    "EngagedCluster",
    "Engagement",
    "EngagementReason",
    "Event",
    "EventType",
    "FieldViolation",
    "Fleet",
    "FleetCounts",
    "HandlerFailed",
    "InvalidAddress",
    "InvalidRequest",
    "Kubeconfig",
    "KubeconfigFormat",
    "Limits",
    "Listing",
    "Mark",
    "PermissionDenied",
    "PreconditionFailed",
    "Refreshed",
    "ServerInfo",
    "SourceState",
    "SourceStatus",
    "StatusError",
    "StreamBroken",
    "SyncDiscoveryClient",
    "SyncWatch",
    "Synced",
    "TimedOut",
    "Transition",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnusableKubeconfig",
    "Watch",
]


def __getattr__(name: str) -> object:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LOADED_ON_USE[name]), name)
