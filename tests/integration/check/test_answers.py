"""What an API server's answers mean, and the mend for each no."""

from datetime import UTC, datetime

import msgspec
import pytest

from milo_discoveryd.check import answers
from milo_discoveryd.check.finding import Finding
from milo_discoveryd.daemon_errors import TransportCause, TransportError
from milo_discoveryd.modes.mode import Resource

PROJECTS = Resource("resourcemanager.miloapis.com", "v1alpha1", "projects")
RULE = "{apiGroups: [resourcemanager.miloapis.com], resources: [projects], verbs: [get, list, watch]}"


def body(**content: object) -> bytes:
    return msgspec.json.encode(content)


def user(name: str) -> bytes:
    return body(status={"userInfo": {"username": name, "groups": ["x"]}})


def test_a_finding_is_a_line_and_its_mend_another() -> None:
    assert list(Finding("ok", "list", "10 projects").lines()) == ["ok    list: 10 projects"]
    assert list(Finding("fail", "list", "403", "do this").lines()) == ["fail  list: 403", "      -> do this"]


def test_the_reviews_ask_who_we_are_and_what_we_may() -> None:
    assert msgspec.json.decode(answers.identity_review())["kind"] == "SelfSubjectReview"
    review = msgspec.json.decode(answers.access_review(PROJECTS, "watch"))
    assert review["kind"] == "SelfSubjectAccessReview"
    assert review["spec"]["resourceAttributes"] == {
        "group": "resourcemanager.miloapis.com",
        "version": "v1alpha1",
        "resource": "projects",
        "verb": "watch",
    }


@pytest.mark.parametrize("cause", ["dns", "connect", "tls", "timeout", "closed", "credential"])
def test_each_cause_of_a_failed_request_has_a_mend(cause: TransportCause) -> None:
    finding = answers.unreachable("reach", TransportError(cause, "what happened"))
    assert (finding.level, finding.what, finding.seen) == ("fail", "reach", "what happened")
    assert finding.mend


@pytest.mark.parametrize(
    ("status", "content", "level", "seen"),
    [
        (201, user("system:serviceaccount:milo:discovery"), "ok", "as system:serviceaccount:milo:discovery"),
        (201, body(), "ok", "the server takes our credential"),
        (404, b"", "ok", "the server takes our credential (it does not tell whose it is: 404)"),
        (401, b"", "fail", "the server refuses our credential (401)"),
        (503, b"starting", "warn", "the server answers 503: starting"),
        (201, user("system:anonymous"), "fail", "we are nobody to the server"),
    ],
)
def test_the_server_tells_who_we_are(status: int, content: bytes, level: str, seen: str) -> None:
    finding = answers.identity("identity", status, content, "/etc/kubeconfig")
    assert (finding.level, finding.seen.startswith(seen)) == (level, True)
    assert ("/etc/kubeconfig" in finding.mend) == (level == "fail")


def test_an_answer_to_a_review_that_is_not_one_is_noticed() -> None:
    with pytest.raises(msgspec.MsgspecError):
        answers.identity("identity", 200, b"<html>", "x")


def test_an_access_review_says_yes_no_or_nothing() -> None:
    assert answers.allowed(201, body(status={"allowed": True})) is True
    assert answers.allowed(201, body(status={"allowed": False})) is False
    assert answers.allowed(404, b"") is None


def test_missing_permissions_are_named_with_the_rule_that_gives_them() -> None:
    finding = answers.permissions("may", PROJECTS, {"get": True, "list": False, "watch": False})
    assert finding.level == "fail"
    assert finding.seen == "may not list and watch projects"
    assert RULE in finding.mend
    assert answers.permissions("may", PROJECTS, dict.fromkeys(answers.VERBS, True)).level == "ok"
    assert answers.permissions("may", PROJECTS, {"get": True, "list": None}).level == "warn"
    assert "may not get projects" in answers.permissions("may", PROJECTS, {"get": False, "list": None}).seen


def test_a_list_tells_how_many_there_are() -> None:
    page = body(metadata={"resourceVersion": "7", "remainingItemCount": 41}, items=[{"a": "b"}])
    assert answers.listing("list", PROJECTS, 200, page) == Finding("ok", "list", "42 projects")
    assert answers.version_of(page) == "7"


def test_an_empty_list_is_worth_a_look() -> None:
    assert answers.listing("list", PROJECTS, 200, body(items=None)).level == "warn"


@pytest.mark.parametrize(
    ("status", "level", "mend"),
    [
        (401, "fail", RULE),
        (403, "fail", RULE),
        (404, "fail", "is this the right API server for the mode?"),
        (429, "warn", "run this again"),
        (503, "warn", "run this again"),
        (400, "fail", "otherwise than an API server"),
    ],
)
def test_a_refused_list_or_watch_has_a_mend(status: int, level: str, mend: str) -> None:
    content = body(kind="Status", message="because\nof that")
    for judge in (answers.listing, answers.watching):
        finding = judge("it", PROJECTS, status, content)
        assert finding.level == level
        assert mend in finding.mend
        assert status == 404 or finding.seen == f"{status}: because of that"


def test_a_watch_that_is_refused_in_its_first_line_is_refused() -> None:
    lines = (
        b'{"type":"ADDED","object":{"kind":"Project"}}\n'
        b'{"type":"ERROR","object":{"kind":"Status","code":403,"message":"no more"}}\n{"type":"ADD'
    )
    finding = answers.watching("watch", PROJECTS, 200, lines)
    assert (finding.level, finding.seen) == ("fail", "403: no more")
    assert answers.watching("watch", PROJECTS, 200, lines.splitlines()[0]).level == "ok"
    assert answers.watching("watch", PROJECTS, 200, b"").level == "ok"


def test_a_reason_that_is_not_a_status_is_shown_in_part() -> None:
    finding = answers.watching("it", PROJECTS, 400, b"<html>\n" + b"x" * 1000)
    assert finding.seen.startswith("400: <html> xxx")
    assert len(finding.seen) < 400
    assert answers.watching("it", PROJECTS, 400, b"").seen == "400: no reason given"


def test_a_clock_that_is_minutes_off_is_told() -> None:
    now = datetime(2027, 1, 15, 8, 2, 0, tzinfo=UTC)
    told = answers.clock("Fri, 15 Jan 2027 08:00:00 GMT", now)
    assert told == Finding("warn", "clock", "ours and the server's are 120 s apart", "set this machine's clock")
    assert answers.clock("Fri, 15 Jan 2027 08:01:30 GMT", now) is None
    assert answers.clock(None, now) is None
    assert answers.clock("yesterday", now) is None
