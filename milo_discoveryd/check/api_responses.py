"""Interprets the responses of an API server, and suggests a correction for each failure."""

from collections.abc import Collection, Mapping
from datetime import datetime

import msgspec

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.watchers.transport import CLOCK_TOLERANCE_S, seconds_ahead
from milo_kube.act_as import ActAs
from milo_kube.http.errors import TransportError

VERBS = ("get", "list", "watch")
_ANONYMOUS = "system:anonymous"
_SERVICE_ACCOUNT = "system:serviceaccount:"
_BUSY = frozenset({429, 500, 503, 504})
_BUSY_FIX = "the API server may be overloaded or still starting; the daemon would retry: run the check again"
_NOT_AN_API_SERVER = "check that the kubeconfig has the right server URL, including the path"

_TRANSPORT_FIXES = {
    "dns": "check the hostname in the kubeconfig, and the DNS configuration (in a pod: dnsPolicy)",
    "connect": "check that the API server is running, and that firewalls and network policies allow the connection",
    "tls": "set the server certificate's CA, and a server name that the certificate contains, in the kubeconfig",
    "timeout": "check that no firewall or network policy drops packets, that a proxy is set if it is needed, and that "
    "the server responds",
    "closed": "check that this is the address of an API server, not of a load balancer without a backend",
    "too_large": "raise watch.objects_limit, or find out why the API server sends so much at once",
    "credential": "correct the kubeconfig's credential or exec plugin, or the issuer that `credentials` names",
}


class _ListMetaBody(
    msgspec.Struct, rename={"next": "continue", "version": "resourceVersion", "left": "remainingItemCount"}
):
    version: str = ""
    next: str = ""
    left: int | None = None
    """The number of objects on the pages that follow. API servers omit it if the list has a selector."""


class _Page(msgspec.Struct):
    metadata: _ListMetaBody = msgspec.field(default_factory=_ListMetaBody)
    items: list[msgspec.Raw] | None = None


_PAGE = msgspec.json.Decoder(_Page)


class _UserInfo(msgspec.Struct):
    username: str = ""


class _ReviewStatus(msgspec.Struct, rename="camel"):
    allowed: bool = False
    user_info: _UserInfo = msgspec.field(default_factory=_UserInfo)


class _Review(msgspec.Struct):
    status: _ReviewStatus = msgspec.field(default_factory=_ReviewStatus)


_REVIEW = msgspec.json.Decoder(_Review)


class _StatusBody(msgspec.Struct):
    kind: str = ""
    code: int = 0
    message: str = ""


_STATUS_OBJECT = msgspec.json.Decoder(_StatusBody)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


_EVENT = msgspec.json.Decoder(_Event)


def identity_review() -> bytes:
    return msgspec.json.encode({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})


def access_review(resource: Resource, verb: str) -> bytes:
    attributes = {"group": resource.group, "version": resource.version, "resource": resource.plural, "verb": verb}
    if resource.namespace:
        attributes["namespace"] = resource.namespace
    return _access_review(attributes)


def impersonation_reviews(acting: ActAs) -> Mapping[str, bytes]:
    """Return the access reviews for an impersonated request, keyed by what each one checks."""
    namespace, _, account = acting.user.removeprefix(_SERVICE_ACCOUNT).partition(":")
    if acting.user.startswith(_SERVICE_ACCOUNT) and account:
        asked = {f"user {acting.user}": {"resource": "serviceaccounts", "namespace": namespace, "name": account}}
    else:
        asked = {f"user {acting.user}": {"resource": "users", "name": acting.user}}
    asked |= {f"group {group}": {"resource": "groups", "name": group} for group in acting.groups}
    asked |= {
        f"extra {key}": {"group": "authentication.k8s.io", "resource": "userextras", "subresource": key, "name": value}
        for key, values in acting.extra
        for value in values
    }
    return {about: _access_review({"verb": "impersonate", **attributes}) for about, attributes in asked.items()}


def impersonation(subject: str, user: str, answers: Mapping[str, bool | None]) -> Finding:
    denied = [about for about, answer in answers.items() if answer is False]
    if denied:
        return fail(
            subject,
            f"requests as {user} are refused: the issuer's identity may not impersonate {_joined(denied)}",
            "grant it the verb impersonate on each of them, in every cluster, or correct `as` in rights",
        )
    if None in answers.values():
        return warn(subject, "unknown: the server did not accept a SelfSubjectAccessReview")
    return ok(subject, f"impersonation of {user} allowed")


def _access_review(attributes: Mapping[str, str]) -> bytes:
    return msgspec.json.encode(
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
    )


def rule(resource: Resource) -> str:
    group = resource.group or '""'
    return f"{{apiGroups: [{group}], resources: [{resource.plural}], verbs: [{', '.join(VERBS)}]}}"


