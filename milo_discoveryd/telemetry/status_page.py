"""The status as an HTML page that keeps itself up to date.

The page is one document: its Content-Security-Policy allows its one style sheet and its one script, by their hashes,
and requests to the daemon alone. The server renders everything; the script only replaces regions by newer HTML, and
counts times on. Without it the page reloads. Names, messages and labels come from tenants: each is escaped where it is
inserted.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from string import Template
from urllib.parse import urlencode

import msgspec

from milo_discoveryd.telemetry import status_sections as sections
from milo_discoveryd.telemetry.printable import escape
from milo_discoveryd.telemetry.status import ClusterQuery, DaemonStatus
from milo_discoveryd.telemetry.status_sections import elapsed, moment

_TEMPLATE = Path(__file__).with_name("status_page.html").read_text(encoding="utf-8")
_STYLE = _TEMPLATE.partition("<style>")[2].partition("</style>")[0]
_SCRIPT = _TEMPLATE.partition("<script>")[2].partition("</script>")[0]
_PAGE = Template(_TEMPLATE.replace(_STYLE, "$style").replace(_SCRIPT, "$script"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def to_json(status: DaemonStatus) -> bytes:
    return msgspec.json.encode(status)


def title(status: DaemonStatus) -> str:
    return f"{status.source.state} · {status.engaged} engaged · milo-discoveryd"


def regions(status: DaemonStatus, question: ClusterQuery) -> Mapping[str, Callable[[], str]]:
    """Return functions that render the parts of the page that change, by name."""
    always = {"banner": partial(sections.banner, status), "facts": partial(sections.facts, status, question)}
    if question.cluster:
        return always | {"explanation": partial(sections.explanation, status, question.cluster)}
    return always | {
        "sources": partial(sections.sources, status),
        "sharding": partial(sections.sharding, status),
        "clusters": partial(sections.clusters, status, question),
        "changes": partial(sections.recent_changes, status),
        "subscribers": partial(sections.subscribers, status.subscribers, status.at),
        "credentials": partial(sections.credentials, status),
    }


def render(status: DaemonStatus, question: ClusterQuery) -> str:
    identity, query = status.identity, sections.query(question)
    return _PAGE.substitute(
        style=_STYLE,
        script=_SCRIPT,
        title=escape(title(status)),
        version=escape(identity.version),
        mode=escape(" in context ".join(filter(None, (identity.mode, status.context)))),
        epoch=escape(identity.epoch),
        uptime=elapsed(identity.started_at, status.at),
        at=moment(status.at),
        now=f"{status.at:.3f}",
        live=escape("/events?" + urlencode(query)),
        machines=escape("/?" + urlencode({"json": "", **query})),
        main=_main(regions(status, question), question),
    )


def _main(found: Mapping[str, Callable[[], str]], question: ClusterQuery) -> str:
    def region(name: str) -> str:
        return f'<div data-region="{name}">{found[name]()}</div>'

    top = region("banner") + region("facts")
    if question.cluster:
        return f"{top}<h2>{escape(question.cluster)}</h2>{region('explanation')}"
    lists = [
        f'<h2 id="clusters">Clusters</h2>{sections.search(question)}{region("clusters")}',
        f"<h2>Last changes</h2>{region('changes')}",
        f"<h2>Subscribers</h2>{region('subscribers')}",
        f"<h2>Credentials</h2>{region('credentials')}",
    ]
    # The results of a search come first; without one, the last changes.
    top += region("sources") + region("sharding")
    return top + "".join(lists if question.is_selective else [*lists[1:], lists[0]])
