"""Server-sent events that keep an open status page up to date.

A viewer is sent the regions of the page that changed, at most once a second, and only when it has read the previous
ones: what it missed is in the next event. A viewer is no subscriber, and takes no place in the notification of these.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator

import msgspec

from milo_discoveryd.telemetry import status_page
from milo_discoveryd.telemetry.board import StatusBoard
from milo_discoveryd.telemetry.status import ClusterQuery, DaemonStatus

INTERVAL_S = 1.0
HEARTBEAT_S = 15.0
RETRY_MS = 2_000
_AGE = re.compile(r"(<time [^>]*>)[^<]*(?=</time>)")


async def live_status(board: StatusBoard, question: ClusterQuery, *, with_names: bool) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events that update the status page, until the client disconnects."""
    yield f"retry: {RETRY_MS}\n\n".encode()
    seen: DaemonStatus | None = None
    shown: dict[str, str] = {}
    sent_at = -HEARTBEAT_S
    while True:
        status = await board.status(question, with_names=with_names)
        is_due = time.monotonic() - sent_at >= HEARTBEAT_S
        if is_due or seen is None or _timeless(status) != _timeless(seen):
            seen = status
            rendered = {}
            for name, render in status_page.regions(status, question).items():
                rendered[name] = _without_ages(render())
                await asyncio.sleep(0)
            changed = {name: html for name, html in rendered.items() if shown.get(name) != html}
            if changed or is_due:
                shown, sent_at = rendered, time.monotonic()
                yield _event(status, changed)
        await asyncio.sleep(INTERVAL_S)


def _event(status: DaemonStatus, regions: dict[str, str]) -> bytes:
    content = {"at": status.at, "title": status_page.title(status), "regions": regions}
    return b"event: status\ndata: " + msgspec.json.encode(content) + b"\n\n"


def _timeless(status: DaemonStatus) -> DaemonStatus:
    """Return the status without what passing time alone changes."""
    source = msgspec.structs.replace(status.source, since=round(status.source.since), last_contact=None)
    return msgspec.structs.replace(status, at=0.0, source=source)


def _without_ages(html: str) -> str:
    """Leave the ages to the script of the page, which counts them on."""
    return _AGE.sub(r"\1", html)
