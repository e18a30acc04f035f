"""A peer of a TLS 1.3 connection that sends what no TLS library sends, such as any number of key updates."""

import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_APPLICATION_DATA, _HANDSHAKE = 23, 22
_KEY_UPDATE = bytes.fromhex("1800000101")
"""The message KeyUpdate, which requests one in return."""
_OVERHEAD = 17
"""Bytes that encryption adds to a record: its type, and the tag."""


class TlsAttacker:
    """The sending half of a connection that has completed its handshake, and sent nothing else so far.

    `keylog` is the keylog file of either side's context, which must select TLS_AES_256_GCM_SHA384.
    """

    def __init__(self, keylog: Path, *, is_server: bool) -> None:
        label = "SERVER_TRAFFIC_SECRET_0" if is_server else "CLIENT_TRAFFIC_SECRET_0"
        secrets = [line.split()[2] for line in keylog.read_text().splitlines() if line.startswith(label)]
        self._use(bytes.fromhex(secrets[-1]))

    def key_updates(self, count: int) -> bytes:
        """Return key updates, each in a record with another key."""
        return b"".join(self._key_update() for _ in range(count))

    def data(self, content: bytes) -> bytes:
        return self._record(_APPLICATION_DATA, content)

    def _key_update(self) -> bytes:
        record = self._record(_HANDSHAKE, _KEY_UPDATE)
        self._use(_expanded(self._secret, b"traffic upd", 48))
        return record

    def _record(self, kind: int, content: bytes) -> bytes:
        header = b"\x17\x03\x03" + (len(content) + _OVERHEAD).to_bytes(2)
        nonce = (int.from_bytes(self._iv) ^ self._number).to_bytes(12)
        self._number += 1
        return header + AESGCM(self._key).encrypt(nonce, content + bytes([kind]), header)

    def _use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._key, self._iv = _expanded(secret, b"key", 32), _expanded(secret, b"iv", 12)


def tls13(context: ssl.SSLContext, keylog: Path) -> ssl.SSLContext:
    """Prepare a context for a `TlsAttacker`."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.keylog_filename = str(keylog)
    return context


def _expanded(secret: bytes, label: bytes, size: int) -> bytes:
    full = b"tls13 " + label
    info = size.to_bytes(2) + bytes([len(full)]) + full + b"\0"
    return HKDFExpand(SHA384(), size, info).derive(secret)
