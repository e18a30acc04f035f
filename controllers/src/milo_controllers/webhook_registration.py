"""The configurations that register an operator's webhooks in Milo's core API, and what differs from installed ones."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from milo_controllers.kinds import Document, Kind
from milo_controllers.webhooks import API_SERVER_TIMEOUT_S, Webhook, WebhookType

_KINDS = {
    WebhookType.VALIDATING: "ValidatingWebhookConfiguration",
    WebhookType.MUTATING: "MutatingWebhookConfiguration",
}
RESOURCES = {kind: Kind(f"admissionregistration.k8s.io/v1/{kind.lower()}s") for kind in _KINDS.values()}
EXPLANATION = """\
# Apply this in Milo's core API: its webhooks receive the requests of all projects. Configurations inside a project are
# accepted and never used.
# - There is no namespaceSelector, and none may be added: Milo looks up the namespace in the core, where it is missing,
#   so that every write in it fails.
# - failurePolicy Fail: while no replica answers, nobody can write these objects, in any project. Ignore: they are
#   written unchecked then.
# - caBundle is the CA, so that certificates can be replaced without a new registration.
"""


def configurations(webhooks: Sequence[Webhook], *, name: str, url: str, ca_bundle: bytes) -> Iterator[Document]:
    """Yield a configuration for the validators and one for the mutators, as far as there are any."""
    for type_, kind in _KINDS.items():
        of_type = [webhook for webhook in webhooks if webhook.type is type_]
        if of_type:
            yield {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": kind,
                "metadata": {"name": name},
                "webhooks": [_registered(webhook, name, url, ca_bundle) for webhook in of_type],
            }


def no_configurations(wanted: Sequence[Document], *, name: str) -> Iterator[Document]:
    """Yield an empty configuration for each type that the wanted ones lack: one that is left fails every write."""
    for kind in RESOURCES.keys() - {one["kind"] for one in wanted}:
        yield {"kind": kind, "metadata": {"name": name}, "webhooks": []}


def _registered(webhook: Webhook, name: str, url: str, ca_bundle: bytes) -> Document:
    resource = f"{webhook.kind.plural}/{webhook.subresource}" if webhook.subresource else webhook.kind.plural
    return {
        "name": f"{webhook.name}.{webhook.type.value}.{name}",
        "clientConfig": {"url": f"{url.rstrip('/')}{webhook.path}", "caBundle": base64.b64encode(ca_bundle).decode()},
        "rules": [
            {
                "apiGroups": [webhook.kind.group],
                "apiVersions": [webhook.kind.version],
                "operations": list(webhook.operations),
                "resources": [resource],
                "scope": "*",
            }
        ],
        "failurePolicy": webhook.failure_policy,
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "timeoutSeconds": API_SERVER_TIMEOUT_S,
        "admissionReviewVersions": ["v1"],
    }


def differences(wanted: Document, installed: Document | None) -> Iterator[str]:
    """Yield what is wrong with an installed configuration, each as a sentence."""
    what = f"{wanted['kind']} {wanted['metadata']['name']}"
    if installed is None:
        if wanted["webhooks"]:
            yield f"{what} is not installed: no webhook of it is called"
        return
    found = {webhook.get("name"): webhook for webhook in installed.get("webhooks") or ()}
    for webhook in wanted["webhooks"]:
        name = webhook["name"]
        if name not in found:
            yield f"{what} lacks the webhook {name}: it is not called"
            continue
        yield from (f"{what}: {name}: {difference}" for difference in _of_webhook(webhook, found.pop(name)))
    for name in found:
        yield f"{what} has the webhook {name}, which this operator does not answer"


def _of_webhook(wanted: Document, found: Document) -> Iterator[str]:
    if found.get("namespaceSelector"):
        yield "namespaceSelector is set: every write in a namespace that the core lacks fails"
    if found.get("objectSelector"):
        yield "objectSelector is set: objects that it does not select are not checked"
    if found.get("matchConditions"):
        yield "matchConditions are set: requests that do not meet them are not checked"
    for field, value in wanted.items():
        if field == "rules":
            rules, installed = _rules(value), _rules(found.get(field) or ())
            if rules != installed:
                yield f"rules are {installed}, not {rules}"
        elif field == "clientConfig":
            for part, given in value.items():
                if (found.get(field) or {}).get(part) != given:
                    yield f"clientConfig.{part} differs"
        elif found.get(field) != value:
            yield f"{field} is {found.get(field)!r}, not {value!r}"


def _rules(rules: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(
        f"{operation} {group or 'core'}/{version}/{resource}{_scope(rule)}"
        for rule in rules
        for operation in rule.get("operations") or ()
        for group in rule.get("apiGroups") or ()
        for version in rule.get("apiVersions") or ()
        for resource in rule.get("resources") or ()
    )


def _scope(rule: Mapping[str, Any]) -> str:
    scope = rule.get("scope") or "*"
    return "" if scope == "*" else f" (only {scope})"
