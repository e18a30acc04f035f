"""The status as an HTML page.

The page has no script, and its Content-Security-Policy allows its one style sheet only. Names, messages and labels come
from tenants: each is escaped where it is inserted.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import urlencode

import msgspec

from milo_discoveryd.telemetry.status import ClusterQuery, ClusterRow, DaemonStatus

_TEMPLATE = Path(__file__).with_name("status_page.html").read_text(encoding="utf-8")
_STYLE = _TEMPLATE.partition("<style>")[2].partition("</style>")[0]
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_TONES = {"STREAMING": "good", "CATCHING_UP": "poor", "STALE": "bad"}
_STATE_TONES = {"ready": "good", "not_ready": "poor", "malformed": "bad"}
_STATE_WORDS = {
    "ready": "engaged",
    "not_ready": "not ready",
    "outside_selector": "outside the selector",
    "malformed": "malformed",
    "deleted": "deleted",
}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_ROWS_ABOVE = 15
"""Of the tables above the clusters, so that they fit on a screen."""
_LAG_TO_NOTICE = 1_000
_LIFE_TO_NOTICE_S = 120


def to_json(status: DaemonStatus) -> bytes:
    return msgspec.json.encode(status)


def render(status: DaemonStatus, question: ClusterQuery) -> str:
    source, identity, now = status.source, status.identity, status.at
    return Template(_TEMPLATE.replace(_STYLE, _STYLE.replace("$", "$$"))).substitute(
        title=escape(f"{source.state} · {status.engaged} engaged · milo-discoveryd"),
        version=escape(identity.version),
        mode=escape(identity.mode),
        epoch=escape(identity.epoch),
        uptime=_span(now - identity.started_at),
        at=_time(now),
        tone=_TONES.get(source.state, "bad"),
        state=escape(source.state if source.synced else f"{source.state}, no complete list yet"),
        since=f"{_time(source.since)} ({_ago(source.since, now)})",
        last_contact=_last_contact(source.last_contact, now),
        trouble=_trouble(source.reason, source.message),
        facts=_facts(status, question),
        clusters=_clusters(status, question),
        recent_changes=_recent_changes(status),
        subscribers=_subscribers(status),
        credentials=_credentials(status),
        machines=escape("/?" + urlencode({"json": "", **_query(question)})),
    )


def _last_contact(at: float | None, now: float) -> str:
    return "; the source has never answered" if at is None else f"; the source last answered {_ago(at, now)}"


def _trouble(reason: str, message: str) -> str:
    return f"<p>{escape(': '.join(filter(None, (reason, message))))}</p>" if reason or message else ""


def _facts(status: DaemonStatus, question: ClusterQuery) -> str:
    def state(name: str, count: int) -> str:
        chosen = name == question.state
        query = _query(ClusterQuery(search=question.search, state="" if chosen else name))
        classes = " ".join(filter(None, ("chosen" if chosen else "", "warn" if name == "malformed" and count else "")))
        words = escape(_STATE_WORDS.get(name, name))
        # A cluster that is not ready can be engaged as well: in its grace period, or while its deletion is unconfirmed.
        return f'<li><a class="{classes}" href="{escape("/?" + urlencode(query))}"><b>{count}</b> {words}</a></li>'

    def plain(count: int, words: str, *, warn: bool = False) -> str:
        return f'<li><span class="{"warn" if warn else ""}"><b>{count}</b> {words}</span></li>'

    unconfirmed = status.deletions_unconfirmed
    return "".join(
        (
            *(state(name, count) for name, count in sorted(status.counts.items(), key=lambda each: each[0] != "ready")),
            plain(unconfirmed, "deletions to confirm", warn=unconfirmed > 0),
            plain(len(status.subscribers), "subscribers"),
        )
    )


def _clusters(status: DaemonStatus, question: ClusterQuery) -> str:
    form = (
        '<form method="get" action="/">'
        f'<input type="search" name="q" value="{escape(question.search)}" placeholder="name, organization or note" '
        f'aria-label="Search clusters">{_hidden("state", question.state)}<button>Search</button></form>'
    )
    shown = len(status.clusters)
    more = f'<p class="quiet">The first {shown} of {status.matching}; search to see others.</p>'
    table = _table(
        ("name", "state", "since", "organization", "where, or why not"),
        (_cluster(row, status.at) for row in status.clusters),
        "None.",
    )
    return form + table + (more if status.matching > shown else "")


def _cluster(row: ClusterRow, now: float) -> str:
    tone = _STATE_TONES.get(row.state, "")
    words = _STATE_WORDS.get(row.state, row.state)
    if row.engaged and row.state != "ready":
        words, tone = f"engaged, {words}", "poor"
    about = "<br>".join(escape(each) for each in (row.endpoint, *row.notes) if each)
    return (
        f'<td>{escape(row.name)}</td><td><span class="tag {tone}">{escape(words)}</span></td>'
        f'<td class="t">{_ago(row.since, now)}</td><td>{escape(row.organization)}</td><td>{about}</td>'
    )


def _recent_changes(status: DaemonStatus) -> str:
    return _table(
        ("when", "what", "cluster", "why"),
        (
            f'<td class="t">{_ago(each.at, status.at)}</td><td class="t">{escape(each.type)}</td>'
            f'<td class="t">{escape(each.cluster)}</td>'
            f"<td>{escape(': '.join(filter(None, (each.reason, each.message))))}</td>"
            for each in status.recent_changes[:_ROWS_ABOVE]
        ),
        "None since the first complete list.",
    )


def _subscribers(status: DaemonStatus) -> str:
    more = len(status.subscribers) - _ROWS_ABOVE
    table = _table(
        ("since", "lag", "filter"),
        (
            f'<td class="t">{_ago(each.since, status.at)}</td>'
            f'<td><span class="tag {"bad" if each.lag > _LAG_TO_NOTICE else ""}">{each.lag}</span></td>'
            f"<td>{escape(each.wants)}</td>"
            for each in status.subscribers[:_ROWS_ABOVE]
        ),
        "No subscribers.",
    )
    return table + (f'<p class="quiet">And {more} more, none of them further behind.</p>' if more > 0 else "")


def _credentials(status: DaemonStatus) -> str:
    def row(name: str, kind: str, held: int, ends: float | None, trouble: str) -> str:
        ending = ends is not None and ends - status.at < _LIFE_TO_NOTICE_S
        until = "" if ends is None else f"first ends {_ahead(ends, status.at)}"
        tone = "bad" if trouble or ending else "good"
        return (
            f"<td>{escape(name)}</td><td>{escape(kind)}</td><td>{held}</td>"
            f'<td class="t"><span class="tag {"bad" if ending else ""}">{until}</span></td>'
            f'<td><span class="tag {tone}">{"failing" if trouble else "ok"}</span> {escape(trouble)}</td>'
        )

    return _table(
        ("source", "type", "held", "until", "state"),
        (row(each.name, each.type, each.leases, each.expires_at, each.problem) for each in status.credentials),
        "No credential sources.",
    )


def _table(heads: Iterable[str], rows: Iterable[str], nothing: str) -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    if not body:
        return f'<p class="quiet">{nothing}</p>'
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{body}</table>"


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{escape(value)}">' if value else ""


def _query(question: ClusterQuery) -> dict[str, str]:
    return {name: value for name, value in (("q", question.search), ("state", question.state)) if value}


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _ago(at: float, now: float) -> str:
    return f"{_span(now - at)} ago"


def _ahead(at: float, now: float) -> str:
    return f"in {_span(at - now)}" if at >= now else _ago(at, now)


def _span(seconds: float) -> str:
    """A duration in its two largest units: 3 d 4 h, 12 s."""
    left, parts = max(0, int(seconds)), list[str]()
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count and len(parts) < 2:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts) or "0 s"
