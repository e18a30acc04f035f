"""The status page: one document, whose script shows the status that the same address returns as JSON.

Its Content-Security-Policy allows only its style sheet and its script, by their hashes, images in data URLs, and
requests to the daemon. Names, messages and labels come from tenants: the script inserts them as text, never as HTML.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from milo_discoveryd.model.object_state import MEANINGS

_STATES = {
    state.value: {
        "words": meaning.words,
        "tone": meaning.tone,
        "isReady": meaning.is_ready,
        "isUsual": meaning.is_usual,
    }
    for state, meaning in MEANINGS.items()
}
PAGE = (
    Path(__file__)
    .with_name("status_page.html")
    .read_bytes()
    .replace(b"{/* filled in from model/object_state.py */}", json.dumps(_STATES).encode())
)


def _hash(element: str) -> str:
    text = PAGE.partition(f"<{element}>".encode())[2].partition(f"</{element}>".encode())[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash('style')}; script-src {_hash('script')}; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
