"""Text from tenants and callers for logs and metrics: control characters and bidirectional overrides
could hide or rearrange what an administrator reads."""

import re

# Newlines separate the lines of metrics.
_HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def printable(text: str) -> str:
    """Escape the characters that are not visible."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def printable_metrics(encoded: bytes) -> bytes:
    """Replace the characters that are not visible in metrics, whose labels have an escape for none of them."""
    return _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", encoded.decode()).encode()
