"""What an API server's answers mean for the daemon: pure judgements, each with its mend."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import msgspec

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.daemon_errors import TransportError
from milo_discoveryd.modes.mode import Resource

VERBS = ("get", "list", "watch")
_ANONYMOUS = "system:anonymous"
_SKEW = timedelta(minutes=1)
_BUSY = frozenset({429, 500, 503, 504})
_BUSY_MEND = "the server is busy or starting, and the daemon would go on trying: run this again"

_TRANSPORT_MENDS = {
    "dns": "is the host in the kubeconfig right, and does our resolver (in a pod: its dnsPolicy) know it?",
    "connect": "is the API server up, and do firewalls and network policies let this machine through to it?",
    "tls": "the kubeconfig's cluster needs the CA that signed the server's certificate, and a name that is in it",
    "timeout": "something drops packets on the way (firewall, network policy, missing proxy), or the server hangs",
    "closed": "is this the address of an API server, and not of a load balancer without one behind it?",
    "credential": "mend the credential source that the kubeconfig names, then run this again",
}


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    remaining_item_count: int = 0


class _Page(msgspec.Struct):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[msgspec.Raw] | None = None


class _UserInfo(msgspec.Struct):
    username: str = ""


class _ReviewStatus(msgspec.Struct, rename="camel"):
    allowed: bool = False
    user_info: _UserInfo = msgspec.field(default_factory=_UserInfo)


class _Review(msgspec.Struct):
    status: _ReviewStatus = msgspec.field(default_factory=_ReviewStatus)


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


def identity_review() -> bytes:
    return msgspec.json.encode({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})


def access_review(resource: Resource, verb: str) -> bytes:
    attributes = {"group": resource.group, "version": resource.version, "resource": resource.plural, "verb": verb}
    return msgspec.json.encode(
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
    )


def rule(resource: Resource) -> str:
    return f"{{apiGroups: [{resource.group}], resources: [{resource.plural}], verbs: [{', '.join(VERBS)}]}}"


def unreachable(what: str, error: TransportError) -> Finding:
    return fail(what, str(error), _TRANSPORT_MENDS[error.cause])


def identity(what: str, status: int, body: bytes, origin: str) -> Finding:
    """Of the answer to an identity review."""
    refused = f"the token or certificate of {origin} is not valid for this server: renew it, or name another kubeconfig"
    if status == 401:
        return fail(what, "the server refuses our credential (401)", refused)
    if status in _BUSY:
        return warn(what, f"the server answers {status}: {_message(body)}", _BUSY_MEND)
    if status not in (200, 201):
        # Servers before 1.28 do not serve this review; the requests that follow will tell as well.
        return ok(what, f"the server takes our credential (it does not tell whose it is: {status})")
    user = msgspec.json.decode(body, type=_Review).status.user_info.username
    if user == _ANONYMOUS:
        return fail(what, "we are nobody to the server: it saw no credential, and lets strangers in", refused)
    return ok(what, f"as {user}" if user else "the server takes our credential")


def allowed(status: int, body: bytes) -> bool | None:
    """Of the answer to an access review; None where the server gives no such answers."""
    return msgspec.json.decode(body, type=_Review).status.allowed if status in (200, 201) else None


def permissions(what: str, resource: Resource, answers: Mapping[str, bool | None]) -> Finding:
    missing = [verb for verb, answer in answers.items() if answer is False]
    if missing:
        return fail(what, f"may not {_listed(missing)} {resource.plural}", _grant(resource))
    if None in answers.values():
        return warn(what, "the server does not tell what we may; the requests below do")
    return ok(what, f"may {_listed(answers)} {resource.plural}.{resource.group}")


def listing(what: str, resource: Resource, status: int, body: bytes) -> Finding:
    if status != 200:
        return _refused(what, resource, status, body)
    page = msgspec.json.decode(body, type=_Page)
    count = len(page.items or ()) + page.metadata.remaining_item_count
    if not count:
        return warn(what, f"no {resource.plural} match", "if there should be some: is label_selector right?")
    return ok(what, f"{count} {resource.plural}")


def version_of(body: bytes) -> str:
    return msgspec.json.decode(body, type=_Page).metadata.resource_version


def watching(what: str, resource: Resource, status: int, body: bytes) -> Finding:
    """Of a watch's head and the lines it said: some refusals come as one of them, after a head that says 200."""
    if status == 200:
        lines = (msgspec.json.decode(line, type=_Event) for line in body.splitlines() if line.endswith(b"}"))
        error = next((event.object for event in lines if event.type == "ERROR"), None)
        if error is None:
            return ok(what, f"watches {resource.plural}")
        status, body = msgspec.json.decode(error, type=_Status).code, bytes(error)
    return _refused(what, resource, status, body)


def clock(date: str | None, now: datetime) -> Finding | None:
    """A wrong clock shows as expired credentials and certificates, here or there."""
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    apart = abs(now - theirs.replace(tzinfo=theirs.tzinfo or UTC))
    if apart <= _SKEW:
        return None
    return warn(
        "clock", f"ours and the server's are {round(apart.total_seconds())} s apart", "set this machine's clock"
    )


def _refused(what: str, resource: Resource, status: int, body: bytes) -> Finding:
    said = f"{status}: {_message(body)}"
    if status in (401, 403):
        return fail(what, said, _grant(resource))
    if status == 404:
        return fail(
            what,
            f"the server has no {resource.plural}.{resource.group} ({resource.version})",
            "is this the right API server for the mode? mode project watches the core Milo API, "
            "project-control-plane the infrastructure cluster; there, Milo's CRDs must be installed",
        )
    if status in _BUSY:
        return warn(what, said, _BUSY_MEND)
    return fail(what, said, "the server understood the request otherwise than an API server of Kubernetes does")


def _grant(resource: Resource) -> str:
    return f"add this rule to a ClusterRole that is bound to the daemon's identity: {rule(resource)}"


def _message(body: bytes) -> str:
    try:
        text = msgspec.json.decode(body, type=_Status).message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = body.decode(errors="replace")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text[:300] or "no reason given"


def _listed(verbs: Collection[str]) -> str:
    *first, last = verbs
    return f"{', '.join(first)} and {last}" if first else last
