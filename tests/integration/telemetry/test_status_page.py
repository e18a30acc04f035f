"""The status page as text, and the escaping of untrusted values."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from milo_discoveryd.kubeconfigs.issuer_health import IssuerHealth
from milo_discoveryd.sharding.status import GroupStatus, MemberStatus
from milo_discoveryd.telemetry import status_page
from milo_discoveryd.telemetry.printable import printable_metrics
from milo_discoveryd.telemetry.status import (
    ClusterExplanation,
    ClusterQuery,
    ClusterRow,
    ClusterTransition,
    CredentialSummary,
    DaemonStatus,
    Identity,
    RecentChange,
    ShardSummary,
    SourceSummary,
    SubscriberRow,
)

NOW = 1_800_000_000.0
HOSTILE = "\"><script>alert(1)</script>'&<img src=x onerror=alert(2)>$at"
EVERYTHING = ClusterQuery()


def status(**changes: Any) -> DaemonStatus:
    plain = DaemonStatus(
        at=NOW,
        identity=Identity(version="1.2.3", mode="project", epoch="abc", started_at=NOW - 3 * 86_400 - 4 * 3600),
        source=SourceSummary(
            state="STREAMING", since=NOW - 90, reason="", message="", last_contact=NOW - 12, synced=True
        ),
        engaged=1,
        counts={"malformed": 0, "not_ready": 0, "ready": 1, "outside_selector": 0, "deleted": 0},
        unreachable=0,
        deletions_unconfirmed=0,
        revision=1,
        clusters=(),
        matching=0,
        recent_changes=(),
        subscribers=(),
        credentials=(),
    )
    return msgspec.structs.replace(plain, **changes)


def cluster(**changes: Any) -> ClusterRow:
    return msgspec.structs.replace(ClusterRow(name="alpha", state="ready", engaged=True, since=NOW - 5), **changes)


def explained(**changes: Any) -> ClusterExplanation:
    return msgspec.structs.replace(ClusterExplanation(name="alpha", row=cluster()), **changes)


class Reader(HTMLParser):
    """The text of a page, and its markup."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self._is_hidden = False
        self.feed(page)
        self.words = re.sub(r"\s+", " ", "".join(self._words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_hidden = tag in ("style", "script")
        self._words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._is_hidden = False

    def handle_data(self, data: str) -> None:
        if not self._is_hidden:
            self._words.append(data)


def read(shown: DaemonStatus, question: ClusterQuery = EVERYTHING) -> Reader:
    return Reader(status_page.render(shown, question))


def test_status_page_starts_with_number_of_engaged_clusters() -> None:
    words = Reader(status_page.render(status(), EVERYTHING)).words
    assert "1 engaged 0 unreachable 0 not ready 0 malformed 0 outside the selector 0 deleted" in words


def test_status_page_shows_source_state_and_time() -> None:
    words = read(status()).words
    assert "STREAMING since 2027-01-15 07:58:30 UTC ( 1 min 30 s ago); the source last answered 12 s ago" in words
    assert "1.2.3 · mode project · up 3 d 4 h · run abc" in words


def test_status_page_shows_why_source_is_stale() -> None:
    source = SourceSummary(
        state="STALE", since=NOW - 7200, reason="Forbidden", message="may not list", last_contact=None, synced=False
    )
    words = read(status(source=source)).words
    assert "STALE, no complete list yet since" in words
    assert "( 2 h ago); the source has never answered Forbidden: may not list" in words


def test_status_page_shows_cluster_state_with_endpoint_or_problem() -> None:
    rows = (
        cluster(endpoint="https://alpha.test", organization="acme"),
        cluster(name="beta", state="malformed", engaged=False, notes=("metadata.uid: expected str",)),
        cluster(name="gamma", state="not_ready", notes=("condition Ready is False",)),
    )
    words = read(status(clusters=rows, matching=3)).words
    assert "alpha engaged 5 s ago acme https://alpha.test" in words
    assert "beta malformed 5 s ago metadata.uid: expected str" in words
    assert "gamma engaged, not ready 5 s ago condition Ready is False" in words


def test_status_page_counts_and_marks_unreachable_clusters() -> None:
    words = read(status(clusters=(cluster(unreachable=True),), matching=1, unreachable=2054)).words
    assert "2054 unreachable" in words
    assert "alpha engaged, unreachable" in words


def test_status_page_links_each_cluster_to_its_explanation() -> None:
    gone = RecentChange(at=NOW - 60, type="DISENGAGED", cluster="beta")
    page = read(status(clusters=(cluster(name="a&b"),), matching=1, recent_changes=(gone,)))
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {"/?cluster=a%26b", "/?cluster=beta"} <= links


def test_explanation_shows_reason_history_credential_and_subscribers() -> None:
    found = explained(
        row=cluster(endpoint="https://alpha.test", organization="acme", notes=("being deleted",)),
        uid="u1",
        labels=(("env", "prod"),),
        connectivity="REACHABLE",
        connectivity_since=NOW - 60,
        deletion_requested_at=NOW - 120,
        deletion_waits_for="waiting for finalizers: example.com/cleanup",
        credential=CredentialSummary(issuer="tokens", type="token-request", expires_at=NOW + 600, problem="refused"),
        transitions=(ClusterTransition(at=NOW - 5, type="ENGAGED"),),
        subscribers=(SubscriberRow(since=NOW, lag=3, caller="uid 7", wants="everything"),),
    )
    words = read(status(explanation=found), ClusterQuery(cluster="alpha")).words
    for each in (
        "state engaged since",
        "why being deleted",
        "organization acme",
        "endpoint https://alpha.test",
        "labels env=prod",
        "connectivity REACHABLE since 1 min ago",
        "deletion requested 2 min ago ; waiting for finalizers: example.com/cleanup",
        "credential tokens (token-request): one is held, it ends in 10 min ; failing refused",
        "History when what why 2027-01-15 07:59:55 UTC ( 5 s ago) ENGAGED",
        "Subscribers that receive it caller since lag filter uid 7 0 s ago 3 everything",
    ):
        assert each in words.replace("ago; ", "ago ; ").replace("10 min; ", "10 min ; "), each


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (explained(), "why its readiness condition is True"),
        (explained(), "credential no credential issuer covers it"),
        (explained(), "No subscribers."),
        (explained(credential=CredentialSummary(issuer="a", type="b")), "a (b): none is held: none was requested"),
        (explained(deletion_requested_at=NOW), "its finalizers; the object does not say which"),
        (ClusterExplanation(name="alpha"), "alpha is not known: no object of this name was seen"),
        (None, "Names are not shown to this client: see the setting http_names."),
    ],
)
def test_explanation_of_unknown_cluster_or_empty_history_shows_a_message(
    found: ClusterExplanation | None, words: str
) -> None:
    assert words in read(status(explanation=found), ClusterQuery(cluster="alpha")).words


