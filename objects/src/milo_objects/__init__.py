"""Objects of all engaged clusters: projected, in one store with indexes."""

from milo_kube.cache_budget import CacheLimits
from milo_objects.follow import FollowedFleet
from milo_objects.kinds import Kind
from milo_objects.object_index import IndexFunction
from milo_objects.objects import Objects
from milo_objects.projection import ProjectedObject
from milo_objects.scope import (
    Change,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    FleetState,
    Forbidden,
    Gone,
    NotServed,
    ObjectChanged,
    ObjectGone,
    ObjectSource,
    ObjectStore,
    OverBudget,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    ScopeState,
    Stale,
    Synced,
)
from milo_objects.store import FoundObject, Index, Store
from milo_objects.view import View

__all__ = [
    "CacheLimits",
    "Change",
    "ClusterChanged",
    "ClusterEnded",
    "FleetChanged",
    "FleetCluster",
    "FleetState",
    "FollowedFleet",
    "Forbidden",
    "FoundObject",
    "Gone",
    "Index",
    "IndexFunction",
    "Kind",
    "NotServed",
    "ObjectChanged",
    "ObjectGone",
    "ObjectSource",
    "ObjectStore",
    "Objects",
    "OverBudget",
    "Pending",
    "ProjectedObject",
    "Scope",
    "ScopeChanged",
    "ScopeEnd",
    "ScopeEnded",
    "ScopeState",
    "Stale",
    "Store",
    "Synced",
    "View",
]
