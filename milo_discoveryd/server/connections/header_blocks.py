"""Limits the header blocks that a client sends over HTTP/2. Pure.

gRPC limits what the fields of a block take, but keeps something of each of its CONTINUATION frames, in any number: a
client that never ends a block takes up to ten times the bytes that it sends.
"""

PREFACE_BYTES = 24
"""The length of the text with which each client begins."""
MOST_CONTINUATIONS = 16
"""Maximum number of CONTINUATION frames of one header block. Clients need none for the longest metadata that gRPC
accepts, or one."""
_HEAD_BYTES = 9
_CONTINUATION = 9


class HeaderBlocks:
    """The frames of one connection, of which only the heads are read."""

    def __init__(self) -> None:
        self._left = PREFACE_BYTES
        """How many bytes are left until the next head."""
        self._head = b""
        self._continuations = 0

    def accepts(self, data: bytes) -> bool:
        """Read the next bytes. Return False if a header block has too many frames."""
        at = 0
        while at + self._left < len(data) or (at < len(data) and not self._left):
            at += self._left
            self._left = 0
            part = data[at : at + _HEAD_BYTES - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) < _HEAD_BYTES:
                return True
            self._left = int.from_bytes(self._head[:3])
            self._continuations = self._continuations + 1 if self._head[3] == _CONTINUATION else 0
            self._head = b""
            if self._continuations > MOST_CONTINUATIONS:
                return False
        self._left -= len(data) - at
        return True
