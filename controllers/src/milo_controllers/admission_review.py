"""An AdmissionReview: what an API server asks, and how it is answered.

Milo sends the requests of all projects to the webhooks that are registered in its core API, and names the project in
the extra fields of the user.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, Literal

import msgspec

from milo_controllers.conditions import is_terminating
from milo_controllers.errors import text_of
from milo_controllers.json_patch import carried_over, patch
from milo_controllers.kinds import Document, Kind, ObjectT, document
from milo_kube.reflect.wire import has_more_containers

if TYPE_CHECKING:
    from milo_discovery.engaged_cluster import EngagedCluster
    from milo_discovery.model import Cluster

AdmissionOperation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]

_PARENT = "iam.miloapis.com/parent-"
_PROJECT = {"api-group": "resourcemanager.miloapis.com", "type": "Project"}
_REASONS: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "BadRequest",
    HTTPStatus.FORBIDDEN: "Forbidden",
    HTTPStatus.CONFLICT: "Conflict",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Invalid",
    HTTPStatus.TOO_MANY_REQUESTS: "TooManyRequests",
}


def project_fields(project: str) -> Mapping[str, Sequence[str]]:
    """Return the extra fields of a user whose request is to a project's control plane, or to the core API (empty)."""
    return {f"{_PARENT}{name}": (value,) for name, value in {**_PROJECT, "name": project}.items()} if project else {}


class Deny(Exception):  # noqa: N818  (an answer, not a failure)
    """Deny the request with a message for its user.

    `field`: the path of the field that is wrong, such as `spec.replicas`. `code`: the HTTP status of the answer, by
    default 422 with a field and 403 without.
    """

    def __init__(self, message: str, *, code: int | None = None, field: str = "") -> None:
        super().__init__(message)
        self.message = str(message)  # authors also pass the error that they caught
        self.field = field
        self.code = code or (HTTPStatus.UNPROCESSABLE_ENTITY if field else HTTPStatus.FORBIDDEN)


class AdmissionUser(msgspec.Struct, frozen=True):
    """The user that sent the request."""

    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, Sequence[str]] = {}

    @property
    def project(self) -> str:
        """The project in whose control plane the request was sent; empty if it was sent to the core API."""
        parent = {name: self.extra.get(f"{_PARENT}{name}", ()) for name in ("api-group", "type", "name")}
        is_project = all(list(parent[name]) == [value] for name, value in _PROJECT.items())
        return parent["name"][0] if is_project and len(parent["name"]) == 1 else ""


class AdmissionRequest(msgspec.Struct, frozen=True, rename="camel"):
    """The request of an AdmissionReview."""

    uid: str
    operation: AdmissionOperation
    user_info: AdmissionUser = AdmissionUser()
    name: str = ""
    namespace: str = ""
    sub_resource: str = ""
    object: msgspec.Raw = msgspec.Raw(b"null")
    old_object: msgspec.Raw = msgspec.Raw(b"null")
    dry_run: bool = False


class _AdmissionReview(msgspec.Struct, frozen=True):
    request: AdmissionRequest
    apiVersion: Literal["admission.k8s.io/v1"] = "admission.k8s.io/v1"  # noqa: N815
    kind: Literal["AdmissionReview"] = "AdmissionReview"


class _ReviewedMetadata(msgspec.Struct):
    name: str = ""


class _ReviewedObject(msgspec.Struct):
    metadata: _ReviewedMetadata = msgspec.field(default_factory=_ReviewedMetadata)


_decoder = msgspec.json.Decoder(_AdmissionReview)
_reviewed_decoder = msgspec.json.Decoder(_ReviewedObject)
_document_decoder = msgspec.json.Decoder(Document)
_MOST_CONTAINERS = 200_000
"""Maximum number of lists and maps of an object, ten times what objects of that size have: a million block all threads
of the process for a second, and take 500 MB."""


def decode_review(body: bytes) -> AdmissionRequest:
    """Return the request of a review. Raises ValueError."""
    try:
        return _decoder.decode(body).request
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem = "its object is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"not an AdmissionReview of admission.k8s.io/v1: {problem}") from None


