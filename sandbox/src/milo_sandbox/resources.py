"""The resources that the sandbox serves: names, scope, schema, columns."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from milo_sandbox.refusals import Cause

Document = dict[str, Any]
"""An object, or a part of one, as JSON decodes it."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column of `kubectl get`; `cell` is a path into the object, or a condition's type."""

    name: str
    path: tuple[str, ...] = ()
    condition: str = ""
    type: str = "string"
    counts: bool = False  # the number of entries instead of the value
    wide: bool = False
    description: str = ""


def _unchanged(_document: Document) -> None:
    pass


def _no_violations(_document: Document) -> Iterable[Cause]:
    return ()


class ResourceDefinition(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A resource definition. Two are equal if they are served at the same path, whatever their schemas are."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = False
    schema: Document
    has_status: bool = False
    ready_condition: str = ""
    counts_generations: bool = False
    allows_blind_update: bool = False
    takes_strategic_patches: bool = False
    name_is_label: bool = False
    columns: tuple[Column, ...] = ()
    selectable_fields: tuple[str, ...] = ()  # paths, besides name and namespace
    prepare: Callable[[Document], None] = _unchanged  # changes an object in place before its validation
    violations: Callable[[Document], Iterable[Cause]] = _no_violations  # beyond the schema, of an object that fits it

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, ResourceDefinition) and self._path == other._path)

    def __hash__(self) -> int:
        return hash(self.plural)

    @property
    def _path(self) -> tuple[str, str, str]:
        return self.group, self.version, self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def is_custom(self) -> bool:
        """Whether a CRD defines the resource, as Milo's are defined; the API server handles those differently."""
        return not self.takes_strategic_patches

    @property
    def qualified(self) -> str:
        """The resource's name in messages of Kubernetes."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_CONDITIONS: Document = {
    "type": "array",
    "description": "The conditions of this object.",
    "items": {
        "type": "object",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "type": {
                "type": "string",
                "maxLength": 316,
                "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
            },
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {
                "type": "string",
                "minLength": 1,
                "maxLength": 1024,
                "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            "message": {"type": "string", "maxLength": 32768},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        },
    },
}


def _conditions(*default: Document) -> Document:
    return _CONDITIONS | {"default": list(default)} if default else _CONDITIONS


def _never(condition: str, status: str, reason: str, message: str) -> Document:
    return {
        "type": condition,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }


_SUSPENSION_REASON: Document = {
    "type": "string",
    "enum": ["Fraud", "Abuse", "Billing", "Compliance", "Administrative"],
}
_REINSTATE_AUTHORITY: Document = {"type": "string", "enum": ["Operator", "Consumer"]}

_AGE = Column(name="Age", path=("metadata", "creationTimestamp"), type="date")
_NAME = Column(name="Name", path=("metadata", "name"))

PROJECTS = ResourceDefinition(
    group="resourcemanager.miloapis.com",
    version="v1alpha1",
    kind="Project",
    plural="projects",
    singular="project",
    has_status=True,
    ready_condition="Ready",
    counts_generations=True,
    schema={
        "type": "object",
        "description": "A project: a control plane of its own for one organization's work.",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["ownerRef"],
                "properties": {
                    "ownerRef": {
                        "type": "object",
                        "description": "Who owns the project.",
                        "required": ["kind", "name"],
                        "properties": {
                            "kind": {"type": "string", "enum": ["Organization"]},
                            "name": {"type": "string"},
                        },
                    }
                },
            },
            "status": {
                "type": "object",
                "properties": {
                    # The default is inside status: a project without a status has no conditions.
                    "conditions": _conditions(
                        _never("Ready", "Unknown", "Unknown", "The project was not reconciled yet")
                    ),
                    "suspensions": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["reason", "suspendedAt", "reinstateAuthority"],
                            "properties": {
                                "reason": _SUSPENSION_REASON,
                                "suspendedAt": {"type": "string", "format": "date-time"},
                                "reinstateAuthority": _REINSTATE_AUTHORITY,
                            },
                        },
                    },
                },
            },
        },
    },
    columns=(
        _NAME,
        Column(name="Organization", path=("spec", "ownerRef", "name"), description="The owner."),
        Column(name="Ready", condition="Ready"),
        Column(name="Suspended", condition="Suspended", wide=True),
        _AGE,
    ),
)

PROJECT_CONTROL_PLANES = ResourceDefinition(
    group="infrastructure.miloapis.com",
    version="v1alpha1",
    kind="ProjectControlPlane",
    plural="projectcontrolplanes",
    singular="projectcontrolplane",
    has_status=True,
    ready_condition="ControlPlaneReady",
    counts_generations=True,
    schema={
        "type": "object",
        "description": "The control plane of a project, with its name.",
        "required": ["spec"],
        "properties": {
            "spec": {"type": "object"},
            "status": {
                "type": "object",
                "properties": {"conditions": _conditions()},
                "default": {
                    "conditions": [
                        _never("ControlPlaneReady", "False", "Creating", "The control plane is being created")
                    ]
                },
            },
        },
    },
    columns=(_NAME, Column(name="Ready", condition="ControlPlaneReady"), _AGE),
)

PROJECT_SUSPENSIONS = ResourceDefinition(
    group="resourcemanager.miloapis.com",
    version="v1alpha1",
    kind="ProjectSuspension",
    plural="projectsuspensions",
    singular="projectsuspension",
    has_status=True,
    counts_generations=True,
    schema={
        "type": "object",
        "description": "A suspension of the project with a name, whether there is such a project or not.",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["projectRef", "reason", "reinstateAuthority", "requestedBy"],
                "properties": {
                    "projectRef": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}},
                    },
                    "reason": _SUSPENSION_REASON,
                    "reinstateAuthority": _REINSTATE_AUTHORITY,
                    "requestedBy": {"type": "string"},
                    "description": {"type": "string"},
                },
            },
            "status": {
                "type": "object",
                "properties": {"phase": {"type": "string", "enum": ["Active", "Lifted"]}},
            },
        },
    },
    columns=(
        _NAME,
        Column(name="Project", path=("spec", "projectRef", "name")),
        Column(name="Reason", path=("spec", "reason")),
        Column(name="Phase", path=("status", "phase")),
        _AGE,
    ),
)


def _label_with_name(namespace: Document) -> None:
    metadata = namespace["metadata"]
    metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata.get("name", "")}


NAMESPACES = ResourceDefinition(
    group="",
    version="v1",
    kind="Namespace",
    plural="namespaces",
    singular="namespace",
    short_names=("ns",),
    allows_blind_update=True,
    takes_strategic_patches=True,
    name_is_label=True,
    prepare=_label_with_name,
    schema={
        "type": "object",
        "description": "A scope of names.",
        "properties": {
            "spec": {
                "type": "object",
                "default": {"finalizers": ["kubernetes"]},
                "properties": {"finalizers": {"type": "array", "items": {"type": "string"}}},
            },
            "status": {
                "type": "object",
                "default": {"phase": "Active"},
                "properties": {"phase": {"type": "string"}},
            },
        },
    },
    columns=(_NAME, Column(name="Status", path=("status", "phase")), _AGE),
)

CONFIG_MAPS = ResourceDefinition(
    group="",
    version="v1",
    kind="ConfigMap",
    plural="configmaps",
    singular="configmap",
    short_names=("cm",),
    namespaced=True,
    allows_blind_update=True,
    takes_strategic_patches=True,
    schema={
        "type": "object",
        "description": "Settings, as keys and values.",
        "properties": {
            "data": {"type": "object", "additionalProperties": {"type": "string"}},
            "binaryData": {"type": "object", "additionalProperties": {"type": "string", "format": "byte"}},
            "immutable": {"type": "boolean"},
        },
    },
    columns=(_NAME, Column(name="Data", path=("data",), type="integer", counts=True), _AGE),
)


def _encode_string_data(secret: Document) -> None:
    """Move `stringData`, which is never stored, into `data`."""
    plain = secret.pop("stringData", None)
    if isinstance(plain, dict):
        encoded = {key: b64encode(str(value).encode()).decode() for key, value in plain.items()}
        secret["data"] = {**(secret.get("data") or {}), **encoded}


SECRETS = ResourceDefinition(
    group="",
    version="v1",
    kind="Secret",
    plural="secrets",
    singular="secret",
    namespaced=True,
    allows_blind_update=True,
    takes_strategic_patches=True,
    schema={
        "type": "object",
        "description": "Sensitive data, as keys and values.",
        "properties": {
            "type": {"type": "string", "default": "Opaque"},
            "data": {"type": "object", "additionalProperties": {"type": "string", "format": "byte"}},
            "immutable": {"type": "boolean"},
        },
    },
    prepare=_encode_string_data,
    columns=(
        _NAME,
        Column(name="Type", path=("type",)),
        Column(name="Data", path=("data",), type="integer", counts=True),
        _AGE,
    ),
)

SERVICE_ACCOUNTS = ResourceDefinition(
    group="",
    version="v1",
    kind="ServiceAccount",
    plural="serviceaccounts",
    singular="serviceaccount",
    short_names=("sa",),
    namespaced=True,
    allows_blind_update=True,
    takes_strategic_patches=True,
    schema={"type": "object", "description": "The identity of a program.", "properties": {}},
    columns=(_NAME, _AGE),
)

OPEN: Document = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

EVENTS = ResourceDefinition(
    group="",
    version="v1",
    kind="Event",
    plural="events",
    singular="event",
    short_names=("ev",),
    namespaced=True,
    allows_blind_update=True,
    takes_strategic_patches=True,
    schema=OPEN | {"description": "A report of something that happened to an object."},
    columns=(
        _NAME,
        Column(name="Type", path=("type",)),
        Column(name="Reason", path=("reason",)),
        Column(name="Object", path=("involvedObject", "name")),
        Column(name="Message", path=("message",)),
    ),
)

LEASES = ResourceDefinition(
    group="coordination.k8s.io",
    version="v1",
    kind="Lease",
    plural="leases",
    singular="lease",
    namespaced=True,
    takes_strategic_patches=True,
    schema={
        "type": "object",
        "description": "A lock that its holder renews.",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "holderIdentity": {"type": "string", "nullable": True},
                    "leaseDurationSeconds": {"type": "integer", "minimum": 1, "nullable": True},
                    "acquireTime": {"type": "string", "format": "date-time", "nullable": True},
                    "renewTime": {"type": "string", "format": "date-time", "nullable": True},
                    "leaseTransitions": {"type": "integer", "minimum": 0, "nullable": True},
                },
            }
        },
    },
    columns=(_NAME, Column(name="Holder", path=("spec", "holderIdentity")), _AGE),
)

SERVICE_CONSUMERS = ResourceDefinition(
    group="services.miloapis.com",
    version="v1alpha1",
    kind="ServiceConsumer",
    plural="serviceconsumers",
    singular="serviceconsumer",
    has_status=True,
    counts_generations=True,
    schema={
        "type": "object",
        "description": "A project that uses a service, in the project of the service's provider.",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "serviceRef": {"type": "object", "properties": {"name": {"type": "string"}}},
                    "consumerProjectRef": {"type": "object", "properties": {"name": {"type": "string"}}},
                    "suspended": {"type": "boolean"},
                },
            },
            "status": {
                "type": "object",
                "properties": {
                    "phase": {"type": "string", "enum": ["PendingApproval", "Active", "Denied"]},
                    "serviceName": {"type": "string"},
                    "conditions": _conditions(),
                },
            },
        },
    },
    columns=(_NAME, Column(name="Phase", path=("status", "phase")), _AGE),
)


def _built_in(version: str, kind: str, plural: str, *short_names: str, has_status: bool = True) -> ResourceDefinition:
    """Return a namespaced kind of Kubernetes, whose fields are not validated."""
    group, _, bare = version.rpartition("/")
    return ResourceDefinition(
        group=group,
        version=bare,
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        short_names=short_names,
        namespaced=True,
        has_status=has_status,
        counts_generations=group in {"apps", "batch", "networking.k8s.io", "policy"},
        allows_blind_update=True,
        takes_strategic_patches=True,
        schema=OPEN | {"description": f"The kind {kind} of Kubernetes, of which no controller runs."},
        columns=(_NAME, _AGE),
    )


BUILT_IN = (
    _built_in("v1", "Pod", "pods", "po"),
    _built_in("v1", "Service", "services", "svc"),
    _built_in("v1", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc"),
    _built_in("apps/v1", "Deployment", "deployments", "deploy"),
    _built_in("apps/v1", "StatefulSet", "statefulsets", "sts"),
    _built_in("apps/v1", "DaemonSet", "daemonsets", "ds"),
    _built_in("batch/v1", "Job", "jobs"),
    _built_in("batch/v1", "CronJob", "cronjobs", "cj"),
    _built_in("networking.k8s.io/v1", "Ingress", "ingresses", "ing"),
    _built_in("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", "netpol", has_status=False),
    _built_in("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb"),
    _built_in("rbac.authorization.k8s.io/v1", "Role", "roles", has_status=False),
    _built_in("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", has_status=False),
)
"""Common kinds that Milo's project control planes lack, and API servers of projects have."""

MILO = (PROJECTS, PROJECT_SUSPENSIONS, PROJECT_CONTROL_PLANES)
CONTROL_PLANE = (NAMESPACES, CONFIG_MAPS, SECRETS, EVENTS, LEASES, SERVICE_CONSUMERS)
INFRASTRUCTURE = (NAMESPACES, SECRETS, SERVICE_ACCOUNTS)