def unreachable(subject: str, error: TransportError, origin: str) -> Finding:
    return fail(subject, f"{error} ({origin})", "" if "plain HTTP" in str(error) else _TRANSPORT_FIXES[error.cause])


def identity(subject: str, status: int, body: bytes, origin: str) -> Finding:
    """Return the finding for the response to a SelfSubjectReview."""
    rejected = f"the token or certificate of {origin} is missing, or not valid for this server: set or renew it"
    if status == 401:
        return fail(subject, "the server rejects the credential (401)", rejected)
    if status in _BUSY:
        return fail(subject, f"the server answers {status}: {_message(body)}", _BUSY_FIX)
    if status in (200, 201):
        user = _REVIEW.decode(body).status.user_info.username
        if user == _ANONYMOUS:
            return fail(subject, "the API server treats this identity as system:anonymous", rejected)
        return ok(subject, f"authenticated as {user}" if user else "the server accepts the credential")
    if _is_status(body):
        # API servers before 1.28 do not serve this review; the requests that follow test the credential.
        return warn(subject, f"unknown: the server did not accept a SelfSubjectReview ({status}: {_message(body)})")
    return fail(
        subject,
        f"the server answers {status} without a Status object, which a Kubernetes API server would send",
        _NOT_AN_API_SERVER,
    )


def allowed(status: int, body: bytes) -> bool | None:
    """Return the decision of an access review, or None if the server did not return one."""
    return _REVIEW.decode(body).status.allowed if status in (200, 201) else None


def permissions(subject: str, resource: Resource, answers: Mapping[str, bool | None]) -> Finding:
    missing = [verb for verb, answer in answers.items() if answer is False]
    if missing:
        return fail(subject, f"{_joined(missing)} of {resource.plural} denied", _grant(resource))
    if None in answers.values():
        return warn(subject, "unknown: the server did not accept a SelfSubjectAccessReview")
    return ok(subject, f"{_joined(answers)} of {_named(resource)} allowed")


def listing(subject: str, resource: Resource, status: int, body: bytes) -> Finding:
    if status != 200:
        return _rejected(subject, resource, status, body)
    page = _PAGE.decode(body)
    count, more = len(page.items or ()), page.metadata.left
    if not count and not page.metadata.next:
        return warn(subject, f"no {resource.plural} match", "if some should match, check the selectors of the source")
    is_unknown = more is None and page.metadata.next
    return ok(subject, f"{count + (more or 0)}{' or more' if is_unknown else ''} {resource.plural}")


def version_of(body: bytes) -> str:
    return _PAGE.decode(body).metadata.version


def watching(subject: str, resource: Resource, status: int, body: bytes) -> Finding:
    """Return the finding for a watch, by its status and events: some errors are sent as an event after status 200."""
    if status == 200:
        lines = (_EVENT.decode(line) for line in body.splitlines() if line.endswith(b"}"))
        error = next((event.object for event in lines if event.type == "ERROR"), None)
        if error is None:
            return ok(subject, f"watching {resource.plural}")
        status, body = _STATUS_OBJECT.decode(error).code, bytes(error)
    return _rejected(subject, resource, status, body)


def clock(date: str | None, now: datetime) -> Finding | None:
    """Compare the clocks: with a wrong clock, valid credentials and certificates appear expired or not valid yet."""
    apart_s = abs(seconds_ahead(date, now.timestamp(), now.timestamp()))
    if apart_s <= CLOCK_TOLERANCE_S:
        return None
    return warn(
        "clock", f"this machine's clock differs from the server's by {round(apart_s)} s", "set this machine's clock"
    )


def _rejected(subject: str, resource: Resource, status: int, body: bytes) -> Finding:
    message = f"{status}: {_message(body)}"
    if status == 401:
        return fail(subject, message, "the credential is missing, or not valid for this server: set or renew it")
    if status == 403:
        return fail(subject, message, _grant(resource))
    if status == 404:
        return fail(
            subject,
            f"the server has no {_named(resource)} ({resource.version})",
            "check that this API server serves the resource: mode project watches the core Milo API, "
            "project-control-plane the infrastructure cluster, where Milo's CRDs must be installed",
        )
    if status in _BUSY:
        return fail(subject, message, _BUSY_FIX)
    return fail(subject, message, "check the selectors of the source, and the server URL in the kubeconfig")


def _grant(resource: Resource) -> str:
    role = f"Role in the namespace {resource.namespace}," if resource.namespace else "ClusterRole"
    return f"add this rule to a {role} bound to the daemon's identity: {rule(resource)}"


def _named(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def _is_status(body: bytes) -> bool:
    try:
        return _STATUS_OBJECT.decode(body).kind == "Status"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _message(body: bytes) -> str:
    try:
        text = _STATUS_OBJECT.decode(body).message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = body.decode(errors="replace")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text[:300] or "no reason given"


def _joined(verbs: Collection[str]) -> str:
    *first, last = verbs
    return f"{', '.join(first)} and {last}" if first else last
