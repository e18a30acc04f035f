"""What can be read of a TLS connection without its keys: its records, and the key exchange that a server chooses. Pure.

OpenSSL computes whatever a peer asks for, within one call. These classes see the bytes first.
"""

RECORDS_AT_ONCE = 16
"""Maximum number of records that are decrypted in one iteration of the event loop; they have 256 KiB at most."""
RECORDS_WITHOUT_DATA = 32
"""Maximum number of records without data, such as session tickets and key updates, beyond one for each `_PAYS` bytes of
data. Each can cost a new key and a reply, so more are an attack. Go allows 16 in a row."""
_PAYS = 256
_PIECE = 2 << 10
"""Maximum received bytes that are decrypted at once, because OpenSSL's buffers never shrink."""
_HEADER = 5
_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE = 20, 21, 22
_HELLO_REQUEST, _SERVER_HELLO = 0, 2
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random number of a ServerHello that is a HelloRetryRequest (RFC 8446, 4.1.3)."""
_RANDOM = slice(2, 34)
_KEY_SHARE = 51
_FINITE_FIELDS = range(0x100, 0x200)
"""Groups of finite-field Diffie-Hellman: with ffdhe8192, a handshake costs the client 120 ms."""


class RecordCounter:
    """Counts the records of a stream, and divides it between them."""

    __slots__ = ("_header", "left")

    def __init__(self) -> None:
        self._header = b""
        """The beginning of a header whose end has not arrived."""
        self.left = 0
        """Number of bytes until the next header."""

    def take(self, piece: bytes, most: int) -> tuple[int, int]:
        """Return how much of the next piece of the stream to take, so that at most this many records begin in it, and
        how many begin. Between two records, `most` must not be 0."""
        before = len(self._header)
        data, at, count = self._header + piece, self.left, 0
        while at + _HEADER <= len(data):
            if count == most:
                self._header, self.left = b"", 0
                return at - before, count
            count += 1
            at += _HEADER + (data[at + 3] << 8 | data[at + 4])
        self._header, self.left = data[at:], max(0, at - len(data))
        return len(piece), count


class Reading:
    """Received bytes that wait to be decrypted, and whether they may be."""

    __slots__ = ("_allowed", "_position", "_received", "_records", "is_choked", "is_full", "is_paused", "without_data")

    def __init__(self) -> None:
        self._received = b""
        self._position = 0
        """The beginning of what waits in `_received`."""
        self._records = RecordCounter()
        self._allowed = 0
        """How many more records may begin in this iteration of the event loop."""
        self.without_data = 0
        """Number of records without data that no data has paid for."""
        self.is_paused = False
        """Whether the protocol has paused reading."""
        self.is_full = False
        """Whether the transport below has more to send than it wants to hold."""
        self.is_choked = False
        """Whether nothing is decrypted because the peer does not read the replies of TLS itself."""

    @property
    def has_data(self) -> bool:
        return bool(self._received)

    @property
    def is_blocked(self) -> bool:
        return self.is_paused or self.is_choked

    def add(self, data: bytes) -> None:
        self._received, self._position = self._received[self._position :] + data, 0

    def begin_turn(self) -> None:
        """Allow further records: the event loop has begun another iteration."""
        self._allowed = RECORDS_AT_ONCE

    def take(self) -> bytes:
        """Return the piece to decrypt now; empty if there is none."""
        if self.is_paused or self.is_choked or not (self._allowed or self._records.left):
            return b""
        piece = self._received[self._position : self._position + _PIECE]
        if self._records.left >= _PIECE:  # most pieces of a long record: saves the call
            size = len(piece)
            self._records.left -= size
        else:
            size, begun = self._records.take(piece, self._allowed)
            piece = piece[:size]
            if begun:
                self._allowed -= begun
                self.without_data = max(0, self.without_data) + begun
        self._position += size
        if self._position == len(self._received):
            self._received, self._position = b"", 0
        return piece

    def decrypted(self, size: int) -> None:
        """Count a record with data of this size."""
        self.without_data -= 1 + size // _PAYS


class ServerHello:
    """Reads the first message of a server, and refuses a costly key exchange of TLS 1.3 before OpenSSL computes it.

    In TLS 1.2, the list of ciphers prevents one.
    """

    __slots__ = ("_received", "is_read")

    def __init__(self) -> None:
        self._received = b""
        self.is_read = False

    def read(self, piece: bytes) -> None:
        """Read the next piece of what the server sent, before OpenSSL does. Raises ConnectionAbortedError."""
        self._received += piece
        while not self.is_read and len(self._received) >= _HEADER:
            kind, size = self._received[0], int.from_bytes(self._received[3:_HEADER])
            record, rest = self._received[_HEADER : _HEADER + size], self._received[_HEADER + size :]
            if kind == _HANDSHAKE and len(record) == size:
                self.is_read = _ends_hello(record)
            elif kind not in (_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE):
                self.is_read = True  # not TLS, as OpenSSL reports
            elif len(record) < size:
                return
            self._received = rest


def _ends_hello(record: bytes) -> bool:
    """Return whether the record has the server's first message; TLS 1.2 allows requests to start over before it."""
    while record:
        end = 4 + int.from_bytes(record[1:4])
        if len(record) < end:
            raise ConnectionAbortedError("the server's first TLS message is not in one record")
        kind, message, record = record[0], record[4:end], record[end:]
        if kind != _HELLO_REQUEST:
            if kind == _SERVER_HELLO and message[_RANDOM] == _RETRY and _group(message) in _FINITE_FIELDS:
                raise ConnectionAbortedError(
                    "the server chose finite-field Diffie-Hellman: enable an elliptic curve there, such as X25519"
                )
            return True
    return False


def _group(retry: bytes) -> int:
    """Return the group that a HelloRetryRequest selects; 0 if it selects none."""
    # After the session, the cipher, the compression, and the size of the extensions.
    at = 35 + int.from_bytes(retry[34:35]) + 3 + 2
    while at + 4 <= len(retry):
        kind, size = int.from_bytes(retry[at : at + 2]), int.from_bytes(retry[at + 2 : at + 4])
        if kind == _KEY_SHARE:
            return int.from_bytes(retry[at + 4 : at + 6])
        at += 4 + size
    return 0
