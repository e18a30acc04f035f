"""Evaluation of API server responses, and the suggested fix for each failure."""

from datetime import UTC, datetime

import msgspec
import pytest

from milo_discoveryd.check import api_responses
from milo_discoveryd.check.finding import Finding
from milo_discoveryd.model.resource import Resource
from milo_kube.http.errors import TransportCause, TransportError

PROJECTS = Resource("resourcemanager.miloapis.com", "v1alpha1", "projects")
RULE = "{apiGroups: [resourcemanager.miloapis.com], resources: [projects], verbs: [get, list, watch]}"


def body(**content: object) -> bytes:
    return msgspec.json.encode(content)


def user(name: str) -> bytes:
    return body(status={"userInfo": {"username": name, "groups": ["x"]}})


def test_finding_prints_its_fix_on_a_second_line() -> None:
    assert list(Finding("ok", "list", "10 projects").lines()) == ["ok    list: 10 projects"]
    assert list(Finding("fail", "list", "403", "do this").lines()) == ["fail  list: 403", "      -> do this"]


def test_review_requests_are_a_self_subject_review_and_a_self_subject_access_review() -> None:
    assert msgspec.json.decode(api_responses.identity_review())["kind"] == "SelfSubjectReview"
    review = msgspec.json.decode(api_responses.access_review(PROJECTS, "watch"))
    assert review["kind"] == "SelfSubjectAccessReview"
    assert review["spec"]["resourceAttributes"] == {
        "group": "resourcemanager.miloapis.com",
        "version": "v1alpha1",
        "resource": "projects",
        "verb": "watch",
    }


@pytest.mark.parametrize("cause", ["dns", "connect", "tls", "timeout", "closed", "credential"])
def test_transport_error_of_each_cause_has_a_fix(cause: TransportCause) -> None:
    finding = api_responses.unreachable("reach", TransportError(cause, "what happened"), "k")
    assert (finding.level, finding.subject, finding.message) == ("fail", "reach", "what happened (k)")
    assert finding.fix


def test_tls_error_of_a_plain_http_port_does_not_suggest_a_ca() -> None:
    error = TransportError(
        "tls", "TLS handshake with host failed: wrong version number (does the port speak plain HTTP?)"
    )
    assert "CA" not in api_responses.unreachable("reach", error, "k").fix


@pytest.mark.parametrize(
    ("status", "content", "level", "seen"),
    [
        (
            201,
            user("system:serviceaccount:milo:discovery"),
            "ok",
            "authenticated as system:serviceaccount:",
        ),
        (201, body(), "ok", "the server accepts the credential"),
        (404, body(kind="Status", message="no such resource"), "warn", "unknown: "),
        (404, b"", "fail", "the server answers 404"),
        (302, b"", "fail", "the server answers 302"),
        (401, b"", "fail", "the server rejects the credential (401)"),
        (500, b"", "fail", "the server answers 500"),
        (503, b"starting", "fail", "the server answers 503: starting"),
        (201, user("system:anonymous"), "fail", "the API server treats this identity as system:anonymous"),
    ],
)
def test_identity_finding_depends_on_status_and_body(status: int, content: bytes, level: str, seen: str) -> None:
    finding = api_responses.identity("identity", status, content, "/etc/kubeconfig")
    assert (finding.level, finding.message.startswith(seen)) == (level, True)
    assert bool(finding.fix) == (level == "fail")


def test_identity_review_response_that_is_not_json_raises() -> None:
    with pytest.raises(msgspec.MsgspecError):
        api_responses.identity("identity", 200, b"<html>", "x")


def test_permissions_of_a_namespaced_resource_are_reviewed_in_its_namespace_and_suggest_a_role() -> None:
    secrets = Resource("", "v1", "secrets", namespaced=True, namespace="fleet")
    review = msgspec.json.decode(api_responses.access_review(secrets, "list"))
    assert review["spec"]["resourceAttributes"] == {
        "group": "",
        "version": "v1",
        "resource": "secrets",
        "verb": "list",
        "namespace": "fleet",
    }
    denied = api_responses.permissions("may", secrets, {"list": False})
    assert denied.fix.startswith("add this rule to a Role in the namespace fleet, bound to")
    assert 'apiGroups: [""]' in denied.fix
    assert "get of secrets allowed" in api_responses.permissions("may", secrets, {"get": True}).message