def test_status_page_shows_reasons_of_changes() -> None:
    gone = RecentChange(
        at=NOW - 60, type="DISENGAGED", cluster="alpha", reason="DELETED", message="the object was deleted"
    )
    assert "1 min ago DISENGAGED alpha DELETED: the object was deleted" in read(status(recent_changes=(gone,))).words


def test_status_page_shows_identity_lag_and_filter_of_subscribers() -> None:
    rows = (SubscriberRow(since=NOW - 30, lag=2000, caller="system:serviceaccount:shop:operator", wants="env=prod"),)
    page = read(status(subscribers=rows))
    assert "system:serviceaccount:shop:operator 30 s ago 2000 env=prod" in page.words
    assert ("span", {"class": "tag bad"}) in page.tags


def test_status_page_shows_slowest_subscribers() -> None:
    rows = tuple(SubscriberRow(since=NOW, lag=100 - number, wants=f"name {number:02}") for number in range(20))
    words = read(status(subscribers=rows)).words
    assert "name 14" in words
    assert "name 15" not in words
    assert "And 5 more, none of them further behind." in words


@pytest.mark.parametrize(
    ("ends", "trouble", "words"),
    [
        (NOW + 600, "", "minted token 3 first ends in 10 min ok"),
        (NOW + 60, "", "minted token 3 first ends in 1 min ok"),
        (NOW - 60, "no answer", "minted token 3 first ends 1 min ago failing no answer"),
        (None, "", "minted token 3 ok"),
    ],
)
def test_status_page_shows_age_and_failures_of_credentials(ends: float | None, trouble: str, words: str) -> None:
    health = IssuerHealth(name="minted", type="token", problem=trouble, expires_at=ends, leases=3)
    assert words in read(status(credentials=(health,))).words


