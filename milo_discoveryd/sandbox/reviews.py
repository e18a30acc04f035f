"""What a client asks about itself: may I, what may I, who am I."""

from milo_discoveryd.sandbox import refusals
from milo_discoveryd.sandbox.discovery import Review
from milo_discoveryd.sandbox.resources import Document
from milo_discoveryd.sandbox.rights import ADMIN, Action, Rights


def answer(review: Review, question: Document, subject: str, rights: Rights) -> Document:
    spec = question.get("spec", {})
    if not isinstance(spec, dict):
        raise refusals.bad_request("spec must be a JSON object")
    match review.kind:
        case "SelfSubjectAccessReview":
            status = _access(spec, subject, rights)
        case "SelfSubjectRulesReview":
            status = _rules(subject, rights)
        case _:
            status = {"userInfo": {"username": subject, "groups": ["system:authenticated"]}}
    return {
        "kind": review.kind,
        "apiVersion": f"{review.group}/{review.version}",
        "metadata": {},
        **({"spec": spec} if spec else {}),
        "status": status,
    }


def _access(spec: Document, subject: str, rights: Rights) -> Document:
    asked = spec.get("resourceAttributes")
    if not isinstance(asked, dict):
        if isinstance(spec.get("nonResourceAttributes"), dict):
            return {"allowed": subject == ADMIN}
        raise refusals.bad_request("spec needs resourceAttributes or nonResourceAttributes")
    fields = ("verb", "group", "resource", "subresource", "name", "namespace")
    return {"allowed": rights.allows(subject, Action(**{field: str(asked.get(field, "")) for field in fields}))}


def _rules(subject: str, rights: Rights) -> Document:
    rules = [
        {
            "verbs": sorted(rule.verbs),
            "apiGroups": sorted(rule.groups),
            "resources": sorted(rule.resources),
            **({"resourceNames": sorted(rule.names)} if rule.names else {}),
        }
        for rule in rights.rules(subject)
    ]
    return {"resourceRules": rules, "nonResourceRules": [], "incomplete": False}
