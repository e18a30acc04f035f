"""Access reviews, rules reviews, subject reviews and token reviews."""

from milo_sandbox import refusals
from milo_sandbox.discovery import ReviewKind
from milo_sandbox.resources import Document
from milo_sandbox.rights import ADMIN, Action, SubjectRights
from milo_sandbox.tokens import Tokens


def answer(review: ReviewKind, question: Document, subject: str, rights: SubjectRights, tokens: Tokens) -> Document:
    spec = question.get("spec", {})
    if not isinstance(spec, dict):
        raise refusals.bad_request("spec must be a JSON object")
    match review.kind:
        case "SelfSubjectAccessReview":
            status = _access(spec, subject, rights)
        case "SelfSubjectRulesReview":
            status = _rules(subject, rights)
        case "TokenReview":
            rights.demand(subject, Action(verb="create", group=review.group, resource=review.plural))
            status = _whose(spec, tokens)
        case _:
            status = {"userInfo": {"username": subject, "groups": ["system:authenticated"]}}
    return {
        "kind": review.kind,
        "apiVersion": f"{review.group}/{review.version}",
        "metadata": {},
        **({"spec": spec} if spec else {}),
        "status": status,
    }


def _whose(spec: Document, tokens: Tokens) -> Document:
    """Review a token. As in kube-apiserver, a token must be for the server itself if no audiences are requested."""
    token, requested = spec.get("token"), spec.get("audiences") or []
    if not isinstance(token, str):
        raise refusals.bad_request("spec.token must be a string")
    try:
        subject = tokens.subject(token)
    except refusals.RefusalError:
        return {"user": {}, "error": "the token was not issued by this server, has expired or was revoked"}
    audiences = tokens.claims(token).aud
    both = [audience for audience in requested if audience in audiences]
    if not both and (requested or audiences):
        return {
            "user": {},
            "error": "the token is not for any of the requested audiences (by default, this server)",
        }
    groups = ["system:serviceaccounts", "system:authenticated"]
    user = {"username": subject, "groups": groups}
    return {"authenticated": True, "user": user, **({"audiences": both} if both else {})}


def _access(spec: Document, subject: str, rights: SubjectRights) -> Document:
    requested = spec.get("resourceAttributes")
    if not isinstance(requested, dict):
        if isinstance(spec.get("nonResourceAttributes"), dict):
            return {"allowed": subject == ADMIN}
        raise refusals.bad_request("spec needs resourceAttributes or nonResourceAttributes")
    fields = ("verb", "group", "resource", "subresource", "name", "namespace")
    return {"allowed": rights.allows(subject, Action(**{field: str(requested.get(field, "")) for field in fields}))}


def _rules(subject: str, rights: SubjectRights) -> Document:
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