def test_status_page_shows_empty_sections() -> None:
    words = read(status()).words
    for nothing in ("None since the first complete list.", "No subscribers.", "No credential issuers."):
        assert nothing in words


def test_status_page_has_pages_of_clusters() -> None:
    rows = (cluster(),) * 50
    page = read(status(clusters=rows, matching=130), ClusterQuery(search="a", page=2))
    assert "previous 51 to 100 of 130 next" in page.words
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {"/?q=a#clusters", "/?q=a&page=3#clusters"} <= links


@pytest.mark.parametrize(("page", "words"), [(1, "1 to 50 of 130 next"), (3, "previous 101 to 130 of 130")])
def test_status_page_has_no_page_before_the_first_or_after_the_last(page: int, words: str) -> None:
    rows = (cluster(),) * (30 if page == 3 else 50)
    text = read(status(clusters=rows, matching=130), ClusterQuery(page=page)).words
    assert words in text
    assert ("next" in text, "previous" in text) == (page == 1, page == 3)


def test_search_results_come_before_recent_changes() -> None:
    words = read(status(clusters=(cluster(),), matching=1), ClusterQuery(search="alpha")).words
    assert words.index("Clusters") < words.index("Last changes")
    plain = read(status(clusters=(cluster(),), matching=1)).words
    assert plain.index("Last changes") < plain.index("Clusters")


def test_status_page_keeps_search_in_field_and_links() -> None:
    page = read(status(), ClusterQuery(search="a&b", state="deleted"))
    fields = {attributes.get("name"): attributes.get("value") for tag, attributes in page.tags if tag == "input"}
    assert fields == {"q": "a&b", "state": "deleted"}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {"/?q=a%26b&state=engaged#clusters", "/?q=a%26b#clusters", "/?json=&q=a%26b&state=deleted"} <= links
    [body] = [attributes for tag, attributes in page.tags if tag == "body"]
    assert body["data-live"] == "/events?q=a%26b&state=deleted"


def hostile(**changes: Any) -> DaemonStatus:
    row = ClusterRow(
        name=HOSTILE, state=HOSTILE, engaged=True, since=0, organization=HOSTILE, endpoint=HOSTILE, notes=(HOSTILE,)
    )
    subscriber = SubscriberRow(since=0, lag=0, caller=HOSTILE, wants=HOSTILE)
    found = status(
        identity=Identity(version=HOSTILE, mode=HOSTILE, epoch=HOSTILE, started_at=0),
        source=SourceSummary(state=HOSTILE, since=0, reason=HOSTILE, message=HOSTILE, last_contact=0, synced=True),
        clusters=(row,),
        recent_changes=(RecentChange(at=0, type=HOSTILE, cluster=HOSTILE, reason=HOSTILE, message=HOSTILE),),
        subscribers=(subscriber,),
        credentials=(IssuerHealth(name=HOSTILE, type=HOSTILE, problem=HOSTILE, expires_at=0, leases=0),),
        explanation=ClusterExplanation(
            name=HOSTILE,
            row=row,
            uid=HOSTILE,
            labels=((HOSTILE, HOSTILE),),
            connectivity=HOSTILE,
            connectivity_since=0,
            deletion_requested_at=0,
            deletion_waits_for=HOSTILE,
            credential=CredentialSummary(issuer=HOSTILE, type=HOSTILE, problem=HOSTILE),
            transitions=(ClusterTransition(at=0, type=HOSTILE, reason=HOSTILE, message=HOSTILE),),
            subscribers=(subscriber,),
        ),
    )
    return msgspec.structs.replace(found, **changes)


