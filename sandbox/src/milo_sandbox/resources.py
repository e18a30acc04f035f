"""The resources that the sandbox serves: names, scope, schema, columns."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

Document = dict[str, Any]
"""An object, or a part of one, as decoded from JSON."""


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One of several causes of an error, with its field."""

    reason: str
    message: str
    field: str = ""

    def document(self) -> dict[str, str]:
        cause = {"reason": self.reason, "message": self.message}
        return cause | {"field": self.field} if self.field else cause


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column of `kubectl get`: a path into the object, or into its condition of a given type."""

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
    """A resource definition. Two are equal if they are served at the same path, even if their schemas differ."""

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
    selectable_fields: tuple[str, ...] = ()  # Paths besides those of name and namespace.
    prepare: Callable[[Document], None] = _unchanged  # Changes an object in place before its validation.
    violations: Callable[[Document], Iterable[Cause]] = _no_violations  # Violations beyond those of the schema.

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
        """Whether requests are handled as for custom resources, which differ from built-in ones in some responses."""
        return not self.takes_strategic_patches

    @property
    def qualified(self) -> str:
        """The resource's name in Kubernetes error messages."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_AGE = Column(name="Age", path=("metadata", "creationTimestamp"), type="date")
_NAME = Column(name="Name", path=("metadata", "name"))

_CONDITION_CELL = re.compile(r"""\.status\.conditions\[\?\(@\.type\s*==\s*["'](\w+)["']\)\]\.(\w+)""")
_PLAIN_PATH = re.compile(r"(\.[A-Za-z0-9_-]+)+")
_DEFINITIONS = Path(__file__).parent / "crds"


def resource_of(definition: Document) -> ResourceDefinition:
    """Return the resource of a valid definition. Only the storage version is served."""
    spec = definition["spec"]
    names = spec["names"]
    version = next(spec_version for spec_version in spec["versions"] if spec_version["storage"])
    return ResourceDefinition(
        group=spec["group"],
        version=version["name"],
        kind=names["kind"],
        plural=names["plural"],
        singular=names.get("singular") or names["kind"].lower(),
        short_names=tuple(names.get("shortNames") or ()),
        namespaced=spec["scope"] == "Namespaced",
        schema=version["schema"]["openAPIV3Schema"],
        has_status="status" in (version.get("subresources") or {}),
        counts_generations=True,
        columns=tuple(_columns(version.get("additionalPrinterColumns") or ())),
        selectable_fields=tuple(field["jsonPath"].removeprefix(".") for field in version.get("selectableFields") or ()),
    )


def _columns(given: Sequence[Document]) -> Iterator[Column]:
    yield _NAME
    for column in given:
        path, wide = column["jsonPath"], bool(column.get("priority"))
        description = column.get("description", "")
        if found := _CONDITION_CELL.fullmatch(path):
            yield Column(
                name=column["name"],
                condition=found[1],
                path=(found[2],),
                type=column["type"],
                wide=wide,
                description=description,
            )
        elif _PLAIN_PATH.fullmatch(path):
            steps = tuple(path.split(".")[1:])
            yield Column(name=column["name"], path=steps, type=column["type"], wide=wide, description=description)
    if not given:
        yield _AGE


def shipped(plural: str, ready_condition: str = "") -> ResourceDefinition:
    """Return the resource of one of the definitions in `crds`, which tests also install in real API servers."""
    definition = yaml.safe_load(_DEFINITIONS.joinpath(f"{plural}.yaml").read_text())
    return msgspec.structs.replace(resource_of(definition), ready_condition=ready_condition)


PROJECTS = shipped("projects", "Ready")
PROJECT_CONTROL_PLANES = shipped("projectcontrolplanes", "ControlPlaneReady")
PROJECT_SUSPENSIONS = shipped("projectsuspensions")
SERVICE_CONSUMERS = shipped("serviceconsumers")


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

PROXIED_EVENTS = msgspec.structs.replace(EVENTS, group="events.k8s.io")
"""Events that Milo's feature gate EventsProxy serves from its activity service."""

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


