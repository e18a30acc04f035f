"""Controllers: reconcilers that run in every engaged cluster."""

from milo_controllers.admission_review import AdmissionUser, Deny, Review
from milo_controllers.app import main, set_up_logging
from milo_controllers.conditions import ConditionStatus, owner_reference, with_condition, with_owner
from milo_controllers.controllers import Controllers, owns, watches
from milo_controllers.errors import ControllerError, NotCached, NotSynced, Permanent, ReconcileTimeout
from milo_controllers.event_log import EventType
from milo_controllers.fleet_view import ClusterCaches, ClusterObject, FleetView
from milo_controllers.health import CacheProblem, ClusterProblem, FailingObject, Health
from milo_controllers.kinds import AnyKind, Document, Kind
from milo_controllers.logs import ClusterFilter, current_cluster, current_object, current_reconcile
from milo_controllers.request import PatchType, Propagation, Request, Result
from milo_controllers.single_cluster import SingleCluster
from milo_controllers.watched import OwnedKind, ReconcileTarget, Watched, WatchedKind
from milo_controllers.webhook_server import WebhookServer
from milo_controllers.work_queue import QueuePolicy
from milo_discovery.api_errors import (
    AlreadyExists,
    ApiError,
    ClusterApiError,
    Conflict,
    NotFound,
    NotLeading,
    NotServed,
    ProjectSuspended,
    Unreachable,
)
from milo_kube.cache_budget import CacheLimits
from milo_kube.rate_limit import Rate

__all__ = [
    "AdmissionUser",
    "AlreadyExists",
    "AnyKind",
    "ApiError",
    "CacheLimits",
    "CacheProblem",
    "ClusterApiError",
    "ClusterCaches",
    "ClusterFilter",
    "ClusterObject",
    "ClusterProblem",
    "ConditionStatus",
    "Conflict",
    "ControllerError",
    "Controllers",
    "Deny",
    "Document",
    "EventType",
    "FailingObject",
    "FleetView",
    "Health",
    "Kind",
    "NotCached",
    "NotFound",
    "NotLeading",
    "NotServed",
    "NotSynced",
    "OwnedKind",
    "PatchType",
    "Permanent",
    "ProjectSuspended",
    "Propagation",
    "QueuePolicy",
    "Rate",
    "ReconcileTarget",
    "ReconcileTimeout",
    "Request",
    "Result",
    "Review",
    "SingleCluster",
    "Unreachable",
    "Watched",
    "WatchedKind",
    "WebhookServer",
    "current_cluster",
    "current_object",
    "current_reconcile",
    "main",
    "owner_reference",
    "owns",
    "set_up_logging",
    "watches",
    "with_condition",
    "with_owner",
]