@pytest.mark.parametrize(
    ("question", "values"),
    [(ClusterQuery(search=HOSTILE, state=HOSTILE), 21), (ClusterQuery(cluster=HOSTILE), 25)],
    ids=["lists", "explanation"],
)
def test_status_page_escapes_every_value(question: ClusterQuery, values: int) -> None:
    page = read(hostile(), question)
    assert [tag for tag, _ in page.tags].count("script") == 1, "the page's own markup"
    assert not {tag for tag, _ in page.tags} & {"img"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.words.count("<script>alert(1)</script>") == values, "each value is shown as text"


def test_status_page_shows_characters_that_hide_or_rearrange_text() -> None:
    page = status_page.render(status(clusters=(cluster(organization="a\x1b[2Jb\u202ec\u2066"),)), EVERYTHING)
    assert "a\\x1b[2Jb\\u202ec\\u2066" in page
    assert not {"\x1b", "\u202e", "\u2066"} & set(page)


def test_metrics_have_no_characters_that_hide_or_rearrange_text() -> None:
    encoded = 'm{name="a\x1b[2Jb\u202ec\u2066"} 1.0\nm 2.0\n'.encode()
    assert printable_metrics(encoded).decode() == 'm{name="a\ufffd[2Jb\ufffdc\ufffd"} 1.0\nm 2.0\n'


def test_status_page_has_strict_content_security_policy() -> None:
    policy = dict(part.split(" ", 1) for part in status_page.HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for name in ("style-src", "script-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", policy[name])
    page = status_page.render(status(), EVERYTHING)
    assert " style=" not in page
    assert "http:" not in page
    assert page.count("<script") == 1


def test_status_page_is_available_as_json() -> None:
    found = json.loads(status_page.to_json(status(clusters=(cluster(),))))
    assert found["source"]["state"] == "STREAMING"
    assert [each["name"] for each in found["clusters"]] == ["alpha"]


def sharded(**changes: Any) -> DaemonStatus:
    members = tuple(
        MemberStatus(name=name, weight=1.0, is_in_view=True, is_alive=True, is_leaving=False, acknowledged=acknowledged)
        for name, acknowledged in (("operator-0", 7), ("operator-1", 6))
    )
    group = GroupStatus(group="dns", member="operator-0", view=7, is_settled=False, members=members)
    found = ShardSummary(
        group=msgspec.structs.replace(group, problem=changes.pop("problem", "")),
        owns=changes.pop("owns", True),
        draining=2,
        unowned=3,
    )
    return status(sharding=found, counts={"unassigned": 5}, **changes)


def test_status_page_shows_shard_members_and_the_own_share() -> None:
    read = Reader(status_page.render(sharded(engaged=9), EVERYTHING))
    share = "This daemon: 9 clusters engaged, 2 of them draining; 3 not engaged yet."
    assert f"Shard group dns View 7, changing. {share}" in read.words
    assert "operator-0 (this daemon) 1 in the view 7 operator-1 1 in the view 6" in read.words
    assert "5 owned by other members" in read.words


def test_status_page_explains_a_shard_member_without_clusters() -> None:
    read = Reader(status_page.render(sharded(owns=False, problem=HOSTILE), EVERYTHING))
    assert "owns nothing at present" in read.words
    assert HOSTILE in read.words


def test_status_page_without_shard_group_has_no_shard_section() -> None:
    assert "Shard group" not in Reader(status_page.render(status(), EVERYTHING)).words


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"is_alive": False}, "not running"), ({"is_leaving": True}, "leaving"), ({"is_in_view": False}, "joining")],
)
def test_status_page_shows_the_state_of_a_shard_member(changes: dict[str, bool], words: str) -> None:
    of = sharded()
    assert of.sharding is not None
    member = msgspec.structs.replace(of.sharding.group.members[0], **changes)
    group = msgspec.structs.replace(of.sharding.group, members=(member,))
    shown = status(sharding=msgspec.structs.replace(of.sharding, group=group), counts={"unassigned": 0})
    assert f"operator-0 (this daemon) 1 {words} 7" in Reader(status_page.render(shown, EVERYTHING)).words
