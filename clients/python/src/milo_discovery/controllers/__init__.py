"""Controllers: reconcilers that run in every engaged cluster. Needs the extra `milo-discovery-client[controllers]`."""

from milo_discovery._extras import needs_extra

with needs_extra("controllers"):
    import prometheus_client  # noqa: F401

    import milo_kube.list_watch  # noqa: F401

from milo_discovery.controllers.app import main, set_up_logging
from milo_discovery.controllers.cache_budget import CacheLimits
from milo_discovery.controllers.conditions import owner_reference, with_condition, with_owner
from milo_discovery.controllers.controllers import Controllers, watches
from milo_discovery.controllers.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    ControllerError,
    NotCached,
    NotFound,
    NotSynced,
    Permanent,
    ProjectSuspended,
    ReconcileTimeout,
    Unreachable,
)
from milo_discovery.controllers.fleet_view import ClusterCaches, ClusterObject, FleetView
from milo_discovery.controllers.health import CacheProblem, ClusterProblem, FailingObject, Health
from milo_discovery.controllers.kinds import Kind
from milo_discovery.controllers.logs import ClusterFilter, current_cluster, current_object, current_reconcile
from milo_discovery.controllers.request import Request, Result
from milo_discovery.controllers.single_cluster import SingleCluster
from milo_discovery.controllers.watched import ReconcileTarget, Watched, WatchedKind
from milo_discovery.controllers.work_queue import QueuePolicy

__all__ = [
    "AlreadyExists",
    "ApiError",
    "CacheLimits",
    "CacheProblem",
    "ClusterCaches",
    "ClusterFilter",
    "ClusterObject",
    "ClusterProblem",
    "Conflict",
    "ControllerError",
    "Controllers",
    "FailingObject",
    "FleetView",
    "Health",
    "Kind",
    "NotCached",
    "NotFound",
    "NotSynced",
    "Permanent",
    "ProjectSuspended",
    "QueuePolicy",
    "ReconcileTarget",
    "ReconcileTimeout",
    "Request",
    "Result",
    "SingleCluster",
    "Unreachable",
    "Watched",
    "WatchedKind",
    "current_cluster",
    "current_object",
    "current_reconcile",
    "main",
    "owner_reference",
    "set_up_logging",
    "watches",
    "with_condition",
    "with_owner",
]