def _built_in(
    version: str, kind: str, plural: str, *short_names: str, has_status: bool = True, namespaced: bool = True
) -> ResourceDefinition:
    """Return a kind of Kubernetes or Milo whose fields are not validated."""
    group, _, bare = version.rpartition("/")
    return ResourceDefinition(
        group=group,
        version=bare,
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        short_names=short_names,
        namespaced=namespaced,
        has_status=has_status,
        counts_generations=group in {"apps", "batch", "networking.k8s.io", "policy"},
        allows_blind_update=True,
        takes_strategic_patches=True,
        schema=OPEN | {"description": f"The kind {kind}, for which no controller runs."},
        columns=(_NAME, _AGE),
    )


SERVICE_ACCOUNTS = _built_in("v1", "ServiceAccount", "serviceaccounts", "sa", has_status=False)

BUILT_IN = (
    SERVICE_ACCOUNTS,
    _built_in("v1", "Pod", "pods", "po"),
    _built_in("v1", "Service", "services", "svc"),
    _built_in("v1", "Endpoints", "endpoints", "ep", has_status=False),
    _built_in("v1", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc"),
    _built_in("v1", "PersistentVolume", "persistentvolumes", "pv", namespaced=False),
    _built_in("v1", "ResourceQuota", "resourcequotas", "quota"),
    _built_in("v1", "LimitRange", "limitranges", "limits", has_status=False),
    _built_in("v1", "Node", "nodes", "no", namespaced=False),
    _built_in("apps/v1", "Deployment", "deployments", "deploy"),
    _built_in("apps/v1", "ReplicaSet", "replicasets", "rs"),
    _built_in("apps/v1", "StatefulSet", "statefulsets", "sts"),
    _built_in("apps/v1", "DaemonSet", "daemonsets", "ds"),
    _built_in("batch/v1", "Job", "jobs"),
    _built_in("batch/v1", "CronJob", "cronjobs", "cj"),
    _built_in("networking.k8s.io/v1", "Ingress", "ingresses", "ing"),
    _built_in("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", "netpol", has_status=False),
    _built_in("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb"),
    _built_in("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "hpa"),
    _built_in("storage.k8s.io/v1", "StorageClass", "storageclasses", "sc", has_status=False, namespaced=False),
    _built_in("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", "pc", has_status=False, namespaced=False),
    _built_in("rbac.authorization.k8s.io/v1", "Role", "roles", has_status=False),
    _built_in("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", has_status=False),
)
"""Common Kubernetes kinds, which Milo's project control planes do not serve, but other API servers do."""

_ADMISSION, _RBAC, _IAM = "admissionregistration.k8s.io/v1", "rbac.authorization.k8s.io/v1", "iam.miloapis.com/v1alpha1"
VALIDATING_WEBHOOKS = _built_in(
    _ADMISSION, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", has_status=False, namespaced=False
)
MUTATING_WEBHOOKS = _built_in(
    _ADMISSION, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", has_status=False, namespaced=False
)
UNUSED = (
    _built_in(_RBAC, "ClusterRole", "clusterroles", has_status=False, namespaced=False),
    _built_in(_RBAC, "ClusterRoleBinding", "clusterrolebindings", has_status=False, namespaced=False),
    _built_in("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", has_status=False),
    VALIDATING_WEBHOOKS,
    MUTATING_WEBHOOKS,
    _built_in(_ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", namespaced=False),
    _built_in(_IAM, "Group", "groups"),
    _built_in(_IAM, "PolicyBinding", "policybindings"),
    _built_in(_IAM, "Role", "roles"),
    PROJECTS,
)
"""Kinds that Milo's project control planes serve although they have no use there: a project contains no projects."""

MILO = (PROJECTS, PROJECT_SUSPENSIONS, PROJECT_CONTROL_PLANES, NAMESPACES, VALIDATING_WEBHOOKS, MUTATING_WEBHOOKS)
CONTROL_PLANE = (NAMESPACES, CONFIG_MAPS, SECRETS, EVENTS, LEASES, SERVICE_CONSUMERS)
INFRASTRUCTURE = (NAMESPACES, SECRETS, SERVICE_ACCOUNTS)
