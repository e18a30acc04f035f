"""Admission webhooks, as Milo calls them: registered at the root, for the requests of all projects.

Configurations inside a project are stored and never used. A webhook with a namespaceSelector fails for each write in a
namespace that the root lacks.
"""

import asyncio
import base64
import ssl
from http import HTTPStatus
from uuid import uuid4

import aiohttp
import msgspec

from milo_sandbox import patches, refusals
from milo_sandbox.admission import WARNINGS
from milo_sandbox.calls import Call
from milo_sandbox.records import decode, encode
from milo_sandbox.resources import MUTATING_WEBHOOKS, NAMESPACES, PROJECTS, VALIDATING_WEBHOOKS, Cause, Document
from milo_sandbox.store import Store

_PARENT = "iam.miloapis.com/parent-"


class ReviewedWrite(msgspec.Struct, frozen=True, kw_only=True):
    """A write that webhooks may review."""

    call: Call
    operation: str
    project: str
    document: Document | None
    before: Document | None
    dry_run: bool


class RootWebhooks:
    """The webhooks that the root registers."""

    def __init__(self, root: Store) -> None:
        self._root = root

    def matching(self, call: Call, operation: str) -> list[Document]:
        """Return the mutating webhooks for a write, then the validating ones."""
        return [
            webhook | {"mutates": resource is MUTATING_WEBHOOKS}
            for resource in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)
            for record in self._root[resource]
            for webhook in record.document().get("webhooks") or ()
            if any(_matches(rule, call, operation) for rule in webhook.get("rules") or ())
        ]

    async def reviewed(self, webhooks: list[Document], write: ReviewedWrite) -> Document | None:
        """Return the object with what the webhooks changed. Raises RefusalError."""
        document = write.document
        for webhook in webhooks:
            if webhook.get("namespaceSelector") and write.call.namespace:
                self._require_namespace_of_root(write.call.namespace)
            try:
                answer = await _asked(webhook, _review(write, document))
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.DecodeError) as error:
                if webhook.get("failurePolicy") == "Ignore":
                    continue
                raise refusals.internal(f'failed calling webhook "{webhook["name"]}": {error}') from error
            WARNINGS.get([]).extend(answer.get("warnings") or ())
            if not answer.get("allowed"):
                raise _denied(webhook, answer.get("status") or {})
            if webhook["mutates"] and answer.get("patch"):
                operations = decode(base64.b64decode(answer["patch"]))
                document = patches.apply_operations(document or {}, operations)
        return document

    def _require_namespace_of_root(self, namespace: str) -> None:
        if self._root[NAMESPACES].get(namespace) is None:
            raise refusals.not_found(NAMESPACES, namespace)


def _matches(rule: Document, call: Call, operation: str) -> bool:
    resource = call.resource
    plural = f"{resource.plural}/{call.subresource}" if call.subresource else resource.plural
    found = (("operations", operation), ("apiGroups", resource.group), ("apiVersions", resource.version))
    named = all(value in rule.get(field, ()) or "*" in rule.get(field, ()) for field, value in found)
    return named and any(
        wanted in {plural, "*/*"} or (wanted == "*" and not call.subresource) for wanted in rule.get("resources") or ()
    )


def _review(write: ReviewedWrite, document: Document | None) -> Document:
    resource = write.call.resource
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    place = {"group": resource.group, "version": resource.version, "resource": resource.plural}
    parent = {"api-group": PROJECTS.group, "type": "Project", "name": write.project}
    extra = {f"{_PARENT}{name}": [value] for name, value in parent.items()} if write.project else {}
    shown = document or write.before or {}
    request = {
        "uid": str(uuid4()),
        "kind": kind,
        "resource": place,
        "requestKind": kind,
        "requestResource": place,
        **({"subResource": write.call.subresource} if write.call.subresource else {}),
        "name": write.call.name or shown.get("metadata", {}).get("name", ""),
        **({"namespace": write.call.namespace} if write.call.namespace else {}),
        "operation": write.operation,
        "userInfo": {"username": write.call.subject, "groups": ["system:authenticated"], "extra": extra},
        "object": document,
        "oldObject": write.before,
        "dryRun": write.dry_run,
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}


async def _asked(webhook: Document, review: Document) -> Document:
    """Return the response of a webhook. Raises an error of aiohttp, OSError, TimeoutError and ValueError."""
    to, limit_s = webhook["clientConfig"], webhook.get("timeoutSeconds", 10)
    authorities = base64.b64decode(to.get("caBundle", "")).decode()
    context = ssl.create_default_context(cadata=authorities or None)
    async with asyncio.timeout(limit_s), aiohttp.ClientSession() as session:
        headers = {"Content-Type": "application/json"}
        url = f"{to['url']}?timeout={limit_s}s"
        async with session.post(url, data=encode(review), headers=headers, ssl=context) as response:
            body = await response.read()
            if response.status != HTTPStatus.OK:
                raise ValueError(f"status {response.status}: {body.decode(errors='replace').strip()}")
    answer: Document = decode(body)["response"]
    if answer.get("uid") != review["request"]["uid"]:
        raise ValueError(f"expected response.uid={review['request']['uid']!r}, got {answer.get('uid')!r}")
    return answer


def _denied(webhook: Document, status: Document) -> refusals.RefusalError:
    said = status.get("message")
    why = f'admission webhook "{webhook["name"]}" denied the request{f": {said}" if said else " without explanation"}'
    causes = (status.get("details") or {}).get("causes") or ()
    return refusals.RefusalError(
        status.get("code") or HTTPStatus.FORBIDDEN,
        status.get("reason") or "Forbidden",
        why,
        causes=[Cause(reason=one["reason"], message=one["message"], field=one["field"]) for one in causes],
    )
