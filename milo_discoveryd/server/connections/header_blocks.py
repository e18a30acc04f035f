"""Limits the header blocks that a client sends over HTTP/2, and counts its frames and the streams that it resets. Pure.

gRPC limits what the fields of a block take, but keeps something of each of its CONTINUATION frames, in any number: a
client that never ends a block takes up to ten times the bytes that it sends.
"""

PREFACE_BYTES = 24
"""The length of the text with which each client begins."""
MOST_CONTINUATIONS = 16
"""Maximum number of CONTINUATION frames of one header block. Clients need none for the longest metadata that gRPC
accepts, or one."""
MOST_BYTES = 32 << 10
"""Maximum bytes of one header block, twice what gRPC accepts. It keeps a string that does not end, about twice."""
FRAME_COST = 0.05
"""What a frame that begins no call costs, in calls: gRPC answers many. Clients send a few for each call and event."""
_HEAD_BYTES = 9
_HEADERS = 1
_RST_STREAM = 3
_CONTINUATION = 9
_END_HEADERS = 4


class HeaderBlocks:
    """The frames of one connection, of which only the heads are read."""

    def __init__(self) -> None:
        self._left = PREFACE_BYTES
        """How many bytes are left until the next head."""
        self._head = b""
        """The beginning of a head whose end has not arrived."""
        self.cost = 0.0
        """What the frames cost, in calls, since a reader of this number set it to 0."""
        self.resets = 0
        """How many streams were reset, likewise."""
        self.begun: list[int] = []
        """Where in the bytes that were read last the frames start that end a header block; 0 if one ends that started
        before."""
        self._ends_later = False
        """Whether a frame that ends a header block has not arrived completely."""
        self._continuations = self._bytes = 0
        """How many continuations the latest header block has so far, and how many bytes."""

    def accepts(self, data: bytes) -> bool:
        """Read the next bytes. Return False if a header block has too many frames, or is too long."""
        self.begun, early = [], len(self._head)
        if self._head:
            data, self._head = self._head + data, b""
        at, end = self._left, len(data) - _HEAD_BYTES
        if self._ends_later and at <= len(data):
            self.begun.append(0)
            self._ends_later = False
        while at <= end:
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind = data[at + 3]
            self.cost += 1 if kind == _HEADERS else FRAME_COST
            if kind in (_HEADERS, _CONTINUATION) and data[at + 4] & _END_HEADERS:
                self._ends_later = at + _HEAD_BYTES + size > len(data)
                if not self._ends_later:
                    self.begun.append(max(0, at - early))
            if kind == _CONTINUATION:
                self._continuations += 1
                self._bytes += size
                if self._continuations > MOST_CONTINUATIONS or self._bytes > MOST_BYTES:
                    return False
            else:
                self._continuations, self._bytes = 0, size
                if kind == _RST_STREAM:
                    self.resets += 1
            at += _HEAD_BYTES + size
        self._head, self._left = data[at:], max(0, at - len(data))
        return True