def test_access_review_is_allowed_denied_or_unknown() -> None:
    assert api_responses.allowed(201, body(status={"allowed": True})) is True
    assert api_responses.allowed(201, body(status={"allowed": False})) is False
    assert api_responses.allowed(404, b"") is None


def test_finding_of_missing_permissions_contains_their_verbs_and_the_rbac_rule() -> None:
    finding = api_responses.permissions("may", PROJECTS, {"get": True, "list": False, "watch": False})
    assert finding.level == "fail"
    assert finding.message == "list and watch of projects denied"
    assert RULE in finding.fix
    assert api_responses.permissions("may", PROJECTS, dict.fromkeys(api_responses.VERBS, True)).level == "ok"
    assert api_responses.permissions("may", PROJECTS, {"get": True, "list": None}).level == "warn"
    assert "get of projects denied" in api_responses.permissions("may", PROJECTS, {"get": False, "list": None}).message


def test_finding_of_a_list_reports_the_number_of_objects() -> None:
    page = body(metadata={"resourceVersion": "7", "remainingItemCount": 41}, items=[{"a": "b"}])
    assert api_responses.listing("list", PROJECTS, 200, page) == Finding("ok", "list", "42 projects")
    of_selector = body(metadata={"resourceVersion": "7", "continue": "x"}, items=[{"a": "b"}])
    assert api_responses.listing("list", PROJECTS, 200, of_selector) == Finding("ok", "list", "1 or more projects")
    assert api_responses.version_of(page) == "7"


def test_empty_list_is_a_warning() -> None:
    assert api_responses.listing("list", PROJECTS, 200, body(items=None)).level == "warn"


@pytest.mark.parametrize(
    ("status", "level", "fix"),
    [
        (401, "fail", "set or renew it"),
        (403, "fail", RULE),
        (404, "fail", "check that this API server serves the resource"),
        (429, "fail", "run the check again"),
        (503, "fail", "run the check again"),
        (400, "fail", "check the selectors"),
    ],
)
def test_finding_of_a_rejected_list_or_watch_has_a_fix(status: int, level: str, fix: str) -> None:
    content = body(kind="Status", message="because\nof that")
    for judge in (api_responses.listing, api_responses.watching):
        finding = judge("it", PROJECTS, status, content)
        assert finding.level == level
        assert fix in finding.fix
        assert status == 404 or finding.message == f"{status}: because of that"


def test_watch_with_an_error_event_fails_the_check() -> None:
    lines = (
        b'{"type":"ADDED","object":{"kind":"Project"}}\n'
        b'{"type":"ERROR","object":{"kind":"Status","code":403,"message":"no more"}}\n{"type":"ADD'
    )
    finding = api_responses.watching("watch", PROJECTS, 200, lines)
    assert (finding.level, finding.message) == ("fail", "403: no more")
    assert api_responses.watching("watch", PROJECTS, 200, lines.splitlines()[0]).level == "ok"
    assert api_responses.watching("watch", PROJECTS, 200, b"").level == "ok"


def test_error_body_that_is_not_a_status_is_truncated() -> None:
    finding = api_responses.watching("it", PROJECTS, 400, b"<html>\n" + b"x" * 1000)
    assert finding.message.startswith("400: <html> xxx")
    assert len(finding.message) < 400
    assert api_responses.watching("it", PROJECTS, 400, b"").message == "400: no reason given"


def test_clock_skew_of_minutes_is_a_warning() -> None:
    now = datetime(2027, 1, 15, 8, 2, 0, tzinfo=UTC)
    finding = api_responses.clock("Fri, 15 Jan 2027 08:00:00 GMT", now)
    assert finding == Finding(
        "warn", "clock", "this machine's clock differs from the server's by 120 s", "set this machine's clock"
    )
    assert api_responses.clock("Fri, 15 Jan 2027 08:01:30 GMT", now) is None
    assert api_responses.clock(None, now) is None
    assert api_responses.clock("yesterday", now) is None
