"""Reviews for the tests of an operator's validators and mutators, as Milo's API server sends them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import msgspec

from milo_controllers.admission_review import AdmissionOperation, project_fields
from milo_controllers.controllers import Controllers
from milo_controllers.json_patch import applied
from milo_controllers.kinds import AnyKind, Document, document, kind_of
from milo_controllers.webhooks import Webhook, WebhookType
from milo_kube.http.headers import Headers
from milo_kube.http.server import ServerRequest


@dataclass(frozen=True, kw_only=True)
class ReviewResult:
    """How a write ended."""

    allowed: bool
    object: Document | None
    """The object as the mutators left it."""
    message: str = ""
    code: int = 0
    field: str = ""
    warnings: tuple[str, ...] = ()


class ReviewFailed(Exception):  # noqa: N818  (no error of this package)
    """A webhook did not answer, so that the API server applies its failure policy."""


async def send_review(
    controllers: Controllers,
    kind: AnyKind,
    body: object = None,
    *,
    project: str,
    operation: AdmissionOperation | None = None,
    old: object = None,
    username: str = "tester",
    dry_run: bool = False,
    subresource: str = "",
) -> ReviewResult:
    """Review a write of an object in a project by the registered mutators, and then by the validators.

    `operation` is by default DELETE without an object, UPDATE with an `old` one, and else CREATE. `project`: empty for
    a write to the core API. Raises ReviewFailed if a function raises anything but Deny.
    """
    reviewed = kind_of(kind)
    current = None if body is None else document(body)
    before = None if old is None else document(old)
    operation = operation or ("DELETE" if current is None else "CREATE" if before is None else "UPDATE")
    warnings: list[str] = []
    for webhook in sorted(controllers.webhooks.all, key=lambda webhook: webhook.type is WebhookType.VALIDATING):
        is_named = (webhook.kind.resource, webhook.subresource) == (reviewed.resource, subresource)
        if not is_named or operation not in webhook.operations:
            continue
        shown: Mapping[str, Any] = current or before or {}
        request = {
            "uid": str(uuid4()),
            "operation": operation,
            "userInfo": {"username": username, "extra": project_fields(project)},
            "name": shown.get("metadata", {}).get("name", ""),
            "namespace": shown.get("metadata", {}).get("namespace", ""),
            "subResource": subresource,
            "object": current,
            "oldObject": before,
            "dryRun": dry_run,
        }
        answer = await _answered(controllers, webhook, request)
        warnings += answer.get("warnings", ())
        if not answer["allowed"]:
            status = answer["status"]
            causes = status.get("details", {}).get("causes", [{}])
            return ReviewResult(
                allowed=False,
                object=current,
                message=status["message"],
                code=status["code"],
                field=causes[0].get("field", ""),
                warnings=tuple(warnings),
            )
        if "patch" in answer:
            current = applied(current, msgspec.json.decode(base64.b64decode(answer["patch"])))
    return ReviewResult(allowed=True, object=current, warnings=tuple(warnings))


async def _answered(controllers: Controllers, webhook: Webhook, request: Document) -> Document:
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    sent = ServerRequest(
        path=webhook.path, query={}, headers=Headers(), peer="127.0.0.1", body=msgspec.json.encode(review)
    )
    reply = await controllers.webhooks.answer(sent)
    if reply.status != HTTPStatus.OK:
        raise ReviewFailed(f"{reply.status}: {reply.body.decode().strip()}")
    answer: Document = msgspec.json.decode(reply.body)["response"]
    if answer["uid"] != request["uid"]:
        raise ReviewFailed("the response is not to this review")
    return answer