@dataclass(kw_only=True)
class Review(Generic[ObjectT]):
    """A write that an API server asks about, as a validator or mutator receives it."""

    cluster: Cluster
    """The cluster of the write, as discovery knows it. It may be engaged by another replica of a shard group."""
    engaged: EngagedCluster | None
    """The cluster with its credentials, if this replica has engaged it."""
    operation: AdmissionOperation
    object: ObjectT
    """The object as it is to be stored, or for DELETE as it is stored. A mutator changes it."""
    old: ObjectT | None
    """The object as it is stored; None for CREATE, and if the type refuses it, so that an update can repair it."""
    name: str
    """The object's name; empty if the API server generates it."""
    namespace: str
    subresource: str
    user: AdmissionUser
    dry_run: bool
    """Whether nothing will be stored. A validator or mutator has no side effects in any case."""
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Show a warning to the user, whether the request is allowed or not."""
        self.warnings.append(str(message))


def review_of(
    request: AdmissionRequest, kind: Kind[ObjectT], cluster: Cluster, engaged: EngagedCluster | None
) -> Review[ObjectT] | None:
    """Return a review with objects of the kind's type. Raises an error of the type for an object that it refuses.

    None if the type also refuses what is stored, and that is being deleted: nothing but that write, which may remove a
    finalizer, lets it end.
    """
    raw = (bytes(request.object), bytes(request.old_object))
    if any(has_more_containers(one, _MOST_CONTAINERS) for one in raw):
        raise ValueError(f"an object has more than {_MOST_CONTAINERS:,} lists and maps")
    new, old = (None if one == b"null" else one for one in raw)
    stored, refusal = None, None
    try:
        stored = None if old is None else kind.decode(old)
    except Exception as error:  # noqa: BLE001  (of the kind's type, such as pydantic's)
        refusal = error
    if new is None:
        if refusal is not None:
            raise ValueError(f"{text_of(refusal)}; this is the stored object: update it first") from refusal
        shown = stored
    else:
        try:
            shown = kind.decode(new)
        except Exception:
            if old is None or refusal is None or not is_terminating(_document_decoder.decode(old)):
                raise
            return None
    if shown is None:
        raise ValueError("the review has no object")
    return Review(
        cluster=cluster,
        engaged=engaged,
        operation=request.operation,
        object=shown,
        old=stored,
        name=request.name or _name_of(raw[0] if old is None else old),
        namespace=request.namespace,
        subresource=request.sub_resource,
        user=request.user_info,
        dry_run=request.dry_run,
    )


def _name_of(encoded: bytes) -> str:
    """Return the name that an object states: the request for the deletion of a collection has none."""
    try:
        return _reviewed_decoder.decode(encoded).metadata.name
    except msgspec.DecodeError:
        return ""


def allowed(request: AdmissionRequest, warnings: Sequence[str] = ()) -> Document:
    return _response(request, {"allowed": True}, warnings)


def denied(request: AdmissionRequest, reason: Deny, warnings: Sequence[str] = ()) -> Document:
    status: Document = {
        "code": int(reason.code),
        "reason": _REASONS.get(reason.code, "Forbidden"),
        "message": f"{reason.field}: {reason.message}" if reason.field else reason.message,
    }
    if reason.field:
        cause = {"reason": "FieldValueInvalid", "field": reason.field, "message": reason.message}
        status["details"] = {"causes": [cause]}
    return _response(request, {"allowed": False, "status": status}, warnings)


def mutated(request: AdmissionRequest, kind: Kind[Any], changed: object, warnings: Sequence[str] = ()) -> Document:
    """Allow the request, with what a mutator changed as a JSON patch. Fields that the kind's type lacks stay."""
    raw = bytes(request.object)
    original = _document_decoder.decode(raw)
    before, after = ({**document(one)} for one in (kind.decode(raw), changed))  # of metadata alone, as plain dicts
    operations = list(patch(original, carried_over(original, before, after)))
    answer: Document = {"allowed": True}
    if operations:
        encoded = base64.b64encode(msgspec.json.encode(operations)).decode()
        answer |= {"patchType": "JSONPatch", "patch": encoded}
    return _response(request, answer, warnings)


def _response(request: AdmissionRequest, answer: Document, warnings: Sequence[str]) -> Document:
    response = {"uid": request.uid, **answer, **({"warnings": list(warnings)} if warnings else {})}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
