"""RSA certificates and keys of any size, which OpenSSL loads: it compares the modulus and the exponent alone."""

import base64
import datetime as dt
import time
from collections.abc import Sequence
from random import Random

from cryptography.x509 import Name, NameAttribute
from cryptography.x509.oid import NameOID

SEQUENCE, INTEGER, BITS, OCTETS, OID = 0x30, 0x02, 0x03, 0x04, 0x06
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
_SHA256_WITH_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")
_VERSION_3 = bytes.fromhex("a003020102")


class GiantPair:
    """A certificate for 12 hours and its key, in PEM. Its numbers are random, but the same for the same size."""

    def __init__(self, bits: int, at: float | None = None) -> None:
        """`at`: the time from which the certificate is valid, by default now."""
        random = Random(bits)
        modulus, secret, *others = (_number_of(size, random) for size in (bits, bits, *[bits // 2] * 5))
        self._numbers = [0, modulus, 65537, secret, *others]
        self.key = traditional_key(self._numbers)
        self.key_in_pkcs8 = pem("PRIVATE KEY", field(SEQUENCE, _number(0), _RSA, field(OCTETS, _key(self._numbers))))
        self.certificate = pem("CERTIFICATE", _certificate(modulus, 65537, time.time() if at is None else at))


def traditional_key(numbers: Sequence[int]) -> bytes:
    """Return the key with these numbers: version, n, e, d, p, q, d mod (p-1), d mod (q-1) and the coefficient."""
    return pem("RSA PRIVATE KEY", _key(numbers))


def pem(label: str, content: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n".encode() + base64.encodebytes(content) + f"-----END {label}-----\n".encode()


def field(tag: int, *parts: bytes) -> bytes:
    """Return a field of an ASN.1 structure in DER."""
    content = b"".join(parts)
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag]) + (bytes([size]) if size < 0x80 else bytes([0x80 + len(length)]) + length) + content


def _key(numbers: Sequence[int]) -> bytes:
    return field(SEQUENCE, *map(_number, numbers))


def _certificate(modulus: int, exponent: int, at: float) -> bytes:
    now = dt.datetime.fromtimestamp(at, dt.UTC)
    name = Name([NameAttribute(NameOID.COMMON_NAME, "giant")]).public_bytes()
    validity = (
        field(0x17, moment.strftime("%y%m%d%H%M%SZ").encode()) for moment in (now, now + dt.timedelta(hours=12))
    )
    public = field(SEQUENCE, _number(modulus), _number(exponent))
    signed = field(
        SEQUENCE,
        *(_VERSION_3, _number(1), _SHA256_WITH_RSA, name, field(SEQUENCE, *validity), name),
        field(SEQUENCE, _RSA, field(BITS, b"\0", public)),
    )
    return field(SEQUENCE, signed, _SHA256_WITH_RSA, field(BITS, bytes(257)))


def _number(value: int) -> bytes:
    return field(INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def _number_of(bits: int, random: Random) -> int:
    return random.getrandbits(bits) | 1 | 1 << (bits - 1)
