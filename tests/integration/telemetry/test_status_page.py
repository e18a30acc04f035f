"""The page as text: what it says, and that nothing of a tenant's making becomes markup."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from milo_discoveryd.kubeconfigs.source_health import SourceHealth
from milo_discoveryd.telemetry import status_page
from milo_discoveryd.telemetry.status import (
    ClusterQuery,
    ClusterRow,
    DaemonStatus,
    Identity,
    RecentChange,
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


class Reader(HTMLParser):
    """The words on a page, and its markup apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self._in_style = False
        self.feed(page)
        self.words = re.sub(r"\s+", " ", "".join(self._words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"
        self._words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self._words.append(data)


def read(shown: DaemonStatus, question: ClusterQuery = EVERYTHING) -> Reader:
    return Reader(status_page.render(shown, question))


def test_status_page_starts_with_number_of_engaged_clusters() -> None:
    words = Reader(status_page.render(status(), EVERYTHING)).words
    assert "1 engaged 0 malformed 0 not ready 0 outside the selector 0 deleted" in words


def test_status_page_shows_source_state_and_time() -> None:
    words = read(status()).words
    assert "STREAMING since 2027-01-15 07:58:30 UTC (1 min 30 s ago); the source last answered 12 s ago" in words
    assert "1.2.3 · mode project · up 3 d 4 h · run abc" in words


def test_status_page_shows_why_source_is_stale() -> None:
    source = SourceSummary(
        state="STALE", since=NOW - 7200, reason="Forbidden", message="may not list", last_contact=None, synced=False
    )
    words = read(status(source=source)).words
    assert "STALE, no complete list yet since" in words
    assert "(2 h ago); the source has never answered Forbidden: may not list" in words


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


def test_status_page_shows_reasons_of_changes() -> None:
    gone = RecentChange(
        at=NOW - 60, type="DISENGAGED", cluster="alpha", reason="DELETED", message="the object was deleted"
    )
    assert "1 min ago DISENGAGED alpha DELETED: the object was deleted" in read(status(recent_changes=(gone,))).words


def test_status_page_shows_lag_and_filter_of_subscribers() -> None:
    rows = (SubscriberRow(since=NOW - 30, lag=2000, wants="env=prod"),)
    page = read(status(subscribers=rows))
    assert "30 s ago 2000 env=prod" in page.words
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
def test_credentials_have_their_age_and_their_trouble(ends: float | None, trouble: str, words: str) -> None:
    health = SourceHealth(name="minted", type="token", problem=trouble, expires_at=ends, leases=3)
    assert words in read(status(credentials=(health,))).words


def test_status_page_shows_empty_sections() -> None:
    words = read(status()).words
    for nothing in ("None since the first complete list.", "No subscribers.", "No credential sources."):
        assert nothing in words


def test_status_page_limits_number_of_clusters() -> None:
    assert "The first 1 of 700; search to see others." in read(status(clusters=(cluster(),), matching=700)).words


def test_status_page_keeps_search_in_field_and_links() -> None:
    page = read(status(), ClusterQuery(search="a&b", state="deleted"))
    fields = {attributes.get("name"): attributes.get("value") for tag, attributes in page.tags if tag == "input"}
    assert fields == {"q": "a&b", "state": "deleted"}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {"/?q=a%26b&state=ready", "/?q=a%26b", "/?json=&q=a%26b&state=deleted"} <= links


def test_status_page_escapes_every_value() -> None:
    hostile = status(
        identity=Identity(version=HOSTILE, mode=HOSTILE, epoch=HOSTILE, started_at=0),
        source=SourceSummary(state=HOSTILE, since=0, reason=HOSTILE, message=HOSTILE, last_contact=0, synced=True),
        counts={HOSTILE: 1},
        clusters=(
            ClusterRow(
                name=HOSTILE, state=HOSTILE, engaged=True, since=0, organization=HOSTILE, endpoint=HOSTILE,
                notes=(HOSTILE,),
            ),
        ),
        recent_changes=(RecentChange(at=0, type=HOSTILE, cluster=HOSTILE, reason=HOSTILE, message=HOSTILE),),
        subscribers=(SubscriberRow(since=0, lag=0, wants=HOSTILE),),
        credentials=(SourceHealth(name=HOSTILE, type=HOSTILE, problem=HOSTILE, expires_at=0, leases=0),),
    )  # fmt: skip
    page = read(hostile, ClusterQuery(search=HOSTILE, state=HOSTILE))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.words.count("<script>alert(1)</script>") == 21, "each value is shown, as text"


def test_status_page_has_strict_content_security_policy() -> None:
    policy = status_page.HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    page = status_page.render(status(), EVERYTHING)
    assert " style=" not in page
    assert "http:" not in page
    assert "<script" not in page


def test_status_page_is_available_as_json() -> None:
    found = json.loads(status_page.to_json(status(clusters=(cluster(),))))
    assert found["source"]["state"] == "STREAMING"
    assert [each["name"] for each in found["clusters"]] == ["alpha"]
