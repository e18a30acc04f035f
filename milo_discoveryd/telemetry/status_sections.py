"""The sections of the status page as HTML. Every value is escaped where it is inserted."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from milo_discoveryd.registry.cluster_records import ObjectState
from milo_discoveryd.sharding.status import MemberStatus
from milo_discoveryd.telemetry.printable import escape
from milo_discoveryd.telemetry.status import (
    ENGAGED,
    PAGE_SIZE,
    UNREACHABLE,
    ClusterExplanation,
    ClusterQuery,
    ClusterRow,
    CredentialSummary,
    DaemonStatus,
    SourceRow,
    SubscriberRow,
)

_TONES = {"STREAMING": "good", "CATCHING_UP": "poor", "STALE": "bad"}
_STATE_TONES = {
    "ready": "good",
    "not_ready": "poor",
    "malformed": "bad",
    "refused": "bad",
    "disengaged_unreachable": "bad",
}
_CHANGE_TONES = {"ENGAGED": "good", "UPDATED": "plain", "DISENGAGED": "bad"}
_STATE_WORDS = {
    "ready": "engaged",
    "not_ready": "not ready",
    "outside_selector": "outside the selector",
    "malformed": "malformed",
    "disengaged_unreachable": "disengaged: unreachable",
    "deleted": "deleted",
    "unassigned": "owned by another member",
}
_FACTS = ("not_ready", "malformed", "outside_selector", "deleted")
"""States of objects with a count of their own, besides engaged and unreachable clusters."""
REFUSED, UNASSIGNED = ObjectState.REFUSED.value, ObjectState.UNASSIGNED.value
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_ROWS_ABOVE = 15
"""Rows of the tables beside the clusters, so that these fit on a screen."""
_LAG_TO_NOTICE = 1_000
_LIFE_TO_NOTICE_S = 120

Cell = str
"""The HTML of a cell."""


def banner(status: DaemonStatus) -> str:
    source, now = status.source, status.at
    answered = (
        "the source has never answered"
        if source.last_contact is None
        else f"the source last answered {ago(source.last_contact, now)}"
    )
    problem = escape(": ".join(filter(None, (source.reason, source.message))))
    alike = [each.name for each in status.sources if each.summary.state == source.state]
    named = f"source {', '.join(alike)}: " if len(alike) < len(status.sources) else ""
    state = escape(named + (source.state if source.synced else f"{source.state}, no complete list yet"))
    return (
        f'<div class="banner {_TONES.get(source.state, "bad")}"><b>{state}</b> since {moment(source.since)} '
        f"({ago(source.since, now)}); {answered}{f'<p>{problem}</p>' if problem else ''}</div>"
    )


def facts(status: DaemonStatus, question: ClusterQuery) -> str:
    def state(name: str, count: int, words: str) -> str:
        chosen = name == question.state
        link = _link(ClusterQuery(search=question.search, state="" if chosen else name))
        warn = name in ("malformed", "refused", UNREACHABLE) and count
        classes = " ".join(filter(None, ("chosen" if chosen else "", "warn" if warn else "")))
        return f'<li><a class="{classes}" href="{link}"><b>{count}</b> {escape(words)}</a></li>'

    def plain(count: int, words: str, *, warn: bool = False) -> str:
        return f'<li><span class="{"warn" if warn else ""}"><b>{count}</b> {words}</span></li>'

    refused, unconfirmed = status.counts.get(REFUSED, 0), status.deletions_unconfirmed
    parts = (
        state(ENGAGED, status.engaged, "engaged"),
        state(UNREACHABLE, status.unreachable, "unreachable"),
        *(state(name, status.counts.get(name, 0), _STATE_WORDS[name]) for name in _FACTS),
        *([state(REFUSED, refused, "of other organizations")] if refused else []),
        *([] if status.sharding is None else [state(UNASSIGNED, status.counts[UNASSIGNED], "owned by other members")]),
        plain(unconfirmed, "deletions to confirm", warn=unconfirmed > 0),
        plain(len(status.subscribers), "subscribers"),
    )
    return f'<ul class="facts">{"".join(parts)}</ul>'


def search(question: ClusterQuery) -> str:
    return (
        '<form method="get" action="/#clusters">'
        f'<input type="search" name="q" value="{escape(question.search)}" '
        'placeholder="name, organization, note or label=value" '
        f'aria-label="Search clusters">{_hidden("state", question.state)}<button>Search</button></form>'
    )


def clusters(status: DaemonStatus, question: ClusterQuery) -> str:
    now = status.at
    table = _table(
        ("name", "state", "since", "organization", "endpoint, or why not"),
        (
            (
                name_link(row.name),
                _state(row),
                ago(row.since, now),
                escape(row.organization),
                "<br>".join(escape(each) for each in (row.endpoint, *row.notes) if each),
            )
            for row in status.clusters
        ),
        "No cluster matches." if question.is_selective else "None.",
    )
    return table + _pages(question, status.matching, len(status.clusters))


def recent_changes(status: DaemonStatus) -> str:
    return _table(
        ("when", "what", "cluster", "why"),
        (
            (
                ago(each.at, status.at),
                _tag(each.type, _CHANGE_TONES.get(each.type, "")),
                name_link(each.cluster),
                escape(": ".join(filter(None, (each.reason, each.message)))),
            )
            for each in status.recent_changes[:_ROWS_ABOVE]
        ),
        "None since the first complete list.",
    )


def subscribers(rows: Sequence[SubscriberRow], now: float) -> str:
    more = len(rows) - _ROWS_ABOVE
    table = _table(
        ("caller", "since", "lag", "filter"),
        (
            (
                escape(each.caller),
                ago(each.since, now),
                _tag(str(each.lag), "bad" if each.lag > _LAG_TO_NOTICE else "plain"),
                escape(each.wants),
            )
            for each in rows[:_ROWS_ABOVE]
        ),
        "No subscribers.",
    )
    return table + (f'<p class="quiet">And {more} more, none of them further behind.</p>' if more > 0 else "")


def sources(status: DaemonStatus) -> str:
    """Return the table of sources; nothing if there is one."""

    def row(of: SourceRow) -> tuple[Cell, ...]:
        summary = of.summary
        state = summary.state if summary.synced else f"{summary.state}, no complete list yet"
        problem = ": ".join(filter(None, (summary.reason, summary.message)))
        tone = _TONES.get(summary.state, "bad")
        return (
            escape(of.name),
            escape(" in context ".join(filter(None, (of.kind, of.context)))),
            str(of.engaged),
            f"{_tag(escape(state), tone)} {escape(problem)}",
            ago(summary.since, status.at),
        )

    if not status.sources:
        return ""
    return "<h2>Sources</h2>" + _table(("name", "kind", "engaged", "state", "since"), map(row, status.sources), "")


def sharding(status: DaemonStatus) -> str:
    """Return the members of the shard group; nothing if there is none."""
    found = status.sharding
    if found is None:
        return ""
    group = found.group

    def row(of: MemberStatus) -> tuple[Cell, ...]:
        return (
            f"{escape(of.name)}{' (this daemon)' if of.name == group.member else ''}",
            f"{of.weight:g}",
            _member_state(of),
            _tag(str(of.acknowledged), "good" if of.acknowledged == group.view else "poor"),
        )

    settled = _tag("settled", "good") if group.is_settled else _tag("changing", "poor")
    own = f"{status.engaged} clusters engaged" if found.owns else _tag("owns nothing at present", "bad")
    share = f"{own}, {found.draining} of them draining; {found.unowned} not engaged yet"
    problem = f"<p>{_tag('problem', 'bad')} {escape(group.problem)}</p>" if group.problem else ""
    return (
        f"<h2>Shard group {escape(group.group)}</h2>"
        f"<p>View {group.view}, {settled}. This daemon: {share}.</p>{problem}"
        + _table(("member", "weight", "state", "acknowledged view"), map(row, group.members), "No members.")
    )


def _member_state(of: MemberStatus) -> str:
    if not of.is_alive:
        return _tag("not running", "bad")
    if of.is_leaving:
        return _tag("leaving", "poor")
    return _tag("in the view", "good") if of.is_in_view else _tag("joining", "poor")


def credentials(status: DaemonStatus) -> str:
    now = status.at

    def row(name: str, kind: str, held: int, ends: float | None, problem: str) -> tuple[Cell, ...]:
        is_ending = ends is not None and ends - now < _LIFE_TO_NOTICE_S
        until = "" if ends is None else f"first ends {ago(ends, now)}"
        state = _tag("failing" if problem else "ok", "bad" if problem or is_ending else "good")
        tone = "bad" if is_ending else "plain"
        return (
            escape(name),
            escape(kind),
            str(held),
            f'<span class="tag {tone}">{until}</span>',
            f"{state} {escape(problem)}",
        )

    return _table(
        ("issuer", "type", "held", "until", "state"),
        (row(each.name, each.type, each.leases, each.expires_at, each.problem) for each in status.credentials),
        "No credential issuers.",
    )


def explanation(status: DaemonStatus, name: str) -> str:
    found, now = status.explanation, status.at
    if found is None:
        return '<p class="quiet">Names are not shown to this client: see the setting http_names.</p>'
    if found.row is None:
        words = f"{name} is not known: no object of this name was seen, or it was deleted long ago."
        return f'<p class="quiet">{escape(words)}</p>'
    history = _table(
        ("when", "what", "why"),
        (
            (
                f"{moment(each.at)} ({ago(each.at, now)})",
                _tag(each.type, _CHANGE_TONES.get(each.type, "")),
                escape(": ".join(filter(None, (each.reason, each.message)))),
            )
            for each in found.transitions
        ),
        "It was never engaged.",
    )
    details = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in _details(found, found.row, now) if text)
    receivers = subscribers(found.subscribers, now)
    return f"<dl>{details}</dl><h2>History</h2>{history}<h2>Subscribers that receive it</h2>{receivers}"


def _details(found: ClusterExplanation, row: ClusterRow, now: float) -> Iterable[tuple[str, str]]:
    yield "state", f"{_state(row)} since {moment(row.since)} ({ago(row.since, now)})"
    yield "why", "<br>".join(map(escape, row.notes)) or ("its readiness condition is True" if row.engaged else "")
    yield "organization", escape(row.organization)
    yield "endpoint", escape(row.endpoint)
    yield "UID", escape(found.uid)
    yield "labels", escape(", ".join(f"{key}={value}" for key, value in found.labels))
    if found.connectivity:
        since = "" if found.connectivity_since is None else f" since {ago(found.connectivity_since, now)}"
        yield "connectivity", f"{escape(found.connectivity)}{since}"
    if found.deletion_requested_at is not None:
        waits = escape(found.deletion_waits_for) or "its finalizers; the object does not say which"
        yield "deletion", f"requested {ago(found.deletion_requested_at, now)}; {waits}"
    if row.engaged:
        yield "credential", _credential(found.credential, now)


def _credential(held: CredentialSummary | None, now: float) -> str:
    if held is None:
        return "no credential issuer covers it"
    until = (
        "none is held: none was requested"
        if held.expires_at is None
        else f"one is held, it ends {ago(held.expires_at, now)}"
    )
    problem = f"; {_tag('failing', 'bad')} {escape(held.problem)}" if held.problem else ""
    return f"{escape(held.issuer)} ({escape(held.type)}): {until}{problem}"


def _state(row: ClusterRow) -> str:
    words, tone = _STATE_WORDS.get(row.state, row.state), _STATE_TONES.get(row.state, "plain")
    if row.engaged and row.state != "ready":
        words, tone = f"engaged, {words}", "poor"
    if row.engaged and row.unreachable:
        words, tone = f"{words}, unreachable", "bad"
    return _tag(words, tone)


def _pages(question: ClusterQuery, matching: int, shown: int) -> str:
    if matching <= shown:
        return ""
    first = question.first_row(matching)
    page = first // PAGE_SIZE + 1

    def link(number: int, words: str) -> str:
        target = ClusterQuery(search=question.search, state=question.state, page=number)
        return f'<a href="{_link(target)}">{words}</a>'

    before = link(page - 1, "previous") if page > 1 else ""
    after = link(page + 1, "next") if page < question.pages(matching) else ""
    return f"<nav>{before}<span>{first + 1} to {first + shown} of {matching}</span>{after}</nav>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], nothing: str) -> str:
    """Return a table, whose `rows` have cells of HTML. On narrow screens each cell is a line that begins with its
    head.
    """

    def cells(row: Sequence[Cell]) -> str:
        return "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in zip(heads, row, strict=True))

    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    if not body:
        return f'<p class="quiet">{nothing}</p>'
    names = "".join(f"<th>{head}</th>" for head in heads)
    return f'<table><tr class="heads">{names}</tr>{body}</table>'


def _tag(words: str, tone: str) -> str:
    return f'<span class="tag {tone}">{escape(words)}</span>'


def name_link(name: str) -> str:
    return f'<a href="/?cluster={quote(name)}">{escape(name)}</a>'


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{escape(value)}">' if value else ""


def query(question: ClusterQuery) -> Mapping[str, str]:
    """Return the parameters of a URL for the question."""
    page = str(question.page) if question.page > 1 else ""
    given = (("q", question.search), ("state", question.state), ("page", page), ("cluster", question.cluster))
    return {name: value for name, value in given if value}


def _link(question: ClusterQuery) -> str:
    return escape(f"/?{urlencode(query(question))}#clusters")


def moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(at: float, now: float) -> str:
    """Return a time that the script of the page counts on."""
    words = f"in {_span(at - now)}" if at > now else f"{_span(now - at)} ago"
    return f'<time data-at="{at:.0f}">{words}</time>'


def elapsed(since: float, now: float) -> str:
    return f'<time data-at="{since:.0f}" data-form="span">{_span(now - since)}</time>'


def _span(seconds: float) -> str:
    """Format a duration in its two largest units: 3 d 4 h, 12 s."""
    left, parts = max(0, int(seconds)), list[str]()
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count and len(parts) < 2:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts) or "0 s"
